"""Collects finished runs of `engram clone` into the table and the curves of a study."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram.kernels.errors import DataError
from engram.launch.evaluation import interval
from engram.launch.files import read_json
from engram.launch.folder import read_metrics
from engram.launch.results import run_folder, spread


class Finding(NamedTuple):
    """What all seeds of one memory showed on one task at one gap."""

    task: str
    memory: str
    gap: int
    """Steps between what is shown and the decision."""
    success: float
    success_half: float
    """Half the 95 % interval of the mean over seeds."""
    first_choice: float
    first_choice_half: float
    successes: list[float]
    """Of every seed."""
    first_choices: list[float]
    chance: float
    """Of the first choice, without memory."""
    seeds: list[int]
    episodes: int
    """Evaluated, all seeds together."""
    parameters: int
    memory_parameters: int
    memory_bytes: int
    updates: int
    seconds: float
    """Of training, mean over seeds."""


class Learning(NamedTuple):
    """Evaluations while learning, seeds side by side."""

    seconds: np.ndarray
    """Of training so far, mean over seeds."""
    success: np.ndarray
    """`[seeds, points]`."""


def findings(
    folder: Path, tasks: list[str], memories: list[str], seeds: list[int]
) -> list[Finding]:
    """Read the evaluations of a study.

    Raises:
        DataError: If one is missing or damaged, or seeds were evaluated at different gaps.
    """
    found = []
    for task in tasks:
        for memory in memories:
            facts = [
                _evaluation(run_folder(folder / task, memory, seed) / "evaluation.json")
                for seed in seeds
            ]
            if any(fact["gaps"].keys() != facts[0]["gaps"].keys() for fact in facts):
                seen = {seed: list(fact["gaps"]) for seed, fact in zip(seeds, facts, strict=True)}
                raise DataError(
                    f"{folder / task / memory}: gaps by seed are {seen}; allowed: the same"
                )
            found += of_seeds(task, memory, seeds, facts)
    return found


def of_seeds(
    task: str, memory: str, seeds: list[int], facts: list[dict[str, Any]]
) -> list[Finding]:
    """Join what all seeds of one memory showed on one task: a finding per gap.

    Args:
        task: Its name.
        memory: Likewise.
        seeds: Of the runs.
        facts: What `evaluation.json` says of each, at the same gaps.
    """
    found = []
    for gap in facts[0]["gaps"]:
        at = [fact["gaps"][gap] for fact in facts]
        successes = [one["success"] for one in at]
        choices = [one["first_choice"] for one in at]
        found.append(
            Finding(
                task,
                memory,
                int(gap),
                *interval(successes),
                *interval(choices),
                successes=successes,
                first_choices=choices,
                chance=facts[0]["chance"],
                seeds=seeds,
                episodes=sum(one["episodes"] for one in at),
                parameters=facts[0]["parameters"],
                memory_parameters=facts[0]["memory_parameters"],
                memory_bytes=at[0]["memory_bytes"],
                updates=facts[0]["updates"],
                seconds=float(np.mean([fact["seconds"] for fact in facts])),
            )
        )
    return found


def _evaluation(path: Path) -> dict[str, Any]:
    """Read the evaluation of a run, and check that it has what a finding needs."""
    facts = read_json(path)
    numbers = ("chance", "parameters", "memory_parameters", "updates", "seconds")
    _check_numbers(path, facts, numbers)
    gaps = facts.get("gaps")
    if not isinstance(gaps, dict) or not gaps or not all(gap.isdecimal() for gap in gaps):
        raise DataError(f"{path} is damaged: gaps is {gaps!r}; allowed: findings by gap")
    for found in gaps.values():
        _check_numbers(path, found, ("success", "first_choice", "episodes", "memory_bytes"))
    return facts


def _check_numbers(path: Path, facts: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = facts.get(name) if isinstance(facts, dict) else None
        if not isinstance(value, int | float):
            raise DataError(f"{path} is damaged: {name} is {value!r}; allowed: a number")


def learning(
    folder: Path, tasks: list[str], memories: list[str], seeds: list[int]
) -> dict[tuple[str, str], Learning]:
    """Read the evaluations while learning."""
    found = {}
    for task in tasks:
        for memory in memories:
            runs = [read_metrics(run_folder(folder / task, memory, seed)) for seed in seeds]
            points = min(len(run) for run in runs)
            seconds = np.array([[line["seconds"] for line in run[:points]] for run in runs])
            success = np.array([[line["success"] for line in run[:points]] for run in runs])
            found[task, memory] = Learning(seconds.mean(0), success)
    return found


def table(found: list[Finding]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table: a line per task and memory."""
    gaps = sorted({finding.gap for finding in found})
    header = ["task", "memory", "chance", *(f"gap {gap}: success / first choice" for gap in gaps)]
    header += ["parameters", "of the memory", "state bytes", "seconds", "seeds", "episodes"]
    lines: dict[tuple[str, str], dict[int, Finding]] = {}
    for finding in found:
        lines.setdefault((finding.task, finding.memory), {})[finding.gap] = finding
    cells = []
    for (task, memory), by_gap in lines.items():
        first = next(iter(by_gap.values()))
        cells.append(
            [
                task,
                memory,
                f"{first.chance:.2f}",
                *(_rates(by_gap.get(gap)) for gap in gaps),
                f"{first.parameters:,}",
                f"{first.memory_parameters:,}",
                f"{first.memory_bytes:,}",
                f"{first.seconds:,.0f}",
                str(len(first.seeds)),
                str(sum(finding.episodes for finding in by_gap.values())),
            ]
        )
    return header, cells


def _rates(finding: Finding | None) -> str:
    if finding is None:
        return "–"
    success = f"{finding.success:.2f} {_half(finding.success_half)}"
    return f"{success} / {finding.first_choice:.2f} {_half(finding.first_choice_half)}"


def _half(half: float) -> str:
    return spread(half, digits=2) if np.isfinite(half) else ""


def plain(found: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON can hold them."""
    return [
        {name: None if value == float("inf") else value for name, value in one._asdict().items()}
        for one in found
    ]
