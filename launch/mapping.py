"""`engram map`: a voxel map of a recording, on disk and from above."""

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engram.kernels import Insert, Inserted, VoxelMap
from engram.kernels.errors import EngramError
from engram.launch.config import UsageError, unknown
from engram.launch.files import write, write_json
from engram.launch.map_scene import MapScene
from engram.launch.recordings import Cloud, Frame, Recording
from engram.launch.top_view import draw_top_view

MODES = {mode.name.lower(): mode for mode in Insert}
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
UPS = ["auto", *(sign + axis for axis in AXES for sign in ("", "-"))]
KEYS = ("voxel_size", "max_range", "mode", "up", "out", "view")
VIEW = "--view"


def build_map(arguments: list[str], console: Console) -> int:
    """Read a recording scan by scan, then write `map.npz`, `map.png` and `map.json`.

    Args:
        arguments: The folder, and optionally `voxel_size`, `max_range` [m], `mode`, `up`, `out` and
            `view`, a file for the scene; or `--view` to see it.
        console: Where progress and the summary go.
    """
    folder, given, window = _parse(arguments)
    mode = given.get("mode", "ray_per_point")
    if mode not in MODES:
        raise unknown("mode", mode, list(MODES))
    up = given.get("up", "auto")
    if up not in UPS:
        raise unknown("up", up, UPS)
    recording = Recording(folder)
    out = Path(given.get("out", f"runs/map-{folder.resolve().name}"))
    held = VoxelMap(_metres("voxel_size", given.get("voxel_size", "0.05")))
    max_range = _metres("max_range", given.get("max_range", "inf"))
    scene = None
    if window or "view" in given:
        scene = MapScene(None if window else Path(given["view"]), title=folder.resolve().name)
    places: list[tuple[float, ...]] = []
    cameras_up = np.zeros(3)
    total = np.zeros(len(Inserted._fields), dtype=np.int64)
    busy = 0.0
    columns = (
        TextColumn("mapping"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    # A scene that cannot be written to its end takes no map with it.
    with scene or nullcontext():
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(recording))
            for scan in recording:
                began = time.perf_counter()
                total += [int(x) for x in insert(held, scan, MODES[mode], max_range)]
                busy += time.perf_counter() - began
                places.append(_origin(scan))
                if isinstance(scan, Frame):
                    cameras_up -= scan.pose_camera_to_world[:3, 1].numpy()
                if scene:
                    last = len(places) == len(recording)
                    scene.add(scan, held, places=places, up=_up(up, cameras_up), last=last)
                blocks = f"{held.storage.count:,} blocks"
                progress.update(task, advance=1, description=blocks)
        facts = {
            "format": 1,
            "folder": folder.name,
            "scans": len(recording),
            "voxel_size": held.voxel_size,
            "max_range": None if math.isinf(max_range) else max_range,
            "mode": mode,
            **dict(zip(Inserted._fields, total.tolist(), strict=True)),
            **held.stats(),
            "seconds_inserting": busy,
        }
        out.mkdir(parents=True, exist_ok=True)
        held.save(out / "map.npz")
        write_json(out / "map.json", facts)
        _draw(held, out / "map.png", _up(up, cameras_up), np.array(places), folder.name)
    console.print(
        f"{facts['scans']} scans, {facts['hits']:,} points: {facts['occupied']:,} occupied and "
        f"{facts['free']:,} free voxels of {held.voxel_size} m in {facts['bytes'] / 1e6:.1f} MB; "
        f"{busy / len(recording) * 1e3:.1f} ms per scan"
    )
    left_out = {k: facts[k] for k in ("beyond_range", "not_finite", "off_grid") if facts[k]}
    if left_out:
        console.print("Not hits: " + json.dumps(left_out))
    if scene:
        console.print(scene.outcome)
    console.print(f"Map: {out / 'map.npz'}, from above: {out / 'map.png'}")
    return 0


def insert(held: VoxelMap, scan: Frame | Cloud, mode: Insert, max_range: float) -> Inserted:
    """Add one scan."""
    if isinstance(scan, Frame):
        return held.insert_depth(
            scan.depth, scan.camera, scan.pose_camera_to_world, mode=mode, max_range=max_range
        )
    return held.insert_points(scan.points, scan.origin, mode=mode, max_range=max_range)


def _draw(held: VoxelMap, path: Path, up: np.ndarray, places: np.ndarray, title: str) -> None:
    centres = held.occupied_centres().numpy()
    if not len(centres):
        raise EngramError(f"{title} has no point within range, so there is nothing to draw")
    png = draw_top_view(centres, up=up, voxel_size=held.voxel_size, path=places, title=title)
    write(path, png)


def _origin(scan: Frame | Cloud) -> tuple[float, ...]:
    if isinstance(scan, Frame):
        return tuple(scan.pose_camera_to_world[:3, 3].tolist())
    return scan.origin


def _up(given: str, cameras_up: np.ndarray) -> np.ndarray:
    """Return the axis that points up: as told, else as cameras are mostly held, else z."""
    if given != "auto":
        return np.array(AXES[given[-1]]) * (-1 if given[0] == "-" else 1)
    if not cameras_up.any():
        return np.array(AXES["z"])
    axis = int(np.abs(cameras_up).argmax())
    return np.eye(3)[axis] * np.sign(cameras_up[axis])


def _parse(arguments: list[str]) -> tuple[Path, dict[str, str], bool]:
    """Return the folder, the settings, and whether a viewer is to open."""
    words = [argument for argument in arguments if "=" not in argument]
    options = [word for word in words if word.startswith("-")]
    for option in options:
        if option != VIEW:
            raise unknown("option", option, [VIEW])
    folders = [word for word in words if word not in options]
    if len(folders) != 1:
        raise UsageError(f"map takes one folder, got {' '.join(folders) or 'none'}")
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            continue
        if key not in KEYS:
            raise unknown("setting", key, list(KEYS))
        given[key] = value
    if options and "view" in given:
        raise UsageError(f"{VIEW} and view={given['view']} are given; allowed: one of them")
    return Path(folders[0]), given, bool(options)


def _metres(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UsageError(f"{name} is {text!r}; allowed: numbers above 0 [m]")
    return value
