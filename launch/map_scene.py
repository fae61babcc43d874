"""A map while it is made, as a Rerun scene."""

import math
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from engram.kernels import VoxelMap
from engram.launch.recordings import Cloud, Frame
from engram.launch.rerun_stream import RerunStream

GROWTH = 1.25
"""The voxels are written when the scans are this many times those of the last writing."""
STRIP = 128
"""Scans per piece of the path: only the last piece is written anew with every scan."""
RED = (214, 39, 40)
MILLIMETRES = 1000.0
"""Per metre."""
MEDIA = {".jpg": "image/jpeg", ".png": "image/png"}


class MapScene:
    """Scans and what becomes of them, on the timeline `scan`, which counts from 0.

    Below `world`, in metres: `camera` (pose), `camera/image` (intrinsics), `camera/image/depth` and
    `camera/image/colour` of a frame, or `points` of a cloud; `path/<k>`, where the sensor was, in
    pieces; `voxels`, the occupied ones as balls coloured by height. The voxels are written at scans
    ever farther apart and at the last, so that a long recording stays small.

    Use it as a context. A file appears whole at its end; after an error, not at all.

    Args:
        path: The file to record; without one a viewer opens, or one that is open is joined.
        title: Names the recording in the viewer.

    Raises:
        UsageError: If the file cannot lie there, or no viewer opens.
        MissingPackageError: Without rerun-sdk.
    """

    def __init__(self, path: Path | None, *, title: str):
        self.outcome = ""
        """What became of the scene, in one line; known at the end."""
        self._stream = RerunStream(path, title=title)
        self._rr = self._stream.rerun
        self._due = 0
        self._coloured = False
        self._up: list[float] = []

    def add(
        self,
        scan: Frame | Cloud,
        held: VoxelMap,
        *,
        places: list[tuple[float, ...]],
        up: Float[np.ndarray, " 3"],
        last: bool,
    ) -> None:
        """Write one scan.

        Args:
            scan: The scan, already in the map.
            held: The map.
            places: Where the sensor was at this scan and at all before it [m].
            up: Unit vector along one of the axes.
            last: Whether no other scan follows.
        """
        number = len(places) - 1
        self._stream.set_scan(number)
        if up.tolist() != self._up:
            self._up = up.tolist()
            axis, towards = "XYZ"[np.abs(up).argmax()], "UP" if up.sum() > 0 else "DOWN"
            axes = getattr(self._rr.ViewCoordinates, f"RIGHT_HAND_{axis}_{towards}")
            self._stream.log("world", axes, static=True)
        if isinstance(scan, Frame):
            self._add_frame(scan)
        else:
            points = scan.points[torch.isfinite(scan.points).all(dim=1)]
            self._log("points", self._rr.Points3D(points.numpy()))
        piece = number // STRIP
        strip = np.array(places[max(0, piece * STRIP - 1) :])  # from the end of the piece before
        self._log(f"path/{piece}", self._rr.LineStrips3D([strip], colors=[RED]))
        if last or number >= self._due:
            self._due = max(number + 1, math.ceil(number * GROWTH))
            self._add_voxels(held, up)

    def __enter__(self) -> "MapScene":
        """Return the scene."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the scene: let the file appear, or forget it after an error."""
        if error is None:
            self.outcome = self._stream.close()
        else:
            self._stream.discard()

    def _log(self, name: str, what: Any) -> None:
        self._stream.log(f"world/{name}", what)

    def _add_frame(self, frame: Frame) -> None:
        pose, camera = frame.pose_camera_to_world.numpy(), frame.camera
        turn = quaternion(pose[:3, :3])
        self._log("camera", self._rr.Transform3D(translation=pose[:3, 3], quaternion=turn))
        lens = self._rr.Pinhole(
            focal_length=[camera.fx, camera.fy],
            principal_point=[camera.cx, camera.cy],
            resolution=[camera.width, camera.height],
        )
        self._log("camera/image", lens)
        # Whole millimetres, as they were read: half of what float32 takes. 0 is no depth.
        depth = np.rint(np.nan_to_num(frame.depth.numpy()) * MILLIMETRES).astype(np.uint16)
        self._log("camera/image/depth", self._rr.DepthImage(depth, meter=MILLIMETRES))
        if frame.colour:
            media = MEDIA[frame.colour.suffix]
            picture = self._rr.EncodedImage(contents=frame.colour.read_bytes(), media_type=media)
            self._log("camera/image/colour", picture)
        elif self._coloured:  # else the last one would stay
            self._log("camera/image/colour", self._rr.Clear(recursive=False))
        self._coloured = frame.colour is not None

    def _add_voxels(self, held: VoxelMap, up: np.ndarray) -> None:
        from matplotlib import colormaps

        centres = held.occupied_centres().numpy()
        height = centres @ up
        low, high = np.percentile(height, [1, 99]) if len(height) else (0.0, 0.0)
        share = (height - low) / max(high - low, held.voxel_size)
        colours = colormaps["viridis"](share.clip(0, 1), bytes=True)
        balls = self._rr.Points3D(centres, colors=colours, radii=held.voxel_size / 2)
        self._log("voxels", balls)


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 4"]:
    """Return x, y, z, w of the rotation nearest to a matrix (Bar-Itzhack 2000).

    Matrices read from text are not quite rigid, and under such a pose Rerun shows no image.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    k = np.array([
        [a - e - i, b + d, c + g, h - f],
        [b + d, e - a - i, f + h, c - g],
        [c + g, f + h, i - a - e, d - b],
        [h - f, c - g, d - b, a + e + i],
    ])  # fmt: skip
    return np.linalg.eigh(k).eigenvectors[:, -1]
