"""The compiled kernels against the torch reference: the same map and answers, bit by bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.kernels import native
from engram.kernels.grid import BIAS, morton
from engram.kernels.native import Native
from engram.kernels.reference import Reference
from engram.kernels.scan import Camera, Images, Insert
from engram.kernels.voxel_map import VoxelMap

OF_POINTS = [mode for mode in Insert if mode is not Insert.PROJECTIVE]
KINDS = ("free", "lattice", "axis", "diagonal", "far", "broken")


def points(
    kind: str, count: int, origin: torch.Tensor, voxel: float, random: torch.Generator
) -> torch.Tensor:
    """Scans that look for trouble: on block borders, along axes and diagonals, far, or broken."""
    cloud = torch.randn(count, 3, generator=random, dtype=torch.float64)
    if kind == "lattice":  # on the borders of voxels and blocks
        cloud = (cloud * 20).round() * voxel
    elif kind == "axis":
        one = torch.nn.functional.one_hot(torch.randint(3, (count,), generator=random), 3)
        cloud = origin + (cloud * 40 * voxel) * one
    elif kind == "diagonal":
        sign = torch.randint(2, (count, 3), generator=random) * 2 - 1
        cloud = (
            origin
            + sign
            * (torch.rand(count, 1, generator=random, dtype=torch.float64) * 90).round()
            * voxel
        )
    elif kind == "far":
        cloud = cloud * voxel * 400
    else:
        cloud = origin + cloud * voxel * 30
    if kind == "broken":
        hole = torch.randint(4, cloud.shape, generator=random)
        bad = torch.tensor([float(origin[0]), math.nan, math.inf, 3e38], dtype=torch.float64)
        cloud = torch.where(torch.rand(count, 1, generator=random) < 0.3, bad[hole], cloud)
    return cloud.float()


def contents(held: VoxelMap) -> tuple[torch.Tensor, ...]:
    storage = held.storage
    order = storage.keys[: storage.count].argsort()
    return tuple(
        part[: storage.count][order].cpu()
        for part in (storage.keys, storage.log_odds, storage.known, storage.occupied)
    )


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(OF_POINTS),
    voxel=st.sampled_from([0.05, 0.1, 0.25, 1 / 3]),
    offset=st.sampled_from([0.0, -3.0, 1000.0, 12_000.0]),
    max_range=st.sampled_from([math.inf, 0.7, 4.0]),
    count=st.sampled_from([0, 1, 15, 16, 17, 300]),
)
@settings(max_examples=30, deadline=None)
def test_insertion(make, seed, kind, mode, voxel, offset, max_range, count) -> None:
    random = torch.Generator().manual_seed(seed)
    ours, oracle = make(voxel), VoxelMap(voxel, kernel=Reference())
    for world in (0, 3, 0):
        origin = offset + torch.rand(3, generator=random, dtype=torch.float64)
        if kind in ("lattice", "axis", "diagonal"):
            origin = (origin / voxel).round() * voxel
        cloud = points(kind, count, origin, voxel, random)
        told = [
            held.insert_points(cloud, origin, mode=mode, max_range=max_range, world=world)
            for held in (ours, oracle)
        ]
        assert told[0] == told[1]
    for mine, true in zip(contents(ours), contents(oracle), strict=True):
        assert torch.equal(mine, true)
    where = torch.cat([cloud, cloud + voxel, cloud * 1e9])
    assert torch.equal(ours.log_odds(where).cpu(), oracle.log_odds(where))


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(("free", "lattice", "far")),
    unknown=st.booleans(),
    max_range=st.sampled_from([math.inf, 1.0, 30.0]),
)
@settings(max_examples=30, deadline=None)
def test_rays(make, seed, kind, unknown, max_range) -> None:
    random = torch.Generator().manual_seed(seed)
    voxel = 0.1
    ours, oracle = make(voxel), VoxelMap(voxel, kernel=Reference())
    origin = torch.zeros(3, dtype=torch.float64)
    cloud = points(kind, 300, origin, voxel, random)
    for held in (ours, oracle):
        held.insert_points(cloud, origin)
    begin = points("lattice" if seed % 2 else "free", 200, origin, voxel, random)
    along = torch.randn(200, 3, generator=random)
    along[:60] = along[:60].sign() * (torch.rand(60, 3, generator=random) < 0.6)
    along[(along == 0).all(1)] = 1.0
    reach = {
        "max_range": max_range if kind != "far" else min(max_range, 60.0),
        "stop_at_unknown": unknown,
    }
    if math.isinf(reach["max_range"]):
        reach["max_range"] = 200.0
    mine, true = (held.cast_rays(begin, along, **reach) for held in (ours, oracle))
    assert torch.equal(mine.distance.cpu(), true.distance)
    assert torch.equal(mine.voxel.cpu(), true.voxel)


@pytest.mark.parametrize("voxel", [0.05, 1000.0])
def test_rays_to_the_border_of_the_grid(make, voxel) -> None:
    random = torch.Generator().manual_seed(0)
    corner = (2**18 - 60) * voxel
    begin = corner + torch.rand(200, 3, generator=random, dtype=torch.float64) * 50 * voxel
    along = torch.rand(200, 3, generator=random, dtype=torch.float64)
    maps = make(voxel), VoxelMap(voxel, kernel=Reference())
    for held in maps:
        held.insert_points(begin.float(), begin[0], mode=Insert.ENDPOINT)
    mine, true = (held.cast_rays(begin - voxel, along) for held in maps)
    assert true.stopped.any()
    assert torch.equal(mine.distance.cpu(), true.distance)
    assert torch.equal(mine.voxel.cpu(), true.voxel)


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(("free", "lattice", "far", "broken")),
    k=st.sampled_from([1, 8, 40]),
    limit=st.sampled_from([math.inf, 0.0, 0.3, 2.0]),
)
@settings(max_examples=40, deadline=None)
def test_neighbours(make, seed, kind, k, limit) -> None:
    random = torch.Generator().manual_seed(seed)
    voxel = 0.1
    ours, oracle = make(voxel), VoxelMap(voxel, kernel=Reference())
    origin = torch.zeros(3, dtype=torch.float64)
    for world, count in ((0, 300), (1, 5)):
        cloud = points(kind, count, origin, voxel, random)
        for held in (ours, oracle):
            held.insert_points(cloud, origin, mode=Insert.ENDPOINT, world=world)
    asked = torch.cat(
        [points(other, 40, origin, voxel, random) for other in ("free", "lattice", "far", "broken")]
    )
    worlds = torch.randint(3, (len(asked),), generator=random)
    radius = limit if kind != "far" else min(limit, 5.0)
    answers = [
        (
            *held.nearest(asked, k, max_distance=limit, world=worlds),
            held.count_within(asked, radius, world=worlds),
            *held.list_within(asked, radius, world=worlds),
        )
        for held in (ours, oracle)
    ]
    for mine, true in zip(*answers, strict=True):
        assert torch.equal(mine.cpu(), true)


@given(
    seed=st.integers(0, 2**31),
    mode=st.sampled_from(list(Insert)),
    max_range=st.sampled_from([0.9, 2.0, 10.0]),
    voxel=st.sampled_from([0.03, 0.1, 0.3]),
)
@settings(max_examples=30, deadline=None)
def test_depth_images(make, seed, mode, max_range, voxel) -> None:
    max_range = min(max_range, 80 * voxel)
    random = torch.Generator().manual_seed(seed)
    depth = torch.rand(24, 32, generator=random) * 3 + 0.3
    bad = torch.tensor([0.0, -1.0, math.nan, math.inf])
    hole = torch.rand(24, 32, generator=random) < 0.2
    depth = torch.where(hole, bad[torch.randint(4, (24, 32), generator=random)], depth)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64)).Q
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = turn * torch.linalg.det(turn)
    pose[:3, 3] = torch.randn(3, generator=random, dtype=torch.float64)
    camera = Camera(32, 24, fx=30.0 + seed % 7, fy=29.3, cx=15.1, cy=12.7)
    held = [make(voxel), VoxelMap(voxel, kernel=Reference())]
    told = [each.insert_depth(depth, camera, pose, mode=mode, max_range=max_range) for each in held]
    assert told[0] == told[1] and told[0].not_finite == int(hole.sum())
    for mine, true in zip(*map(contents, held), strict=True):
        assert torch.equal(mine, true)
    # Every point lies in an occupied voxel that projects back to its pixel.
    images = Images(depth[None], camera, pose[None])
    points = held[1].kernel.unproject(images)[0]
    near = (points.double() - pose[:3, 3]).norm(dim=1) < max_range - 2 * voxel
    there = points.isfinite().all(1) & near
    assert held[0].occupancy(points[there]).eq(1).all()
    at = (points.double() - pose[:3, 3]) @ pose[:3, :3]
    u = (camera.fx * at[:, 0] / at[:, 2] + camera.cx).view(24, 32)[~hole]
    torch.testing.assert_close(
        u, torch.arange(32.0).double().expand(24, 32)[~hole], atol=1e-3, rtol=0
    )


@given(
    seed=st.integers(0, 2**31), count=st.sampled_from([0, 1, 5]), mode=st.sampled_from(list(Insert))
)
@settings(max_examples=20, deadline=None)
def test_several_worlds_at_once_are_as_one_after_another(make, seed, count, mode) -> None:
    random = torch.Generator().manual_seed(seed)
    depth = torch.rand(count, 6, 8, generator=random) * 2 + 0.3
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, 3] = torch.randn(count, 3, generator=random, dtype=torch.float64)
    camera = Camera(8, 6, 7.0, 7.0, 3.5, 2.5)
    worlds = torch.randperm(9, generator=random)[:count]
    how = {"mode": mode, "max_range": 2.0}
    together, apart = make(0.1), VoxelMap(0.1, kernel=Reference())
    told = together.insert_depth(depth, camera, poses, world=worlds, **how)
    sums = torch.zeros(len(told), dtype=torch.int64)
    for one, pose, world in zip(depth, poses, worlds.tolist(), strict=True):
        sums += torch.tensor(apart.insert_depth(one, camera, pose, world=world, **how))
    assert list(told) == sums.tolist()
    for mine, true in zip(contents(together), contents(apart), strict=True):
        assert torch.equal(mine, true)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_places(make, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    held = make(0.1)
    for world in (0, 2):
        held.insert_points(torch.randn(50, 3, generator=random) * 3, (0.0, 0.0, 0.0), world=world)
    codes = morton(torch.randint(-50, 50, (10_000, 3), generator=random) + BIAS).to(held.device)
    worlds = torch.randint(3, (10_000,), generator=random).to(held.device)
    for where in (worlds, 2):
        mine, true = (k.locate(held.storage, codes, where) for k in (held.kernel, Reference()))
        assert torch.equal(mine, true)


@pytest.mark.skipif(not native.libraries(), reason="no compiled kernels")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("mode", OF_POINTS)
def test_instruction_sets_and_threads(mode, threads) -> None:
    random = torch.Generator().manual_seed(0)
    origin = torch.tensor([0.3, 0.2, 1.3], dtype=torch.float64)
    cloud = points("free", 3000, origin, 0.05, random)
    kernels = [Native(1), *(Native(threads, library) for library in native.libraries())]
    held = [VoxelMap(0.05, kernel=kernel) for kernel in kernels]
    asked = points("free", 500, origin, 0.05, random)
    for each in held:
        each.insert_points(cloud, origin, mode=mode)
        for mine, first in zip(contents(each), contents(held[0]), strict=True):
            assert torch.equal(mine, first)
        assert torch.equal(each.log_odds(asked), held[0].log_odds(asked))
        assert torch.equal(each.nearest(asked, 8)[0], held[0].nearest(asked, 8)[0])
        along = asked - origin
        rays = [a.cast_rays(origin.expand(500, 3), along).distance for a in (each, held[0])]
        assert torch.equal(*rays)
