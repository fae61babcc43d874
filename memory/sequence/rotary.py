"""A pre-norm transformer layer with rotary positions and an explicit past."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Turn(NamedTuple):
    """Cosines and sines of the angles position · 1e4^(−2i/d)."""

    cos: Float[Tensor, "b P 1 1 h"]
    sin: Float[Tensor, "b P 1 1 h"]


class RotaryLayer(nn.Module):
    """h = x + W_o Attn(LN x);  y = h + MLP(LN h), positions turned into queries and keys.

    Keys are handed out and taken in turned. Attention then depends on the difference of two
    positions alone (Su et al. 2021, arXiv 2104.09864), so a cache never has to be turned again.

    Args:
        dim: Features D.
        heads: Attention heads; dim / heads is even.
        expand: Width of the MLP in multiples of dim.
    """

    def __init__(self, dim: int, heads: int, expand: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        hidden = int(expand * dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def project(
        self, x: Float[Tensor, "b P D"], turn: Turn
    ) -> tuple[Float[Tensor, "b P H d"], Float[Tensor, "b P 2 H d"]]:
        """Return the queries, and the keys and values, of the inputs."""
        qkv = rearrange(self.qkv(self.norm(x)), "b P (n H d) -> b P n H d", n=3, H=self.heads)
        turned = rotate(qkv[:, :, :2], turn)
        return turned[:, :, 0], torch.stack([turned[:, :, 1], qkv[:, :, 2]], dim=2)

    def finish(
        self,
        x: Float[Tensor, "b P D"],
        q: Float[Tensor, "b P H d"],
        kv: Float[Tensor, "b K 2 H d"],
        visible: Bool[Tensor, "b P K"],
    ) -> Float[Tensor, "b P D"]:
        """Attend to the keys and run the MLP.

        Args:
            x: Inputs of the layer.
            q: Their queries.
            kv: Keys and values, finite everywhere.
            visible: Which keys each query sees; at least one.
        """
        k, v = kv.unbind(2)
        # The mask is explicit: torch's is_causal would align it with the first key, not the last.
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible[:, None]
        )
        x = x + self.out(rearrange(y, "b H P d -> b P (H d)"))
        return x + self.mlp(x)


def angles(position: Int[Tensor, "b P"], dim: int, dtype: torch.dtype) -> Turn:
    """Return the turn of vectors of `dim` features at each position."""
    half = dim // 2
    frequency = 10_000.0 ** (
        -torch.arange(half, device=position.device, dtype=torch.float64) / half
    )
    angle = position[..., None, None, None] * frequency
    return Turn(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Float[Tensor, "b P n H d"], turn: Turn) -> Float[Tensor, "b P n H d"]:
    """Turn each pair (x_i, x_{i+d/2})."""
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat([a * turn.cos - b * turn.sin, a * turn.sin + b * turn.cos], dim=-1)
    return turned.to(x.dtype)
