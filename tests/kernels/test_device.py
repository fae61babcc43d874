"""The device's side of insertion: room for marks, refusals that come later, many small worlds."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engram.kernels import FullError, Insert, RefusedError, VoxelMap, WhenFull, device
from engram.kernels.answers import MarksError
from engram.kernels.device import FIRST_PLACES, Device
from engram.kernels.errors import InvalidValueError
from engram.kernels.reference import Reference
from engram.kernels.storage import LEAST_CAPACITY, Storage

HERE = (0.5, 0.5, 0.5)
CAP = Storage.bytes_for(LEAST_CAPACITY)
LATER: dict[str, Any] = {"max_bytes": CAP, "when_full": WhenFull.RAISE_LATER}


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def on_device(request: pytest.FixtureRequest) -> Callable[..., VoxelMap]:
    if request.param == "cuda":
        return lambda voxel_size, **given: VoxelMap(voxel_size, device="cuda", **given)
    library = request.getfixturevalue("emulated")
    return lambda voxel_size, **given: VoxelMap(
        voxel_size, kernel=Device(torch.device("cpu"), library), **given
    )


def line(count: int, step: float = 8.0) -> torch.Tensor:
    return torch.arange(count)[:, None] * torch.tensor([step, 0.0, 0.0]) + 0.5


def test_marks_get_the_room_that_a_scan_needs(on_device: Any) -> None:
    held = on_device(1.0)
    points = line(FIRST_PLACES)  # a block each, twice as many as there is room for at first
    told = held.insert_points(points, HERE, mode=Insert.ENDPOINT)
    assert (told.hits, told.new_blocks) == (FIRST_PLACES, FIRST_PLACES)
    assert held.occupancy(points).eq(1).all()
    assert len(held.kernel.keys) >= 2 * FIRST_PLACES


def test_nothing_stays_marked(on_device: Any) -> None:
    held = on_device(1.0, max_bytes=CAP)
    with pytest.raises(FullError):
        held.insert_points(line(LEAST_CAPACITY + 1), HERE, mode=Insert.ENDPOINT)
    assert held.storage.count == 0
    for mode in Insert:
        if mode is not Insert.PROJECTIVE:
            held.insert_points(line(4), HERE, mode=mode, max_range=20.0)
            assert held.kernel.masks.eq(0).all() and held.kernel.keys.eq(-1).all()
    assert held.kernel.touched().shape == (0,)


def test_what_has_no_room_is_refused_as_a_whole_and_said_later(on_device: Any) -> None:
    held = on_device(1.0, **LATER)
    assert held.storage.capacity == LEAST_CAPACITY
    points = line(LEAST_CAPACITY + 10)
    told = held.insert_points(points[:60], HERE, mode=Insert.ENDPOINT)
    assert isinstance(told.hits, torch.Tensor)
    assert (int(told.hits), int(told.new_blocks)) == (60, 60)
    with pytest.raises(RefusedError, match=r"1 insertion\(s\) had no room"):
        held.insert_points(points[50:], HERE, mode=Insert.ENDPOINT)  # brings 14 where 4 have room
        held.wait()
    held.wait()  # it is said once
    seen = held.occupancy(points)
    assert seen[:60].eq(1).all() and seen[60:].eq(-1).all()
    assert held.log_odds(points[50:60]).eq(23).all()  # nothing of the refused scan
    held.insert_points(points[50:64], HERE, mode=Insert.ENDPOINT)
    held.wait()
    assert held.occupancy(points).eq(1).tolist() == [True] * 64 + [False] * 10
    held.clear()
    held.insert_points(points[64:], HERE, mode=Insert.ENDPOINT)
    held.wait()
    assert held.stats()["occupied"] == 10


def test_a_refusal_is_said_once_however_late_it_is_known(on_device: Any) -> None:
    held = on_device(1.0, **LATER)
    with pytest.raises(RefusedError):
        held.insert_points(line(LEAST_CAPACITY + 1), HERE, mode=Insert.ENDPOINT)
        held.wait()
    late = held.kernel.refused.clone()
    for _ in range(3):
        held.insert_points(line(1), HERE, mode=Insert.ENDPOINT)
        held.kernel.refused.copy_(late)  # as a copy that was on its way
    held.wait()
    assert held.stats()["blocks"] == 1
    with pytest.raises(RefusedError, match=r"^1 insertion"):
        held.insert_points(line(LEAST_CAPACITY + 1), HERE, mode=Insert.ENDPOINT)
        held.wait()


def test_nothing_stays_marked_where_memory_runs_out(
    on_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = on_device(1.0)

    def fail(capacity: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(held.storage, "grow", fail)
        with pytest.raises(MemoryError):
            held.insert_points(line(200), HERE, mode=Insert.ENDPOINT)
    told = held.insert_points(line(200), HERE, mode=Insert.ENDPOINT)
    assert told.new_blocks == 200 and held.occupancy(line(200)).eq(1).all()


@pytest.mark.parametrize("when_full", [WhenFull.RAISE, WhenFull.EVICT])
def test_a_batch_that_does_not_fit_is_inserted_as_worlds_one_after_another(
    on_device: Any, when_full: WhenFull
) -> None:
    given = {"max_bytes": CAP, "when_full": when_full}
    maps = on_device(1.0, **given), VoxelMap(1.0, kernel=Reference(), **given)
    raised = []
    for held in maps:
        for first in (0, 160):  # 20 blocks of each of three worlds, and 20 more
            points = (line(20) + torch.tensor([first, 0.0, 0.0])).repeat(3, 1, 1)
            try:
                held.insert_points(points, torch.zeros(3, 3), mode=Insert.ENDPOINT)
            except FullError:
                raised.append(first)
    assert raised == ([160, 160] if when_full is WhenFull.RAISE else [])
    for world in range(3):
        seen = [held.occupancy(line(40), world=world).cpu() for held in maps]
        assert torch.equal(*seen) and seen[0][-20:].eq(1).any() == (when_full is WhenFull.EVICT)


def test_more_blocks_than_there_are_marks_for(
    on_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "MOST_PLACES", FIRST_PLACES)
    held = on_device(1.0)
    points = line(6000).repeat(2, 1, 1)
    told = held.insert_points(points, torch.zeros(2, 3), mode=Insert.ENDPOINT)
    assert told.new_blocks == 12_000  # world by world
    with pytest.raises(MarksError, match="too many blocks"):
        held.insert_points(line(FIRST_PLACES), HERE, mode=Insert.ENDPOINT)
    assert held.insert_points(line(4), HERE, mode=Insert.ENDPOINT).hits == 4


def test_insertions_that_never_wait_build_the_same_map(on_device: Any) -> None:
    random = torch.Generator().manual_seed(0)
    given = {"max_bytes": 4_000_000, "when_full": WhenFull.RAISE_LATER}
    ours, oracle = on_device(0.2, **given), VoxelMap(0.2, kernel=Reference())
    for mode in (Insert.RAY_PER_POINT, Insert.RAY_PER_VOXEL, Insert.ENDPOINT):
        points = torch.randn(4, 200, 3, generator=random)
        origins = torch.randn(4, 3, generator=random)
        told = [held.insert_points(points, origins, mode=mode) for held in (ours, oracle)]
        assert list(map(int, told[0])) == list(told[1])
    ours.wait()
    assert ours.stats() | {"bytes": 0} == oracle.stats() | {"bytes": 0}
    where = torch.randn(5000, 3, generator=random) * 2
    worlds = torch.randint(4, (5000,), generator=random)
    mine = ours.log_odds(where, world=worlds).cpu()
    assert torch.equal(mine, oracle.log_odds(where, world=worlds))


def test_a_map_without_a_cap_cannot_raise_later(on_device: Any) -> None:
    with pytest.raises(InvalidValueError, match="max_bytes is None"):
        on_device(1.0, when_full=WhenFull.RAISE_LATER)


def test_thousands_of_small_worlds(on_device: Any) -> None:
    held = on_device(1.0)
    worlds = 3000
    points = torch.arange(worlds)[:, None, None] % 7 + torch.rand(worlds, 20, 3)
    told = held.insert_points(points, torch.full((worlds, 3), 0.5), mode=Insert.ENDPOINT)
    assert told.hits == 20 * worlds and held.stats()["worlds"] == worlds
    each = torch.arange(worlds)
    assert held.occupancy(points[:, 0], world=each).eq(1).all()
    asked = torch.full((worlds, 3), 100.0)
    voxel = held.nearest(asked, 1, world=each)[1][:, 0].cpu()
    assert torch.equal(voxel, (each % 7)[:, None].expand(-1, 3).int())
    held.clear(range(1, worlds))
    assert held.stats()["worlds"] == 1 and held.occupancy(points[0]).eq(1).all()


def test_an_origin_that_nobody_looked_at_harms_nothing(on_device: Any) -> None:
    held = on_device(1.0, max_bytes=4_000_000, when_full=WhenFull.RAISE_LATER)
    if held.device.type == "cpu":  # on the host, origins are looked at
        with pytest.raises(InvalidValueError, match="origin"):
            held.insert_points(torch.zeros(1, 3), (1e9, 0.0, 0.0))
        return
    origin = torch.tensor([1e9, float("nan"), 0.0], device="cuda")
    told = held.insert_points(torch.zeros(2, 3), origin)
    assert (int(told.hits), int(told.off_grid)) == (0, 2) and held.stats()["blocks"] == 0


@pytest.mark.gpu
def test_insertion_does_not_wait(on_device: Any) -> None:
    held = on_device(0.1, max_bytes=100_000_000, when_full=WhenFull.RAISE_LATER)
    points, origins = torch.randn(64, 1000, 3, device="cuda"), torch.zeros(64, 3, device="cuda")
    held.insert_points(points, origins)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            held.insert_points(points, origins)
            held.log_odds(points[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    held.wait()


@pytest.mark.skipif(not device.library(), reason="no library for CUDA: nvcc was absent")
def test_the_library_for_cuda_loads_without_a_driver() -> None:
    library = device.library()
    assert isinstance(library, ctypes.CDLL)
    assert all(hasattr(library, name) for name in device.SIGNATURES)
