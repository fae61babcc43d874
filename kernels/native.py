"""The compiled kernels for the CPU: a C ABI, reached by ctypes."""

import ctypes
import functools
import os
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import Evidence
from engram.kernels.scan import Bundle, Camera, Inserted, Scan, Worlds
from engram.kernels.storage import Storage

FOLDER = Path(__file__).parent
LEVELS = ("v2", "v3", "v4")
"""Instruction sets that there are libraries for, as x86-64 names them; elsewhere v2 is any."""
KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
SIGNATURES = {
    "vox_scratch": ("p", "n"),
    "vox_scratch_delete": ("", "p"),
    "vox_scratch_bytes": ("n", "p"),
    "vox_mark": ("n", "ppnpddnp"),
    "vox_touched": ("n", "pp"),
    "vox_missing": ("n", "ppn"),
    "vox_apply": ("", "ppnp"),
    "vox_discard": ("", "p"),
    "vox_rehash": ("", "p"),
    "vox_unproject": ("", "pnnppnp"),
    "vox_log_odds": ("", "pppnndnp"),
    "vox_nearest": ("", "pppnndndnpp"),
    "vox_count_within": ("", "pppnnddnp"),
    "vox_list_within": ("", "pppnnddnppp"),
    "vox_cast": ("", "ppppnnddnnpp"),
}
"""Kinds of result and arguments; their meaning stands where the functions are defined."""


