"""The compiled kernels for the CPU: a C ABI, reached by ctypes."""

import ctypes
import functools
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import Evidence
from engram.kernels.kernel import Kernel, each_world
from engram.kernels.scan import Bundle, Images, Inserted, Scan, Worlds
from engram.kernels.storage import EMPTY, Storage

FOLDER = Path(__file__).parent
LEVELS = ("v2", "v3", "v4")
"""Instruction sets that there are libraries for, as x86-64 names them; elsewhere v2 is any."""
KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
SIGNATURES = {
    "vox_scratch": ("p", "n"),
    "vox_scratch_delete": ("", "p"),
    "vox_scratch_bytes": ("n", "p"),
    "vox_mark": ("n", "ppnpddnpp"),
    "vox_touched": ("n", "pp"),
    "vox_missing": ("n", "ppn"),
    "vox_apply": ("", "ppnp"),
    "vox_discard": ("", "p"),
    "vox_rehash": ("", "p"),
    "vox_unproject": ("", "pnp"),
    "vox_locate": ("", "pppnnnp"),
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
        ("count", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
    )


class EvidenceView(ctypes.Structure):
    """Twin of `Evidence` in source/map.h."""

    _fields_ = tuple((name, ctypes.c_int32) for name in Evidence._fields)


class Sight(ctypes.Structure):
    """A depth image as the library sees it. Twin of `Sight` in source/sight.h."""

    _fields_ = (
        ("depth", ctypes.c_void_p),
        ("pose", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("height", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("fx", "fy", "cx", "cy")),
    )


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


class Native(Kernel):
    """The compiled kernels, on arrays in host memory.

    Marks lie in a scratch buffer of this object: one scan at a time, and no two threads at once.

    Args:
        threads: Threads that mark a scan; all cores unless given.
        library: One of `libraries()`, the fastest unless given.
    """

    def __init__(self, threads: int | None = None, library: ctypes.CDLL | None = None):
        self.lib = library or libraries()[-1]
        self.threads = threads or len(os.sched_getaffinity(0))
        self.scratch = self.lib.vox_scratch(self.threads)
        self.world = 0  # of what is marked

    def __del__(self) -> None:
        if getattr(self, "scratch", None):
            self.lib.vox_scratch_delete(self.scratch)

    @property
    def nbytes(self) -> int:
        return self.lib.vox_scratch_bytes(self.scratch)

    def parts(self, scan: Scan) -> Iterable[Scan]:
        return each_world(scan)

    def mark(self, scan: Scan) -> Inserted:
        points, origin = scan.points[0].contiguous(), scan.origins.contiguous()
        counts = (ctypes.c_int64 * 4)()
        sight = None if scan.images is None else _sight(scan.images)
        self.world = int(scan.worlds)
        touched = self.lib.vox_mark(
            self.scratch,
            points.data_ptr(),
            len(points),
            origin.data_ptr(),
            scan.voxel_size,
            scan.max_range,
            scan.mode.value,
            None if sight is None else ctypes.byref(sight),
            counts,
        )
        if touched < 0:
            raise MemoryError(f"marking a scan of {len(points)} points")
        return Inserted(*counts)

    def missing(self, storage: Storage) -> int:
        return self.lib.vox_missing(self.scratch, ctypes.byref(view_of(storage)), self.world)

    def apply(self, storage: Storage, by: Evidence) -> None:
        view, evidence = view_of(storage), EvidenceView(*by)
        self.lib.vox_apply(self.scratch, ctypes.byref(view), self.world, ctypes.byref(evidence))

    def touched(self) -> Int[Tensor, " k"]:
        codes = torch.empty(self.lib.vox_touched(self.scratch, None), dtype=torch.int64)
        self.lib.vox_touched(self.scratch, codes.data_ptr())
        return Storage.key(self.world, codes)

    def discard(self) -> None:
        self.lib.vox_discard(self.scratch)

    def rehash(self, storage: Storage) -> None:
        storage.table.fill_(EMPTY)
        self.lib.vox_rehash(ctypes.byref(view_of(storage)))

    def unproject(self, images: Images) -> Float[Tensor, "B n 3"]:
        count, height, width = images.depth.shape
        points = torch.empty(count, height * width, 3)
        for b, one in enumerate(images.depth):
            sight = _sight(
                Images(one[None], images.camera, images.poses_camera_to_world[b : b + 1])
            )
            self.lib.vox_unproject(ctypes.byref(sight), self.threads, points[b].data_ptr())
        return points

    def locate(
        self, storage: Storage, codes: Int[Tensor, " n"], worlds: Worlds
    ) -> Int[Tensor, " n"]:
        codes, out = codes.contiguous(), torch.empty(len(codes), dtype=torch.int64)
        self.lib.vox_locate(
            ctypes.byref(view_of(storage)),
            codes.data_ptr(),
            *worlds_of(worlds),
            len(codes),
            self.threads,
            out.data_ptr(),
        )
        return out

    def log_odds(
        self, storage: Storage, points: Float[Tensor, "n 3"], worlds: Worlds, voxel_size: float
    ) -> Int[Tensor, " n"]:
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
        begin, along = bundle.origins.contiguous(), bundle.directions.contiguous()
        distance = torch.empty(len(begin), dtype=torch.float64)
        code = torch.empty(len(begin), dtype=torch.int64)
        self.lib.vox_cast(
            ctypes.byref(view_of(storage)),
            begin.data_ptr(),
            along.data_ptr(),
            *worlds_of(worlds),
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
        distance = torch.empty(len(points), k)
        voxel = torch.empty(len(points), k, 3, dtype=torch.int32)
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
        count = self.count_within(storage, points, worlds, voxel_size, radius)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        distance = torch.empty(int(offset[-1]))
        voxel = torch.empty(len(distance), 3, dtype=torch.int32)
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
        view = ctypes.byref(view_of(storage))
        getattr(self.lib, name)(
            view, points.data_ptr(), *worlds_of(worlds), len(points), voxel_size, *rest
        )


def _sight(images: Images) -> Sight:
    """One depth image; its tensors must outlive the call, as those of `checked_images` do."""
    assert images.depth.is_contiguous() and images.poses_camera_to_world.is_contiguous()
    camera = images.camera
    return Sight(
        images.depth.data_ptr(),
        images.poses_camera_to_world.data_ptr(),
        camera.width,
        camera.height,
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
    )


def worlds_of(worlds: Worlds) -> tuple[int | None, int]:
    """A pointer to one world per item, or none and one for all.

    The tensor must outlive the call: a contiguous copy made here would not.
    """
    assert isinstance(worlds, int) or worlds.is_contiguous()
    return (None, worlds) if isinstance(worlds, int) else (worlds.data_ptr(), 0)


def view_of(storage: Storage) -> View:
    """A storage as the library sees it."""
    return View(
        storage.table.data_ptr(),
        len(storage.table),
        storage.keys.data_ptr(),
        storage.log_odds.data_ptr(),
        storage.known.data_ptr(),
        storage.occupied.data_ptr(),
        storage.counter.data_ptr(),
        storage.capacity,
    )
