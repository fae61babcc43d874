"""The voxel map against OctoMap, Open3D, scipy and nanoflann, on one stream and in one run.

Judged by processor time, since some peers use every core whatever they are told; what two threads
gain is judged by the clock.
"""

from collections.abc import Callable

import numpy as np
import torch
from flat import RANGE, Scan, walk
from measure import Limit, Row, alternate, compared, not_run
from voxel_peers import Nanoflann, OctoMap, compiled, module

from engram.kernels import Insert, VoxelMap
from engram.kernels.native import Native

FRAMES = {0.05: 10, 0.02: 4}
"""Of the walk that are inserted, by voxel size [m]."""
QUERIES = 200_000
NEIGHBOURS, RADIUS = 8, 0.2
MODES = {
    Insert.ENDPOINT: ("endpoints", {0.05: 8}),
    Insert.RAY_PER_POINT: ("ray per point", {0.05: 4, 0.02: 8}),
    Insert.RAY_PER_VOXEL: ("ray per end voxel", {0.05: 7, 0.02: 12}),
}
RAY_TARGETS = {0.05: 12, 0.02: 6}


def rows(rounds: int) -> list[Row]:
    """Measure everything on one thread, but for the row that says otherwise."""
    scans = walk(max(FRAMES.values()))
    table = []
    if compiled("octomap_peer") is None:
        table.append(not_run("voxel insertion, look-up, rays", "", "no OctoMap: not run", ""))
    else:
        for voxel_size in FRAMES:
            table += against_octomap(scans[: FRAMES[voxel_size]], voxel_size, rounds)
    table += neighbours(scans, rounds)
    table.append(two_threads(scans[:4], rounds))
    return table


def insert_all(held: VoxelMap, scans: list[Scan], mode: Insert) -> None:
    """Insert the stream into our map."""
    for scan in scans:
        held.insert_points(scan.points, scan.origin, mode=mode)


def octomap_insert_all(tree: OctoMap, scans: list[Scan], mode: Insert) -> None:
    """Insert it into OctoMap."""
    for scan in scans:
        if mode is Insert.ENDPOINT:
            tree.insert_ends(scan.points)
        else:
            voxels = mode is Insert.RAY_PER_VOXEL
            tree.insert_rays(scan.points, scan.origin, to_voxels=voxels)


def against_octomap(scans: list[Scan], voxel_size: float, rounds: int) -> list[Row]:
    """Insertion, look-ups, rays, bytes and agreement at one voxel size."""
    label = f"{voxel_size * 100:.0f} cm"
    table = insertion(scans, voxel_size, rounds, label)
    held, tree = VoxelMap(voxel_size, kernel=Native(threads=1)), OctoMap(voxel_size)
    insert_all(held, scans, Insert.RAY_PER_POINT)
    octomap_insert_all(tree, scans, Insert.RAY_PER_POINT)
    table += queries(held, tree, scans, rounds, label)
    table += size_and_agreement(held, tree, label)
    return table


def insertion(scans: list[Scan], voxel_size: float, rounds: int, label: str) -> list[Row]:
    """Time every kind of insertion into an empty map."""
    table = []
    for mode, (name, targets) in MODES.items():
        kernel = Native(threads=1)  # its scratch memory is kept between maps, as between scans

        def ours(mode: Insert = mode, kernel: Native = kernel) -> None:
            insert_all(VoxelMap(voxel_size, kernel=kernel), scans, mode)

        def theirs(mode: Insert = mode) -> None:
            octomap_insert_all(OctoMap(voxel_size), scans, mode)

        ours()
        mine, peer = alternate(ours, theirs, rounds=rounds)
        per_frame = [1e3 * cost.cpu / len(scans) for cost in (mine, peer)]
        ratios = (peer.wall / mine.wall, peer.cpu / mine.cpu)
        quantity = f"voxels of {label}: {name} [ms/frame, CPU]"
        texts = f"{per_frame[0]:.2f}", f"OctoMap {per_frame[1]:.2f}"
        if voxel_size in targets:
            table.append(
                compared(quantity, *texts, ratios, Limit("≥", targets[voxel_size]), by_cpu=True)
            )
        else:
            table.append(Row(quantity, *texts, *ratios, "", None))
    return table


