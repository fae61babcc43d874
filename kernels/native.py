"""The compiled kernels for the CPU."""

import ctypes
import functools
import os
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from engram.kernels.compiled import (
    FOLDER,
    QUERIES,
    Compiled,
    EvidenceView,
    load,
    sight_of,
    sorted_by_world,
    view_of,
)
from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import KEY_BITS, Evidence
from engram.kernels.kernel import each_world
from engram.kernels.scan import Inserted, Scan
from engram.kernels.storage import Storage

LEVELS = ("v2", "v3", "v4")
"""Instruction sets that there are libraries for, as x86-64 names them; elsewhere v2 is any."""
SIGNATURES = QUERIES | {
    "vox_scratch": ("p", "n"),
    "vox_scratch_delete": ("", "p"),
    "vox_scratch_bytes": ("n", "p"),
    "vox_mark": ("n", "ppnpddnpp"),
    "vox_touched": ("n", "pp"),
    "vox_missing": ("n", "ppn"),
    "vox_apply": ("", "ppnp"),
    "vox_discard": ("", "p"),
}


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
    return [load(path, SIGNATURES) for path in paths if path.exists()]


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Native(Compiled):
    """Operations on arrays in host memory.

    Marks lie in a scratch buffer of this object: one scan at a time, and no two threads at once.

    Args:
        threads: Threads that mark a scan; all cores unless given.
        library: One of `libraries()`, the fastest unless given.
    """

    def __init__(self, threads: int | None = None, library: ctypes.CDLL | None = None):
        super().__init__(library or libraries()[-1], room=False)
        if threads is not None and threads < 1:
            raise InvalidValueError("threads", threads, "1 or more")
        self.threads = threads or cores()
        self.scratch = self.lib.vox_scratch(self.threads)
        self.world = 0  # of what is marked

    def __reduce__(self) -> tuple[type["Native"], tuple[int]]:
        # A copy, or a process of its own, gets scratch memory of its own.
        return Native, (self.threads,)

    def __del__(self) -> None:
        if getattr(self, "scratch", None):
            self.lib.vox_scratch_delete(self.scratch)

    @property
    def lane(self) -> int:
        return self.threads

    def by_world(self, storage: Storage) -> tuple[Tensor, Tensor] | None:
        worlds = storage.keys[: storage.count] >> KEY_BITS
        if not len(worlds) or bool((worlds == worlds[0]).all()):
            return None
        return sorted_by_world(worlds)

    @property
    def nbytes(self) -> int:
        return self.lib.vox_scratch_bytes(self.scratch)

    def parts(self, scan: Scan) -> Iterable[Scan]:
        return each_world(scan)

    def mark(self, storage: Storage, scan: Scan) -> Inserted:
        points, origin = scan.points[0].contiguous(), scan.origins.contiguous()
        counts = (ctypes.c_int64 * 4)()
        sight = None if scan.images is None else sight_of(scan.images)
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
        missing = self.lib.vox_missing(self.scratch, ctypes.byref(view_of(storage)), self.world)
        return Inserted(*counts, new_blocks=missing)

    def apply(self, storage: Storage, by: Evidence) -> None:
        view, evidence = view_of(storage), EvidenceView(*by)
        self.lib.vox_apply(self.scratch, ctypes.byref(view), self.world, ctypes.byref(evidence))

    def touched(self) -> Int[Tensor, " k"]:
        codes = torch.empty(self.lib.vox_touched(self.scratch, None), dtype=torch.int64)
        self.lib.vox_touched(self.scratch, codes.data_ptr())
        return Storage.key(self.world, codes)

    def discard(self) -> None:
        self.lib.vox_discard(self.scratch)
