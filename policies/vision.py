"""Small image encoders: pictures into patch tokens."""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError


class ConvPatches(nn.Module):
    """Strided convolutions; each cell of the last grid is a token.

    Three layers, of stride 4, 2 and 2: a 64 x 64 image becomes 4 x 4 tokens.

    Args:
        size: Height and width of the images [pixels], a multiple of 16.
        width: Features of a token.
    """

    def __init__(self, size: int = 64, width: int = 128):
        super().__init__()
        if size < 16 or size % 16:
            raise InvalidValueError("image size", size, "multiples of 16")
        if width < 2:
            raise InvalidValueError("width", width, "2 or more")
        self.size, self.width = size, width
        self.tokens = (size // 16) ** 2
        self.layers = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(width // 2, width * 3 // 4, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width * 3 // 4, width, 3, stride=2, padding=1),
        )
        self.position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)

    def forward(self, image: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "n N D"]:
        """Encode images."""
        if tuple(image.shape[1:]) != (self.size, self.size, 3):
            allowed = [self.size, self.size, 3]
            raise InvalidValueError("image shape", list(image.shape[1:]), allowed)
        x = rearrange(image, "n h w c -> n c h w").to(self.position.dtype) / 127.5 - 1
        return rearrange(self.layers(x), "n d h w -> n (h w) d") + self.position


class TransformerPatches(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021, 2010.11929), pre-norm.

    Args:
        size: Height and width of the images [pixels], a multiple of `patch`.
        width: Features of a token.
        patch: Height and width of a patch [pixels].
        depth: Layers.
        heads: Attention heads.
    """

    def __init__(
        self, size: int = 64, width: int = 128, *, patch: int = 16, depth: int = 4, heads: int = 4
    ):
        super().__init__()
        if not 1 <= patch <= size or size % patch:
            raise InvalidValueError("patch", patch, f"divisors of the image size {size}")
        if heads < 1 or width % heads:
            raise InvalidValueError("heads", heads, f"divisors of width = {width}")
        self.size, self.width = size, width
        self.tokens = (size // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "n N D"]:
        """Encode images."""
        if tuple(image.shape[1:]) != (self.size, self.size, 3):
            allowed = [self.size, self.size, 3]
            raise InvalidValueError("image shape", list(image.shape[1:]), allowed)
        x = rearrange(image, "n h w c -> n c h w").to(self.position.dtype) / 127.5 - 1
        x = rearrange(self.patches(x), "n d h w -> n (h w) d") + self.position
        return self.norm(self.layers(x))