def queries(held: VoxelMap, tree: OctoMap, scans: list[Scan], rounds: int, label: str) -> list[Row]:
    """Look-ups at random places within sight, and rays to what was seen."""
    random = torch.Generator().manual_seed(0)
    points = torch.cat([scan.points for scan in scans])
    chosen = points[torch.randint(len(points), (QUERIES,), generator=random)]
    origin = torch.tensor(scans[0].origin)
    asked = origin + (chosen - origin) * torch.rand(QUERIES, 1, generator=random)
    held.log_odds(asked)
    mine, peer = alternate(
        lambda: held.log_odds(asked), lambda: tree.occupancy(asked), rounds=rounds
    )
    rates = [QUERIES / cost.cpu / 1e6 for cost in (mine, peer)]
    ratios = (peer.wall / mine.wall, peer.cpu / mine.cpu)
    quantity = f"voxels of {label}: look-ups at points [M/s]"
    texts = f"{rates[0]:.1f}", f"OctoMap {rates[1]:.2f}"
    table = [compared(quantity, *texts, ratios, Limit("≥", 8), by_cpu=True)]

    few = QUERIES // 10
    begin = torch.tensor([scan.origin for scan in scans], dtype=torch.float64)
    begin = begin[torch.randint(len(scans), (few,), generator=random)]
    along = torch.randn(few, 3, generator=random, dtype=torch.float64)
    along = along * torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64)
    reach = 2 * RANGE
    held.cast_rays(begin, along, max_range=reach)
    mine, peer = alternate(
        lambda: held.cast_rays(begin, along, max_range=reach),
        lambda: tree.cast(begin, along, reach),
        rounds=rounds,
    )
    rates = [few / cost.cpu / 1e3 for cost in (mine, peer)]
    ratios = (peer.wall / mine.wall, peer.cpu / mine.cpu)
    limit = Limit("≥", RAY_TARGETS[held.voxel_size])
    texts = f"{rates[0]:,.0f}", f"OctoMap {rates[1]:,.0f}"
    table.append(
        compared(f"voxels of {label}: exact rays [k/s]", *texts, ratios, limit, by_cpu=True)
    )
    return table


def size_and_agreement(held: VoxelMap, tree: OctoMap, label: str) -> list[Row]:
    """Bytes per known voxel, and voxels that one knows and the other does not."""
    keys, occupied = tree.leaves()
    stats = held.stats()
    known = stats["occupied"] + stats["free"]
    mine, peer = held.nbytes / known, tree.nbytes / len(keys)
    limit = Limit("≤", 1 / 7)
    quantity = f"voxels of {label}: bytes per known voxel"
    share = compared(quantity, f"{mine:.2f}", f"OctoMap {peer:.1f}", (mine / peer, None), limit)
    seen = held.occupancy(((keys.double() + 0.5) * held.voxel_size).float())
    shared = seen >= 0
    apart = int((~shared).sum()) + known - int(shared.sum())
    flips = int(((seen == 1) != occupied)[shared].sum())
    limit = Limit("≤", 5e-5)
    differ = apart / (known + len(keys))
    agree = Row(
        f"voxels of {label}: known to one map alone (other decision: {flips})",
        f"{apart:,} of {known:,}", f"OctoMap {len(keys):,}", differ, None, str(limit),
        limit.holds(differ) and not flips,
    )  # fmt: skip
    return [share, agree]


