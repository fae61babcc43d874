"""A map in Open3D holds the same voxels in the same places."""

import sys

import numpy as np
import pytest
import torch

from engram.kernels import Insert, VoxelMap
from engram.kernels.errors import MissingPackageError
from engram.kernels.reference import Reference
from engram.launch.open3d_export import open3d_points, open3d_voxels


def test_points_are_the_centres_of_occupied_voxels() -> None:
    pytest.importorskip("open3d")
    held = VoxelMap(0.5, kernel=Reference())
    held.insert_points(torch.tensor([[1.6, 0.2, -0.7]]), (0.1, 0.2, -0.7), world=3)
    assert np.asarray(open3d_points(held, world=3).points).tolist() == [[1.75, 0.25, -0.75]]
    assert len(open3d_points(held).points) == 0


@pytest.mark.parametrize("voxel_size", [0.05, 0.1, 1.0 / 3.0, 2.0])
def test_a_grid_holds_the_maps_voxels_and_no_others(voxel_size: float) -> None:
    pytest.importorskip("open3d")
    held = VoxelMap(voxel_size, kernel=Reference())
    points = torch.cat([torch.randn(400, 3) * 6 - 20, torch.tensor([[900.0, -800.0, 700.0]])])
    held.insert_points(points * voxel_size, (0.0, 0.0, 0.0), mode=Insert.ENDPOINT)
    grid = open3d_voxels(held)
    centres = held.occupied_centres().numpy()
    voxel = np.round(centres / voxel_size - 0.5).astype(int)
    assert grid.voxel_size == voxel_size and len(grid.get_voxels()) == len(voxel)
    assert grid.origin == pytest.approx(voxel.min(0) * voxel_size, rel=1e-12)
    found = np.array([grid.get_voxel(centre) for centre in centres])
    assert np.array_equal(found, voxel - voxel.min(0))
    assert {tuple(each.grid_index) for each in grid.get_voxels()} == set(map(tuple, found.tolist()))


def test_an_empty_world_is_an_empty_grid() -> None:
    pytest.importorskip("open3d")
    grid = open3d_voxels(VoxelMap(0.5, kernel=Reference()))
    assert not grid.has_voxels() and grid.voxel_size == 0.5


def test_without_open3d_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(MissingPackageError, match=r"'open3d' is missing.*engram\[open3d\]"):
        open3d_points(VoxelMap(0.5, kernel=Reference()))
