"""Spatial indexes and the error root: the bottom of the house."""

from engram.kernels.answers import FullError, WhenFull
from engram.kernels.errors import EngramError
from engram.kernels.occupancy import Occupancy
from engram.kernels.octomap_file import read_octomap, write_octomap
from engram.kernels.scan import Camera, Insert, Inserted
from engram.kernels.voxel_map import VoxelMap

__all__ = [
    "Camera",
    "EngramError",
    "FullError",
    "Insert",
    "Inserted",
    "Occupancy",
    "VoxelMap",
    "WhenFull",
    "read_octomap",
    "write_octomap",
]
