"""The voxel map against OctoMap on recordings: a room of RGB-D frames, and LiDAR scans.

`ENGRAM_DATA` names the folder that holds them; without it, `shared/data` in or beside the checkout.
"""

import os
from pathlib import Path

import torch
from flat import Scan
from measure import Row, not_run
from voxel_peers import OctoMap, compiled
from voxels import insert_all, insertion, octomap_insert_all, size_and_agreement

from engram.kernels import Insert, VoxelMap
from engram.kernels.checks import checked_images
from engram.kernels.native import Native
from engram.launch.recordings import Frame, Recording

ROOT = Path(__file__).resolve().parents[2]
STREAMS = {"rgbd_room": (0.05, 20), "lidar": (0.2, 1)}
"""By folder: voxel size [m], and every which scan is taken."""
RANGE = 5.0
"""Of the depth camera [m]."""


def rows(rounds: int) -> list[Row]:
    """Time insertion, and compare the maps, by one ray per point."""
    named = os.environ.get("ENGRAM_DATA")
    places = [Path(named)] if named else [base / "shared/data" for base in (ROOT, ROOT.parent)]
    data = next((place for place in places if place.is_dir()), None)
    if data is None or compiled("octomap_peer") is None:
        why = "no recordings: not run" if data is None else "no OctoMap: not run"
        return [not_run("voxels of recordings", "", why, "")]
    table = []
    for name, (voxel_size, step) in STREAMS.items():
        scans = read(data / name, step)
        label = f"{voxel_size * 100:.0f} cm, {name}"
        table += insertion(scans, voxel_size, rounds, label)
        held, tree = VoxelMap(voxel_size, kernel=Native(threads=1)), OctoMap(voxel_size)
        insert_all(held, scans, Insert.RAY_PER_POINT)
        octomap_insert_all(tree, scans, Insert.RAY_PER_POINT)
        table += size_and_agreement(held, tree, label)
    return table


def read(folder: Path, step: int) -> list[Scan]:
    """Read every so many scans of a recording as points."""
    kernel, scans = Native(threads=1), []
    for scan in list(Recording(folder))[::step]:
        if isinstance(scan, Frame):
            pose = scan.pose_camera_to_world
            points = kernel.unproject(
                checked_images(scan.depth, scan.camera, pose, torch.device("cpu"))
            )[0]
            x, y, z = pose[:3, 3].tolist()
            near = (points.double() - pose[:3, 3]).norm(dim=1) <= RANGE
            scans.append(Scan(points[near].contiguous(), (x, y, z)))
        else:
            finite = scan.points.isfinite().all(1)
            scans.append(Scan(scan.points[finite].contiguous(), scan.origin))
    return scans
