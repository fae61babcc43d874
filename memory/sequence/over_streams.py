"""Any vector memory as a memory of token streams: the baselines of a perceptual-cognitive bank."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.memory.sequence.none import NoMemory, NoState
from engram.memory.sequence.streams import Streams


class OverStreams(SequenceMemory[Any]):
    """Reads both streams into one vector, remembers vectors, adds what it reads to every token.

    v = W [LN p_1 … LN p_N, LN c_1 … LN c_M],  y = m(v),  p'_n = p_n + U y,  c'_m = c_m + V y.

    W sees every token at its own place, as a convolution's last layer would: nothing is averaged
    away. The state is that of the memory inside.

    Args:
        perceptual: Tokens N and features D of the perceptual stream; no tokens: not in use.
        cognitive: Tokens M and features E of the cognitive stream; no tokens: not in use.
        memory: Builds the memory, given its width.
        width: Of the vectors that are remembered.
    """

    def __init__(
        self,
        perceptual: tuple[int, int],
        cognitive: tuple[int, int],
        *,
        memory: Callable[[int], SequenceMemory[Any]],
        width: int = 128,
    ):
        super().__init__()
        (n, d), (m, e) = perceptual, cognitive
        if not n and not m:
            raise InvalidValueError("tokens", 0, "1 or more in one of the streams")
        if width < 1:
            raise InvalidValueError("width", width, "1 or more")
        self.norms = nn.ModuleList(
            nn.LayerNorm(features) if tokens else nn.Identity()
            for tokens, features in (perceptual, cognitive)
        )
        self.read = nn.Linear(n * d + m * e, width)
        self.memory = memory(width)
        self.d_in, self.d_out = n * d + m * e, n * d + m * e
        # No bias: an empty memory that reads as zero leaves the tokens as they are.
        self.to_perceptual = nn.Linear(self.memory.d_out, d, bias=False) if n else None
        self.to_cognitive = nn.Linear(self.memory.d_out, e, bias=False) if m else None

    def initial_state(self, batch: int) -> Any:
        """Return the empty state of the memory inside."""
        return self.memory.initial_state(batch)

    def forward(  # type: ignore[override]
        self, x: Streams, state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Streams, Any]:
        """Remember T inputs, `[T, B, N, D]` and `[T, B, M, E]`."""
        y, state = self.memory(self._vector(x), state, start)
        return self._add(x, y), state

    def step(  # type: ignore[override]
        self, x: Streams, state: Any, start: Bool[Tensor, " B"]
    ) -> tuple[Streams, Any]:
        """Remember one input, through the memory's own step."""
        y, state = self.memory.step(self._vector(x), state, start)
        return self._add(x, y), state

    def reset(self, state: Any, mask: Bool[Tensor, " B"]) -> Any:
        """Empty the memory inside."""
        return self.memory.reset(state, mask)

    def randomize(self, state: Any, seeds: Int[Tensor, " B"]) -> Any:
        """Seed the memory inside."""
        return self.memory.randomize(state, seeds)

    def _vector(self, x: Streams) -> Tensor:
        parts = [norm(part).flatten(-2) for norm, part in zip(self.norms, x, strict=True)]
        return self.read(torch.cat(parts, -1))

    def _add(self, x: Streams, y: Tensor) -> Streams:
        return Streams(
            *(
                part if to is None else part + to(y)[..., None, :]
                for part, to in zip(x, (self.to_perceptual, self.to_cognitive), strict=True)
            )
        )


class PresentOnly(SequenceMemory[NoState]):
    """The control: both streams pass as they are, and nothing is remembered.

    Args:
        perceptual: Tokens N and features D of the perceptual stream.
        cognitive: Tokens M and features E of the cognitive stream.
    """

    def __init__(self, perceptual: tuple[int, int], cognitive: tuple[int, int]):
        super().__init__()
        self.d_in = self.d_out = math.prod(perceptual) + math.prod(cognitive)
        self.none = NoMemory(self.d_in)

    def initial_state(self, batch: int) -> NoState:
        """Return the state that is no state."""
        return self.none.initial_state(batch)

    def forward(  # type: ignore[override]
        self, x: Streams, state: NoState, start: Bool[Tensor, "T B"]
    ) -> tuple[Streams, NoState]:
        """Return the streams as they are."""
        del start
        return x, state

    def step(  # type: ignore[override]
        self, x: Streams, state: NoState, start: Bool[Tensor, " B"]
    ) -> tuple[Streams, NoState]:
        """Return the streams as they are."""
        del start
        return x, state
