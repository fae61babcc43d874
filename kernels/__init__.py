"""Spatial indexes and the error root: the bottom of the house."""

from engram.kernels.answers import FullError, RefusedError, WhenFull
from engram.kernels.errors import EngramError
from engram.kernels.features import VoxelFeatures, Write, Written
from engram.kernels.files.features import read_features, write_features
from engram.kernels.files.octomap import read_octomap, write_octomap
from engram.kernels.normals import Normals, surface_normals
from engram.kernels.occupancy import Occupancy
from engram.kernels.scan import Camera, Insert, Inserted
from engram.kernels.voxel_map import VoxelMap

__all__ = [
    "Camera",
    "EngramError",
    "FullError",
    "Insert",
    "Inserted",
    "Normals",
    "Occupancy",
    "RefusedError",
    "VoxelFeatures",
    "VoxelMap",
    "WhenFull",
    "Write",
    "Written",
    "read_features",
    "read_octomap",
    "surface_normals",
    "write_features",
    "write_octomap",
]
