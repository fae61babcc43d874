"""The peers of the voxel map, those that are installed: OctoMap, nanoflann, Open3D, scipy."""

import ctypes
import functools
import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "peers"
LINK = {"octomap_peer": ["-loctomap", "-loctomath"], "nanoflann_peer": []}


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """Compile and load a peer; None where its headers or a compiler are missing."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="engram-peers-")
    target = f"{folder}/{name}.so"
    flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
    command = [compiler, *flags, f"{SOURCES}/{name}.cpp", "-o", target, *LINK[name]]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    library = ctypes.CDLL(target)
    for function in ("octo_new", "flann_new"):
        if hasattr(library, function):
            getattr(library, function).restype = ctypes.c_void_p
    for function in ("octo_bytes", "octo_leaves"):
        if hasattr(library, function):
            getattr(library, function).restype = ctypes.c_int64
    return library


@functools.cache
def module(name: str) -> ModuleType | None:
    """Import a package; None where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def address(array: Tensor | np.ndarray) -> ctypes.c_void_p:
    """Where an array's numbers lie; it is contiguous."""
    place = array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data
    return ctypes.c_void_p(place)


class OctoMap:
    """An octree of OctoMap."""

    def __init__(self, voxel_size: float):
        library = compiled("octomap_peer")
        assert library is not None, "the caller looked"
        self.lib = library
        self.tree = ctypes.c_void_p(library.octo_new(ctypes.c_double(voxel_size)))

    def __del__(self) -> None:
        self.lib.octo_delete(self.tree)

    def insert_ends(self, points: Tensor) -> None:
        """Mark voxels that hold points."""
        self.lib.octo_insert_ends(self.tree, address(points), ctypes.c_int64(len(points)))

    def insert_rays(
        self, points: Tensor, origin: tuple[float, float, float], *, to_voxels: bool
    ) -> None:
        """And what rays pass through."""
        at = (ctypes.c_double * 3)(*origin)
        count, mode = ctypes.c_int64(len(points)), ctypes.c_int64(to_voxels)
        self.lib.octo_insert_rays(self.tree, address(points), count, at, mode)

    def occupancy(self, points: Tensor) -> Tensor:
        """1 occupied, 0 free, −1 unknown."""
        out = torch.empty(len(points), dtype=torch.int8)
        count = ctypes.c_int64(len(points))
        self.lib.octo_occupancy(self.tree, address(points), count, address(out))
        return out

    def cast(self, origins: Tensor, directions: Tensor, max_range: float) -> Tensor:
        """Distance to the centres of the voxels that stop rays [m]."""
        out = torch.empty(len(origins), dtype=torch.float64)
        count, reach = ctypes.c_int64(len(origins)), ctypes.c_double(max_range)
        places = address(origins), address(directions)
        self.lib.octo_cast(self.tree, *places, count, reach, address(out))
        return out

    @property
    def nbytes(self) -> int:
        """What it says it takes."""
        return self.lib.octo_bytes(self.tree)

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Integer coordinates of all known voxels, and which are occupied."""
        count = self.lib.octo_leaves(self.tree, None, None)
        keys, occupied = torch.empty(count, 3, dtype=torch.int64), torch.empty(count).to(torch.int8)
        self.lib.octo_leaves(self.tree, address(keys), address(occupied))
        return keys, occupied.bool()


class Nanoflann:
    """A k-d tree of nanoflann."""

    def __init__(self, points: np.ndarray):
        library = compiled("nanoflann_peer")
        assert library is not None, "the caller looked"
        self.lib, self.points = library, points
        count = ctypes.c_int64(len(points))
        self.index = ctypes.c_void_p(library.flann_new(address(points), count))

    def __del__(self) -> None:
        self.lib.flann_delete(self.index)

    def nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Squared distances [m²]."""
        squares = np.empty((len(queries), k))
        indices = np.empty((len(queries), k), dtype=np.uint32)
        count, wanted = ctypes.c_int64(len(queries)), ctypes.c_int64(k)
        self.lib.flann_nearest(
            self.index, address(queries), count, wanted, address(squares), address(indices)
        )
        return squares
