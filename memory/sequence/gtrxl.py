"""Gated Transformer-XL: relative attention over a bounded cache, with GRU gates as residuals."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.attention import banded_attention, finite_past, sinusoid
from engram.memory.sequence.base import SequenceMemory, steps_since_start
from engram.memory.sequence.chain import Chain


class GTrXLState(NamedTuple):
    """Keys and values of the last M inputs of one layer, newest last."""

    k: Float[Tensor, "B M H D"]
    v: Float[Tensor, "B M H D"]
    age: Int[Tensor, " B"]
    """Inputs seen since the scope began; slots older than that hold nothing."""


class Gate(nn.Module):
    """The GRU gate of Parisotto et al. 2020, arXiv 1910.06764, equation 5.

    r = σ(W_r y + U_r x), z = σ(W_z y + U_z x − b), ĥ = tanh(W_g y + U_g(r ⊙ x)),
    g(x, y) = (1 − z) ⊙ x + z ⊙ ĥ.

    Args:
        dim: Features.
        bias: b; above zero the layer begins close to the identity.
    """

    def __init__(self, dim: int, bias: float):
        super().__init__()
        self.from_y = nn.Linear(dim, 3 * dim, bias=False)
        self.from_x = nn.Linear(dim, 2 * dim, bias=False)
        self.from_reset = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), bias))

    def forward(self, x: Float[Tensor, "*n D"], y: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Gate the layer's result y into its input x."""
        y_r, y_z, y_g = self.from_y(y).chunk(3, -1)
        x_r, x_z = self.from_x(x).chunk(2, -1)
        reset, update = (y_r + x_r).sigmoid(), (y_z + x_z - self.bias).sigmoid()
        return (1 - update) * x + update * (y_g + self.from_reset(reset * x)).tanh()


class GTrXLLayer(SequenceMemory[GTrXLState]):
    """One layer of Gated Transformer-XL (Parisotto et al. 2020; attention of Dai et al. 2019).

    Y = g(E, ReLU(Attn(LN[M; E]))),  E' = g'(Y, ReLU(MLP(LN Y))), with the attention logit of a
    key o steps back (q + u)·k + (q + v)·W_R R_o, R_o a sinusoid (arXiv 1901.02860, section 3.3).

    Deviations: keys and values of past inputs are cached as they were projected, so a step costs
    M·D instead of M·D²; after an update the cache is stale until the stored state is refreshed
    (a cache of layer inputs is stale too, one projection earlier). Every query sees exactly its
    last `memory` inputs and itself, where Transformer-XL's reach depends on the place in the
    segment. Gradients pass between the steps of one chunk and stop at its stored state.

    Args:
        d_in: Features of input and output.
        memory: Past inputs kept, M.
        heads: Attention heads; they divide d_in, which is even.
        expand: Width of the MLP in multiples of d_in.
        gate_bias: b of both gates.
    """

    def __init__(
        self,
        d_in: int,
        *,
        memory: int = 32,
        heads: int = 4,
        expand: float = 2.0,
        gate_bias: float = 2.0,
    ):
        super().__init__()
        if heads < 1 or d_in % heads or d_in % 2:
            raise InvalidValueError("heads", heads, f"divisors of d_in = {d_in}, an even number")
        if memory < 1:
            raise InvalidValueError("memory", memory, "1 or more")
        self.d_in = self.d_out = d_in
        self.memory, self.heads = memory, heads
        self.norm = nn.LayerNorm(d_in)
        self.qkv = nn.Linear(d_in, 3 * d_in, bias=False)
        self.relative = nn.Linear(d_in, d_in, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, d_in // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, d_in // heads))
        self.out = nn.Linear(d_in, d_in)
        hidden = int(expand * d_in)
        if hidden < 1:
            raise InvalidValueError("expand", expand, f"1 / d_in = {1 / d_in} or more")
        self.mlp = nn.Sequential(
            nn.LayerNorm(d_in), nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, d_in)
        )
        self.gate_attention = Gate(d_in, gate_bias)
        self.gate_mlp = Gate(d_in, gate_bias)

    def initial_state(self, batch: int) -> GTrXLState:
        """Return an empty cache."""
        anchor = self._anchor()
        shape = (batch, self.memory, self.heads, self.d_in // self.heads)
        age = torch.zeros(batch, dtype=torch.int64, device=anchor.device)
        return GTrXLState(anchor.new_zeros(shape), anchor.new_zeros(shape), age)

    def forward(
        self, x: Float[Tensor, "T B D"], state: GTrXLState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], GTrXLState]:
        """Attend in blocks; every step sees what it would see one by one."""
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "T B (n H D) -> n B T H D", n=3, H=self.heads
        ).unbind()
        age = torch.where(start[0], 0, state.age)
        k, v = (
            torch.cat([finite_past(past, age), new], dim=1)
            for past, new in ((state.k, k), (state.v, v))
        )
        offsets = torch.arange(self.memory + 1, device=x.device)
        relative = self.relative(sinusoid(offsets, self.d_in).to(x.dtype))
        relative = rearrange(relative, "o (H D) -> o H D", H=self.heads)
        position = torch.einsum("bthd,ohd->btho", q + self.position_bias, relative)
        seen = steps_since_start(start, age)
        y = banded_attention(
            q + self.content_bias,
            k,
            v,
            position * relative.shape[-1] ** -0.5,
            seen.t().clamp(max=self.memory),
        )
        y = self.gate_attention(x, self.out(rearrange(y, "B T H D -> T B (H D)")).relu())
        y = self.gate_mlp(y, self.mlp(y).relu())
        kept = slice(k.shape[1] - self.memory, None)
        return y, GTrXLState(k[:, kept], v[:, kept], seen[-1] + 1)


class GTrXL(Chain):
    """Gated Transformer-XL: `layers` of `GTrXLLayer`, whose arguments it takes.

    A query of the last layer reaches back layers · memory steps.
    """

    def __init__(
        self,
        d_in: int,
        *,
        layers: int = 2,
        memory: int = 32,
        heads: int = 4,
        expand: float = 2.0,
        gate_bias: float = 2.0,
    ):
        if layers < 1:
            raise InvalidValueError("layers", layers, "1 or more")
        super().__init__(
            *(
                GTrXLLayer(d_in, memory=memory, heads=heads, expand=expand, gate_bias=gate_bias)
                for _ in range(layers)
            )
        )
