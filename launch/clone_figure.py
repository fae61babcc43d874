"""Draws a study of cloning: first choices against the gap, and success while learning."""

import io
from typing import Any

import numpy as np

from engram.launch.clone_results import Finding, Learning
from engram.launch.report import looks

BESIDE = 0.7
"""How much of the way from one gap to the next the memories at a gap take."""


def draw(
    found: list[Finding],
    curves: dict[tuple[str, str], Learning],
    trained: dict[str, Any],
) -> bytes:
    """Return what `plot` draws, as a PNG."""
    buffer = io.BytesIO()
    plot(found, curves, trained).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def plot(
    found: list[Finding],
    curves: dict[tuple[str, str], Learning],
    trained: dict[str, Any],
) -> Any:
    """Return a figure with a row of panels per task.

    Left: first choices that were right at every gap, a dot per seed and a line of their means,
    with chance dotted and the gaps of training shaded. Middle: success, likewise. Right: success in
    the simulator against the time spent training, mean and range of the seeds. Gaps stand at equal
    distances, memories beside one another at each; intervals of a few seeds, which would hide each
    other, are in the table.

    Args:
        found: Final evaluations.
        curves: Evaluations while learning, by task and memory.
        trained: Least and greatest gap of training, by task.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(finding.task for finding in found))
    memories = list(dict.fromkeys(finding.memory for finding in found))
    look = looks(memories)
    figure = Figure(figsize=(14, 3.6 * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(tasks), 3, squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        gaps = sorted({f.gap for f in found if f.task == task})
        aside = np.linspace(-BESIDE / 2, BESIDE / 2, len(memories) + 2)[1:-1]
        for memory, shift in zip(memories, aside, strict=True):
            mine = [f for f in found if (f.task, f.memory) == (task, memory)]
            places = np.array([gaps.index(f.gap) for f in mine]) + shift
            for axis, mean, seeds in (
                (row[0], [f.first_choice for f in mine], [f.first_choices for f in mine]),
                (row[1], [f.success for f in mine], [f.successes for f in mine]),
            ):
                axis.plot(places, mean, label=memory, **look[memory])
                every = np.array(seeds)  # [gaps, seeds]
                dots = {"color": look[memory]["color"], "s": 14, "linewidths": 0}
                axis.scatter(np.repeat(places, every.shape[1]), every.ravel(), zorder=3, **dots)
            curve = curves[task, memory]
            row[2].plot(curve.seconds, curve.success.mean(0), **look[memory])
            low, high = curve.success.min(0), curve.success.max(0)
            row[2].fill_between(
                curve.seconds, low, high, color=look[memory]["color"], alpha=0.15, linewidth=0
            )
        chance = next(f.chance for f in found if f.task == task)
        row[0].axhline(chance, color="black", linewidth=0.8, linestyle=":")
        for axis in row[:2]:
            span = trained.get(task)
            if span is not None:
                first, last = (span, span) if isinstance(span, int) else span
                shaded = [place for place, gap in enumerate(gaps) if first <= gap <= last]
                if shaded:
                    axis.axvspan(shaded[0] - 0.5, shaded[-1] + 0.5, color="0.93", zorder=0)
            axis.set(xlabel="gap [steps]", xlim=(-0.5, len(gaps) - 0.5), ylim=(-0.03, 1.03))
            axis.set_xticks(range(len(gaps)), [str(gap) for gap in gaps])
        row[0].set(title=f"{task}: first choice right")
        row[1].set(title="success")
        row[2].set(title="success while learning", xlabel="training [s]", ylim=(-0.03, 1.03))
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
    lines = axes[0][0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", frameon=False, fontsize=9, ncols=10)
    return figure
