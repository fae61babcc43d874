"""A memory of token streams as a memory of vectors."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.streams import Streams


class OverVectors(SequenceMemory[Any]):
    """Cuts a vector into tokens, sends them through a memory of streams, and joins what comes out.

    A linear layer makes N tokens of D features and M tokens of E features of each input; another
    makes the output of all that the memory returns. The state is that of the memory inside.

    Args:
        d_in: Features of the input.
        memory: Builds the memory inside from the numbers of tokens and features of both streams.
        tokens: Perceptual tokens, N.
        width: Their features, D.
        cognitive_tokens: Cognitive tokens, M.
        cognitive_width: Their features, E.
        d_out: Features of the output; d_in unless given.
    """

    def __init__(
        self,
        d_in: int,
        *,
        memory: Callable[[tuple[int, int], tuple[int, int]], SequenceMemory[Any]],
        tokens: int = 4,
        width: int = 32,
        cognitive_tokens: int = 1,
        cognitive_width: int = 64,
        d_out: int | None = None,
    ):
        super().__init__()
        self.d_in, self.d_out = d_in, d_in if d_out is None else d_out
        if self.d_out < 1:
            raise InvalidValueError("d_out", d_out, "1 or more")
        self.shapes = (tokens, width), (cognitive_tokens, cognitive_width)
        self.memory = memory(*self.shapes)
        self.sizes = [number * features for number, features in self.shapes]
        self.project = nn.Linear(d_in, sum(self.sizes))
        self.out = nn.Linear(sum(self.sizes), self.d_out)

    def initial_state(self, batch: int) -> Any:
        """Return the empty state of the memory inside."""
        return self.memory.initial_state(batch)

    def forward(
        self, x: Float[Tensor, "T B D"], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B E"], Any]:
        """Run the memory inside over the whole chunk."""
        read, state = self.memory(self._tokens(x), state, start)
        return self._vector(read), state

    def step(
        self, x: Float[Tensor, "B D"], state: Any, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B E"], Any]:
        """One input, through the memory's own step."""
        read, state = self.memory.step(self._tokens(x), state, start)  # type: ignore[arg-type]
        return self._vector(read), state

    def reset(self, state: Any, mask: Bool[Tensor, " B"]) -> Any:
        """Empty the memory inside."""
        return self.memory.reset(state, mask)

    def randomize(self, state: Any, seeds: Int[Tensor, " B"]) -> Any:
        """Seed the memory inside."""
        return self.memory.randomize(state, seeds)

    def _tokens(self, x: Tensor) -> Streams:
        parts = self.project(x).split(self.sizes, dim=-1)
        return Streams(
            *(part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True))
        )

    def _vector(self, streams: Any) -> Tensor:
        return self.out(torch.cat([part.flatten(-2) for part in streams], dim=-1))
