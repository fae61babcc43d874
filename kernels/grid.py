"""Where a voxel lies: fixed-point coordinates, Morton codes, block keys. Twin of source/grid.h."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

VOXEL_BITS = 19
"""Bits of a voxel's coordinate on one axis: a grid of 2¹⁹ voxels per axis around the origin."""
BIAS = 1 << (VOXEL_BITS - 1)
"""Added to voxel coordinates, so that none on the grid is negative."""
KEY_BITS = 3 * (VOXEL_BITS - 3)
"""Bits of a block's Morton code; a key is `world << KEY_BITS | code`."""
WORLDS = 1 << (63 - KEY_BITS)
"""Worlds that one map can hold."""
CELLS = 512
"""Voxels in a block of 8 × 8 × 8."""
FRACTION = 30
"""Bits after the point of a fixed-point coordinate."""
ONE = 1 << FRACTION
MIRROR = (1 << (VOXEL_BITS + FRACTION)) - 1
"""A coordinate x and MIRROR − x lie in voxels that mirror each other."""


class Evidence(NamedTuple):
    """What a scan does to the log-odds of a voxel, in steps of int8."""

    hit: int
    """Added where a point lies."""
    miss: int
    """Added where rays pass, and no point lies; negative."""
    low: int
    """Least log-odds."""
    high: int
    """Greatest log-odds."""
    threshold: int
    """Log-odds from which on a voxel counts as occupied."""


def spread(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Put two zeros between the bits of numbers of 21 bits."""
    x = (x | x << 32) & 0x001F00000000FFFF
    x = (x | x << 16) & 0x001F0000FF0000FF
    x = (x | x << 8) & 0x100F00F00F00F00F
    x = (x | x << 4) & 0x10C30C30C30C30C3
    return (x | x << 2) & 0x1249249249249249


def unspread(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Take every third bit."""
    x = x & 0x1249249249249249
    x = (x | x >> 2) & 0x10C30C30C30C30C3
    x = (x | x >> 4) & 0x100F00F00F00F00F
    x = (x | x >> 8) & 0x001F0000FF0000FF
    x = (x | x >> 16) & 0x001F00000000FFFF
    return (x | x >> 32) & 0x1FFFFF


def morton(cell: Int[Tensor, "*n 3"]) -> Int[Tensor, "*n"]:
    """Morton codes of biased coordinates; x has the lowest bit."""
    x, y, z = spread(cell).unbind(-1)
    return x | y << 1 | z << 2


def unmorton(code: Int[Tensor, "*n"]) -> Int[Tensor, "*n 3"]:
    """Biased coordinates of Morton codes."""
    return unspread(torch.stack([code, code >> 1, code >> 2], dim=-1))


def square_root(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Correctly rounded square root; torch's own on a CPU may be off by the last digit."""
    if x.device.type != "cpu":
        return x.sqrt()
    return torch.from_numpy(np.sqrt(x.contiguous().numpy()))


def on_grid(voxels: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
    """Whether points, in voxels, lie on the grid; false for NaN."""
    return ((voxels >= -BIAS) & (voxels < BIAS)).all(-1)


def to_fixed(voxels: Float[Tensor, "*n 3"]) -> Int[Tensor, "*n 3"]:
    """Fixed-point coordinates of points on the grid, float64, in voxels."""
    return (voxels * ONE).floor().to(torch.int64) + (BIAS << FRACTION)
