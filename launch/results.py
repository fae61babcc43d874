"""Collects finished runs into the table and the curves of a comparison."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram.launch.evaluation import interval
from engram.launch.files import read_json
from engram.launch.folder import read_metrics

PARTS = ("environment", "acting", "learning", "transfer")
"""What training time goes into."""


class Row(NamedTuple):
    """What all seeds of one memory showed on fresh episodes."""

    memory: str
    score: float
    """Mean over seeds of the mean return."""
    half: float
    """Half the 95 % interval of that mean, over seeds."""
    scores: list[float]
    """Mean return of every seed."""
    seeds: list[int]
    episodes: int
    """Episodes evaluated, all seeds together."""
    chance: float | None
    optimum: float | None
    parameters: int
    memory_bytes: int
    """Memory state of one environment."""
    steps: int
    """Training steps per seed."""
    steps_per_second: float
    """Training steps per second, median of the seeds."""
    measurements: dict[str, list[float | None]]
    """Mean over seeds of every measurement."""
    time: dict[str, float]
    """Share of the training time that each of its parts took; where workers act while the learner
    learns, the parts overlap and exceed 1 together."""


class Curve(NamedTuple):
    """Training score by environment steps, seeds side by side."""

    steps: np.ndarray
    scores: np.ndarray
    """`[seeds, points]`; NaN where no episode ended."""


def rows(folder: Path, memories: list[str], seeds: list[int]) -> list[Row]:
    """Read the evaluations of a comparison."""
    found = []
    for memory in memories:
        facts = [read_json(run_folder(folder, memory, seed) / "evaluation.json") for seed in seeds]
        scores = [fact["score"] for fact in facts]
        mean, half = interval(scores)
        names = facts[0]["measurements"].keys()
        found.append(
            Row(
                memory=memory,
                score=mean,
                half=half,
                scores=scores,
                seeds=seeds,
                episodes=sum(fact["episodes"] for fact in facts),
                chance=facts[0]["chance"],
                optimum=facts[0]["optimum"],
                parameters=facts[0]["parameters"],
                memory_bytes=facts[0]["memory_bytes"],
                steps=facts[0]["steps"],
                steps_per_second=float(
                    np.median([fact["steps"] / max(fact["seconds"], 1e-9) for fact in facts])
                ),
                measurements={
                    name: _means([fact["measurements"][name] for fact in facts]) for name in names
                },
                time=time_shares([run_folder(folder, memory, seed) for seed in seeds]),
            )
        )
    return found


def time_shares(folders: list[Path]) -> dict[str, float]:
    """Return the share of the training time that went into each part, over all runs."""
    totals = dict.fromkeys(PARTS, 0.0)
    wall = 0.0
    for folder in folders:
        for entry in read_metrics(folder):
            wall += entry.get("iteration_seconds", 0.0)
            for part in PARTS:
                totals[part] += entry.get(f"{part}_seconds", 0.0)
    return {part: total / wall for part, total in totals.items()} if wall else {}


def time_table(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table of where time went."""
    cells = [
        [row.memory, *(f"{row.time[part]:.0%}" if part in row.time else "–" for part in PARTS)]
        for row in found
    ]
    return ["memory", *PARTS], cells


def curves(folder: Path, memories: list[str], seeds: list[int]) -> dict[str, Curve]:
    """Read the learning curves of a comparison."""
    found = {}
    for memory in memories:
        series = [
            {
                entry["steps"]: entry.get("score")
                for entry in read_metrics(run_folder(folder, memory, s))
            }
            for s in seeds
        ]
        # All seeds act in rollouts of one size; one that was given more budget goes on alone.
        steps = sorted(set.intersection(*(set(scores) for scores in series)))
        scores = [[np.nan if run[s] is None else run[s] for s in steps] for run in series]
        found[memory] = Curve(np.array(steps), np.array(scores, dtype=float))
    return found


def run_folder(folder: Path, memory: str, seed: int) -> Path:
    """Where a run of a comparison lives."""
    return folder / memory / f"seed{seed}"


def _means(values: list[list[float | None]]) -> list[float | None]:
    """Mean over seeds of each entry, of those seeds that have it."""
    means: list[float | None] = []
    for entries in zip(*values, strict=True):
        known = [entry for entry in entries if entry is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def table(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the final table."""
    header = ["memory", "score", "95 %", "of optimum", "seeds", "episodes", "parameters"]
    header += ["state bytes", "train steps", "steps/s"]
    scalars = [name for name, v in found[0].measurements.items() if len(v) == 1]
    header += scalars
    cells = []
    for row in found:
        share = f"{row.score / row.optimum:.2f}" if row.optimum else "–"
        measured = [row.measurements[name][0] for name in scalars]
        cells.append(
            [
                row.memory,
                f"{row.score:.3f}",
                spread(row.half),
                share,
                str(len(row.seeds)),
                str(row.episodes),
                f"{row.parameters:,}",
                f"{row.memory_bytes:,}",
                f"{row.steps:,}",
                f"{row.steps_per_second:,.0f}",
                *("–" if value is None else f"{value:.3f}" for value in measured),
            ]
        )
    first = found[0]
    for name, value in (("chance", first.chance), ("optimum", first.optimum)):
        if value is not None:
            share = f"{value / first.optimum:.2f}" if first.optimum else "–"
            cells.append([name, f"{value:.3f}", "", share, *[""] * (len(header) - 4)])
    return header, cells


def spread(half: float, *, digits: int = 3) -> str:
    """Return half an interval as text; a single seed has none."""
    return f"± {half:.{digits}f}" if math.isfinite(half) else "one seed"


def markdown(header: list[str], cells: list[list[str]]) -> str:
    """Return a table in Markdown, for a README."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(found: list[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON can hold them."""
    return [
        {name: None if value == float("inf") else value for name, value in row._asdict().items()}
        for row in found
    ]
