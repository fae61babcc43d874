"""Adding maps: exact where the grids coincide, without holes where they do not; and normals."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.kernels import FullError, Insert, Occupancy, VoxelMap, surface_normals
from engram.kernels.errors import InvalidValueError
from engram.kernels.storage import LEAST_CAPACITY, Storage

HERE = (0.05, 0.05, 0.05)


def scanned(seed: int, **given: Any) -> VoxelMap:
    random = torch.Generator().manual_seed(seed)
    held = VoxelMap(0.1, **given)
    for world in (0, 4):
        held.insert_points(torch.randn(200, 3, generator=random) * 2, HERE, world=world)
    return held


def known(held: VoxelMap, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = (-math.inf,) * 3, (math.inf,) * 3
    voxel = held.box(low, high, world=world).voxel
    return voxel, held.log_odds(((voxel + 0.5) * held.voxel_size).float(), world=world)


def pose(turn: torch.Tensor, shift: tuple[float, float, float]) -> torch.Tensor:
    made = torch.eye(4, dtype=torch.float64)
    made[:3, :3], made[:3, 3] = turn, torch.tensor(shift)
    return made


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_evidence_adds_up(seed: int) -> None:
    a, b = scanned(seed), scanned(seed + 1)
    before = {world: [known(held, world) for held in (a, b)] for world in (0, 4)}
    a.merge(b)
    for world, both in before.items():
        total: dict[tuple[int, ...], int] = {}
        for voxel, value in both:
            for where, steps in zip(voxel.tolist(), value.tolist(), strict=True):
                total[tuple(where)] = total.get(tuple(where), 0) + steps
        voxel, value = known(a, world)
        low, high = a.evidence.low, a.evidence.high
        expected = [max(low, min(high, total[tuple(where)])) for where in voxel.tolist()]
        assert value.tolist() == expected and len(voxel) == len(total)


def test_merging_with_an_empty_map_copies() -> None:
    a, b = VoxelMap(0.1), scanned(0)
    assert a.merge(b) == b.storage.count
    assert a.merge(VoxelMap(0.1)) == 0
    for world in (0, 4):
        for mine, true in zip(known(a, world), known(b, world), strict=True):
            assert torch.equal(mine, true)


def test_quarter_turns_and_whole_voxels_are_exact() -> None:
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    a, b = VoxelMap(0.1), scanned(0)
    a.merge(b, pose(turn, (0.3, -2.0, 10.1)))
    voxel, value = known(b, 0)
    x, y, z = voxel.unbind(1)
    moved = torch.stack([-y - 1 + 3, x - 20, z + 101], dim=1)
    assert a.log_odds(((moved + 0.5) * 0.1).float()).tolist() == value.tolist()
    assert len(known(a, 0)[0]) == len(voxel)


def test_a_turned_wall_has_no_holes() -> None:
    across = torch.cartesian_prod(torch.arange(-20, 20), torch.arange(-20, 20)) * 0.1 + 0.05
    wall = torch.cat([across, torch.full((1600, 1), 0.05)], dim=1)
    b = VoxelMap(0.1)
    b.insert_points(wall, HERE, mode=Insert.ENDPOINT)
    angle = 0.4
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    a = VoxelMap(0.1)
    a.merge(b, pose(turn, (0.037, 0.021, 0.013)))
    asked = torch.cartesian_prod(torch.linspace(-1.8, 1.8, 90), torch.linspace(-1.8, 1.8, 90))
    on_wall = torch.cat([asked, torch.full((len(asked), 1), 0.05)], dim=1).double()
    moved = on_wall @ turn.t() + torch.tensor([0.037, 0.021, 0.013])
    reached = a.count_within(moved.float(), 0.1)
    assert reached.ge(1).all()
    share = len(a.occupied_centres()) / len(b.occupied_centres())
    assert 0.9 < share < 1.1


def test_a_full_map_stays_as_it_was() -> None:
    a = VoxelMap(0.1, max_bytes=Storage.bytes_for(LEAST_CAPACITY))
    a.insert_points(torch.zeros(1, 3), HERE)
    before = a.stats()
    with pytest.raises(FullError):
        a.merge(scanned(0))
    assert a.stats() == before


@pytest.mark.parametrize(
    "other, turn, message",
    [
        (VoxelMap(0.2), torch.eye(4), "voxel_size is 0.2; allowed: 0.1"),
        (VoxelMap(0.1, occupancy=Occupancy(hit=0.8)), torch.eye(4), "evidence is Evidence"),
        (VoxelMap(0.1), torch.diag(torch.tensor([2.0, 1, 1, 1])), "pose_other_to_map is"),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    other: VoxelMap, turn: torch.Tensor, message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        VoxelMap(0.1).merge(other, turn)


def test_normals_of_a_sphere_point_outwards_where_it_was_seen_from_outside() -> None:
    random = torch.Generator().manual_seed(0)
    around = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=random), dim=1)
    held = VoxelMap(0.05)
    for axis in range(3):
        for side in (-4.0, 4.0):
            eye = torch.zeros(3)
            eye[axis] = side
            seen = (around * (eye / 4)).sum(1) > 0.4
            held.insert_points(around[seen], eye, mode=Insert.RAY_PER_POINT)
    found = surface_normals(held, 0.15)
    outwards = torch.nn.functional.normalize(found.centre, dim=1)
    cosine = (found.normal * outwards).sum(1)
    assert torch.quantile(cosine, 0.01) > 0.9
    assert cosine.median() > 0.99
    assert found.curvature.median() < 0.05
    torch.testing.assert_close(found.normal.norm(dim=1), torch.ones(len(cosine)).double())


def test_what_lies_in_no_plane_has_no_normal() -> None:
    held = VoxelMap(1.0)
    line = torch.arange(5)[:, None] * torch.tensor([1.0, 0, 0]) + 0.5
    held.insert_points(line, (0.5, 0.5, 0.5), mode=Insert.ENDPOINT)
    assert surface_normals(held, 2.0).normal.eq(0).all()
    assert surface_normals(held, 2.0, world=3).normal.shape == (0, 3)
