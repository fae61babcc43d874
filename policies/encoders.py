"""Encoders: one module per observation space, all mapping `[*n, ...]` to `[*n, width]`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from engram.kernels.errors import InvalidValueError

SYMBOLS = 64
"""A uint8 Box whose values stay below this holds symbols, not intensities."""


def make_encoder(space: spaces.Space[Any], width: int, *, normalize: bool = False) -> nn.Module:
    """Choose the encoder of a Gymnasium space.

    Discrete: one embedding. MultiDiscrete: the sum of one embedding per part. MultiBinary and
    flat Box: two-layer MLP. uint8 Box `[C, H, W]` of symbols: embeddings and a CNN. uint8 Box
    `[H, W, C]`: CNN. Dict: the sum of its parts' encoders, normalised.

    Args:
        space: What is observed.
        width: Features of the code.
        normalize: Whether float vectors are normalised by their running mean and deviation.

    Raises:
        InvalidValueError: If no encoder fits the space.
    """
    if isinstance(space, spaces.Dict):
        return DictEncoder(space, width, normalize=normalize)
    if isinstance(space, spaces.Discrete):
        return IntegerEncoder([int(space.n)], width, first=[int(space.start)], single=True)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return IntegerEncoder(space.nvec.tolist(), width, first=space.start.tolist())
    if isinstance(space, spaces.MultiBinary):
        return VectorEncoder(space.shape, width, normalize=False)
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3:
            if int(space.high.max()) < SYMBOLS:
                highs = space.high.reshape(space.shape[0], -1).max(1)
                return SymbolGridEncoder([int(high) + 1 for high in highs], space.shape, width)
            return ImageEncoder(space.shape, width)
        return VectorEncoder(space.shape, width, normalize=normalize)
    raise InvalidValueError(
        "observation space", space, "Dict, Discrete, MultiDiscrete [n], MultiBinary, Box"
    )


class IntegerEncoder(nn.Module):
    """The sum of one embedding per integer: a linear map of the one-hot codes.

    Args:
        sizes: Number of values of each integer.
        width: Features of the code.
        first: Least value of each; 0 unless given.
        single: Whether the one integer has no axis of its own.
    """

    def __init__(
        self,
        sizes: list[int],
        width: int,
        *,
        first: list[int] | None = None,
        single: bool = False,
    ):
        super().__init__()
        self.single = single
        self.table = nn.Embedding(sum(sizes), width)
        offsets = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
        offsets = offsets - torch.tensor(first or [0] * len(sizes))
        self.offsets: Tensor
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Shaped[Tensor, "*n"]) -> Float[Tensor, "*m D"]:
        """Encode integers `[*n, parts]`, or `[*n]` where there is a single one."""
        codes = self.table(x.to(torch.int64) + self.offsets)
        return codes if self.single else codes.sum(-2)


class RunningNorm(nn.Module):
    """Scales a vector by the mean and deviation of what `update` was shown.

    Statistics change only in `update`, between a rollout and the next, so that learning sees the
    inputs that acting saw.

    Args:
        size: Features.
    """

    def __init__(self, size: int):
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Normalise, clipped at ten deviations."""
        return ((x - self.mean) / self.variance.clamp(min=1e-6).sqrt()).clamp(-10, 10)

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "*n D"],
        over_learners: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:
        """Take in vectors, without a difference of squares (Chan et al. 1979).

        Args:
            x: Vectors.
            over_learners: Takes the mean over those who saw other vectors, equally many. (`count`
                counts those of one learner: only its ratios matter.)
        """
        rows = x.reshape(-1, x.shape[-1])
        self.count += len(rows)
        share = len(rows) / self.count
        centre = over_learners(rows.mean(0))
        shift = centre - self.mean
        variance = over_learners((rows - centre).square().mean(0))
        spread = variance + (1 - share) * shift.square()
        self.mean += share * shift
        self.variance += share * (spread - self.variance)


class VectorEncoder(nn.Module):
    """Two-layer MLP over a flattened array of numbers.

    Args:
        shape: Of one observation.
        width: Features of the code.
        normalize: Whether to scale by running statistics first.
    """

    def __init__(self, shape: tuple[int, ...], width: int, *, normalize: bool):
        super().__init__()
        self.axes = len(shape)
        size = math.prod(shape)
        self.norm = RunningNorm(size) if normalize else None
        self.layers = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Shaped[Tensor, "*n"]) -> Float[Tensor, "*m D"]:
        """Encode arrays `[*n, *shape]`."""
        x = flatten_tail(x, self.axes).to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
        return self.layers(x if self.norm is None else self.norm(x))


