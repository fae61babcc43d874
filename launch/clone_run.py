"""One run of `engram clone`: a memory cloned with a seed, evaluated, and resumable."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engram.agents.imitation import Imitation
from engram.agents.imitation_evaluation import Outcome, evaluate_in_simulation
from engram.agents.training import Report
from engram.kernels.errors import DataError
from engram.launch.build import EVALUATION_SEED
from engram.launch.clone_build import Lesson, build_imitation, build_worlds, read_lesson
from engram.launch.clone_check import check_lesson
from engram.launch.clone_evaluate import evaluate_gaps
from engram.launch.clone_saved import Cloned, write_sight
from engram.launch.files import read_json, write_json
from engram.launch.folder import CHECKPOINT, check, claim, forget_after, locked
from engram.launch.training import Job, metrics

Reporting = Callable[[Report], None]


def clone_job(
    job: Job, *, report: Reporting, stopping: Callable[[], bool]
) -> dict[str, Any] | None:
    """Clone and evaluate.

    The folder gets `config.json`, `sight.json`, `metrics.jsonl` (a line per evaluation in the
    simulator), TensorBoard events, `checkpoint.safetensors` and, at the end, `evaluation.json`.

    Args:
        job: What to run; its demonstrations are in `tree["demonstrations"]["folder"]`.
        report: Called now and then.
        stopping: Asked after every update; once true, the run is saved and left.

    Returns:
        The evaluation, or None if the run was stopped before it was made.

    Raises:
        EngramError: If the folder holds a run and `resume` is false, or another run, or if
            another process writes to it, or if the demonstrations cannot be used.
    """
    with locked(job.folder):
        check(job.folder, job.tree, resume=job.resume)
        done = job.folder / "evaluation.json"
        if job.resume and done.exists():
            return read_json(done)
        lesson = read_lesson(job.tree, Path(job.tree["demonstrations"]["folder"]))
        check_lesson(job.tree, lesson)
        imitation = build_imitation(
            job.tree, lesson, device=torch.device(job.device), seed=job.seed
        )
        path, since = job.folder / CHECKPOINT, Since({}, 0)
        if job.resume and path.exists():
            since = _since(imitation.load(path), path)
        # Killed between writing a line and saving, a run makes the evaluation of that line again.
        forget_after(job.folder, imitation.updates - _due(job, imitation, since))
        claim(job.folder, job.memory, job.seed, job.tree)
        write_sight(job.folder, lesson)
        if not _learn(job, imitation, since, lesson, report, stopping):
            return None
        return _finish(job, imitation, lesson, stopping)


class Since(NamedTuple):
    """What was reported since the last evaluation: its line holds the means."""

    sums: dict[str, float]
    updates: int
    """How many."""

    def plus(self, result: Report) -> "Since":
        """Add an update."""
        sums = {name: self.sums.get(name, 0.0) + float(x) for name, x in result.items()}
        return Since(sums, self.updates + 1)


def _since(facts: dict[str, Any], path: Path) -> Since:
    """Return what a checkpoint says was reported since the last evaluation.

    Raises:
        DataError: If that is damaged.
    """
    match facts.get("since", [{}, 0]):
        case [dict(sums), int(updates)] if all(isinstance(x, float) for x in sums.values()):
            return Since(sums, updates)
        case other:
            raise DataError(f"checkpoint {path}: since is {other!r}; allowed: sums and a number")


def _due(job: Job, imitation: Imitation, since: Since) -> bool:
    """Return whether the run is to be evaluated before it goes on."""
    reached = imitation.updates % job.tree["evaluation"]["every"] == 0 or imitation.finished
    return since.updates > 0 and reached


def _learn(
    job: Job,
    imitation: Imitation,
    since: Since,
    lesson: Lesson,
    report: Reporting,
    stopping: Callable[[], bool],
) -> bool:
    """Make all updates; return whether they were made."""
    path = job.folder / CHECKPOINT
    facts = {"memory": job.memory, "seed": job.seed}
    settings = job.tree["evaluation"]
    worlds, instruction = build_worlds(job.tree, num_envs=settings["num_envs"])
    saved, told = time.monotonic(), time.monotonic()
    rates: list[float] = []
    try:
        with metrics(job, imitation.updates - _due(job, imitation, since)) as write:
            while not imitation.finished or _due(job, imitation, since):
                if not _due(job, imitation, since):
                    before = imitation.seconds
                    since = since.plus(imitation.iterate())
                    rates.append(imitation.seconds - before)
                if _due(job, imitation, since):
                    outcome = evaluate_in_simulation(
                        imitation.actor,
                        worlds,
                        instruction,
                        lesson.language,
                        episodes=settings["episodes"],
                        seed=job.seed,
                        stopping=stopping,
                    )
                    if outcome is not None:
                        line = {**_means(imitation, since), **_measured(outcome)}
                        write(line)
                        report({**line, "steps_per_second": _rate(rates)})
                        rates, since = [], Since({}, 0)
                elif time.monotonic() - told > 1:
                    told = time.monotonic()
                    now = {"steps": imitation.updates, "steps_per_second": _rate(rates)}
                    report({**now, "episodes": 0})
                stop = stopping()
                due = time.monotonic() - saved > job.tree["checkpoint_seconds"]
                if stop or due or imitation.finished:
                    imitation.save(path, {**facts, "since": since})
                    saved = time.monotonic()
                if stop:
                    return imitation.finished and not _due(job, imitation, since)
    finally:
        worlds.close()
    return True


def _means(imitation: Imitation, since: Since) -> Report:
    means = {name: total / since.updates for name, total in since.sums.items()}
    updates = imitation.updates
    return {**means, "updates": updates, "seconds": imitation.seconds, "steps": updates}


def _rate(seconds: list[float]) -> float:
    return len(seconds) / sum(seconds) if seconds else 0.0


def _measured(outcome: Outcome) -> Report:
    return {"score": outcome.success, **outcome._asdict()}


def _finish(
    job: Job, imitation: Imitation, lesson: Lesson, stopping: Callable[[], bool]
) -> dict[str, Any] | None:
    """Evaluate at every gap, in worlds that no demonstration showed, and write what was found."""
    settings = job.tree["evaluation"]
    measured = evaluate_gaps(
        Cloned(imitation.actor, lesson.language, imitation.updates, imitation.seconds),
        job.tree,
        gaps=job.tree["task"]["gaps"],
        episodes=settings["final"],
        seed=job.seed + EVALUATION_SEED,
        stopping=stopping,
    )
    if measured is None:
        return None
    policy = imitation.policy
    found = {
        "memory": job.memory,
        "task": job.tree["task"]["name"],
        "seed": job.seed,
        "updates": imitation.updates,
        "seconds": imitation.seconds,
        "episodes": len(lesson.episodes),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "memory_parameters": sum(p.numel() for p in policy.memory.parameters()),
        **measured,
    }
    write_json(job.folder / "evaluation.json", found)
    return found
