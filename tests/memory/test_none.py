"""The control: it reads zero, whatever it was shown."""

import torch

from engram.memory import state as states
from engram.memory.sequence import NoMemory


def test_reads_zero_at_every_step_and_keeps_nothing() -> None:
    memory = NoMemory(3)
    state = memory.initial_state(4)
    assert states.nbytes(state) == 0
    x = torch.randn(5, 4, 3)
    y, after = memory(x, state, torch.rand(5, 4) < 0.5)
    assert y.shape == x.shape and not y.any()
    assert states.nbytes(after) == 0 and not list(memory.parameters())


def test_takes_the_precision_of_its_input() -> None:
    memory = NoMemory(2)
    x = torch.randn(3, 2).double()
    y, _ = memory.step(x, memory.initial_state(3), torch.zeros(3, dtype=torch.bool))
    assert y.dtype == torch.float64
