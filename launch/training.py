"""Spends a run's budget: metrics after every rollout, checkpoints now and then."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engram.agents.learners import Learners
from engram.agents.training import Report, Training
from engram.launch.build import build_training
from engram.launch.folder import CHECKPOINT, claim, forget_after
from engram.launch.mirror import Mirror, MirrorError

log = logging.getLogger(__name__)


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
    task: str = ""
    """Of a study of several; a run's name then begins with it."""

    @property
    def subject(self) -> str:
        """What runs of all seeds have in common."""
        return f"{self.task} {self.memory}".strip()

    @property
    def name(self) -> str:
        """How the run is called in tables."""
        return f"{self.subject} seed {self.seed}"


def train(
    job: Job,
    learners: Learners,
    *,
    report: Callable[[Report], None],
    stopping: Callable[[], bool],
) -> bool:
    """Build a run, continue it from its checkpoint if there is one, and spend its budget.

    Args:
        job: What to run.
        learners: Who else does this, at the same time; only the one that leads writes.
        report: Called after every rollout of the one that leads.
        stopping: Asked after every rollout of the one that leads.

    Returns:
        Whether the budget is spent.
    """
    device = torch.device(job.device)
    training = build_training(
        job.tree, device=device, seed=job.seed, budget=job.budget, learners=learners
    )
    try:
        path = job.folder / CHECKPOINT
        if job.resume and path.exists():
            training.load(path)
        if learners.rank == 0:
            forget_after(job.folder, training.steps)
            claim(job.folder, job.memory, job.seed, job.tree)
        if not training.finished:
            _spend(job, training, path, report, stopping)
        return training.finished
    finally:
        training.collector.close()


def _spend(
    job: Job,
    training: Training,
    path: Path,
    report: Callable[[Report], None],
    stopping: Callable[[], bool],
) -> None:
    """Spend the budget, writing metrics after every rollout and checkpoints now and then."""
    facts = {"memory": job.memory, "seed": job.seed}
    learners = training.learners
    mirror = Mirror(job.tree["mirror"], job.folder)
    saved = time.monotonic()
    with metrics(job, training.steps) if learners.rank == 0 else nullcontext() as write:
        while not training.finished:
            result = training.iterate()
            stop, due = False, False
            if write is not None:
                write(result)
                report(result)
                stop = stopping()
                due = time.monotonic() - saved > job.tree["checkpoint_seconds"]
            stop, due = learners.spread((stop, due))
            if stop or due or training.finished:
                training.save(path, facts)
                saved = time.monotonic()
                if learners.rank == 0:
                    _send(mirror)
            if stop:
                break


def _send(mirror: Mirror) -> None:
    """Copy a checkpoint; what cannot be sent now is sent with the next one, or at the end."""
    try:
        mirror.send()
    except MirrorError as error:
        log.warning("%s", error)


@contextmanager
def metrics(job: Job, steps: int) -> Iterator[Callable[[Report], None]]:
    """Yield what writes a report to `metrics.jsonl` and TensorBoard's events.

    Args:
        job: The run.
        steps: Those it made already; what a killed process reported of later ones is hidden.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(job.folder), purge_step=steps + 1)
    with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:

        def write(result: Report) -> None:
            lines.write(json.dumps(_finite(result)) + "\n")
            lines.flush()
            for name, value in result.items():
                if name != "steps" and math.isfinite(value):
                    writer.add_scalar(name, value, int(result["steps"]))

        try:
            yield write
        finally:
            writer.close()


def _finite(report: Report) -> dict[str, float | int | None]:
    return {name: value if math.isfinite(value) else None for name, value in report.items()}
