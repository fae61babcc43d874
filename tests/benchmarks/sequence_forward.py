"""A whole sequence forward and backward against stepping through it with gradients."""

from collections.abc import Callable
from typing import Any

import torch
from measure import Limit, Row, alternate, compared

from engram.memory.sequence import HCAM, Memo
from engram.memory.sequence.base import SequenceMemory

STEPS, BATCH, WIDTH = 512, 32, 64
TARGET = Limit("≥", 10)

MEMORIES: dict[str, Callable[[], SequenceMemory[Any]]] = {
    "HCAM (chunk 16, capacity 32, top 4)": lambda: HCAM(WIDTH, chunk=16, capacity=32, top_k=4),
    "Memo (1 layer, segment 64, summary 8)": lambda: Memo(
        WIDTH, layers=1, segment=64, summary=8, capacity=8
    ),
}


def runs(memory: SequenceMemory[Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return one forward and backward pass at once, and one step by step."""
    x = torch.randn(STEPS, BATCH, WIDTH, requires_grad=True)
    start = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    start[0] = True
    begin = start.unbind()

    def whole() -> None:
        y, _ = memory(x, memory.initial_state(BATCH), start)
        y.square().mean().backward()

    def stepped() -> None:
        state, outputs = memory.initial_state(BATCH), []
        for present, begins in zip(x.unbind(), begin, strict=True):
            y, state = memory.step(present, state, begins)
            outputs.append(y)
        torch.stack(outputs).square().mean().backward()

    return whole, stepped


def rows(rounds: int) -> list[Row]:
    """Measure every memory."""
    table = []
    for name, make in MEMORIES.items():
        whole, stepped = runs(make())
        whole()
        stepped()
        fast, slow = alternate(whole, stepped, rounds=rounds)
        table.append(
            compared(
                f"{name} forward + backward, T = {STEPS}, B = {BATCH} [s]",
                f"{fast.wall:.3f}",
                f"stepping {slow.wall:.3f}",
                (slow.wall / fast.wall, slow.cpu / fast.cpu),
                TARGET,
            )
        )
    return table
