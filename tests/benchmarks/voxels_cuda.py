"""The voxel map on a CUDA device: speed, and equality with the map on the host."""

from collections.abc import Callable

import torch
from flat import Scan, walk
from measure import Limit, Row, not_run

from engram.kernels import Insert, VoxelMap, WhenFull

FRAMES, REPEATS = 10, 20
QUERIES = 10_000_000
WORLDS, POINTS = 4096, 256
VOXEL = 0.05
CAP = 256 << 20
TARGETS = {Insert.ENDPOINT: 60.0, Insert.RAY_PER_POINT: 1000.0, Insert.RAY_PER_VOXEL: 150.0}
"""Of a frame of 640 × 480 [µs]."""


def rows(rounds: int) -> list[Row]:
    """Measure insertion, look-ups and small worlds, and compare every voxel."""
    if not torch.cuda.is_available():
        return [not_run("voxels on a CUDA device", "", "no CUDA device: not run", "")]
    scans = walk(FRAMES)
    there = [Scan(scan.points.cuda(), scan.origin) for scan in scans]
    table = []
    for mode, target in TARGETS.items():

        def insert(held: VoxelMap, mode: Insert = mode) -> None:
            for scan in there:
                held.insert_points(scan.points, scan.origin, mode=mode)

        held = VoxelMap(VOXEL, device="cuda", max_bytes=CAP, when_full=WhenFull.RAISE_LATER)
        micros = best(lambda held=held, insert=insert: insert(held), rounds) / FRAMES * 1e6
        held.wait()
        name = f"voxels of 5 cm on a CUDA device: {mode.name.lower()} [µs/frame]"
        limit = Limit("≤", target)
        table.append(Row(name, f"{micros:.1f}", "", micros, None, str(limit), limit.holds(micros)))
        table.append(equality(scans, mode))
    table.append(look_ups(there, rounds))
    table.append(small_worlds(rounds))
    return table


def equality(scans: list[Scan], mode: Insert) -> Row:
    """Compare every byte of both maps."""
    maps = [VoxelMap(VOXEL, device=device) for device in ("cuda", "cpu")]
    for held in maps:
        for scan in scans:
            held.insert_points(scan.points, scan.origin, mode=mode)
    parts = []
    for held in maps:
        count = held.storage.count
        order = held.storage.keys[:count].argsort()
        parts.append([x[:count][order].cpu() for x in (held.storage.keys, held.storage.log_odds)])
    same = all(torch.equal(mine, true) for mine, true in zip(*parts, strict=True))
    name = f"voxels on a CUDA device and on the host: {mode.name.lower()}"
    return Row(name, "equal" if same else "DIFFER", "", None, None, "equal", same)


def look_ups(scans: list[Scan], rounds: int) -> Row:
    """Look up random places within sight."""
    held = VoxelMap(VOXEL, device="cuda", max_bytes=CAP, when_full=WhenFull.RAISE_LATER)
    for scan in scans:
        held.insert_points(scan.points, scan.origin)
    points = torch.cat([scan.points for scan in scans])
    asked = points[torch.randint(len(points), (QUERIES,), device="cuda")]
    asked *= torch.rand(QUERIES, 1, device="cuda")
    rate = QUERIES / best(lambda: held.log_odds(asked), rounds) / 1e9
    limit = Limit("≥", 5)
    name = f"voxels on a CUDA device: look-ups, {QUERIES:,} at a time [G/s]"
    return Row(name, f"{rate:.2f}", "", rate, None, str(limit), limit.holds(rate))


def small_worlds(rounds: int) -> Row:
    """Insert a small scan into each of many worlds at once."""
    held = VoxelMap(0.25, device="cuda", max_bytes=CAP, when_full=WhenFull.RAISE_LATER)
    points = torch.randn(WORLDS, POINTS, 3, device="cuda")
    origins = torch.zeros(WORLDS, 3, device="cuda")
    micros = best(lambda: held.insert_points(points, origins), rounds) * 1e6
    held.wait()
    name = f"voxels on a CUDA device: {WORLDS} worlds, {POINTS} rays each [µs]"
    return Row(name, f"{micros:.1f}", "", micros, None, "", None)


def best(function: Callable[[], object], rounds: int) -> float:
    """Return the median over rounds of the mean of repeats [s], by the device's own clock."""
    function()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(REPEATS):
            function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / REPEATS)
    return sorted(times)[len(times) // 2]