def neighbours(scans: list[Scan], rounds: int) -> list[Row]:
    """The k nearest and all within a radius, over the occupied voxels of 5 cm."""
    held = VoxelMap(0.05, kernel=Native(threads=1))
    insert_all(held, scans, Insert.ENDPOINT)
    centres = held.occupied_centres().numpy()
    random = torch.Generator().manual_seed(0)
    points = torch.cat([scan.points for scan in scans])
    asked = points[torch.randint(len(points), (QUERIES,), generator=random)]
    asked = asked + 0.05 * torch.randn(QUERIES, 3, generator=random)
    queries = asked.double().numpy()
    table = []

    def race(
        name: str,
        ours: Callable[[], object],
        peer: str,
        theirs: Callable[[], object] | None,
        target: float,
    ) -> None:
        quantity = f"{name}, {len(centres):,} voxels [k queries/s, CPU]"
        if theirs is None:
            table.append(not_run(quantity, "", f"no {peer}: not run", f"≥ {target:g}"))
            return
        ours()
        mine, other = alternate(ours, theirs, rounds=rounds)
        rates = [QUERIES / cost.cpu / 1e3 for cost in (mine, other)]
        ratios = (other.wall / mine.wall, other.cpu / mine.cpu)
        texts = f"{rates[0]:,.0f}", f"{peer} {rates[1]:,.0f}"
        table.append(compared(quantity, *texts, ratios, Limit("≥", target), by_cpu=True))

    def nearest() -> object:
        return held.nearest(asked, NEIGHBOURS)

    scipy, open3d = module("scipy.spatial"), module("open3d")
    tree = scipy.cKDTree(centres) if scipy else None
    flann = Nanoflann(centres) if compiled("nanoflann_peer") else None
    label = f"{NEIGHBOURS} nearest"
    search = None
    if open3d:
        search = open3d.core.nns.NearestNeighborSearch(open3d.core.Tensor(centres))
        search.knn_index()
        search.fixed_radius_index(RADIUS)
        theirs = open3d.core.Tensor(queries)
        race(label, nearest, "Open3D", lambda: search.knn_search(theirs, NEIGHBOURS), 2)
    else:
        race(label, nearest, "Open3D", None, 2)
    if flann:
        race(label, nearest, "nanoflann", lambda: flann.nearest(queries, NEIGHBOURS), 1.5)
    else:
        race(label, nearest, "nanoflann", None, 1.5)
    race(label, nearest, "cKDTree", tree and (lambda: tree.query(queries, NEIGHBOURS)), 3)
    if tree:
        error = np.abs(nearest()[0].numpy() - tree.query(queries, NEIGHBOURS)[0]).max()
        assert error < 1e-6, f"nearest neighbours differ from cKDTree's by {error} m"
    count = tree and (lambda: tree.query_ball_point(queries, RADIUS, return_length=True))
    race(f"count within {RADIUS} m", lambda: held.count_within(asked, RADIUS), "cKDTree", count, 4)
    listed = search and (lambda: search.fixed_radius_search(theirs, RADIUS))
    race(f"list within {RADIUS} m", lambda: held.list_within(asked, RADIUS), "Open3D", listed, 3)
    return table


def two_threads(scans: list[Scan], rounds: int) -> Row:
    """One thread against two, by the clock."""
    kernels = [Native(threads=1), Native(threads=2)]

    def run(kernel: Native) -> None:
        insert_all(VoxelMap(0.05, kernel=kernel), scans, Insert.RAY_PER_POINT)

    for kernel in kernels:
        run(kernel)
    one, two = alternate(*(lambda kernel=kernel: run(kernel) for kernel in kernels), rounds=rounds)
    per_frame = [1e3 * cost.wall / len(scans) for cost in (two, one)]
    return compared(
        "voxels of 5 cm: ray per point, two threads [ms/frame, clock]",
        f"{per_frame[0]:.2f}", f"one thread {per_frame[1]:.2f}",
        (one.wall / two.wall, None), Limit("≥", 1.6),
    )  # fmt: skip