class View(ctypes.Structure):
    """A storage as the library sees it. Twin of `View` in source/map.h."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        ("table_size", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("log_odds", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
        ("occupied", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
    )


class EvidenceView(ctypes.Structure):
    """Twin of `Evidence` in source/map.h."""

    _fields_ = tuple((name, ctypes.c_int32) for name in Evidence._fields)


@functools.cache
def libraries() -> list[ctypes.CDLL]:
    """Load the libraries that this processor can run, the plainest first; none where none is built.

    All compute the same.
    """
    lowest = FOLDER / f"libvoxels_{LEVELS[0]}.so"
    if not lowest.exists():
        return []
    usable = LEVELS[: ctypes.CDLL(str(lowest)).vox_level() - 1]
    paths = [FOLDER / f"libvoxels_{level}.so" for level in usable]
    return [_load(path) for path in paths if path.exists()]


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype = KINDS[result] if result else None
        function.argtypes = [KINDS[letter] for letter in arguments]
    return found


class Native:
    """Operations on a `Storage` in host memory, by the compiled kernels.

    Marks lie in a scratch buffer of this object: one scan at a time, and no two threads at once.

    Args:
        threads: Threads that mark a scan; all cores unless given.
        library: One of `libraries()`, the fastest unless given.
    """

    def __init__(self, threads: int | None = None, library: ctypes.CDLL | None = None):
        self.lib = library or libraries()[-1]
        self.threads = threads or len(os.sched_getaffinity(0))
        self.scratch = self.lib.vox_scratch(self.threads)

    def __del__(self) -> None:
        if getattr(self, "scratch", None):
            self.lib.vox_scratch_delete(self.scratch)

    @property
    def nbytes(self) -> int:
        """Bytes of the scratch buffer, most of which the system never has to provide."""
        return self.lib.vox_scratch_bytes(self.scratch)

    def mark(self, scan: Scan) -> Inserted:
        """Find the voxels that a scan hits and passes through."""
        points = scan.points.contiguous()
        origin = (ctypes.c_double * 3)(*scan.origin)
        counts = (ctypes.c_int64 * 4)()
        touched = self.lib.vox_mark(
            self.scratch,
            points.data_ptr(),
            len(points),
            origin,
            scan.voxel_size,
            scan.max_range,
            scan.mode.value,
            counts,
        )
        if touched < 0:
            raise MemoryError(f"marking a scan of {len(points)} points")
        return Inserted(*counts)

    def missing(self, storage: Storage, world: int) -> int:
        """How many of the blocks that the scan touched the map lacks."""
        return self.lib.vox_missing(self.scratch, ctypes.byref(_view(storage)), world)

    def apply(self, storage: Storage, world: int, by: Evidence) -> None:
        """Update the map, which has room for every block."""
        view = _view(storage)
        evidence = EvidenceView(*by)
        self.lib.vox_apply(self.scratch, ctypes.byref(view), world, ctypes.byref(evidence))
        storage.count = view.count

    def touched(self) -> Int[Tensor, " k"]:
        """Morton codes of the blocks that the scan touched."""
        codes = torch.empty(self.lib.vox_touched(self.scratch, None), dtype=torch.int64)
        self.lib.vox_touched(self.scratch, codes.data_ptr())
        return codes

    def discard(self) -> None:
        """Forget the scan."""
        self.lib.vox_discard(self.scratch)

    def rehash(self, storage: Storage) -> None:
        """Fill the table anew; it is empty."""
        self.lib.vox_rehash(ctypes.byref(_view(storage)))

    def unproject(
        self, depth: Float[Tensor, "H W"], camera: Camera, pose: Float[Tensor, "4 4"]
    ) -> Float[Tensor, "n 3"]:
        """Points of a depth image [m], NaN where the depth is no number above 0."""
        depth, pose = depth.contiguous(), pose.contiguous()
        height, width = depth.shape
        points = torch.empty(height * width, 3)
        numbers = (ctypes.c_double * 4)(camera.fx, camera.fy, camera.cx, camera.cy)
        out = points.data_ptr()
        self.lib.vox_unproject(
            depth.data_ptr(), width, height, numbers, pose.data_ptr(), self.threads, out
        )
        return points

    def log_odds(
        self, storage: Storage, points: Float[Tensor, "n 3"], worlds: Worlds, voxel_size: float
    ) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]; `UNKNOWN` off the grid."""
        out = torch.empty(len(points), dtype=torch.int8)
        self._each(
            "vox_log_odds", storage, points, worlds, voxel_size, self.threads, out.data_ptr()
        )
        return out

    def cast(
        self,
        storage: Storage,
        bundle: Bundle,
        worlds: Worlds,
        voxel_size: float,
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Find the first voxel that stops each ray.

        Returns:
            The distance [m] at which it is entered, infinite where there is none; and its code,
            −1 where there is none and −2 where the ray is none.
        """
        begin, along = bundle.origins.contiguous(), bundle.directions.contiguous()
        distance = torch.empty(len(begin), dtype=torch.float64)
        code = torch.empty(len(begin), dtype=torch.int64)
        self.lib.vox_cast(
            ctypes.byref(_view(storage)),
            begin.data_ptr(),
            along.data_ptr(),
            *_worlds(worlds),
            len(begin),
            voxel_size,
            bundle.max_range,
            bundle.stop_at_unknown,
            self.threads,
            distance.data_ptr(),
            code.data_ptr(),
        )
        return distance, code

    def nearest(
        self,
        storage: Storage,
        points: Float[Tensor, "n 3"],
        worlds: Worlds,
        voxel_size: float,
        k: int,
        limit: float,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        """Find the k nearest occupied voxels within `limit` voxels, nearest first, ties by code.

        Returns:
            Distances [m], infinite, and coordinates, the grid's least, where there are fewer.
        """
        distance = torch.empty(len(points), k, dtype=torch.float64)
        voxel = torch.empty(len(points), k, 3, dtype=torch.int64)
        self._each(
            "vox_nearest", storage, points, worlds, voxel_size, k, limit, self.threads,
            distance.data_ptr(), voxel.data_ptr(),
        )  # fmt: skip
        return distance, voxel

    def count_within(
        self,
        storage: Storage,
        points: Float[Tensor, "n 3"],
        worlds: Worlds,
        voxel_size: float,
        radius: float,
    ) -> Int[Tensor, " n"]:
        """Count the occupied voxels within `radius` voxels."""
        out = torch.empty(len(points), dtype=torch.int64)
        self._each(
            "vox_count_within", storage, points, worlds, voxel_size, radius, self.threads,
            out.data_ptr(),
        )  # fmt: skip
        return out

    def list_within(
        self,
        storage: Storage,
        points: Float[Tensor, "n 3"],
        worlds: Worlds,
        voxel_size: float,
        radius: float,
    ) -> tuple[Int[Tensor, " n_plus_1"], Float[Tensor, " m"], Int[Tensor, "m 3"]]:
        """List the occupied voxels within `radius` voxels, in Morton order.

        Returns:
            Where the list of each point begins, and the last one ends; distances [m];
            coordinates.
        """
        count = self.count_within(storage, points, worlds, voxel_size, radius)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        distance = torch.empty(int(offset[-1]), dtype=torch.float64)
        voxel = torch.empty(len(distance), 3, dtype=torch.int64)
        self._each(
            "vox_list_within", storage, points, worlds, voxel_size, radius, self.threads,
            offset.data_ptr(), distance.data_ptr(), voxel.data_ptr(),
        )  # fmt: skip
        return offset, distance, voxel

    def _each(
        self,
        name: str,
        storage: Storage,
        points: Float[Tensor, "n 3"],
        worlds: Worlds,
        voxel_size: float,
        *rest: float | int,
    ) -> None:
        points = points.contiguous()
        view = ctypes.byref(_view(storage))
        getattr(self.lib, name)(
            view, points.data_ptr(), *_worlds(worlds), len(points), voxel_size, *rest
        )


def _worlds(worlds: Worlds) -> tuple[int | None, int]:
    """A pointer to one world per item, or none and one for all.

    The tensor must outlive the call: a contiguous copy made here would not.
    """
    assert isinstance(worlds, int) or worlds.is_contiguous()
    return (None, worlds) if isinstance(worlds, int) else (worlds.data_ptr(), 0)


def _view(storage: Storage) -> View:
    return View(
        storage.table.data_ptr(),
        len(storage.table),
        storage.keys.data_ptr(),
        storage.log_odds.data_ptr(),
        storage.known.data_ptr(),
        storage.occupied.data_ptr(),
        storage.count,
        storage.capacity,
    )
