"""The compiled kernels for CUDA devices: insertions are put on a stream, and nobody need wait."""

import ctypes
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.answers import MarksError, RefusedError
from engram.kernels.checks import on_device
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
from engram.kernels.errors import DeviceError
from engram.kernels.grid import BIAS, KEY_BITS, WORLDS, Evidence, morton
from engram.kernels.scan import Asked, Inserted, Scan
from engram.kernels.storage import EMPTY, Storage

SIGNATURES = QUERIES | {
    "vox_device_mark": ("n", "ppppnn"),
    "vox_device_apply": ("n", "ppppn"),
    "vox_device_discard": ("n", "pn"),
    "vox_device_error": ("n", ""),
}
STATE = (
    "hits",
    "beyond_range",
    "not_finite",
    "off_grid",
    "missing",
    "touched",
    "ends",
    "overflow",
    "before",
    "refused",
)
"""Numbers that stay on the device until somebody asks. Twin of `State` in source/marks.h."""
MASK_WORDS = 24
"""Words of a block's marks: where rays end that are still to come, hits, free."""
FIRST_PLACES = 1 << 14
MOST_PLACES = 1 << 21
"""Places for marks, at most; a scan may touch half as many blocks."""
EMULATING_THREADS = 2


class MarksView(ctypes.Structure):
    """Twin of `Marks` in source/marks.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "masks", "list", "slots", "state")),
        ("places", ctypes.c_int64),
    )


class ScansView(ctypes.Structure):
    """Twin of `Scans` in source/marks.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("points", "origins", "worlds")),
        *((name, ctypes.c_int64) for name in ("batch", "count")),
        *((name, ctypes.c_double) for name in ("voxel_size", "max_range")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the library for CUDA devices; none where none is built. It needs no driver to load."""
    path = FOLDER / "libvoxels_cuda.so"
    return load_device(path) if path.exists() else None


def load_device(path: Path) -> ctypes.CDLL:
    """Load a library of the device's kernels, compiled for CUDA or to be emulated by the host."""
    return load(path, SIGNATURES)


def make_device(device: torch.device, path: str) -> "Device":
    """Make the kernels for a device from a library's path."""
    return Device(device, load_device(Path(path)))


class OnDevice:
    """A library whose functions run on one device, whichever is current, and raise what CUDA says.

    Args:
        library: What `library` gave.
        device: A CUDA device.
    """

    def __init__(self, library: ctypes.CDLL, device: torch.device):
        self.library, self.device = library, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.library, name)

        def call(*arguments: object) -> Any:
            with torch.cuda.device(self.device):
                result = function(*arguments)
                if error := self.library.vox_device_error():
                    raise DeviceError(name, error)
                return result

        return call


