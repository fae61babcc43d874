"""`engram map`: small recordings whose maps are known, and folders that hold none."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from engram.kernels import VoxelMap
from engram.launch.main import main
from engram.launch.recordings import Cloud, Frame, Recording

# The camera looks along +x, its y axis down: a wall 2 m before it, in a world with z up.
LOOKING_ALONG_X = [[0, 0, 1, 0.5], [-1, 0, 0, 0.0], [0, -1, 0, 1.0], [0, 0, 0, 1]]


def rgbd(folder: Path, frames: int = 2) -> Path:
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", [[40, 0, 15.5], [0, 40, 11.5], [0, 0, 1]])
    for i in range(frames):
        depth = np.full((24, 32), 2000, dtype=np.uint16)
        depth[0, :5] = 0
        depth[1, :3] = 65535
        Image.fromarray(depth).save(folder / f"frame-{i:06}.depth.png")
        pose = np.array(LOOKING_ALONG_X, dtype=float)
        pose[1, 3] = 0.1 * i
        np.savetxt(folder / f"frame-{i:06}.pose.txt", pose)
    return folder


def ply(path: Path, points: Any, *, text: bool = False) -> None:
    vertices = np.array(
        [(*p, 7.0) for p in points],
        dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4")],
    )
    PlyData([PlyElement.describe(vertices, "vertex")], text=text).write(str(path))


def test_a_wall_before_a_camera_is_mapped_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["map", str(rgbd(tmp_path / "room")), "voxel_size=0.1", f"out={out}"]) == 0
    assert "2 scans" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["map.json", "map.npz", "map.png"]
    held = VoxelMap.load(out / "map.npz")
    wall = held.occupied_centres()
    torch.testing.assert_close(wall[:, 0], torch.full((len(wall),), 2.55, dtype=torch.float64))
    before = torch.tensor([[1.5, 0.0, 1.0], [0.6, 0.0, 1.0], [2.7, 0.0, 1.0], [2.55, 0.0, 1.0]])
    assert held.occupancy(before).tolist() == [0, 0, -1, 1]
    facts = json.loads((out / "map.json").read_text())
    assert facts["hits"] == 2 * (24 * 32 - 8) and facts["not_finite"] == 16
    with Image.open(out / "map.png") as picture:
        assert picture.size[0] > 300


def test_frames_have_metres_holes_and_poses(tmp_path: Path) -> None:
    frames = list(Recording(rgbd(tmp_path / "room")))
    assert len(frames) == 2 and all(isinstance(frame, Frame) for frame in frames)
    first = frames[0]
    assert isinstance(first, Frame)
    assert first.depth.isnan().sum() == 8 and first.depth.nan_to_num(2.0).eq(2.0).all()
    assert first.camera == (32, 24, 40.0, 40.0, 15.5, 11.5)
    assert first.pose_camera_to_world.tolist() == LOOKING_ALONG_X


@pytest.mark.parametrize("text", [False, True])
def test_clouds_are_brought_to_the_world(tmp_path: Path, text: bool) -> None:
    ply(tmp_path / "a.ply", [(1, 2, 3)], text=text)
    ply(tmp_path / "b.ply", [(1, 2, 3), (math.nan, 0, 0)], text=text)
    turned = [[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]
    np.savetxt(tmp_path / "T_a_b.txt", turned)
    first, second = Recording(tmp_path)
    assert isinstance(first, Cloud) and isinstance(second, Cloud)
    assert first.points.tolist() == [[1, 2, 3]] and first.origin == (0, 0, 0)
    assert second.points[0].tolist() == [8, 21, 33] and second.origin == (10, 20, 30)
    out = tmp_path / "out"
    arguments = ["map", str(tmp_path), "voxel_size=1", "mode=endpoint", "max_range=5", f"out={out}"]
    assert main(arguments) == 0
    held = VoxelMap.load(out / "map.npz")
    assert held.occupied_centres().tolist() == [[1.5, 2.5, 3.5], [8.5, 21.5, 33.5]]


def damage(folder: Path, how: str) -> None:
    changes = {
        "pose": lambda: (folder / "frame-000001.pose.txt").unlink(),
        "words": lambda: (folder / "frame-000001.pose.txt").write_text("no numbers"),
        "shape": lambda: np.savetxt(folder / "frame-000001.pose.txt", np.eye(3)),
        "nan": lambda: np.savetxt(folder / "frame-000001.pose.txt", np.full((4, 4), np.nan)),
        "rigid": lambda: np.savetxt(folder / "frame-000001.pose.txt", np.diag([2, 1, 1, 1])),
        "camera": lambda: (folder / "camera-intrinsics.txt").unlink(),
        "image": lambda: (folder / "frame-000001.depth.png").write_bytes(b"no image"),
        "empty": lambda: (folder / "frame-000001.depth.png").write_bytes(b""),
        "colour": lambda: Image.new("RGB", (32, 24)).save(folder / "frame-000001.depth.png"),
        "none": lambda: [path.unlink() for path in folder.glob("*.png")],
    }
    changes[how]()


@pytest.mark.parametrize(
    "how",
    ["pose", "words", "shape", "nan", "rigid", "camera", "image", "empty", "colour", "none"],
)
def test_a_damaged_recording_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder, out = rgbd(tmp_path / "room"), tmp_path / "out"
    damage(folder, how)
    assert main(["map", str(folder), f"out={out}"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("engram: ") and len(message) > 20
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["a", "b"], ["nowhere"], [".", "voxel=1"], [".", "voxel_size=no"],
        [".", "voxel_size=0"], [".", "max_range=-1"], [".", "mode=ray"], [".", "up=w"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_call_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", *arguments]) == 2
    assert capsys.readouterr().err.startswith("engram: ")


def test_damaged_clouds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    assert main(["map", str(tmp_path)]) == 2
    ply(tmp_path / "a.ply", [(1, 2, 3)] * 50)
    whole = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(whole[:-40])
    assert main(["map", str(tmp_path)]) == 2
    ply(tmp_path / "a.ply", [(1, 2, 3)])
    for name in ("a.pose.txt", "T_x_a.txt"):
        np.savetxt(tmp_path / name, np.eye(4))
    assert main(["map", str(tmp_path)]) == 2
    assert "several poses" in capsys.readouterr().err
