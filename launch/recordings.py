"""Recorded scans: folders of RGB-D frames, and sets of PLY clouds."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engram.kernels import Camera
from engram.kernels.errors import DataError, MissingPackageError

INTRINSICS = "camera-intrinsics.txt"
COLOURS = (".jpg", ".png")
MILLIMETRE = 1e-3
INVALID = (0, 65535)
"""Depths that stand for none."""


class Frame(NamedTuple):
    """One depth image."""

    depth: Float[Tensor, "H W"]
    """[m], NaN where there is none."""
    camera: Camera
    pose_camera_to_world: Float[Tensor, "4 4"]
    """float64, rigid."""
    colour: Path | None
    """The picture of the same moment, unread, if there is one."""


class Cloud(NamedTuple):
    """One scan of a LiDAR."""

    points: Float[Tensor, "n 3"]
    """[m], in the world's frame."""
    origin: tuple[float, float, float]
    """Where the sensor was [m]."""


class Recording:
    """What lies in a folder, in the order of names.

    RGB-D: `camera-intrinsics.txt` (3 × 3) and, for each frame, `<name>.depth.png` (16 bits, mm; 0
    and 65535 are none), `<name>.pose.txt` (4 × 4, camera to world) and, where there is one,
    `<name>.color.jpg` or `.png`. Clouds: `<name>.ply` with vertices x, y, z, and their pose in
    `<name>.pose.txt` or `T_<any>_<name>.txt` (4 × 4, scan to world); without one a scan lies in the
    world's frame, the sensor at its origin.

    Args:
        folder: Where they lie.

    Raises:
        DataError: If the folder holds neither, or a file is missing.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder")
        self.folder = folder
        self.images = sorted(folder.glob("*.depth.png"))
        self.clouds = [] if self.images else sorted(folder.glob("*.ply"))
        if not self.images and not self.clouds:
            raise DataError(f"{folder} holds no scans; allowed: *.depth.png, or *.ply")
        self.intrinsics = read_matrix(folder / INTRINSICS, (3, 3)) if self.images else np.eye(3)

    def __len__(self) -> int:
        """How many scans."""
        return len(self.images) + len(self.clouds)

    def __iter__(self) -> Iterator[Frame | Cloud]:
        """Read one after another."""
        for path in self.images:
            yield self.frame(path)
        for path in self.clouds:
            yield self.cloud(path)

    def frame(self, path: Path) -> Frame:
        """Read a depth image and its pose."""
        name = path.name.removesuffix(".depth.png")
        pose = read_matrix(self.folder / f"{name}.pose.txt", (4, 4))
        millimetres = read_image(path)
        depth = millimetres.astype(np.float32) * np.float32(MILLIMETRE)
        depth[np.isin(millimetres, INVALID)] = np.nan
        (fx, _, cx), (_, fy, cy), _ = self.intrinsics.tolist()
        height, width = depth.shape
        camera = Camera(width, height, fx, fy, cx, cy)
        pictures = (self.folder / f"{name}.color{suffix}" for suffix in COLOURS)
        colour = next((picture for picture in pictures if picture.is_file()), None)
        return Frame(torch.from_numpy(depth), camera, torch.from_numpy(pose), colour)

    def cloud(self, path: Path) -> Cloud:
        """Read a cloud and bring it to the world's frame."""
        named = [self.folder / f"{path.stem}.pose.txt", *self.folder.glob(f"T_*_{path.stem}.txt")]
        found = [each for each in named if each.exists()]
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise DataError(f"{path} has several poses: {names}; allowed: one")
        pose = read_matrix(found[0], (4, 4)) if found else np.eye(4)
        points = read_ply(path).astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
        x, y, z = pose[:3, 3].tolist()
        return Cloud(torch.from_numpy(points.astype(np.float32)), (x, y, z))


def read_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a matrix of text, float64."""
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is no matrix: {error}") from None
    if matrix.shape != shape or not np.isfinite(matrix).all():
        seen = f"{list(matrix.shape)}"
        raise DataError(f"{path} holds {seen}; allowed: {list(shape)} finite numbers")
    return matrix


def read_image(path: Path) -> np.ndarray:
    """Read a depth image of 16 bits."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingPackageError("pillow", "map") from None
    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"{path} is no readable image: {error}") from None
    if array.ndim != 2 or array.dtype not in (np.uint16, np.int32):
        seen = f"{array.dtype}{list(array.shape)}"
        raise DataError(f"{path} holds {seen}; allowed: one channel of 16 bits")
    return array


def read_ply(path: Path) -> np.ndarray:
    """Read the vertices of a PLY file, `[n, 3]`."""
    try:
        from plyfile import PlyData, PlyParseError
    except ImportError:
        raise MissingPackageError("plyfile", "map") from None
    try:
        vertex = PlyData.read(str(path))["vertex"]
        return np.stack([np.asarray(vertex[axis], dtype=np.float32) for axis in "xyz"], axis=1)
    except (OSError, PlyParseError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no readable cloud: {error}") from None
