"""What a sweep found: its trials, a table with the best point first, and a figure."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram.kernels.errors import DataError
from engram.launch.evaluation import interval
from engram.launch.files import read_json
from engram.launch.folder import read_metrics
from engram.launch.results import spread

FAILURE, STOPPED = "failure.txt", "stopped"
"""Files of a trial that failed, and of one that was ended early."""


class Trial(NamedTuple):
    """One point of the search space with one seed."""

    point: dict[str, Any]
    """The value of every key that was searched."""
    seed: int
    steps: int
    """Environment steps so far."""
    score: float | None
    """Mean return of fresh episodes; nothing where the trial did not get to the end."""
    training_score: float | None
    """The last known mean return while training."""
    stopped: bool
    """Whether it was ended early, for good."""
    failure: str | None
    """What it failed of."""


def found_trials(out: Path) -> list[Trial]:
    """Read the trials of a sweep.

    Raises:
        DataError: If what a trial wrote is damaged.
    """
    trials = []
    for path in sorted(out.glob("trials/*/trial.json")):
        told = read_json(path)
        if not isinstance(told, dict) or not isinstance(told.get("point"), dict):
            raise DataError(f"{path} is damaged: no point; allowed: what a sweep wrote")
        metrics = read_metrics(path.parent)
        scores = [entry["score"] for entry in metrics if entry.get("score") is not None]
        evaluation, failure = path.parent / "evaluation.json", path.parent / FAILURE
        trials.append(
            Trial(
                told["point"],
                told["seed"],
                metrics[-1]["steps"] if metrics else 0,
                read_json(evaluation)["score"] if evaluation.exists() else None,
                scores[-1] if scores else None,
                (path.parent / STOPPED).exists(),
                failure.read_text(encoding="utf-8") if failure.exists() else None,
            )
        )
    return trials


def summary(trials: list[Trial], keys: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table: a line for every point, the best first.

    Points all of whose seeds got to the end come before others: a mean over the seeds that were
    not ended early is a mean over the lucky ones.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(str([trial.point[key] for key in keys]), []).append(trial)
    lines = []
    for group in groups.values():
        ended = [trial.score for trial in group if trial.score is not None]
        trained = [t.training_score for t in group if t.training_score is not None]
        mean, half = interval(ended) if ended else (float("-inf"), 0.0)
        cells = [
            *(_short(group[0].point[key]) for key in keys),
            f"{mean:.3f}" if ended else "–",
            spread(half) if ended else _fate(group),
            f"{len(ended)}/{len(group)}",
            f"{np.mean(trained):.3f}" if trained else "–",
            f"{sum(trial.steps for trial in group):,}",
        ]
        trained_mean = float(np.mean(trained)) if trained else float("-inf")
        lines.append((len(ended) == len(group), mean, trained_mean, cells))
    lines.sort(key=lambda line: line[:3], reverse=True)
    header = [*keys, "score", "95 %", "seeds", "in training", "train steps"]
    return header, [cells for *_, cells in lines]


def _fate(group: list[Trial]) -> str:
    """Say why no seed of a point has a score."""
    if any(trial.failure for trial in group):
        return "failed"
    return "ended early" if all(trial.stopped for trial in group) else "not ended"


def draw(title: str, trials: list[Trial], keys: list[str]) -> bytes:
    """Return a PNG: for every key that was searched, the trials' scores by its value.

    Trials that ended early are open circles, at their last score while training.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(keys) + 1, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axis, key in zip(axes, keys, strict=True):
        values = [trial.point[key] for trial in trials]
        places, names = _places(values)
        for place, trial in zip(places, trials, strict=True):
            ended = trial.score is not None
            height = trial.score if ended else trial.training_score
            if height is not None:
                axis.plot(place, height, "o", color="#1f77b4", mfc=None if ended else "none")
        if names:
            axis.set_xticks(range(len(names)), names)
            axis.set_xlim(-0.5, len(names) - 0.5)
        elif min(places) > 0 and max(places) / min(places) > 20:
            axis.set_xscale("log")
        else:
            axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel=key)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="return per fresh episode")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _places(values: list[Any]) -> tuple[list[float], list[str]]:
    """Return where values lie on an axis, and their names where they are no numbers."""
    try:
        return [float(value) for value in values], []
    except ValueError:
        names = list(dict.fromkeys(str(value) for value in values))
        return [float(names.index(str(value))) for value in values], names


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
