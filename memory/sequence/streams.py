"""What a policy of several token streams sends through a memory."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Streams(NamedTuple):
    """Tokens of one input: what was seen, and what it meant.

    A stream that is not in use has no tokens: N or M is zero.
    """

    perceptual: Float[Tensor, "*batch N D"]
    """Tokens of low level: patches of the image, proprioception."""
    cognitive: Float[Tensor, "*batch M E"]
    """Tokens of high level: usually the one in which a language model sums up what it sees."""
