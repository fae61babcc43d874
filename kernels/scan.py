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
    PROJECTIVE = 3
    """And every voxel is free whose centre lies half a voxel or more before what its pixel shows:
    faster than rays where voxels are finer than pixels are apart. Depth images only."""


FARTHEST_PROJECTIVE = 1000
"""Largest range of a projective insertion, in voxels: it looks at every block within."""


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


class Images(NamedTuple):
    """Depth images of one camera, one for each of B worlds."""

    depth: Float[Tensor, "B H W"]
    """[m], float32."""
    camera: Camera
    poses_camera_to_world: Float[Tensor, "B 4 4"]
    """float64, rigid."""


class Scan(NamedTuple):
    """Points of B worlds, each seen from one place."""

    points: Float[Tensor, "B n 3"]
    """[m], float32, in the world's frame."""
    origins: Float[Tensor, "B 3"]
    """Where the sensors were [m], float64, on the grid."""
    worlds: Int[Tensor, " B"]
    """Which worlds, each once."""
    voxel_size: float
    """[m]"""
    max_range: float
    """[m]; rays end here, and points beyond are no hits. May be infinite."""
    mode: Insert
    images: Images | None
    """What the points were computed from, for a projective insertion."""


class Asked(NamedTuple):
    """Points that a query asks about."""

    points: Float[Tensor, "n 3"]
    """[m], float32."""
    worlds: Worlds
    """Which worlds."""
    voxel_size: float
    """[m]"""


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
    worlds: Worlds
    """Which worlds."""
    voxel_size: float
    """[m]"""


Count = int | Int[Tensor, ""]
"""A number; on the device where nobody waits for it (`WhenFull.RAISE_LATER`)."""


class Inserted(NamedTuple):
    """What became of a scan's points, and of the map."""

    hits: Count
    """Points within range: their voxels count as hit. With a ray per end voxel, all points on the
    grid, since it is the voxel's centre that is in range or not."""
    beyond_range: Count
    """Points beyond the range; their rays count up to it."""
    not_finite: Count
    """Points with a NaN or an infinity, left out."""
    off_grid: Count
    """Points beyond the grid's border, left out."""
    new_blocks: Count = 0
    evicted_blocks: Count = 0
