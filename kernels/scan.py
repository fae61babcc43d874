"""What an insertion is told and what it reports."""

import enum
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Worlds = int | Int[Tensor, " n"]
"""One world for all items, or one each."""


class Insert(enum.Enum):
    """What a scan says about the space that it saw."""

    ENDPOINT = 0
    """Voxels that hold points are hit; nothing is free."""
    RAY_PER_VOXEL = 1
    """And the ray to the centre of each of them is free."""
    RAY_PER_POINT = 2
    """And the ray to each point is free."""


class Scan(NamedTuple):
    """Points of one world, seen from one place."""

    points: Float[Tensor, "n 3"]
    """[m], float32, in the world's frame."""
    origin: tuple[float, float, float]
    """Where the sensor was [m]."""
    voxel_size: float
    """[m]"""
    max_range: float
    """[m]; rays end here, and points beyond are no hits. May be infinite."""
    mode: Insert


class Camera(NamedTuple):
    """A pinhole camera without distortion; pixel (u, v) covers u − ½ … u + ½."""

    width: int
    """[pixel]"""
    height: int
    """[pixel]"""
    fx: float
    """Focal length [pixel]."""
    fy: float
    cx: float
    """Where the optical axis meets the image [pixel]."""
    cy: float


class Bundle(NamedTuple):
    """Rays to be cast."""

    origins: Float[Tensor, "n 3"]
    """[m], float64, on the grid."""
    directions: Float[Tensor, "n 3"]
    """float64, finite, of any length above 0."""
    max_range: float
    """[m]; rays end here, or at the grid's border."""
    stop_at_unknown: bool
    """Whether voxels that no scan touched stop a ray too."""


class Inserted(NamedTuple):
    """What became of a scan's points, and of the map."""

    hits: int
    """Points within range: their voxels count as hit. With a ray per end voxel, all points on the
    grid, since it is the voxel's centre that is in range or not."""
    beyond_range: int
    """Points beyond the range; their rays count up to it."""
    not_finite: int
    """Points with a NaN or an infinity, left out."""
    off_grid: int
    """Points beyond the grid's border, left out."""
    new_blocks: int = 0
    evicted_blocks: int = 0
