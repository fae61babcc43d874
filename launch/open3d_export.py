"""Voxel maps as Open3D's geometry, to be drawn or processed there."""

import importlib
from typing import Any

import numpy as np

from engram.kernels import VoxelMap
from engram.kernels.errors import MissingPackageError


def open3d_points(held: VoxelMap, *, world: int = 0) -> Any:
    """Return the centres of the occupied voxels [m] as an `open3d.geometry.PointCloud`.

    Args:
        held: The map.
        world: Which of the map's worlds.

    Raises:
        MissingPackageError: If `engram[open3d]` is not installed.
    """
    open3d = _open3d()
    centres = held.occupied_centres(world=world).numpy(force=True)
    return open3d.geometry.PointCloud(open3d.utility.Vector3dVector(centres))


def open3d_voxels(held: VoxelMap, *, world: int = 0) -> Any:
    """Return the occupied voxels as an `open3d.geometry.VoxelGrid`.

    Its voxels are those of the map, and its origin is the corner of one; `get_voxel` counts from
    there.

    Args:
        held: The map.
        world: Which of the map's worlds.

    Raises:
        MissingPackageError: If `engram[open3d]` is not installed.
    """
    points = open3d_points(held, world=world)
    grid = _open3d().geometry.VoxelGrid
    size = held.voxel_size
    # Half a voxel beyond the outermost centres lie borders of the map's voxels.
    least, most = (
        np.round(bound / size + half) * size
        for bound, half in ((points.get_min_bound(), -0.5), (points.get_max_bound(), 0.5))
    )
    return grid.create_from_point_cloud_within_bounds(points, size, least, most)


def _open3d() -> Any:
    try:
        return importlib.import_module("open3d")
    except ModuleNotFoundError:
        raise MissingPackageError("open3d", "open3d") from None
