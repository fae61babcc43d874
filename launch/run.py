"""One run: a memory and a seed, trained into a folder, evaluated, and resumable."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engram.agents import checkpoint
from engram.agents.training import Report, Training
from engram.launch.build import EVALUATION_SEED, build_agent, build_stream, build_training
from engram.launch.evaluation import Evaluation, as_json, evaluate
from engram.launch.files import write_json
from engram.launch.folder import check, claim, forget_after, locked, read_config


@dataclass(frozen=True)
class Job:
    """What one run is made of."""

    memory: str
    seed: int
    tree: dict[str, Any]
    budget: int
    device: str
    folder: Path
    resume: bool

    @property
    def name(self) -> str:
        """How the run is called in tables."""
        return f"{self.memory} seed {self.seed}"


def run_job(
    job: Job, *, report: Callable[[Report], None], stopping: Callable[[], bool]
) -> Evaluation | None:
    """Train and evaluate.

    The folder gets `config.json`, `metrics.jsonl` (a line per rollout), TensorBoard events,
    `checkpoint.safetensors` and, at the end, `evaluation.json`.

    Args:
        job: What to run.
        report: Called after every rollout.
        stopping: Asked after every rollout; once true, the run is saved and left.

    Returns:
        The evaluation, or None if the run was stopped before it was made.

    Raises:
        EngramError: If the folder holds a run and `resume` is false, or another run, or if
            another process writes to it.
    """
    with locked(job.folder):
        check(job.folder, job.tree, resume=job.resume)
        device = torch.device(job.device)
        training = build_training(job.tree, device=device, seed=job.seed, budget=job.budget)
        try:
            return _run(job, training, report, stopping)
        finally:
            training.collector.close()


def _run(
    job: Job, training: Training, report: Callable[[Report], None], stopping: Callable[[], bool]
) -> Evaluation | None:
    path = job.folder / "checkpoint.safetensors"
    if job.resume and path.exists():
        training.load(path)
    forget_after(job.folder, training.steps)
    claim(job.folder, job.memory, job.seed, job.tree)
    if not training.finished:
        _train(job, training, path, report, stopping)
    if not training.finished:
        return None
    device = training.device
    stream = build_stream(
        job.tree,
        num_envs=job.tree["evaluation"]["num_envs"],
        device=device,
        seed=job.seed + EVALUATION_SEED,
        evaluation=True,
    )
    result = evaluate(
        training.policy,
        stream,
        episodes=job.tree["evaluation"]["episodes"],
        greedy=job.tree["evaluation"]["greedy"],
        seed=job.seed + EVALUATION_SEED,
        stopping=stopping,
    )
    stream.env.close()
    if result is None:
        return None
    facts = {
        "memory": job.memory,
        "seed": job.seed,
        "steps": training.steps,
        "seconds": training.seconds,
        "parameters": sum(p.numel() for p in training.policy.parameters()),
        "chance": getattr(stream.env, "chance", None),
        "optimum": getattr(stream.env, "optimum", None),
    }
    write_json(job.folder / "evaluation.json", {**facts, **as_json(result)})
    return result


def load_policy(folder: Path, device: torch.device) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Rebuild a run's policy from its folder; return it, its configuration and its facts."""
    config = read_config(folder)
    tensors, facts = checkpoint.read(folder / "checkpoint.safetensors", device)
    stream = build_stream(config["tree"], num_envs=1, device=device, seed=0, evaluation=False)
    policy = build_agent(config["tree"], stream, seed=0)
    checkpoint.load_module(
        policy, checkpoint.part(tensors, "policy"), folder / "checkpoint.safetensors"
    )
    stream.env.close()
    return policy, config, facts


def _train(
    job: Job,
    training: Training,
    path: Path,
    report: Callable[[Report], None],
    stopping: Callable[[], bool],
) -> None:
    """Spend the budget, writing metrics after every rollout and checkpoints now and then."""
    from torch.utils.tensorboard.writer import SummaryWriter

    facts = {"memory": job.memory, "seed": job.seed}
    writer = SummaryWriter(str(job.folder), purge_step=training.steps)
    saved = time.monotonic()
    with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        while not training.finished:
            result = training.iterate()
            lines.write(json.dumps(_finite(result)) + "\n")
            lines.flush()
            for name, value in result.items():
                if name != "steps" and math.isfinite(value):
                    writer.add_scalar(name, value, training.steps)
            report(result)
            stop = stopping()
            if (
                stop
                or training.finished
                or time.monotonic() - saved > job.tree["checkpoint_seconds"]
            ):
                training.save(path, facts)
                saved = time.monotonic()
            if stop:
                break
    writer.close()


def _finite(report: Report) -> dict[str, float | int | None]:
    return {name: value if math.isfinite(value) else None for name, value in report.items()}
