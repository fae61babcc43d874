"""Memory tokens: a transformer rewrites a few tokens at every input and carries them on."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory


class MemoryTokensState(NamedTuple):
    """What memory tokens carry."""

    tokens: Float[Tensor, "B M D"]
    """The tokens as the last input left them; zero in an empty memory."""
    age: Int[Tensor, " B"]
    """Inputs seen since the scope began."""


class TokenLayer(nn.Module):
    """A pre-norm transformer layer in which every token sees every other.

    h = x + W Attn(LN(x)),  y = h + MLP(LN(h)), MLP = linear, GELU, linear. Keys have no bias:
    softmax would ignore it.

    Args:
        width: Features of a token.
        heads: Attention heads; they divide width.
        expand: Width of the MLP in multiples of width.
    """

    def __init__(self, width: int, heads: int, expand: float):
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        hidden = int(expand * width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Let the tokens exchange what they hold."""
        normed = self.norm(x)
        q, k, v = (
            rearrange(layer(normed), "B S (H D) -> B H S D", H=self.heads)
            for layer in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(read, "B H S D -> B S (H D)"))
        return x + self.narrow(F.gelu(self.widen(self.mlp_norm(x))))


class MemoryTokens(SequenceMemory[MemoryTokensState]):
    """Learned tokens carried from input to input (RMT: Bulatov et al. 2022, arXiv 2207.06881).

    A transformer reads [z_{t−1} + e; x_t], with m carried tokens z and a learned code e for each.
    After a last norm it leaves h in their places and y_t in the input's place, and
    z_t = g ⊙ z_{t−1} + (1 − g) ⊙ h, the fixed gate of the Block-Recurrent Transformer (Hutchins et
    al. 2022, arXiv 2203.07852), learned per token and feature; `keep` is where g begins. The memory
    is empty where z is zero. Gradient through few steps is the regime of μVLA
    (arXiv 2606.12497): with `gradient_steps` K, the tokens carried into an input whose number t in
    its scope (from 0) is a multiple of K are cut off from what made them.

    Deviations: RMT carries tokens from segment to segment and μVLA inside a vision-language model;
    here an input is one vector, and the transformer is small. Both replace the tokens, as None for
    `keep` does; trained through time, that learned nothing of a cue eleven inputs back in 1200
    updates, where the gate recalled it in 300.

    Args:
        d_in: Features of input and output.
        tokens: Memory tokens, m.
        layers: Transformer layers.
        heads: Attention heads; they divide d_in.
        expand: Width of the MLPs in multiples of d_in.
        gradient_steps: K; 1 cuts at every input, None never.
        keep: Share of a token that one input leaves, to begin with; None: no gate, all is new.
    """

    def __init__(
        self,
        d_in: int,
        *,
        tokens: int = 8,
        layers: int = 1,
        heads: int = 4,
        expand: float = 2.0,
        gradient_steps: int | None = 2,
        keep: float | None = 0.9,
    ):
        super().__init__()
        for name, value in (("tokens", tokens), ("layers", layers)):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        if heads < 1 or d_in % heads:
            raise InvalidValueError("heads", heads, f"divisors of d_in = {d_in}")
        if int(expand * d_in) < 1:
            raise InvalidValueError("expand", expand, f"1 / {d_in} or more")
        if gradient_steps is not None and gradient_steps < 1:
            raise InvalidValueError("gradient_steps", gradient_steps, "1 or more, or None")
        if keep is not None and not 0 < keep < 1:
            raise InvalidValueError("keep", keep, "between 0 and 1, or None")
        self.d_in = self.d_out = d_in
        self.gradient_steps = gradient_steps
        self.code = nn.Parameter(torch.randn(tokens, d_in) * d_in**-0.5)
        gate = None if keep is None else torch.full_like(self.code, math.log(keep / (1 - keep)))
        self.gate = None if gate is None else nn.Parameter(gate)
        self.layers = nn.Sequential(*(TokenLayer(d_in, heads, expand) for _ in range(layers)))
        self.norm = nn.LayerNorm(d_in)

    def initial_state(self, batch: int) -> MemoryTokensState:
        """Return tokens that hold nothing."""
        age = torch.zeros(batch, dtype=torch.int64, device=self.code.device)
        return MemoryTokensState(self.code.new_zeros(batch, *self.code.shape), age)

    def forward(
        self, x: Float[Tensor, "T B D"], state: MemoryTokensState, start: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B D"], MemoryTokensState]:
        """Rewrite the tokens, one input after another: each step needs the one before."""
        outputs = []
        for present, begins in zip(x, start, strict=True):
            y, state = self.step(present, state, begins)
            outputs.append(y)
        return torch.stack(outputs), state

    def step(
        self, x: Float[Tensor, "B D"], state: MemoryTokensState, start: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], MemoryTokensState]:
        """Read and rewrite the tokens."""
        age = torch.where(start, 0, state.age)
        # A choice, not a product: nothing passes a start, not even NaN.
        tokens = torch.where((age == 0)[:, None, None], 0.0, state.tokens)
        if self.gradient_steps is not None and tokens.requires_grad:
            cut = (age % self.gradient_steps == 0)[:, None, None]
            tokens = torch.where(cut, tokens.detach(), tokens)
        sequence = torch.cat([tokens + self.code, x[:, None].to(tokens.dtype)], dim=1)
        after = self.norm(self.layers(sequence))
        new = after[:, :-1].to(state.tokens.dtype)
        if self.gate is not None:
            new = torch.lerp(new, tokens, self.gate.sigmoid().expand_as(new))
        return after[:, -1], MemoryTokensState(new, age + 1)
