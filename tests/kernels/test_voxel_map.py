"""The voxel map by hand: small scans, several worlds, caps and files."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engram.kernels import (
    Camera,
    FullError,
    Insert,
    Occupancy,
    VoxelMap,
    WhenFull,
    native,
)
from engram.kernels.native import Native
from engram.kernels.storage import LEAST_CAPACITY, Storage
from engram.launch.recordings import read_ply

COMPILED_ONLY = pytest.mark.skipif(not native.libraries(), reason="no compiled kernels")


HERE = (0.0, 0.0, 0.0)


def cloud(*points: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float32).view(-1, 3)


def test_a_ray_frees_what_it_passes_and_hits_what_it_ends_in(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    told = held.insert_points(cloud((3.5, 0.5, 0.5)), (0.5, 0.5, 0.5))
    assert (told.hits, told.new_blocks, told.evicted_blocks) == (1, 1, 0)
    asked = cloud(*((x + 0.5, 0.5, 0.5) for x in range(-1, 6)))
    assert held.occupancy(asked).tolist() == [-1, 0, 0, 0, 1, -1, -1]
    assert held.log_odds(asked).tolist() == [-128, -11, -11, -11, 23, -128, -128]
    assert held.stats() == {
        "blocks": 1, "worlds": 1, "occupied": 1, "free": 3, "bytes": held.nbytes
    }  # fmt: skip


def test_a_voxel_counts_once_per_scan_and_a_hit_outweighs_rays(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    # Three points in one voxel, and a ray through it to a fourth.
    held.insert_points(cloud(*[(2.5, 0.5, 0.5)] * 3, (4.5, 0.5, 0.5)), (0.5, 0.5, 0.5))
    assert held.log_odds(cloud((2.5, 0.5, 0.5), (3.5, 0.5, 0.5))).tolist() == [23, -11]


def test_evidence_is_clamped_so_that_it_can_be_overcome(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    there, through = cloud((2.5, 0.5, 0.5)), cloud((4.5, 0.5, 0.5))
    for scan, values in ((there, [23, 46, 69, 92, 95, 95]), (through, [84, 73, 62, 51])):
        for value in values:
            held.insert_points(scan, (0.5, 0.5, 0.5))
            assert held.log_odds(there).item() == value
    for _ in range(30):
        held.insert_points(through, (0.5, 0.5, 0.5))
    assert held.log_odds(there).item() == -54


@pytest.mark.parametrize("mode", [m for m in Insert if m is not Insert.PROJECTIVE])
def test_points_beyond_the_range_are_no_hits(kernel: Any, mode: Insert) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    held.insert_points(cloud((9.5, 0.5, 0.5)), (0.5, 0.5, 0.5), mode=mode, max_range=4.5)
    seen = held.occupancy(cloud(*((x + 0.5, 0.5, 0.5) for x in range(11)))).tolist()
    # As OctoMap's, the voxel in which a shortened ray ends is not free.
    free = 0 if mode is Insert.ENDPOINT else 5
    assert seen == [0] * free + [-1] * (11 - free)


def test_what_is_no_point_is_counted_and_left_out(kernel: Any) -> None:
    held = VoxelMap(0.5, kernel=kernel())
    points = cloud(
        (math.nan, 0, 0), (0, math.inf, 0), (0, 0, -math.inf), (3e38, 0, 0), (0, 2e5, 0), (1, 1, 1)
    )
    told = held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    assert told[:4] == (1, 0, 3, 2)
    assert held.insert_points(points[:0], HERE)[:4] == (0, 0, 0, 0)
    assert held.stats()["occupied"] == 1


def test_worlds_are_apart(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    here = cloud((3.5, 0.5, 0.5))
    for world in (0, 7, 32_767):
        held.insert_points(here + world % 3, (0.5, 0.5, 0.5), world=world)
    assert held.occupancy(here, world=0).item() == 1
    assert held.occupancy(here, world=1).item() == -1
    asked = (here + 1).expand(3, 3)
    worlds = torch.tensor([0, 7, 32_767])
    assert held.occupancy(asked, world=worlds).tolist() == [-1, 1, 1]
    spread = worlds.repeat_interleave(2)[::2]  # not contiguous
    assert held.occupancy(asked, world=spread).tolist() == [-1, 1, 1]
    held.clear([7])
    assert held.occupancy(asked, world=worlds).tolist() == [-1, -1, 1]
    held.insert_points(here + 1, (0.5, 0.5, 0.5), world=7)
    assert held.occupancy(asked, world=worlds).tolist() == [-1, 1, 1]
    held.clear()
    assert held.stats()["blocks"] == 0 and held.occupancy(asked, world=worlds).tolist() == [-1] * 3


def test_a_ray_stops_at_the_border_of_the_first_occupied_voxel(kernel: Any) -> None:
    held = VoxelMap(0.5, kernel=kernel())
    held.insert_points(cloud((5.2, 0.2, 0.2)), (0.2, 0.2, 0.2))
    origin = torch.tensor([[0.2, 0.2, 0.2]], dtype=torch.float64).expand(3, 3)
    along = torch.tensor([[2.0, 0, 0], [-1, 0, 0], [0, 1, 1]])
    found = held.cast_rays(origin, along)
    assert found.distance.tolist() == [pytest.approx(4.8, abs=1e-6), math.inf, math.inf]
    assert found.voxel[0].tolist() == [10, 0, 0]
    assert found.stopped.tolist() == [True, False, False]
    short = held.cast_rays(origin, along, max_range=4.0)
    assert not short.stopped.any()
    dark = held.cast_rays(origin, along, stop_at_unknown=True)
    assert dark.distance.tolist() == [pytest.approx(d, abs=1e-6) for d in (4.8, 0.2, 0.3 * 2**0.5)]


def test_neighbours_are_voxel_centres_in_order(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    points = cloud((0.5, 0.5, 0.5), (3.5, 0.5, 0.5), (0.5, 4.5, 0.5), (-20.5, 0.5, 0.5))
    held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    distance, voxel = held.nearest(cloud((0.5, 0.5, 0.5)), 5)
    assert distance.tolist() == [[0, 3, 4, 21, math.inf]]
    assert voxel[0, :4].tolist() == [[0, 0, 0], [3, 0, 0], [0, 4, 0], [-21, 0, 0]]
    assert held.nearest(cloud((0.5, 0.5, 0.5)), 2, max_distance=2.9)[0].tolist() == [[0, math.inf]]
    assert held.count_within(cloud((0.5, 0.5, 0.5), (99, 0, 0)), 3.0).tolist() == [2, 0]
    near = held.list_within(cloud((0.5, 0.5, 0.5), (99, 0, 0), (0.5, 0.5, 0.5)), 3.0)
    assert near.offset.tolist() == [0, 2, 2, 4]
    assert near.voxel.tolist() == [[0, 0, 0], [3, 0, 0]] * 2
    assert held.occupied_centres().tolist() == [
        [-20.5, 0.5, 0.5], [0.5, 0.5, 0.5], [3.5, 0.5, 0.5], [0.5, 4.5, 0.5]
    ]  # fmt: skip


def test_a_full_map_raises_and_stays_as_it_was(kernel: Any) -> None:
    cap = Storage.bytes_for(LEAST_CAPACITY)
    held = VoxelMap(1.0, max_bytes=cap, kernel=kernel())
    held.insert_points(cloud((1, 1, 1)), HERE)
    before = held.storage.log_odds[:1].clone()
    far = torch.arange(LEAST_CAPACITY)[:, None] * torch.tensor([8.0, 0, 0]) + 100
    with pytest.raises(FullError, match=rf"the map needs \d+ bytes; allowed: max_bytes = {cap}"):
        held.insert_points(far, (100.0, 100.0, 100.0), mode=Insert.ENDPOINT)
    assert held.storage.count == 1 and held.storage.log_odds[:1].equal(before)
    held.insert_points(far[:-1], (100.0, 100.0, 100.0), mode=Insert.ENDPOINT)
    assert held.storage.count == LEAST_CAPACITY and held.nbytes <= cap


def test_a_full_map_may_drop_what_is_far_instead(kernel: Any) -> None:
    cap = Storage.bytes_for(LEAST_CAPACITY)
    held = VoxelMap(1.0, max_bytes=cap, when_full=WhenFull.EVICT, kernel=kernel())
    line = torch.arange(LEAST_CAPACITY)[:, None] * torch.tensor([8.0, 0, 0]) + 0.5
    held.insert_points(cloud((500, 0, 0)), (500.0, 0.0, 0.0), mode=Insert.ENDPOINT, world=1)
    held.insert_points(line[:-1], HERE, mode=Insert.ENDPOINT)
    near = line[:3] - torch.tensor([30.0, 0, 0])
    told = held.insert_points(near, HERE, mode=Insert.ENDPOINT)
    assert (told.new_blocks, told.evicted_blocks) == (3, 3)
    assert held.occupancy(torch.cat([line[:-4], near])).eq(1).all()
    assert held.occupancy(line[-4:]).eq(-1).all()
    assert held.occupancy(cloud((500, 0, 0)), world=1).item() == 1
    with pytest.raises(FullError):
        held.insert_points(torch.cat([line, line + 8000]), HERE, mode=Insert.ENDPOINT)


@COMPILED_ONLY
def test_only_points_far_away_take_the_large_window() -> None:
    kernel = Native(threads=1)
    held = VoxelMap(0.1, kernel=kernel)
    held.insert_points(torch.rand(5, 3), HERE)
    holes = torch.full((100, 3), math.nan)
    held.insert_points(torch.cat([holes, torch.rand(20, 3)]), HERE)
    small = kernel.nbytes
    held.insert_points(torch.rand(20, 3) + 15.0, HERE)
    held.insert_points(torch.rand(5, 3), HERE)
    assert small < 2**25 < kernel.nbytes


def test_a_map_at_its_cap_keeps_its_arrays(kernel: Any) -> None:
    cap = Storage.bytes_for(LEAST_CAPACITY)
    held = VoxelMap(1.0, max_bytes=cap, when_full=WhenFull.EVICT, kernel=kernel())
    line = torch.arange(LEAST_CAPACITY)[:, None] * torch.tensor([8.0, 0, 0]) + 0.5
    held.insert_points(line, HERE, mode=Insert.ENDPOINT)
    arrays = held.storage.log_odds.data_ptr()
    told = held.insert_points(line[:2] - 16, HERE, mode=Insert.ENDPOINT)
    assert told.evicted_blocks == 2 and held.storage.log_odds.data_ptr() == arrays
    assert held.occupancy(torch.cat([line[:-2], line[:2] - 16])).eq(1).all()


def test_clearing_outside_a_ball_keeps_the_blocks_it_touches(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    line = torch.arange(20)[:, None] * torch.tensor([8.0, 0, 0]) + 0.5
    for world in (0, 1):
        held.insert_points(line, HERE, mode=Insert.ENDPOINT, world=world)
    # Block n covers 8 n … 8 n + 8: the ball around 40 reaches from 20 to 60, blocks 2 … 7.
    assert held.clear_outside((40.0, 0.5, 0.5), 20.0) == 14
    assert held.occupancy(line).tolist() == [1 if 2 <= n <= 7 else -1 for n in range(20)]
    assert held.occupancy(line, world=1).eq(1).all()


def test_a_map_grows_and_is_written_the_same_whatever_the_order_of_slots(
    kernel: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    points = torch.randn(4000, 3) * 20
    maps = []
    for order in (slice(None), slice(None, None, 1)):
        held = VoxelMap(0.25, kernel=kernel())
        halves = points.split(2000)[:: 1 if not maps else -1]
        for half in halves:
            held.insert_points(half[order], HERE, mode=Insert.ENDPOINT)
        maps.append(held)
    assert maps[0].storage.count > 10 * LEAST_CAPACITY
    assert not maps[0].storage.keys[:500].equal(maps[1].storage.keys[:500])
    files = [tmp_path / name for name in ("one", "two")]
    for held, path in zip(maps, files, strict=True):
        held.save(path)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = VoxelMap.load(files[0], kernel=kernel())
    assert again.stats()["occupied"] == maps[0].stats()["occupied"]
    assert again.log_odds(points).equal(maps[0].log_odds(points))
    again.save(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_octomaps_numbers_keep_their_ratio_in_steps() -> None:
    steps = Occupancy().evidence()
    assert steps == (23, -11, -54, 95, 0)
    hit, miss = math.log(0.7 / 0.3), math.log(0.4 / 0.6)
    assert steps.hit / steps.miss == pytest.approx(hit / miss, rel=1e-3)


def test_a_real_scan_gives_every_voxel_that_octomap_gives(shared_data: Path, golden: Path) -> None:
    recorded = np.load(golden / "octomap_lidar_source_020.npz")
    points = torch.from_numpy(read_ply(shared_data / "lidar" / "source.ply"))
    points = points[points.norm(dim=1) < float(recorded["max_point_norm"])]
    held = VoxelMap(float(recorded["resolution"]))
    held.insert_points(points, recorded["origin"].tolist())
    centres = (torch.from_numpy(recorded["key"]).double() + 0.5) * held.voxel_size
    seen = held.occupancy(centres.float())
    stats = held.stats()
    assert stats["occupied"] + stats["free"] == len(seen)
    assert seen.eq(1).numpy().tolist() == recorded["occupied"].tolist()
    assert seen.ge(0).all()


def test_projection_frees_what_lies_before_what_a_pixel_shows(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    # One pixel, half a metre wide at one metre, sees a wall at 5.2 m.
    camera = Camera(1, 1, fx=2.0, fy=2.0, cx=0.0, cy=0.0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = 0.5
    told = held.insert_depth(
        torch.full((1, 1), 5.2), camera, pose, mode=Insert.PROJECTIVE, max_range=9.0
    )
    assert told.hits == 1
    # The wall is at 5.7: voxel 5 is hit, and those whose centre is at 5.2 − 0.5 or nearer are free.
    asked = cloud(*((0.5, 0.5, z + 0.5) for z in range(-1, 8)))
    assert held.occupancy(asked).tolist() == [-1, -1, 0, 0, 0, 0, 1, -1, -1]
    # At 4 m the pixel is 2 m wide: it shows one voxel more on either side.
    beside = cloud(*((x + 0.5, 0.5, 4.5) for x in range(-3, 4)))
    assert held.occupancy(beside).tolist() == [-1, -1, 0, 0, -1, -1, -1]


def test_each_world_of_a_batch_gets_its_own_scan(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    points = torch.stack([cloud((2.5, 0.5, 0.5)), cloud((0.5, 3.5, 0.5))])
    told = held.insert_points(points, torch.full((2, 3), 0.5), world=[7, 3])
    assert (told.hits, told.new_blocks) == (2, 2)
    asked = cloud((2.5, 0.5, 0.5), (0.5, 3.5, 0.5), (0.5, 2.5, 0.5))
    assert held.occupancy(asked, world=7).tolist() == [1, -1, -1]
    assert held.occupancy(asked, world=3).tolist() == [-1, 1, 0]
    held.insert_points(points, torch.full((2, 3), 0.5))
    assert held.stats()["worlds"] == 4


def test_a_map_survives_copying_and_pickling(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    held.insert_points(cloud((2.5, 0.5, 0.5)), (0.5, 0.5, 0.5))
    for again in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        again.insert_points(cloud((0.5, 2.5, 0.5)), (0.5, 0.5, 0.5))
        assert again.occupancy(cloud((2.5, 0.5, 0.5), (0.5, 2.5, 0.5))).tolist() == [1, 1]
    assert held.stats()["occupied"] == 1


def test_points_that_require_gradients_are_read(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    points = cloud((2.5, 0.5, 0.5)).requires_grad_()
    held.insert_points(points, points[0] * 0)
    assert held.occupancy(points).item() == 1 and held.nearest(points, 1)[0].item() == 0
    assert held.cast_rays(points * 0, points).stopped.item()


def test_of_blocks_equally_far_those_with_the_least_keys_go(kernel: Any) -> None:
    cap = Storage.bytes_for(LEAST_CAPACITY)
    held = VoxelMap(1.0, max_bytes=cap, when_full=WhenFull.EVICT, kernel=kernel())
    corner = torch.tensor([-16.0, -8, 0, 8]) + 4
    points = torch.cartesian_prod(corner, corner, corner).flip(0)  # 64 blocks, as far by eights
    held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    held.insert_points(cloud((0.5, 0.5, 30.0)), HERE, mode=Insert.ENDPOINT)
    gone = points[held.occupancy(points) < 0]
    assert gone.tolist() == [[4.0 - 8 - 8, -12, -12], [12.0, -12, -12]][::-1]


def test_a_threshold_at_the_clamp_can_be_reached(kernel: Any) -> None:
    held = VoxelMap(1.0, occupancy=Occupancy(occupied=0.971), kernel=kernel())
    for _ in range(10):
        held.insert_points(cloud((2.5, 0.5, 0.5)), HERE, mode=Insert.ENDPOINT)
    assert held.stats()["occupied"] == 1


@COMPILED_ONLY
def test_scratch_memory_of_a_far_scan_is_given_back() -> None:
    kernel = Native(1)
    held = VoxelMap(0.1, kernel=kernel)
    near = torch.randn(100, 3)
    held.insert_points(near, HERE)
    before = kernel.nbytes
    held.insert_points(torch.randn(50, 3) * 1000, HERE)
    for _ in range(2):
        held.insert_points(near, HERE)
    window = 513 * 2**18  # the large one, of which pages are provided as they are touched
    assert kernel.nbytes < before + window + 1_000_000


def test_the_nearest_of_a_world_among_many(kernel: Any) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    for world, place in ((0, 500.5), (3, 100.5), (9, 900.5)):
        held.insert_points(torch.full((1, 3), place), HERE, mode=Insert.ENDPOINT, world=world)
    asked = torch.zeros(5, 3)
    distance, voxel = held.nearest(asked, 2, world=torch.tensor([0, 3, 9, 1, 32_767]))
    assert voxel[:3, 0, 0].tolist() == [500, 100, 900]
    assert distance[:3, 1].isinf().all() and distance[3:].isinf().all()
    counts = held.count_within(asked, math.inf, world=torch.tensor([0, 3, 9, 1, 32_767]))
    assert counts.tolist() == [1, 1, 1, 0, 0]
    assert held.nearest(torch.zeros(0, 3), 10**6)[0].shape == (0, 10**6)


def test_a_map_whose_memory_ran_out_stays_whole(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = VoxelMap(1.0, kernel=kernel())
    near, far = cloud((0.5, 0.5, 0.5)), torch.arange(200)[:, None] * torch.tensor([8.0, 0, 0])
    held.insert_points(near, HERE, mode=Insert.ENDPOINT)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "full", fail)  # the last of the arrays
        with pytest.raises(MemoryError):
            held.storage.grow(1000)
    assert held.storage.capacity == LEAST_CAPACITY == len(held.storage.log_odds)
    assert held.occupancy(near).item() == 1
    held.insert_points(far, HERE, mode=Insert.ENDPOINT)
    assert held.occupancy(far).eq(1).all() and held.occupancy(near).item() == 1
