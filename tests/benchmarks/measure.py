"""How the benchmarks measure: alternating runs, medians, wall and CPU time, resident memory."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """What one run took."""

    wall: float
    """Time on the clock [s]."""
    cpu: float
    """Processor time of all threads of this process [s]."""


class Limit(NamedTuple):
    """A target: at least or at most some number."""

    sign: str
    """`≥` or `≤`."""
    number: float

    def holds(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value >= self.number if self.sign == "≥" else value <= self.number

    def __str__(self) -> str:
        return f"{self.sign} {self.number:,.10g}"


class Row(NamedTuple):
    """One line of the table; a number that is not there is None."""

    quantity: str
    measured: str
    peer: str
    ratio: float | None
    """By the clock: how many times as fast (target `≥`), or as costly (target `≤`), as the peer."""
    cpu_ratio: float | None
    """The same by processor time, which other work on the machine disturbs less."""
    target: str
    met: bool | None
    """Whether the ratio by the clock, or the number itself without a peer, is on target."""


def compared(
    quantity: str,
    measured: str,
    peer: str,
    ratios: tuple[float, float | None],
    limit: Limit,
    *,
    by_cpu: bool = False,
) -> Row:
    """Judge a ratio, given by the clock and, for times, by processor time."""
    judged = ratios[1] if by_cpu and ratios[1] is not None else ratios[0]
    return Row(quantity, measured, peer, *ratios, str(limit), limit.holds(judged))


def not_run(quantity: str, measured: str, why: str, target: str) -> Row:
    """Say why there is nothing to judge."""
    return Row(quantity, measured, why, None, None, target, None)


def once(function: Callable[[], object]) -> Cost:
    """Time one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(*functions: Callable[[], object], rounds: int) -> list[Cost]:
    """Run every function once a round, so that what slows the machine slows all of them.

    Args:
        functions: What is compared; each has run before, so that nothing is set up here.
        rounds: How many rounds.

    Returns:
        For each function the medians of its wall and CPU times.
    """
    costs: list[list[Cost]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, mine in zip(functions, costs, strict=True):
            mine.append(once(function))
    return [Cost(*map(statistics.median, zip(*mine, strict=True))) for mine in costs]


def resident() -> float:
    """Physical memory of this process [MB]; its peak where the present amount is unknown."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def markdown(rows: list[Row]) -> str:
    """Lay the rows out as a Markdown table that is also readable as it is."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    met = {True: "yes", False: "NO", None: ""}
    cells = [["quantity", "measured", "peer", "ratio", "CPU ratio", "target", "met"]]
    for row in rows:
        ratios = number(row.ratio), number(row.cpu_ratio)
        cells.append([row.quantity, row.measured, row.peer, *ratios, row.target, met[row.met]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
    return "\n".join(f"| {line} |" for line in lines)
