"""The control: a memory that remembers nothing."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engram.memory.sequence.base import SequenceMemory


class NoState(NamedTuple):
    """The state of a memory that keeps nothing."""

    nothing: Float[Tensor, "B 0"]
    """Carries the number of environments, and no value."""


class NoMemory(SequenceMemory[NoState]):
    """Reads zero at every step: y_t = 0.

    Inside a `Block` what is left is the feed-forward path, so a policy around it has the same
    encoder, width and heads as one that remembers, and must stay at chance where memory is needed.

    Args:
        d_in: Features of the input and, all of them zero, of the output.
    """

    def __init__(self, d_in: int):
        super().__init__()
        self.d_in = self.d_out = d_in
        # Without parameters, this alone tells the device that the module was moved to.
        self.anchor: Tensor
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def initial_state(self, batch: int) -> NoState:
        """Return the state that is no state."""
        return NoState(self.anchor.new_zeros(batch, 0))

    def forward(
        self, x: Float[Tensor, "T B D"], state: NoState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], NoState]:
        """Return zeros."""
        return torch.zeros_like(x), state
