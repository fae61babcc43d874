"""Draws a study of cloning: first choices against the gap, and success while learning."""

import io
from typing import Any

import numpy as np

from engram.launch.clone_results import Finding, Learning
from engram.launch.report import looks

BESIDE = 0.007
"""Between the dots of two memories, as a part of the longest gap."""


def draw(
    found: list[Finding],
    curves: dict[tuple[str, str], Learning],
    trained: dict[str, Any],
) -> bytes:
    """Return a PNG with a row of panels per task.

    Left: first choices that were right against the gap, every seed and their mean, with chance
    dotted and the gaps of training shaded. Middle: success, likewise. Right: success in the
    simulator against the time spent training, mean and range of the seeds. Memories stand beside
    one another at every gap; intervals of a few seeds, which hide each other, are in the table.

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
        reach = max(f.gap for f in found if f.task == task)
        for place, memory in enumerate(memories):
            mine = [f for f in found if (f.task, f.memory) == (task, memory)]
            beside = (place - (len(memories) - 1) / 2) * BESIDE * reach
            gaps = np.array([f.gap for f in mine]) + beside
            for axis, mean, seeds in (
                (row[0], [f.first_choice for f in mine], [f.first_choices for f in mine]),
                (row[1], [f.success for f in mine], [f.successes for f in mine]),
            ):
                axis.plot(gaps, mean, label=memory, **look[memory])
                every = np.array(seeds)  # [gaps, seeds]
                dots = {"color": look[memory]["color"], "s": 14, "linewidths": 0}
                axis.scatter(np.repeat(gaps, every.shape[1]), every.ravel(), zorder=3, **dots)
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
            if span:
                first, last = (span, span) if isinstance(span, int) else span
                axis.axvspan(first, last, color="0.93", zorder=0)
            axis.set(xlabel="gap [steps]", ylim=(-0.03, 1.03))
        row[0].set(title=f"{task}: first choice right")
        row[1].set(title="success")
        row[2].set(title="success while learning", xlabel="training [s]", ylim=(-0.03, 1.03))
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
    lines = axes[0][0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", frameon=False, fontsize=9, ncols=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
