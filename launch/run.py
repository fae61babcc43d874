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
from engram.launch.config import UsageError
from engram.launch.evaluation import Evaluation, as_json, evaluate
from engram.launch.files import read_json, write, write_json

FREE = {
    "threads",
    "budget",
    "seeds",
    "device",
    "out",
    "resume",
    "workers",
    "memories",
    "checkpoint_seconds",
}
"""Keys that may change between a run and its continuation."""


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
        The evaluation, or None if the run was stopped before its budget was spent.

    Raises:
        EngramError: If the folder holds a run and `resume` is false, or another run.
    """
    device = torch.device(job.device)
    path = job.folder / "checkpoint.safetensors"
    _claim(job)
    training = build_training(job.tree, device=device, seed=job.seed, budget=job.budget)
    if job.resume and path.exists():
        training.load(path)
    metrics = job.folder / "metrics.jsonl"
    _forget_after(metrics, training.steps)
    if not training.finished:
        _train(job, training, path, metrics, report, stopping)
    if not training.finished:
        return None
    stream = build_stream(
        job.tree,
        num_envs=int(job.tree["evaluation"]["num_envs"]),
        device=device,
        seed=job.seed + EVALUATION_SEED,
        evaluation=True,
    )
    result = evaluate(
        training.policy,
        stream,
        episodes=int(job.tree["evaluation"]["episodes"]),
        greedy=bool(job.tree["evaluation"]["greedy"]),
        seed=job.seed + EVALUATION_SEED,
    )
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
    training.stream.env.close()
    stream.env.close()
    return result


def load_policy(folder: Path, device: torch.device) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Rebuild a run's policy from its folder; return it, its configuration and its facts."""
    config = read_json(folder / "config.json")
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
    metrics: Path,
    report: Callable[[Report], None],
    stopping: Callable[[], bool],
) -> None:
    """Spend the budget, writing metrics after every rollout and checkpoints now and then."""
    from torch.utils.tensorboard.writer import SummaryWriter

    every = float(job.tree["checkpoint_seconds"])
    facts = {"memory": job.memory, "seed": job.seed}
    writer = SummaryWriter(str(job.folder), purge_step=training.steps)
    saved = time.monotonic()
    with metrics.open("a", encoding="utf-8") as lines:
        while not training.finished:
            result = training.iterate()
            lines.write(json.dumps(_finite(result)) + "\n")
            lines.flush()
            for name, value in result.items():
                if name != "steps" and math.isfinite(value):
                    writer.add_scalar(name, value, training.steps)
            report(result)
            stop = stopping()
            if stop or training.finished or time.monotonic() - saved > every:
                training.save(path, facts)
                saved = time.monotonic()
            if stop:
                break
    writer.close()


def _claim(job: Job) -> None:
    """Write the run's configuration, or check that the folder holds the same run."""
    path = job.folder / "config.json"
    mine = {"format": 1, "memory": job.memory, "seed": job.seed, "tree": job.tree}
    if path.exists():
        if not job.resume:
            raise UsageError(
                f"out: {job.folder} already holds a run; allowed: resume=true, or another folder"
            )
        theirs = read_json(path)
        for key in sorted((theirs["tree"].keys() | job.tree.keys()) - FREE):
            if theirs["tree"].get(key) != job.tree.get(key):
                raise UsageError(
                    f"resume: {key} is {job.tree.get(key)!r}; allowed: as the run in "
                    f"{job.folder} began, {theirs['tree'].get(key)!r}"
                )
    write_json(path, mine)


def _forget_after(metrics: Path, steps: int) -> None:
    """Drop what a killed run measured after its last checkpoint: it will be measured again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the line that was being written when the run was killed
        if row["steps"] <= steps:
            kept.append(line + "\n")
    write(metrics, "".join(kept))


def _finite(report: Report) -> dict[str, float | int | None]:
    return {name: value if math.isfinite(value) else None for name, value in report.items()}
