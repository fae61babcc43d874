"""A pre-norm transformer layer with rotary positions and an explicit past."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class RotaryLayer(nn.Module):
    """h = x + W_o Attn(LN x);  y = h + MLP(LN h), positions rotated into queries and keys.

    Keys are handed out and taken in unrotated: a cache may be moved to other positions later
    (Su et al. 2021, arXiv 2104.09864).

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
        self, x: Float[Tensor, "b P D"]
    ) -> tuple[Float[Tensor, "b P H d"], Float[Tensor, "b P H d"], Float[Tensor, "b P H d"]]:
        """Return queries, keys and values of the inputs."""
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b P (n H d) -> n b P H d", n=3, H=self.heads
        ).unbind()
        return q, k, v

    def finish(
        self,
        x: Float[Tensor, "b P D"],
        q: Float[Tensor, "b P H d"],
        k: Float[Tensor, "b K H d"],
        v: Float[Tensor, "b K H d"],
        positions: tuple[Int[Tensor, "b P"], Int[Tensor, "b K"]],
        visible: Bool[Tensor, "b P K"],
    ) -> Float[Tensor, "b P D"]:
        """Attend to the keys and run the MLP.

        Args:
            x: Inputs of the layer.
            q: Their queries.
            k: Keys, finite everywhere.
            v: Values, finite everywhere.
            positions: Of the queries and of the keys.
            visible: Which keys each query sees; at least one.
        """
        q, k = rotate(q, positions[0]), rotate(k, positions[1])
        # The mask is explicit: torch's is_causal would align it with the first key, not the last.
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible[:, None]
        )
        x = x + self.out(rearrange(y, "b H P d -> b P (H d)"))
        return x + self.mlp(x)


def rotate(x: Float[Tensor, "b P H d"], position: Int[Tensor, "b P"]) -> Float[Tensor, "b P H d"]:
    """Turn each pair (x_i, x_{i+d/2}) by the angle position · 1e4^(−2i/d)."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = position[..., None, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
