"""One run: a memory and a seed, trained into a folder, evaluated, and resumable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engram.agents import checkpoint
from engram.agents.learners import Alone
from engram.agents.training import Report
from engram.launch.build import EVALUATION_SEED, build_agent, build_stream
from engram.launch.config import UsageError, ray_settings
from engram.launch.evaluation import Evaluation, as_json, evaluate
from engram.launch.files import write_json
from engram.launch.folder import CHECKPOINT, check, locked, read_config
from engram.launch.group import train_in_group
from engram.launch.mirror import Mirror
from engram.launch.training import Job, train


def run_job(
    job: Job, *, report: Callable[[Report], None], stopping: Callable[[], bool]
) -> Evaluation | None:
    """Train and evaluate; where processes of Ray are asked for, it has been joined.

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
        mirror = Mirror(job.tree["mirror"], job.folder)
        if job.resume:
            mirror.fetch()
        elif mirror.occupied():
            raise UsageError(
                f"mirror: {job.tree['mirror']} already holds a run; allowed: resume=true, or "
                "another address"
            )
        check(job.folder, job.tree, resume=job.resume)
        ray = ray_settings(job.tree)
        if ray.learners > 1:
            finished = train_in_group(job, ray, report=report, stopping=stopping)
        else:
            finished = train(job, Alone(), report=report, stopping=stopping)
        return _evaluate(job, mirror, stopping) if finished else None


def _evaluate(job: Job, mirror: Mirror, stopping: Callable[[], bool]) -> Evaluation | None:
    device = torch.device(job.device)
    policy, _, facts = load_policy(job.folder, device)
    stream = build_stream(
        job.tree,
        num_envs=job.tree["evaluation"]["num_envs"],
        device=device,
        seed=job.seed + EVALUATION_SEED,
        evaluation=True,
    )
    result = evaluate(
        policy,
        stream,
        episodes=job.tree["evaluation"]["episodes"],
        greedy=job.tree["evaluation"]["greedy"],
        seed=job.seed + EVALUATION_SEED,
        stopping=stopping,
    )
    stream.env.close()
    if result is None:
        return None
    found = {
        "memory": job.memory,
        "seed": job.seed,
        "steps": facts["steps"],
        "seconds": facts["seconds"],
        "parameters": sum(p.numel() for p in policy.parameters()),
        "chance": getattr(stream.env, "chance", None),
        "optimum": getattr(stream.env, "optimum", None),
    }
    write_json(job.folder / "evaluation.json", {**found, **as_json(result)})
    mirror.send()
    return result


def load_policy(folder: Path, device: torch.device) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Rebuild a run's policy from its folder; return it, its configuration and its facts."""
    config = read_config(folder)
    tensors, facts = checkpoint.read(folder / CHECKPOINT, device)
    stream = build_stream(config["tree"], num_envs=1, device=device, seed=0, evaluation=False)
    policy = build_agent(config["tree"], stream, seed=0)
    checkpoint.load_module(policy, checkpoint.part(tensors, "policy"), folder / CHECKPOINT)
    stream.env.close()
    return policy, config, facts
