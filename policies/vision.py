"""Small image encoders: pictures into patch tokens."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError

_STRIDE = 4
"""Height and width of the cells in which keypoints lie [pixels]."""


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
        x = self.layers(_numbers(image, self.size, self.position.dtype))
        return rearrange(x, "n d h w -> n (h w) d") + self.position


class Keypoints(nn.Module):
    """Points that the network learns to look for, each a token: what is there, and where.

    f = two convolutions (the first of stride 4: a 64 x 64 image becomes 16 x 16 cells), each
    followed by LayerNorm in every cell and GELU; p_k = softmax over cells of h_k · f, and
    token_k = W Σ_c p_kc f_c + V Σ_c p_kc x_c + e_k. This is the spatial softmax of Finn et al. 2016
    (1509.06113), which also reads the features at its points, as TokenLearner does (Ryoo et al.
    2021, 2106.11297). Places are numbers from the beginning, instead of something to be found out
    from which patch token says it.

    The points begin sharp, each on whatever its random h_k likes best: the mean place of a flat
    softmax is the middle of any image, and hardly moves.

    Args:
        size: Height and width of the images [pixels], a multiple of 4, 16 or more.
        width: Features of a token, 4 or more.
        tokens: Number of points.
        sharpness: Standard deviation of h_k · f at first, about.
    """

    def __init__(
        self, size: int = 64, width: int = 128, *, tokens: int = 16, sharpness: float = 20.0
    ):
        super().__init__()
        if size < 16 or size % _STRIDE:
            raise InvalidValueError("image size", size, "multiples of 4, 16 or more")
        if width < 4:
            raise InvalidValueError("width", width, "4 or more")
        if tokens < 1:
            raise InvalidValueError("tokens", tokens, "1 or more")
        if not 0 < sharpness < float("inf"):
            raise InvalidValueError("sharpness", sharpness, "above 0")
        self.size, self.width, self.tokens = size, width, tokens
        inside = width // 2
        self.patch = nn.Linear(3 * _STRIDE**2, inside)  # a convolution whose windows do not overlap
        self.look = nn.Conv2d(inside, inside, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(inside) for _ in range(2))
        self.heat = nn.Linear(inside, tokens, bias=False)  # softmax would ignore one
        nn.init.normal_(self.heat.weight, std=sharpness * inside**-0.5)
        self.what = nn.Linear(inside, width)
        self.where = nn.Linear(2, width)
        self.which = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.centres: Tensor
        line = torch.linspace(-1, 1, size // _STRIDE)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
        self.register_buffer("centres", grid.flatten(0, 1), persistent=False)

    def forward(self, image: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "n N D"]:
        """Encode images."""
        _check(image, self.size)
        # Channels stay last: a quarter quicker, forward and backward, on one core.
        patches = rearrange(image, "n (h p) (w q) c -> n h w (p q c)", p=_STRIDE, q=_STRIDE)
        cells = F.gelu(self.norms[0](self.patch(patches.to(self.which.dtype) / 127.5 - 1)))
        cells = self.look(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        cells = F.gelu(self.norms[1](cells)).flatten(1, 2)
        heat = self.heat(cells).mT.float().softmax(-1)
        # Not a product that autocast would round: bfloat16 knows a place to a third of a cell.
        where = (heat[..., None] * self.centres).sum(2)
        return self.what(heat.to(cells.dtype) @ cells) + self.where(where) + self.which


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
        x = self.patches(_numbers(image, self.size, self.position.dtype))
        x = rearrange(x, "n d h w -> n (h w) d") + self.position
        return self.norm(self.layers(x))


def _numbers(
    image: UInt8[Tensor, "n H W 3"], size: int, dtype: torch.dtype
) -> Float[Tensor, "n 3 H W"]:
    """Return images as numbers from -1 to 1."""
    _check(image, size)
    return rearrange(image, "n h w c -> n c h w").to(dtype) / 127.5 - 1


def _check(image: Tensor, size: int) -> None:
    if tuple(image.shape[1:]) != (size, size, 3):
        raise InvalidValueError("image shape", list(image.shape[1:]), [size, size, 3])
