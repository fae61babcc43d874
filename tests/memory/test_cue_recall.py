"""Learning: is a cue recalled that lies further back than any window of what is read?"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from engram.memory.sequence import (
    AdjacentMerge,
    Bank,
    LeastUsed,
    MemoryTokens,
    Oldest,
    OverVectors,
    SequenceMemory,
    stack,
)

D, STEPS, BATCH = 16, 9, 32


def bank(**settings: Any) -> SequenceMemory[Any]:
    memory = partial(Bank, **{"capacity": 4} | settings)
    layer = partial(OverVectors, memory=memory, tokens=2, width=16, cognitive_width=16)
    return stack(D, layer=layer)


def recalled(memory: SequenceMemory[Any], updates: int) -> float:
    """Share of right answers late in training: which of two cues was the first of nine inputs."""
    head = nn.Linear(D, 2)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], 3e-3)
    start, right = torch.zeros(STEPS, BATCH, dtype=torch.bool), []
    for _ in range(updates):
        cue = torch.randint(0, 2, (BATCH,))
        x = torch.randn(STEPS, BATCH, D)
        x[:, :, :3] = 0
        x[0, torch.arange(BATCH), cue] = 3
        x[-1, :, 2] = 3
        answer = head(memory(x, memory.initial_state(BATCH), start)[0][-1])
        optimizer.zero_grad()
        nn.functional.cross_entropy(answer, cue).backward()
        optimizer.step()
        right.append((answer.argmax(1) == cue).float().mean())
    return torch.stack(right[-20:]).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(bank, id="merge_detached"),
        pytest.param(partial(bank, consolidation=LeastUsed()), id="least_used"),
        pytest.param(
            partial(
                bank,
                consolidation=AdjacentMerge(counted=True),
                gradient_writes=None,
                write_fused=True,
                read_self=True,
            ),
            id="fused_through_time",
        ),
        pytest.param(
            partial(MemoryTokens, D, tokens=4, heads=2, gradient_steps=None), id="memory_tokens"
        ),
    ],
)
def test_a_cue_beyond_the_capacity_is_learned(build: Callable[[], SequenceMemory[Any]]) -> None:
    assert recalled(build(), 150) > 0.9


@pytest.mark.slow
def test_a_cue_that_was_dropped_stays_unknown() -> None:
    assert recalled(bank(consolidation=Oldest()), 150) < 0.7
