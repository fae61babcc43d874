"""Multi-head attention as the blocks of a policy use it, and what it attends to."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from engram.memory.sequence.attention import attend


class SelfAttention(nn.Module):
    """Multi-head attention of tokens among themselves.

    Args:
        width: Features.
        heads: They divide the width.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n C D"]) -> Float[Tensor, "n C D"]:
        """Attend to all tokens."""
        q, k, v = _heads(self.query_key_value(x), 3, self.heads)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention to other tokens, whose keys and values are computed ahead.

    Args:
        width: Features of what attends.
        heads: They divide the width.
        features: Of the other tokens; as many unless given.
    """

    def __init__(self, width: int, heads: int, features: int | None = None):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if features is None else features, 2 * width)
        self.out = nn.Linear(width, width)

    def keys(self, tokens: Float[Tensor, "n N E"]) -> tuple[Tensor, Tensor]:
        """Return keys and values, `[n, H, N, d]` each."""
        k, v = _heads(self.key_value(tokens), 2, self.heads)
        return k, v

    def forward(
        self, x: Float[Tensor, "n C D"], keys: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "n C D"]:
        """Attend to keys that were computed before."""
        (q,) = _heads(self.query(x), 1, self.heads)
        return self.out(attend(q, *keys).transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """A query reads tokens: pre-norm cross-attention and MLP, residual.

    Args:
        width: Features of the query.
        features: Of the tokens.
        heads: Attention heads; they divide the width.
    """

    def __init__(self, width: int, features: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(
            [nn.LayerNorm(width), nn.LayerNorm(features), nn.LayerNorm(width)]
        )
        self.attention = CrossAttention(width, heads, features)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, query: Float[Tensor, "n M E"], tokens: Float[Tensor, "n N D"]
    ) -> Float[Tensor, "n M E"]:
        """Return the query, changed."""
        read = self.attention(self.norms[0](query), self.attention.keys(self.norms[1](tokens)))
        query = query + read
        return query + self.mlp(self.norms[2](query))


class Related(nn.Module):
    """Tokens in the light of another: W p + U GELU(V [p; c]), before they are attended to.

    Args:
        features: Of the tokens p.
        other: Features of the token c.
        width: Features of what comes out.
    """

    def __init__(self, features: int, other: int, width: int):
        super().__init__()
        self.token = nn.Linear(features, width)
        self.relate_in = nn.Linear(features + other, width)
        self.relate_out = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "n N D"], other: Float[Tensor, "n 1 E"]
    ) -> Float[Tensor, "n N W"]:
        """Relate every token to the other one."""
        both = torch.cat([tokens, other.expand(-1, tokens.shape[1], -1)], -1)
        return self.token(tokens) + self.relate_out(F.gelu(self.relate_in(both)))


def _heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split `[n, C, parts H d]` into parts `[n, H, C, d]`."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