class SymbolGridEncoder(nn.Module):
    """Planes of symbols: per cell the sum of the planes' embeddings, then a CNN.

    Args:
        sizes: Number of symbols in each plane.
        shape: `(planes, rows, columns)`.
        width: Features of the code.
        channels: Channels of the CNN.
    """

    def __init__(self, sizes: list[int], shape: tuple[int, ...], width: int, *, channels: int = 16):
        super().__init__()
        self.shape = shape
        self.symbols = IntegerEncoder(sizes, channels)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        rows, columns = ((side - 3) // 2 - 1 for side in shape[1:])
        if min(rows, columns) < 1:
            raise InvalidValueError("observation shape", shape, "grids of 7 x 7 cells or more")
        self.out = nn.Linear(2 * channels * rows * columns, width)

    def forward(self, x: Shaped[Tensor, "*n C H W"]) -> Float[Tensor, "*n D"]:
        """Encode grids of symbols."""
        lead = x.shape[:-3]
        cells = self.symbols(x.reshape(-1, *self.shape).movedim(1, -1))  # [n, H, W, channels]
        return self.out(self.trunk(cells.movedim(-1, 1))).unflatten(0, lead)


class ImageEncoder(nn.Module):
    """The CNN of Mnih et al. 2015 over 8-bit images of at least 36 x 36 pixels.

    Args:
        shape: `(rows, columns, channels)`.
        width: Features of the code.
    """

    def __init__(self, shape: tuple[int, ...], width: int):
        super().__init__()
        self.shape = shape
        self.trunk = nn.Sequential(
            nn.Conv2d(shape[2], 16, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        if min(shape[:2]) < 36:
            raise InvalidValueError(
                "observation shape", shape, "images of 36 x 36 or more, [H W C]"
            )
        with torch.no_grad():
            size = self.trunk(torch.zeros(1, shape[2], *shape[:2])).shape[1]
        self.out = nn.Linear(size, width)

    def forward(self, x: Shaped[Tensor, "*n H W C"]) -> Float[Tensor, "*n D"]:
        """Encode images with values 0 … 255."""
        lead = x.shape[:-3]
        image = x.reshape(-1, *self.shape).movedim(-1, 1)
        return self.out(self.trunk(image.to(self.out.weight.dtype) / 255)).unflatten(0, lead)


class DictEncoder(nn.Module):
    """The sum of the parts' codes: a linear map of their concatenation.

    Args:
        space: The parts.
        width: Features of the code.
        normalize: Passed on to the parts.
    """

    def __init__(self, space: spaces.Dict, width: int, *, normalize: bool):
        super().__init__()
        if not space.spaces:
            raise InvalidValueError("observation space", space, "a Dict with at least one part")
        # A ModuleDict would refuse parts named "type", "robot.arm" and others.
        self.names = list(space)
        self.parts = nn.ModuleList(
            make_encoder(part, width, normalize=normalize) for part in space.values()
        )

    def forward(self, x: dict[str, Any]) -> Float[Tensor, "*n D"]:
        """Encode a dict of tensors, or of such dicts."""
        codes = [encoder(x[name]) for name, encoder in zip(self.names, self.parts, strict=True)]
        return torch.stack(codes).sum(0) * len(codes) ** -0.5


def flatten_tail(x: Tensor, axes: int) -> Tensor:
    """Merge the trailing axes of one observation: `[*n, ...]` to `[*n, size]`."""
    return x.flatten(-axes) if axes else x[..., None]


def update_norms(
    module: nn.Module,
    observation: Any,
    over_learners: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> None:
    """Show every running norm of an encoder the observations of a rollout."""
    if isinstance(module, DictEncoder):
        for name, part in zip(module.names, module.parts, strict=True):
            update_norms(part, observation[name], over_learners)
    elif isinstance(module, VectorEncoder) and module.norm is not None:
        x = flatten_tail(observation, module.axes)
        module.norm.update(x.to(module.norm.mean.dtype), over_learners)
