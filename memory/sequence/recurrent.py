"""GRU and LSTM: fused kernels over whole chunks, whatever episodes begin inside them."""

from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory

MOST_CUTS = 6
"""Segments up to which a chunk is cut in time rather than packed: environments that start together
need few cuts, and the plain kernel is faster than the packed one."""


class GRUState(NamedTuple):
    """What a GRU carries."""

    h: Float[Tensor, "B D"]
    """Hidden vector; zero in an empty memory."""


class LSTMState(NamedTuple):
    """What an LSTM carries."""

    h: Float[Tensor, "B D"]
    """Hidden vector; zero in an empty memory."""
    c: Float[Tensor, "B D"]
    """Cell vector; zero in an empty memory."""


class Packing(NamedTuple):
    """How the scopes inside a chunk lie in a packed sequence: T·B inputs, no padding.

    Cutting every environment's row at its starts gives n runs. Sorted by length they form a
    `PackedSequence`, so one fused kernel handles staggered starts without a Python loop.
    """

    position: Int[Tensor, " TB"]
    """Place in the packed data of input (t, b), environment-major."""
    batch_sizes: Int[Tensor, " L"]
    """Runs longer than 0, 1, …, on the host, as PyTorch wants them."""
    first: Int[Tensor, " B"]
    """Place among the sorted runs of each environment's first run."""
    last: Int[Tensor, " B"]
    """Place among the sorted runs of each environment's last run."""
    runs: int


def pack(start: Bool[Tensor, "T B"]) -> Packing:
    """Plan the packing of a chunk from its starts."""
    length, batch = start.shape
    begin = start.clone()
    begin[0] = True
    run = (begin.t().reshape(-1).cumsum(0) - 1).view(batch, length)
    lengths = torch.bincount(run.flatten())
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=start.device))
    steps = torch.arange(length, device=start.device)
    began = torch.where(begin.t(), steps, 0).cummax(1).values
    batch_sizes = (lengths[:, None] > steps).sum(0)
    offset = batch_sizes.cumsum(0) - batch_sizes
    position = offset[steps - began] + rank[run]
    host_sizes = batch_sizes.cpu()
    return Packing(
        position.flatten(),
        host_sizes[host_sizes > 0],
        rank[run[:, 0]],
        rank[run[:, -1]],
        len(lengths),
    )


