"""Compositions: memories in sequence, and the residual block that makes a layer of any memory."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory


class Block(SequenceMemory[Any]):
    """A pre-norm residual layer around any memory m, as transformers have them.

    h = x + W m(LN(x)),  y = h + MLP(LN(h)), MLP = linear, GELU, linear.

    The state is that of the memory inside.

    Args:
        memory: The memory; W is left out where its output has as many features as its input.
        expand: Width of the MLP in multiples of d_in; 0 leaves the MLP out.
    """

    def __init__(self, memory: SequenceMemory[Any], *, expand: float = 2.0):
        super().__init__()
        width = memory.d_in
        self.d_in = self.d_out = width
        self.memory = memory
        self.norm = nn.LayerNorm(width)
        self.project = nn.Identity() if memory.d_out == width else nn.Linear(memory.d_out, width)
        hidden = int(expand * width)
        if expand < 0:
            raise InvalidValueError("expand", expand, "0 or more")
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
            )
            if hidden
            else None
        )

    def initial_state(self, batch: int) -> Any:
        """Return the empty state of the memory inside."""
        return self.memory.initial_state(batch)

    def forward(
        self, x: Float[Tensor, "T B D"], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], Any]:
        """Add what the memory reads, then what the MLP makes of it."""
        read, state = self.memory(self.norm(x), state, start)
        return self._combine(x, read), state

    def step(
        self, x: Float[Tensor, "B D"], state: Any, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Any]:
        """One input, through the memory's own step."""
        read, state = self.memory.step(self.norm(x), state, start)
        return self._combine(x, read), state

    def reset(self, state: Any, mask: Bool[Tensor, " B"]) -> Any:
        """Empty the memory inside."""
        return self.memory.reset(state, mask)

    def randomize(self, state: Any, seeds: Int[Tensor, " B"]) -> Any:
        """Seed the memory inside."""
        return self.memory.randomize(state, seeds)

    def _combine(self, x: Tensor, read: Tensor) -> Tensor:
        h = x + self.project(read)
        return h if self.mlp is None else h + self.mlp(h)


class Chain(SequenceMemory[Any]):
    """Memories one after another; the state is the tuple of their states.

    Args:
        memories: At least one; each takes as many features as the one before it gives.
    """

    def __init__(self, *memories: SequenceMemory[Any]):
        super().__init__()
        if not memories:
            raise InvalidValueError("memories", "none", "one or more")
        for before, after in pairwise(memories):
            if before.d_out != after.d_in:
                raise InvalidValueError("d_in", after.d_in, f"d_out before it, {before.d_out}")
        self.d_in, self.d_out = memories[0].d_in, memories[-1].d_out
        self.memories = nn.ModuleList(memories)

    def initial_state(self, batch: int) -> Any:
        """Return every part's empty state."""
        return tuple(memory.initial_state(batch) for memory in self._parts())

    def forward(
        self, x: Float[Tensor, "T B D"], state: Any, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B E"], Any]:
        """Run the parts in order over the whole chunk."""
        after = []
        for memory, part in zip(self._parts(), state, strict=True):
            x, part = memory(x, part, start)
            after.append(part)
        return x, tuple(after)

    def step(
        self, x: Float[Tensor, "B D"], state: Any, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B E"], Any]:
        """One input, through every part's own step."""
        after = []
        for memory, part in zip(self._parts(), state, strict=True):
            x, part = memory.step(x, part, start)
            after.append(part)
        return x, tuple(after)

    def reset(self, state: Any, mask: Bool[Tensor, " B"]) -> Any:
        """Empty every part."""
        parts = zip(self._parts(), state, strict=True)
        return tuple(memory.reset(part, mask) for memory, part in parts)

    def randomize(self, state: Any, seeds: Int[Tensor, " B"]) -> Any:
        """Seed every part."""
        return tuple(
            memory.randomize(part, seeds) for memory, part in zip(self._parts(), state, strict=True)
        )

    def _parts(self) -> list[SequenceMemory[Any]]:
        return list(self.memories)  # type: ignore[arg-type]


def stack(
    d_in: int,
    *,
    layer: Callable[[int], SequenceMemory[Any]],
    layers: int = 1,
    expand: float = 2.0,
) -> Chain:
    """Use a memory in several layers: a chain of residual blocks.

    Args:
        d_in: Width of every layer.
        layer: Builds the memory of one layer, given its width.
        layers: How many blocks.
        expand: Width of each block's MLP in multiples of d_in.
    """
    if layers < 1:
        raise InvalidValueError("layers", layers, "1 or more")
    return Chain(*(Block(layer(d_in), expand=expand) for _ in range(layers)))
