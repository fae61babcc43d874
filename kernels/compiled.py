"""What compiled kernels share: a C ABI, reached by ctypes, on whatever device they run."""

import abc
import ctypes
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import WORLDS, Evidence
from engram.kernels.kernel import Kernel
from engram.kernels.scan import Asked, Bundle, Images, Worlds
from engram.kernels.storage import EMPTY, Storage

FOLDER = Path(__file__).parent
KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "d": ctypes.c_double}
QUERIES = {
    "vox_rehash": ("", "pn"),
    "vox_unproject": ("", "pnp"),
    "vox_locate": ("", "pppnnnp"),
    "vox_log_odds": ("", "pppnndnp"),
    "vox_nearest": ("", "pppnndndnppp"),
    "vox_count_within": ("", "pppnnddnp"),
    "vox_list_within": ("", "pppnnddnppp"),
    "vox_cast": ("", "ppppnnddnnppp"),
}
"""Kinds of result and arguments of what every library has; their meaning stands in source/."""


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
        ("by_world", ctypes.c_void_p),
        ("begin", ctypes.c_void_p),
    )


class EvidenceView(ctypes.Structure):
    """Twin of `Evidence` in source/map.h."""

    _fields_ = tuple((name, ctypes.c_int32) for name in Evidence._fields)


class Sight(ctypes.Structure):
    """Depth images as the library sees them. Twin of `Sight` in source/sight.h."""

    _fields_ = (
        ("depth", ctypes.c_void_p),
        ("pose", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("height", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("fx", "fy", "cx", "cy")),
    )


class Compiled(Kernel):
    """Queries by a library, which has the same C ABI for every device.

    Args:
        library: What `load` gave.
        room: Whether its queries need scratch memory from here.
    """

    def __init__(self, library: ctypes.CDLL, *, room: bool):
        self.lib: Any = library
        self.room = room

    @abc.abstractmethod
    def by_world(self, storage: Storage) -> tuple[Tensor, Tensor] | None:
        """Slots sorted by world, and where each world's begin; None where there is one world."""

    @property
    @abc.abstractmethod
    def lane(self) -> int:
        """Where work runs: the number of threads, or the handle of a stream."""

    def rehash(self, storage: Storage) -> None:
        storage.table.fill_(EMPTY)
        self.lib.vox_rehash(ctypes.byref(view_of(storage)), self.lane)

    def unproject(self, images: Images) -> Float[Tensor, "B n 3"]:
        count, height, width = images.depth.shape
        points = torch.empty(count, height * width, 3, device=images.depth.device)
        sight = sight_of(images)
        self.lib.vox_unproject(ctypes.byref(sight), self.lane, points.data_ptr())
        return points

    def locate(
        self, storage: Storage, codes: Int[Tensor, " n"], worlds: Worlds
    ) -> Int[Tensor, " n"]:
        codes = codes.contiguous()
        out = torch.empty_like(codes)
        self.lib.vox_locate(
            ctypes.byref(view_of(storage)),
            codes.data_ptr(),
            *worlds_of(worlds),
            len(codes),
            self.lane,
            out.data_ptr(),
        )
        return out

    def log_odds(self, storage: Storage, asked: Asked) -> Int[Tensor, " n"]:
        out = torch.empty(len(asked.points), dtype=torch.int8, device=asked.points.device)
        self._each("vox_log_odds", storage, asked, self.lane, out.data_ptr())
        return out

    def cast(
        self, storage: Storage, bundle: Bundle
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        begin, along = bundle.origins.contiguous(), bundle.directions.contiguous()
        distance = torch.empty_like(begin[:, 0])
        code = torch.empty_like(distance, dtype=torch.int64)
        room = self._room(6 * 8, begin.device)
        self.lib.vox_cast(
            ctypes.byref(view_of(storage)),
            begin.data_ptr(),
            along.data_ptr(),
            *worlds_of(bundle.worlds),
            len(begin),
            bundle.voxel_size,
            bundle.max_range,
            bundle.stop_at_unknown,
            self.lane,
            distance.data_ptr(),
            code.data_ptr(),
            room.data_ptr(),
        )
        return distance, code

    def nearest(
        self, storage: Storage, asked: Asked, k: int, limit: float
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        distance = torch.empty(len(asked.points), k, device=asked.points.device)
        voxel = torch.empty(len(asked.points), k, 3, dtype=torch.int32, device=asked.points.device)
        room = self._room(16 * len(asked.points) * k, asked.points.device)
        self._each(
            "vox_nearest", storage, asked, k, limit, self.lane,
            distance.data_ptr(), voxel.data_ptr(), room.data_ptr(),
        )  # fmt: skip
        return distance, voxel

    def count_within(self, storage: Storage, asked: Asked, radius: float) -> Int[Tensor, " n"]:
        out = torch.empty(len(asked.points), dtype=torch.int64, device=asked.points.device)
        self._each(
            "vox_count_within", storage, asked, radius, self.lane,
            out.data_ptr(),
        )  # fmt: skip
        return out

    def list_within(
        self, storage: Storage, asked: Asked, radius: float
    ) -> tuple[Int[Tensor, " n_plus_1"], Float[Tensor, " m"], Int[Tensor, "m 3"]]:
        count = self.count_within(storage, asked, radius)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        distance = torch.empty(int(offset[-1]), device=asked.points.device)
        voxel = torch.empty(len(distance), 3, dtype=torch.int32, device=asked.points.device)
        self._each(
            "vox_list_within", storage, asked, radius, self.lane,
            offset.data_ptr(), distance.data_ptr(), voxel.data_ptr(),
        )  # fmt: skip
        return offset, distance, voxel

    def _room(self, nbytes: int, device: torch.device) -> Tensor:
        return torch.empty(nbytes if self.room else 0, dtype=torch.uint8, device=device)

    def _each(
        self,
        name: str,
        storage: Storage,
        asked: Asked,
        *rest: float | int,
    ) -> None:
        if not len(asked.points):
            return
        points = asked.points.contiguous()
        view, index = view_of(storage), None
        if name != "vox_log_odds" and (index := self.by_world(storage)):
            view.by_world, view.begin = (part.data_ptr() for part in index)
        getattr(self.lib, name)(
            ctypes.byref(view),
            points.data_ptr(),
            *worlds_of(asked.worlds),
            len(points),
            asked.voxel_size,
            *rest,
        )


def load(path: Path, signatures: dict[str, tuple[str, str]]) -> ctypes.CDLL:
    """Load a library and declare its functions."""
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype = KINDS[result] if result else None
        function.argtypes = [KINDS[letter] for letter in arguments]
    return found


def sight_of(images: Images) -> Sight:
    """Depth images as the library sees them; the tensors must outlive the call."""
    assert images.depth.is_contiguous() and images.poses_camera_to_world.is_contiguous()
    camera = images.camera
    return Sight(
        images.depth.data_ptr(),
        images.poses_camera_to_world.data_ptr(),
        len(images.depth),
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


def sorted_by_world(worlds: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " w"]]:
    """Slots sorted by their worlds; and where each world's begin, and the last one's end."""
    ordered, slots = worlds.sort(stable=True)
    every = torch.arange(WORLDS + 1, device=worlds.device)
    return slots, torch.searchsorted(ordered, every)