def run_recurrent(
    kernel: nn.GRU | nn.LSTM,
    x: Float[Tensor, "T B D"],
    hidden: tuple[Tensor, ...],
    start: Bool[Tensor, "T B"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a one-layer recurrent kernel through a chunk, restarting where scopes begin.

    It runs in the precision of its parameters: autocast would run it in float16 on a GPU,
    whatever type was asked for.

    Args:
        kernel: The network.
        x: Inputs.
        hidden: h, or h and c, each `[B, H]`, from before the chunk.
        start: Scope beginnings.

    Returns:
        Outputs `[T, B, H]` and the hidden vectors after the last input.
    """
    dtype = next(kernel.parameters()).dtype
    with torch.autocast(x.device.type, enabled=False):
        return _run_cut(kernel, x.to(dtype), tuple(part.to(dtype) for part in hidden), start)


def _run_cut(
    kernel: nn.GRU | nn.LSTM,
    x: Float[Tensor, "T B D"],
    hidden: tuple[Tensor, ...],
    start: Bool[Tensor, "T B"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`run_recurrent` in one call of the kernel per cut, while cuts are few."""
    cuts = [0] if len(start) == 1 else [0, *(1 + start[1:].any(1).nonzero().flatten()).tolist()]
    if len(cuts) > MOST_CUTS:
        return _run_packed(kernel, x, _restarted(hidden, start[0]), start)
    parts = []
    for first, end in pairwise([*cuts, len(start)]):
        entry = tuple(part[None] for part in _restarted(hidden, start[first]))
        y, last = kernel(x[first:end], _to_kernel(entry))
        hidden = tuple(part[0] for part in _from_kernel(last))
        parts.append(y)
    return torch.cat(parts) if len(parts) > 1 else parts[0], hidden


def _restarted(hidden: tuple[Tensor, ...], start: Bool[Tensor, " B"]) -> tuple[Tensor, ...]:
    # where, not a product: what a start discards may be anything, NaN included.
    return tuple(torch.where(start[:, None], 0.0, part) for part in hidden)


def _run_packed(
    kernel: nn.GRU | nn.LSTM,
    x: Float[Tensor, "T B D"],
    hidden: tuple[Tensor, ...],
    start: Bool[Tensor, "T B"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`run_recurrent` in one call of the kernel, whatever starts follow the first step."""
    packing = pack(start)
    entry = tuple(
        part.new_zeros(packing.runs, part.shape[-1]).index_put((packing.first,), part)[None]
        for part in hidden
    )
    rows = rearrange(x, "T B D -> (B T) D")
    source = torch.empty_like(packing.position)
    source[packing.position] = torch.arange(len(source), device=source.device)
    packed = PackedSequence(rows[source], packing.batch_sizes)
    y_packed, last = kernel(packed, _to_kernel(entry))
    y = rearrange(y_packed.data[packing.position], "(B T) H -> T B H", T=len(start))
    return y, tuple(part[0, packing.last] for part in _from_kernel(last))


def _to_kernel(hidden: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return hidden[0] if len(hidden) == 1 else hidden


def _from_kernel(hidden: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (hidden,) if isinstance(hidden, Tensor) else hidden


class GRU(SequenceMemory[GRUState]):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), PyTorch's variant.

    r = σ(W_r x + U_r h), z = σ(W_z x + U_z h), n = tanh(W_n x + b + r ⊙ (U_n h + c)),
    h' = (1 − z) ⊙ n + z ⊙ h. The output is h'.

    Args:
        d_in: Features of the input.
        d_out: Features of the hidden vector; d_in unless given.
    """

    def __init__(self, d_in: int, d_out: int | None = None):
        super().__init__()
        self.d_in, self.d_out = d_in, d_in if d_out is None else d_out
        if self.d_out < 1:
            raise InvalidValueError("d_out", d_out, "1 or more")
        self.kernel = nn.GRU(d_in, self.d_out)

    def initial_state(self, batch: int) -> GRUState:
        """Return zeros."""
        return GRUState(self._anchor().new_zeros(batch, self.d_out))

    def forward(
        self, x: Float[Tensor, "T B D"], state: GRUState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B E"], GRUState]:
        """Run the chunk in one kernel call."""
        y, (h,) = run_recurrent(self.kernel, x, (state.h,), start)
        return y, GRUState(h)


class LSTM(SequenceMemory[LSTMState]):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

    i, f, o = σ(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f ⊙ c + i ⊙ g,
    h' = o ⊙ tanh(c'). The output is h'.

    Args:
        d_in: Features of the input.
        d_out: Features of the hidden vector; d_in unless given.
    """

    def __init__(self, d_in: int, d_out: int | None = None):
        super().__init__()
        self.d_in, self.d_out = d_in, d_in if d_out is None else d_out
        if self.d_out < 1:
            raise InvalidValueError("d_out", d_out, "1 or more")
        self.kernel = nn.LSTM(d_in, self.d_out)

    def initial_state(self, batch: int) -> LSTMState:
        """Return zeros."""
        anchor = self._anchor()
        return LSTMState(anchor.new_zeros(batch, self.d_out), anchor.new_zeros(batch, self.d_out))

    def forward(
        self, x: Float[Tensor, "T B D"], state: LSTMState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B E"], LSTMState]:
        """Run the chunk in one kernel call."""
        y, (h, c) = run_recurrent(self.kernel, x, (state.h, state.c), start)
        return y, LSTMState(h, c)
