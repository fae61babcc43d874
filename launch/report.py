"""Draws a comparison: a figure, and a report in one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterable

import numpy as np

from engram.launch.results import Curve, Row

GREY = "#7f7f7f"
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e",
    "#17becf", "#8c564b", "#e377c2", "#bcbd22",
)  # fmt: skip
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1a1a1a; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


def draw(
    title: str, found: list[Row], curves: dict[str, Curve], *, log_free_points: int = 200
) -> bytes:
    """Return a PNG: learning curves with bands, and the final scores on fresh episodes.

    The band is the range of the seeds; the line their mean. Every measurement of several
    numbers (steps to the n-th goal of a trial) has a panel below.

    Args:
        title: Above the curves.
        found: Final results, for the right panel and the lines of chance and optimum.
        curves: Training scores.
        log_free_points: Points that a curve is thinned to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = [name for name, values in found[0].measurements.items() if len(values) > 1]
    rows = -(-len(series) // 3)
    figure = Figure(figsize=(15.6 if series else 10.4, 4 * (1 + rows)), layout="constrained")
    FigureCanvasAgg(figure)
    top, *below = figure.subfigures(1 + rows, 1, squeeze=False)[:, 0]
    axes = list(top.subplots(1, 2, width_ratios=[3, 2]))
    for row, part in enumerate(below):
        places = part.subplots(1, min(3, len(series)), squeeze=False)[0]
        for axis in places[len(series) - 3 * row :]:
            axis.set_visible(False)
        axes += list(places)
    colour = {name: look["color"] for name, look in looks(curves).items()}
    for name, curve in curves.items():
        steps, scores = thin(curve, log_free_points)
        known = ~np.isnan(scores).all(0)
        steps, scores = steps[known], scores[:, known]
        if not len(steps):
            axes[0].plot([], [], color=colour[name], label=name)  # for the legend
            continue
        axes[0].plot(steps, np.nanmean(scores, 0), color=colour[name], label=name)
        low, high = np.nanmin(scores, 0), np.nanmax(scores, 0)
        axes[0].fill_between(steps, low, high, color=colour[name], alpha=0.2, linewidth=0)
    for axis in axes[:2]:
        for value, text in ((found[0].chance, "chance"), (found[0].optimum, "optimum")):
            if value is not None:
                axis.axhline(value, color="black", linewidth=0.8, linestyle=":")
                if axis is axes[0]:
                    axis.annotate(
                        text, (1, value), xycoords=("axes fraction", "data"),
                        ha="right", va="bottom", fontsize=8,
                    )  # fmt: skip
    axes[0].set(title=title, xlabel="environment steps", ylabel="return per episode (training)")
    axes[0].legend(frameon=False)
    for place, row in enumerate(found):
        half = 0.0 if np.isinf(row.half) else row.half
        axes[1].errorbar(place, row.score, half, fmt="o", color=colour[row.memory], capsize=4)
        axes[1].plot([place] * len(row.scores), row.scores, "_", color=colour[row.memory])
    axes[1].set_xticks(range(len(found)), [row.memory for row in found])
    axes[1].set(title="fresh episodes, mean ± 95 % over seeds", ylabel="return per episode")
    for axis, name in zip(axes[2:], series, strict=False):
        for row in found:
            values = np.array([np.nan if v is None else v for v in row.measurements[name]])
            axis.plot(np.arange(1, len(values) + 1), values, ".-", color=colour[row.memory])
        axis.set(title=f"{name.replace('_', ' ')} (fresh episodes)", xlabel="n")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def looks(memories: Iterable[str]) -> dict[str, dict[str, str]]:
    """Choose colours and lines of memories: grey for who remembers nothing, wherever it stands."""
    found = {"none": {"color": GREY, "linestyle": "-"}}
    others = [name for name in memories if name != "none"]
    for i, name in enumerate(others):
        turn, place = divmod(i, len(COLOURS))
        line = ("-", "--", ":", "-.")[turn % 4]
        found[name] = {"color": COLOURS[place], "linestyle": line}
    return found


def thin(curve: Curve, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points of a curve until at most `points` are left."""
    group = max(1, -(-len(curve.steps) // points))
    usable = len(curve.steps) // group * group
    steps = curve.steps[:usable].reshape(-1, group).mean(1)
    blocks = curve.scores[:, :usable].reshape(len(curve.scores), -1, group)
    known = ~np.isnan(blocks)
    total = np.where(known, blocks, 0).sum(-1)
    count = known.sum(-1)
    return steps, np.where(count > 0, total / np.maximum(count, 1), np.nan)


Cells = tuple[list[str], list[list[str]]]
"""A table: its header, and its lines."""


def report_page(title: str, png: bytes, scores: Cells, times: Cells, config: str) -> str:
    """Return the HTML report: figure, tables and configuration, all inside one file.

    Args:
        title: Its heading.
        png: The figure.
        scores: The table of fresh episodes.
        times: The table of where training time went.
        config: The resolved configuration, as text.
    """
    body = f"""<img alt="Learning curves and final scores"
src="data:image/png;base64,{_base64(png)}">
<h2>Fresh episodes</h2>
{_table(scores)}
<p>Score: mean return over seeds, each on episodes that training never saw; ± half the 95 %
interval over seeds (Student's t). State bytes: memory of one environment. Curves: mean over seeds
of the training return, band from the least to the greatest seed.</p>
<h2>Where time went</h2>
{_table(times)}
<p>Share of the training time, all seeds together. Environment and acting are those of the slowest
worker where several act; transfer is what moving weights and rollouts between processes adds. Where
workers act while the learner learns, the parts overlap.</p>
"""
    return _page(title, body, config)


def clone_page(title: str, png: bytes, rates: Cells, config: str) -> str:
    """Return the HTML report of a study of cloning.

    Args:
        title: Its heading.
        png: The figure.
        rates: The table of fresh episodes.
        config: The resolved configuration, as text.
    """
    body = f"""<img alt="First choices and success against the gap"
src="data:image/png;base64,{_base64(png)}">
<h2>Fresh episodes</h2>
{_table(rates)}
<p>Success and first choice: shares of episodes that nobody demonstrated, mean over seeds, ± half
the 95 % interval over seeds (Student's t). An episode without a choice counts as wrong. Chance:
first choices of the best policy without memory. Shaded: gaps of training. Seconds: of training,
without evaluations.</p>
"""
    return _page(title, body, config)


def _page(title: str, body: str, config: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}<h2>Configuration</h2>
<pre>{html.escape(config)}</pre>
</body></html>
"""


def _table(cells: Cells) -> str:
    header, lines = cells
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
