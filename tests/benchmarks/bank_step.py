"""What a step of the memory bank costs by length and rule, and what reading in parallel saves."""

from collections.abc import Callable
from typing import Any

import torch
from measure import Limit, Row, alternate, compared

from engram.memory.sequence import AdjacentMerge, Bank, LeastUsed, Oldest, Streams

SHAPES = (16, 96), (1, 128)
LENGTHS = 4, 16, 64
STEPS = 100
"""Steps in one measurement."""
TRAINED, BATCH = 32, 8
"""Steps and environments of a training sequence."""


def inputs(*batch: int) -> Streams:
    """Draw tokens of both streams."""
    return Streams(*(torch.randn(*batch, *shape) for shape in SHAPES))


def stepping(capacity: int = 16, shapes: Any = SHAPES, **settings: Any) -> Callable[[], None]:
    """Return STEPS steps of one environment whose bank is full."""
    bank = Bank(*shapes, capacity=capacity, **settings).eval()
    x = Streams(*(torch.randn(1, *shape) for shape in shapes))
    start = torch.zeros(1, dtype=torch.bool)
    held = [bank.initial_state(1)]

    @torch.inference_mode()
    def run() -> None:
        for _ in range(STEPS):
            _, held[0] = bank.step(x, held[0], start)

    run()
    return run


def training(in_parallel: bool, **settings: Any) -> Callable[[], None]:
    """Return a forward and backward pass through a sequence, whole or step by step."""
    bank = Bank(*SHAPES, **settings)
    x, start = inputs(TRAINED, BATCH), torch.zeros(TRAINED, BATCH, dtype=torch.bool)

    def run() -> None:
        bank.zero_grad()
        state = bank.initial_state(BATCH)
        if in_parallel:
            y, _ = bank(x, state, start)
            loss = y.perceptual.square().mean() + y.cognitive.square().mean()
        else:
            loss = torch.zeros(())
            for t in range(TRAINED):
                y, state = bank.step(Streams(*(part[t] for part in x)), state, start[t])
                loss = loss + y.perceptual.square().mean() + y.cognitive.square().mean()
        loss.backward()

    run()
    return run


def row(name: str, mine: Any, peer: Any, what: str, limit: Limit) -> Row:
    """Compare two costs of STEPS steps."""
    return compared(
        name,
        f"{1e3 * mine.wall / STEPS:.3f}",
        f"{what} {1e3 * peer.wall / STEPS:.3f}",
        (mine.wall / peer.wall, mine.cpu / peer.cpu),
        limit,
        by_cpu=True,
    )


def latencies(rounds: int) -> list[Row]:
    """Compare the step of one environment between lengths, rules, heads and sizes."""
    kinds: dict[str, Callable[[], None]] = {
        **{f"L = {length}": stepping(length) for length in LENGTHS},
        "streams merged together": stepping(together=True),
        "merge weighted by inputs": stepping(consolidation=AdjacentMerge(counted=True)),
        "least used goes": stepping(consolidation=LeastUsed()),
        "oldest goes": stepping(consolidation=Oldest()),
        "fused writes": stepping(write_fused=True),
        "4 heads": stepping(heads=4),
        "32 tokens of 128": stepping(shapes=((32, 128), (1, 128))),
        "32 tokens of 128, 4 heads": stepping(shapes=((32, 128), (1, 128)), heads=4),
    }
    costs = dict(zip(kinds, alternate(*kinds.values(), rounds=max(rounds, 7)), strict=True))
    base = costs.pop("L = 16")
    ms = 1e3 * base.cpu / STEPS
    limit = Limit("≤", 0.8)
    name = "bank step, 16 x 96 and 1 x 128, L = 16, B = 1"
    first = Row(
        f"{name} [ms]",
        f"{1e3 * base.wall / STEPS:.3f}",
        f"CPU {ms:.3f}",
        None,
        None,
        str(limit),
        limit.holds(ms),
    )
    limits = {"L = 64": 3.0, "32 tokens of 128": 2.0, "32 tokens of 128, 4 heads": 3.0}
    return [first] + [
        row(f"bank step, {kind} [ms]", cost, base, "L = 16", Limit("≤", limits.get(kind, 1.5)))
        for kind, cost in costs.items()
    ]


def trainings(rounds: int) -> list[Row]:
    """Compare a training pass over a whole sequence with the same steps one by one."""
    rows = []
    for name, settings in (("detached", {}), ("through time", {"gradient_writes": None})):
        whole, stepped = alternate(
            training(True, **settings), training(False, **settings), rounds=rounds
        )
        rows.append(
            compared(
                f"bank, forward and backward, T = {TRAINED}, B = {BATCH}, {name} [ms]",
                f"{1e3 * whole.wall:.0f}",
                f"step by step {1e3 * stepped.wall:.0f}",
                (stepped.wall / whole.wall, stepped.cpu / whole.cpu),
                Limit("≥", 1.0),
                by_cpu=True,
            )
        )
    return rows


def rows(rounds: int) -> list[Row]:
    """Measure steps, then training passes."""
    return latencies(rounds) + trainings(rounds)