class Device(Compiled):
    """Operations on arrays of a CUDA device, on torch's current stream.

    Marks of a scan, of all its worlds at once, lie in a hash on the device.

    Args:
        device: Which device; the host's, with a library that emulates one.
        library: What `library` or `load_device` gave.
    """

    def __init__(self, device: torch.device, library: ctypes.CDLL):
        super().__init__(library, room=True)
        self.device = device
        self.path = library._name
        if device.type == "cuda":
            self.lib = OnDevice(library, device)
        self.state = torch.zeros(len(STATE), dtype=torch.int64, device=device)
        self.refused = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.said = 0  # how many refusals were raised
        self.worlds = self.state[:0]  # of what is marked
        self._reserve(FIRST_PLACES)

    def __reduce__(self) -> tuple[Callable[..., "Device"], tuple[torch.device, str]]:
        return make_device, (self.device, self.path)

    def by_world(self, storage: Storage) -> tuple[Tensor, Tensor] | None:
        # Of all slots, those in use or not: how many are in use, only the device knows.
        slot = torch.arange(storage.capacity, device=self.device)
        worlds = torch.where(slot < storage.counter, storage.keys >> KEY_BITS, WORLDS)
        return sorted_by_world(worlds)

    @property
    def lane(self) -> int:
        if self.device.type != "cuda":
            return EMULATING_THREADS
        return torch.cuda.current_stream(self.device).cuda_stream

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.keys, self.masks, self.list, self.slots))

    def reserve(self, blocks: int) -> None:
        """Make room for the marks of scans that touch that many blocks, or as many as there may."""
        while len(self.keys) < min(2 * (blocks + 1), MOST_PLACES):
            self._reserve(2 * len(self.keys))

    def parts(self, scan: Scan) -> Iterable[Scan]:
        return [scan] if len(scan.worlds) else []

    def mark(self, storage: Storage, scan: Scan) -> Inserted:
        """Find the voxels that a scan hits and passes through, and count the blocks it brings.

        Waits for the device: the map may have to grow.
        """
        while True:
            self._mark(storage, scan)
            seen = dict(zip(STATE, self.state.tolist(), strict=True))
            if not seen["overflow"]:
                break
            if len(self.keys) >= MOST_PLACES:
                raise MarksError(len(scan.worlds))
            self.discard()
            self._reserve(2 * len(self.keys))
        hits, beyond_range, not_finite, off_grid, missing = list(seen.values())[:5]
        return Inserted(hits, beyond_range, not_finite, off_grid, new_blocks=missing)

    def apply(self, storage: Storage, by: Evidence) -> None:
        # Blocks may have been evicted since they were counted.
        self.state[STATE.index("before")] = storage.counter[0]
        self._apply(storage, by)

    def _apply(self, storage: Storage, by: Evidence) -> None:
        view, evidence = view_of(storage), EvidenceView(*by)
        self._launch(
            "vox_device_apply",
            ctypes.byref(self._marks()),
            ctypes.byref(view),
            self.worlds.data_ptr(),
            ctypes.byref(evidence),
        )

    def enqueue(self, storage: Storage, scan: Scan, by: Evidence) -> Inserted:
        """Insert a scan without waiting for the device.

        Where the map, or the marks, have no room for all of the scan, nothing of it is inserted,
        and a later call of `raise_refused` says so.

        Returns:
            Numbers that are on the device, `[]`.
        """
        self._mark(storage, scan)
        counts = self.state.clone()
        self._apply(storage, by)
        self.refused.copy_(self.state[-1:], non_blocking=True)
        told = [counts[i] for i in range(4)]
        return Inserted(*told, new_blocks=counts[STATE.index("missing")])

    def raise_refused(self, cap: int) -> None:
        """Raise if the device is known to have refused scans; once for each. Does not wait.

        Raises:
            RefusedError: If it has.
        """
        # Copies of the number may still be on their way: it only grows, and is never reset.
        refused = int(self.refused)
        if refused > self.said:
            fresh, self.said = refused - self.said, refused
            raise RefusedError(fresh, cap)

    def touched(self) -> Int[Tensor, " k"]:
        places = self.list[: int(self.state[STATE.index("touched")])]
        places = places[self.masks[places, 8:].any(1)]
        keys = self.keys[places]
        return Storage.key(self.worlds[keys >> KEY_BITS], keys & ((1 << KEY_BITS) - 1))

    def discard(self) -> None:
        self._launch("vox_device_discard", ctypes.byref(self._marks()))

    def list_within(
        self, storage: Storage, asked: Asked, radius: float
    ) -> tuple[Int[Tensor, " n_plus_1"], Float[Tensor, " m"], Int[Tensor, "m 3"]]:
        offset, distance, voxel = super().list_within(storage, asked, radius)
        # Threads list what they find as they find it: put it in Morton order.
        order = morton(voxel.long() + BIAS).argsort()
        of = torch.searchsorted(offset, torch.arange(len(voxel), device=self.device), right=True)
        order = order[of[order].argsort(stable=True)]
        return offset, distance[order], voxel[order]

    def _mark(self, storage: Storage, scan: Scan) -> None:
        self.worlds = on_device(scan.worlds, self.device)
        points, origins = scan.points.contiguous(), scan.origins.contiguous()
        scans = ScansView(
            points.data_ptr(),
            origins.data_ptr(),
            self.worlds.data_ptr(),
            *points.shape[:2],
            scan.voxel_size,
            scan.max_range,
        )
        sights = None if scan.images is None else sight_of(scan.images)
        self._launch(
            "vox_device_mark",
            ctypes.byref(self._marks()),
            ctypes.byref(view_of(storage)),
            ctypes.byref(scans),
            None if sights is None else ctypes.byref(sights),
            scan.mode.value,
        )

    def _launch(self, name: str, *arguments: object) -> None:
        getattr(self.lib, name)(*arguments, self.lane)

    def _marks(self) -> MarksView:
        parts = (self.keys, self.masks, self.list, self.slots, self.state)
        return MarksView(*(part.data_ptr() for part in parts), len(self.keys))

    def _reserve(self, places: int) -> None:
        """Make room for marks; there are none."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)

        self.keys, self.masks = zeros(places) + EMPTY, zeros(places, MASK_WORDS)
        self.list, self.slots = zeros(places), zeros(places)
