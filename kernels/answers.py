"""What a voxel map answers, and what it raises."""

import enum
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.errors import EngramError


class WhenFull(enum.Enum):
    """What an insertion does that would exceed the byte cap."""

    RAISE = "raise"
    """Raise `FullError`; the map stays as it was."""
    EVICT = "evict"
    """Drop the blocks of this world that are farthest from the sensor, and report how many."""
    RAISE_LATER = "raise later"
    """On a CUDA device: allocate all memory at once, so that insertions never wait for the device.
    A scan for which there is no room, in the map or for its marks, is left out as a whole, all its
    worlds, and a later insertion, or `wait`, raises `RefusedError`, after its own scan was put on
    the stream; what is told of points is what was seen. Numbers of worlds are best on the host:
    those on the device are read, which waits. Elsewhere as RAISE."""


class FullError(EngramError):
    """A map, or its features, would exceed their cap."""

    def __init__(self, needed: int, cap: int, unit: str = "bytes"):
        super().__init__(
            f"the map needs {needed} {unit}; allowed: max_{unit} = {cap} (clear_outside makes "
            "room, and so does when_full=WhenFull.EVICT, which drops what is far)"
        )


class RefusedError(FullError):
    """Scans were left out, since the map would have exceeded its cap (`WhenFull.RAISE_LATER`)."""

    def __init__(self, scans: int, cap: int):
        EngramError.__init__(
            self,
            f"{scans} insertion(s) had no room and were left out, all worlds of each; allowed: "
            f"max_bytes = {cap} for blocks and their marks (clear and clear_outside make room)",
        )


class MarksError(EngramError):
    """A scan touches more blocks than a CUDA device keeps marks of."""

    def __init__(self, worlds: int):
        super().__init__(
            f"a scan of {worlds} world(s) touches too many blocks at once; allowed: 2²⁰ (fewer "
            "points, a smaller max_range or larger voxels touch fewer)"
        )


class Casts(NamedTuple):
    """Where rays stop."""

    distance: Float[Tensor, " n"]
    """From the origin to the border of the voxel [m], float64; infinite where nothing stops it."""
    voxel: Int[Tensor, "n 3"]
    """Coordinates floor(p / voxel_size), int32; the grid's least where nothing stops it."""

    @property
    def stopped(self) -> Bool[Tensor, " n"]:
        """Which rays were stopped."""
        return self.distance.isfinite()


class Neighbours(NamedTuple):
    """Lists of voxels, one for each point, end to end and each in Morton order."""

    offset: Int[Tensor, " n_plus_1"]
    """The list of point i is offset[i] … offset[i+1] − 1."""
    distance: Float[Tensor, " m"]
    """[m]"""
    voxel: Int[Tensor, "m 3"]
    """Coordinates floor(p / voxel_size), int32."""
