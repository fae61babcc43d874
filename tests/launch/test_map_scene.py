"""`engram map` with a scene: small recordings read back from Rerun's files, and what is refused."""

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from engram.kernels import VoxelMap
from engram.launch import map_scene, rerun_stream
from engram.launch.main import main
from engram.launch.map_scene import quaternion

# The camera looks along +x, its y axis down: a wall 2 m before it, in a world with z up.
LOOKING_ALONG_X = [[0, 0, 1, 0.5], [-1, 0, 0, 0.0], [0, -1, 0, 1.0], [0, 0, 0, 1]]


@pytest.fixture
def rerun() -> Any:
    pytest.importorskip("rerun.chunk", reason="rerun-sdk is missing or cannot read its files")
    return pytest.importorskip("rerun")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Two frames, the first with a picture."""
    folder = tmp_path / "room"
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", [[40, 0, 15.5], [0, 41, 11.5], [0, 0, 1]])
    for i in range(2):
        depth = np.full((24, 32), 2001, dtype=np.uint16)
        depth[0, :5] = 0
        depth[1, :3] = 65535
        Image.fromarray(depth).save(folder / f"frame-{i:06}.depth.png")
        pose = np.array(LOOKING_ALONG_X, dtype=float)
        pose[1, 3] = 0.1 * i
        np.savetxt(folder / f"frame-{i:06}.pose.txt", pose)
    Image.new("RGB", (32, 24), "teal").save(folder / "frame-000000.color.jpg")
    return folder


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    """Twenty clouds of three points, one of them none, each a metre further up than the last."""
    folder = tmp_path / "clouds"
    folder.mkdir()
    for i in range(20):
        points = [(1, 2, 3), (2, 2, 3), (np.nan, 0, 0)]
        vertices = np.array(points, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
        PlyData([PlyElement.describe(vertices, "vertex")]).write(str(folder / f"{i:02}.ply"))
        pose = np.eye(4)
        pose[2, 3] = i
        np.savetxt(folder / f"{i:02}.pose.txt", pose)
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def read(path: Path) -> dict[str, dict[int | None, dict[str, Any]]]:
    """What a file holds: by entity, scan (None where it holds for all) and component."""
    from rerun.chunk import RrdReader

    found: dict[str, dict[int | None, dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream().to_chunks():
        assert chunk.timeline_names == ([] if chunk.is_static else ["scan"])
        for row in chunk.to_record_batch().to_pylist():
            values = {name.partition(":")[2]: value for name, value in row.items() if ":" in name}
            found.setdefault(chunk.entity_path, {})[row.get("scan")] = values
    return found


def test_a_file_holds_poses_images_path_and_voxels(
    rerun: Any, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "room.rrd", tmp_path / "out"
    assert main(["map", str(room), "voxel_size=0.1", f"view={file}", f"out={out}"]) == 0
    assert f"Scene: {file}, 0.0 MB" in capsys.readouterr().out.replace("\n", "")
    held = read(file)
    assert held["/world"][None] == {"xyz": [[3, 5, 1]]}  # right, forward, up
    camera = held["/world/camera"]
    assert sorted(camera) == [0, 1]
    np.testing.assert_allclose(camera[1]["translation"], [[0.5, 0.1, 1.0]], rtol=1e-6)
    # A third of a turn about (-1, 1, -1).
    np.testing.assert_allclose(np.abs(camera[1]["quaternion"]), [[0.5] * 4], rtol=1e-6)
    lens = held["/world/camera/image"][1]
    assert lens["image_from_camera"] == [[40, 0, 0, 0, 41, 0, 15.5, 11.5, 1]]  # by columns
    assert lens["resolution"] == [[32, 24]]
    depth = held["/world/camera/image/depth"][1]
    pixels = np.array(depth["buffer"][0], dtype=np.uint8).view(np.uint16).reshape(24, 32)
    assert depth["meter"] == [1000] and set(pixels.flatten().tolist()) == {0, 2001}
    assert (pixels == 0).sum() == 8
    colour = held["/world/camera/image/colour"]
    assert colour[0]["media_type"] == ["image/jpeg"] and colour[1]["is_recursive"] == [False]
    assert bytes(colour[0]["blob"][0]) == (room / "frame-000000.color.jpg").read_bytes()
    path = held["/world/path/0"]
    assert [len(path[scan]["strips"][0]) for scan in (0, 1)] == [1, 2]
    np.testing.assert_allclose(path[1]["strips"][0], [[0.5, 0, 1], [0.5, 0.1, 1]], rtol=1e-6)
    voxels = held["/world/voxels"]
    centres = VoxelMap.load(out / "map.npz").occupied_centres().numpy()
    np.testing.assert_allclose(voxels[1]["positions"], centres, rtol=1e-6)
    assert sorted(voxels) == [0, 1] and len(voxels[1]["colors"]) == len(centres)
    np.testing.assert_allclose(voxels[1]["radii"], [0.05])


def test_voxels_are_written_ever_more_rarely_and_at_the_end(
    rerun: Any, clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_scene, "STRIP", 8)
    file, out = tmp_path / "clouds.rrd", tmp_path / "out"
    assert main(["map", str(clouds), "voxel_size=1", "up=-y", f"view={file}", f"out={out}"]) == 0
    held = read(file)
    assert held["/world"][None] == {"xyz": [[3, 2, 5]]}  # right, down, forward
    assert sorted(held["/world/voxels"]) == [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19]
    points = held["/world/points"]
    assert len(points) == 20 and points[4]["positions"] == [[1, 2, 7], [2, 2, 7]]
    pieces = [held[f"/world/path/{i}"] for i in range(3)]
    assert [len(piece) for piece in pieces] == [8, 8, 4]
    # A piece begins where the one before it ends.
    assert pieces[2][19]["strips"] == [[[0, 0, z] for z in range(15, 20)]]


def test_a_recording_that_fails_leaves_the_old_file(
    rerun: Any, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "room.rrd"
    file.write_text("old")
    (room / "frame-000001.depth.png").write_bytes(b"no image")
    assert main(["map", str(room), f"view={file}", f"out={tmp_path / 'out'}"]) == 2
    assert "no readable image" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["room", "room.rrd"]


def test_a_file_without_its_end_does_not_appear(
    rerun: Any, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(rerun_stream, "END", b"what no file ends with")
    file, out = tmp_path / "room.rrd", tmp_path / "out"
    assert main(["map", str(room), f"view={file}", f"out={out}"]) == 2
    assert f"{file} cannot be written: it has no end" in capsys.readouterr().err
    # The map is there all the same.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "room"]
    assert (out / "map.npz").exists()


def test_a_viewer_that_listens_is_joined(
    rerun: Any, room: Path, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    viewer = rerun.RecordingStream("a viewer's place", recording_id="viewer")
    viewer.serve_grpc(grpc_port=free_port)
    monkeypatch.setattr(rerun_stream, "PORT", free_port)
    assert main(["map", str(room), "--view", f"out={tmp_path / 'out'}"]) == 0
    assert "Scene: in the Rerun viewer" in capsys.readouterr().out
    viewer.disconnect()


def test_a_viewer_that_does_not_open_is_one_line(
    rerun: Any, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def spawn(**_: Any) -> None:
        raise RuntimeError("Failed to find it.\n\n  Install it.")

    monkeypatch.setattr(rerun, "spawn", spawn)
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["map", str(room), "--view", f"out={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Failed to find it.; record a file instead: view=<file.rrd>" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="windows need no DISPLAY there")
def test_without_a_display_a_file_is_named(
    room: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in rerun_stream.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rerun_stream, "PORT", free_port)
    assert main(["map", str(room), "--view"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no display" in line and "view=<file.rrd>" in line


def test_without_rerun_no_map_is_begun(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    out = tmp_path / "out"
    assert main(["map", str(room), f"view={tmp_path / 'room.rrd'}", f"out={out}"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install engram[rerun]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["room"]


@pytest.mark.parametrize(
    "view, told",
    [
        (["view="], "view is '.'"),
        (["view=nowhere/room.rrd"], "a folder that exists"),
        (["view=room.png"], "ends in .rrd"),
        (["view=folder.rrd"], "view is 'folder.rrd'"),
        (["--view", "view=room.rrd"], "one of them"),
        (["--veiw"], "allowed: --view"),
    ],
    ids=str,
)
def test_a_scene_that_cannot_be_is_refused_before_work(
    room: Path, view: list[str], told: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(room.parent)
    Path("folder.rrd").mkdir()
    assert main(["map", "room", *view]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("engram: ") and told in line
    assert sorted(path.name for path in Path().iterdir()) == ["folder.rrd", "room"]


def test_a_quarter_turn_read_from_text_is_a_quaternion() -> None:
    about_z = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) + 1e-8
    turn = quaternion(about_z)
    np.testing.assert_allclose(turn * np.sign(turn[3]), [0, 0, 0.5**0.5, 0.5**0.5], atol=1e-7)
