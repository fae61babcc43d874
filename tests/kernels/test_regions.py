"""Boxes, frusta and the octree, by hand and against looking at every voxel."""

import math

import pytest
import torch

from engram.kernels import Insert, VoxelMap
from engram.kernels.errors import InvalidValueError
from engram.kernels.scan import Camera


def scanned() -> VoxelMap:
    held = VoxelMap(0.5)
    torch.manual_seed(0)
    for world in (0, 1):
        held.insert_points(torch.randn(400, 3) * 6 + world, (0.1, 0.2, 0.3), world=world)
    return held


def test_voxels_of_the_octree_are_the_map() -> None:
    held = scanned()
    leaves = held.nodes(0)
    centres = (leaves.node.double() + 0.5) * 0.5
    assert held.occupancy(centres.float()).equal(leaves.occupied.to(torch.int8))
    assert (leaves.occupied + leaves.free).eq(1).all() and leaves.unknown.eq(0).all()
    assert centres[leaves.occupied == 1].equal(held.occupied_centres())


@pytest.mark.parametrize("level", range(20))
def test_an_empty_world_has_no_nodes(level: int) -> None:
    assert len(scanned().nodes(level, world=2).node) == len(VoxelMap(0.5).nodes(level).node) == 0


@pytest.mark.parametrize("level", range(1, 20))
def test_a_node_counts_what_its_children_count(level: int) -> None:
    held = scanned()
    children, parents = held.nodes(level - 1), held.nodes(level)
    above = children.node.div(2, rounding_mode="floor") if level < 19 else children.node * 0
    assert above.unique(dim=0).tolist() == parents.node.unique(dim=0).tolist()
    for i, node in enumerate(parents.node):
        mine = (above == node).all(1)
        assert int(children.occupied[mine].sum()) == parents.occupied[i]
        assert int(children.free[mine].sum()) == parents.free[i]
    assert (parents.occupied + parents.free + parents.unknown == 8**level).all()


def test_the_root_is_one_node_of_all_that_is_known() -> None:
    held = scanned()
    (root,) = held.nodes(19).node.tolist()
    assert root == [0, 0, 0]
    one = held.nodes(19, world=1)
    both = int(held.nodes(19).occupied + one.occupied)
    assert both == held.stats()["occupied"]


def test_a_box_holds_the_voxels_that_it_touches() -> None:
    held = scanned()
    leaves = held.nodes(0)
    found = held.box((-2.3, -1.0, 0.0), (3.1, math.inf, 0.4))
    # Voxels −5 … 6, −2 …, and 0.
    least, most = torch.tensor([-5, -2, 0]), torch.tensor([6, 10**6, 0])
    inside = ((leaves.node >= least) & (leaves.node <= most)).all(1)
    assert found.voxel.equal(leaves.node[inside]) and len(found.voxel) > 20
    assert found.occupied.equal(leaves.occupied[inside] == 1)
    assert len(held.box((9.0, 9.0, 9.0), (8.0, 8.0, 8.0)).voxel) == 0
    everything = held.box((-math.inf,) * 3, (math.inf,) * 3)
    assert everything.voxel.equal(leaves.node)


def test_a_frustum_holds_the_voxels_whose_centres_project_into_the_image() -> None:
    held = scanned()
    camera = Camera(width=64, height=48, fx=50.0, fy=55.0, cx=30.0, cy=20.0)
    turn, tilt = 0.7, 0.4
    around = torch.tensor(
        [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    )
    up = torch.tensor(
        [[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]]
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = (around @ up).double(), torch.tensor([0.5, -1.0, 0.2])
    found = held.frustum(camera, pose, least_depth=1.0, most_depth=9.0)
    leaves = held.nodes(0)
    at = ((leaves.node.double() + 0.5) * 0.5 - pose[:3, 3]) @ pose[:3, :3]
    u, v = 50 * at[:, 0] / at[:, 2] + 30, 55 * at[:, 1] / at[:, 2] + 20
    seen = (at[:, 2] >= 1) & (at[:, 2] <= 9) & (u >= -0.5) & (u <= 63.5) & (v >= -0.5) & (v <= 47.5)
    assert found.voxel.equal(leaves.node[seen]) and len(found.voxel) > 50


def test_what_is_no_region_is_refused() -> None:
    held = scanned()
    with pytest.raises(InvalidValueError, match="level is 20; allowed: 0 to 19"):
        held.nodes(20)
    with pytest.raises(InvalidValueError, match="least is"):
        held.box((math.nan, 0.0, 0.0), (1.0, 1.0, 1.0))
    camera = Camera(64, 48, 50.0, 50.0, 32.0, 24.0)
    for pose in (
        2 * torch.eye(4),
        torch.diag(torch.tensor([1.0, 1, -1, 1])),
        torch.eye(4) * math.nan,
    ):
        with pytest.raises(InvalidValueError, match="pose_camera_to_world is"):
            held.frustum(camera, pose)


def test_an_endpoint_scan_frees_nothing() -> None:
    held = VoxelMap(0.5)
    held.insert_points(torch.randn(50, 3), (0.0, 0.0, 0.0), mode=Insert.ENDPOINT)
    assert int(held.nodes(19).free) == 0
