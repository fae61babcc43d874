"""The two streams of tokens of a vision-language-action policy."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Streams(NamedTuple):
    """Tokens of one input: what is seen in detail, and what it means."""

    perceptual: Float[Tensor, "*batch N D"]
    """Low-level tokens: N patches or objects of D features."""
    cognitive: Float[Tensor, "*batch M E"]
    """High-level tokens: M (one, in MemoryVLA) of E features."""
