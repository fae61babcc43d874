"""Attention over the last K inputs: the simplest memory that has a length."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.attention import banded_attention, finite_past
from engram.memory.sequence.base import SequenceMemory, steps_since_start


class WindowState(NamedTuple):
    """Keys and values of the last W−1 inputs, newest last."""

    k: Float[Tensor, "B P H D"]
    v: Float[Tensor, "B P H D"]
    age: Int[Tensor, " B"]
    """Inputs seen since the scope began; slots older than that hold nothing."""


class Window(SequenceMemory[WindowState]):
    """Multi-head attention from each input to the last `window` inputs, itself included.

    y_t = W_o Σ_{o<W} softmax_o(q_t·k_{t−o}/√d + c_o) v_{t−o}, with a learned logit c_o for every
    head and every distance o (Shaw et al. 2018, arXiv 1803.02155, in the scalar form of T5).

    Keys and values are kept as they were projected when their input arrived. Keys carry no bias:
    it would shift all logits of a query alike, which softmax ignores.

    Args:
        d_in: Features of input and output.
        window: Inputs that are visible, the current one included.
        heads: Attention heads; they divide d_in.
    """

    def __init__(self, d_in: int, *, window: int = 32, heads: int = 4):
        super().__init__()
        if heads < 1 or d_in % heads:
            raise InvalidValueError("heads", heads, f"divisors of d_in = {d_in}")
        if window < 2:
            raise InvalidValueError("window", window, "2 or more (one input is no memory)")
        self.d_in = self.d_out = d_in
        self.window, self.heads = window, heads
        self.query = nn.Linear(d_in, d_in)
        self.key = nn.Linear(d_in, d_in, bias=False)
        self.value = nn.Linear(d_in, d_in)
        self.out = nn.Linear(d_in, d_in)
        self.distance = nn.Parameter(torch.zeros(heads, window))

    def initial_state(self, batch: int) -> WindowState:
        """Return an empty window."""
        anchor = self._anchor()
        shape = (batch, self.window - 1, self.heads, self.d_in // self.heads)
        age = torch.zeros(batch, dtype=torch.int64, device=anchor.device)
        return WindowState(anchor.new_zeros(shape), anchor.new_zeros(shape), age)

    def forward(
        self, x: Float[Tensor, "T B D"], state: WindowState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], WindowState]:
        """Attend in blocks; every step sees what it would see one by one."""
        q, k, v = (
            rearrange(layer(x), "T B (H D) -> B T H D", H=self.heads)
            for layer in (self.query, self.key, self.value)
        )
        age = torch.where(start[0], 0, state.age)
        k, v = (
            torch.cat([finite_past(past, age), new], dim=1)
            for past, new in ((state.k, k), (state.v, v))
        )
        seen = steps_since_start(start, age)  # [T, B]
        reach = seen.t().clamp(max=self.window - 1)
        y = banded_attention(q, k, v, self.distance, reach)
        kept = slice(k.shape[1] - (self.window - 1), None)
        state = WindowState(k[:, kept], v[:, kept], seen[-1] + 1)
        return self.out(rearrange(y, "B T H D -> T B (H D)")), state
