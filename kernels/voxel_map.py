"""The voxel map: occupancy, rays and blocks of many worlds in one structure."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.answers import FullError, MarksError, WhenFull
from engram.kernels.checks import (
    Vector,
    checked_images,
    checked_pose,
    checked_scan,
    checked_vector,
    checked_voxels,
    checked_world,
    on_device,
    world_numbers,
)
from engram.kernels.choice import choose_kernel
from engram.kernels.device import Device
from engram.kernels.errors import InvalidValueError
from engram.kernels.eviction import block_distances, without_farthest
from engram.kernels.files.maps import fill, read_map, write_map
from engram.kernels.grid import KEY_BITS, Evidence
from engram.kernels.kernel import Kernel, each_world
from engram.kernels.merging import seen_from
from engram.kernels.occupancy import Occupancy
from engram.kernels.queries import VoxelQueries
from engram.kernels.scan import Camera, Insert, Inserted, Scan
from engram.kernels.storage import LEAST_CAPACITY, UNKNOWN, Storage

DOUBLED = 1024
"""Capacity [blocks] below which a map doubles when it grows; above, it grows by a quarter."""


EVICTED_AT_ONCE = 32
"""An eviction drops at least this part of what the cap allows."""


class VoxelMap(VoxelQueries):
    """Log-odds of occupancy in voxels, after OctoMap (Hornung et al. 2013).

    Voxels are stored in blocks of 8 × 8 × 8, found by a hash of their Morton code. Coordinates
    reach 2¹⁸ voxels from the origin in every direction (13 km at 5 cm). The same scans give the
    same map bit by bit, whatever the number of threads and with or without the compiled kernels.

    Deviations from OctoMap: log-odds are whole steps in a byte (see `Occupancy.evidence`), a tie
    between two axes along a ray may go the other way, and the range is measured in float64.

    Args:
        voxel_size: Edge of a voxel [m].
        device: Where the map lives.
        occupancy: What hits and misses mean.
        max_bytes: Cap of the map's arrays, scratch memory apart; none unless given.
        when_full: What happens at the cap.
        kernel: What computes; the compiled kernels where there are any, unless given.
    """

    def __init__(
        self,
        voxel_size: float,
        *,
        device: torch.device | str = "cpu",
        occupancy: Occupancy | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull = WhenFull.RAISE,
        kernel: Kernel | None = None,
    ):
        if not (voxel_size > 0 and math.isfinite(voxel_size)):
            raise InvalidValueError("voxel_size", voxel_size, "finite numbers above 0 [m]")
        least = Storage.bytes_for(LEAST_CAPACITY)
        if max_bytes is not None and max_bytes < least:
            raise InvalidValueError("max_bytes", max_bytes, f"{least} or more")
        self.voxel_size = float(voxel_size)
        self.evidence = (occupancy or Occupancy()).evidence()
        self.max_bytes, self.when_full = max_bytes, when_full
        self.storage = Storage(device)
        self.kernel = kernel or choose_kernel(self.storage.device)
        self.later: Device | None = None
        if when_full is WhenFull.RAISE_LATER and isinstance(self.kernel, Device):
            if max_bytes is None:
                raise InvalidValueError("max_bytes", max_bytes, f"a number, in {when_full}")
            self.storage.grow(Storage.capacity_within(max_bytes))
            self.kernel.reserve(self.storage.capacity)
            self.later = self.kernel

    @property
    def nbytes(self) -> int:
        """Bytes of the map's arrays; `kernel.nbytes` adds what marking a scan takes."""
        return self.storage.nbytes

    def insert_points(
        self,
        points: Float[Tensor, "*B n 3"],
        origin: Vector | Float[Tensor, "B 3"],
        *,
        mode: Insert = Insert.RAY_PER_POINT,
        max_range: float = math.inf,
        world: int | Sequence[int] | Int[Tensor, " B"] | None = None,
    ) -> Inserted:
        """Add a scan, or one for each of B worlds.

        A voxel is hit where a point lies in it and else free where a ray passes, once per scan,
        however many points and rays there are.

        Args:
            points: Where the sensor saw something [m], float32; NaN and infinite ones are left out.
            origin: Where the sensor was [m].
            mode: What the scan says about the space before its points.
            max_range: Distance [m] at which rays end; points beyond are no hits.
            world: Which of the map's worlds was seen; of several, 0 … B − 1 unless given.

        Returns:
            Sums over the worlds.

        Raises:
            FullError: If the map would exceed its cap; the world in question is then as before,
                as are those after it.
        """
        scan = checked_scan(
            on_device(points.detach().float(), self.device),
            origin,
            world,
            voxel_size=self.voxel_size,
            mode=mode,
            max_range=max_range,
            wait=self.later is None,
        )
        return self._insert(scan)

    def insert_depth(
        self,
        depth: Float[Tensor, "*B H W"],
        camera: Camera,
        pose_camera_to_world: Float[Tensor, "*B 4 4"],
        *,
        mode: Insert = Insert.RAY_PER_POINT,
        max_range: float = math.inf,
        world: int | Sequence[int] | Int[Tensor, " B"] | None = None,
    ) -> Inserted:
        """Add a depth image, or one for each of B worlds: its pixels' points, seen from the camera.

        Args:
            depth: Along the camera's z axis [m]; NaN, infinity and what is not above 0 are left
                out and counted as not finite.
            camera: Its intrinsics.
            pose_camera_to_world: Rigid; the camera looks along its z axis, y down.
            mode: As for `insert_points`, or projective.
            max_range: Likewise, from the camera's centre [m].
            world: Likewise.

        Raises:
            FullError: Likewise.
        """
        wait = self.later is None
        images = checked_images(depth, camera, pose_camera_to_world, self.device, wait=wait)
        points, origins = self.kernel.unproject(images), images.poses_camera_to_world[:, :3, 3]
        single = depth.ndim == 2
        scan = checked_scan(
            points[0] if single else points,
            origins[0] if single else origins,
            world,
            voxel_size=self.voxel_size,
            mode=mode,
            max_range=max_range,
            images=images,
            wait=wait,
        )
        return self._insert(scan)

    def wait(self) -> None:
        """Wait for the device, and raise what insertions put off.

        Raises:
            RefusedError: If scans were left out (`WhenFull.RAISE_LATER`).
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.later is not None:
            self.later.raise_refused(self.max_bytes or 0)

    def merge(
        self, other: "VoxelMap", pose_other_to_map: Float[Tensor, "4 4"] | None = None
    ) -> int:
        """Add the evidence of another map, world by world.

        A voxel's log-odds become clamp(own + other's), those of the other map being read at the
        voxel's centre: exact where the two grids coincide, else the nearest voxel.

        Args:
            other: Of the same voxel size and evidence; it stays as it is.
            pose_other_to_map: Rigid; the identity unless given.

        Returns:
            How many blocks were new.

        Raises:
            FullError: If the map would exceed its cap; it is then as before.
        """
        for name in ("voxel_size", "evidence"):
            if getattr(other, name) != getattr(self, name):
                raise InvalidValueError(name, getattr(other, name), str(getattr(self, name)))
        pose = torch.eye(4) if pose_other_to_map is None else pose_other_to_map
        pose = checked_pose("pose_other_to_map", pose).to(other.device)
        parts = list(seen_from(other, pose, self.device))
        storage = self.storage
        missing = [keys[storage.find(keys) < 0] for keys, _ in parts]
        count = sum(map(len, missing))
        self._make_room(count)
        for keys in missing:
            storage.append(keys)
        self.kernel.rehash(storage)
        for keys, value in parts:
            slots = storage.find(keys)
            own = storage.log_odds[slots]
            first, second = (torch.where(x == UNKNOWN, 0, x.short()) for x in (own, value))
            total = (first + second).clamp(self.evidence.low, self.evidence.high)
            nothing = (own == UNKNOWN) & (value == UNKNOWN)
            storage.log_odds[slots] = torch.where(nothing, UNKNOWN, total).to(torch.int8)
            storage.summarise(slots, self.evidence.threshold)
        return count

    def clear(self, worlds: Int[Tensor, " w"] | Sequence[int] | None = None) -> None:
        """Forget worlds, or all of them."""
        held = self.storage.keys[: self.storage.count] >> KEY_BITS
        if worlds is None:
            keep = torch.zeros_like(held, dtype=torch.bool)
        else:
            for world in (numbers := world_numbers(worlds)).tolist():
                checked_world(world)
            keep = ~torch.isin(held, numbers.to(self.device))
        self._keep(keep)

    def clear_outside(self, centre: Vector, radius: float, *, world: int = 0) -> int:
        """Forget the blocks that lie outside a ball altogether.

        Args:
            centre: Of the ball [m].
            radius: Of the ball [m].
            world: Which of the map's worlds; others stay.

        Returns:
            The number of blocks forgotten.
        """
        checked_world(world)
        checked_voxels("radius", radius, self.voxel_size)
        before = self.storage.count
        at = torch.tensor(checked_vector("centre", centre), dtype=torch.float64)
        near = block_distances(self.storage, self.voxel_size, at.to(self.device)) <= radius
        self._keep(near | (self.storage.keys[:before] >> KEY_BITS != world))
        return before - self.storage.count

    def save(self, path: str | Path) -> None:
        """Write the map to a file; the same map gives the same bytes."""
        write_map(Path(path), self.storage, self.voxel_size, self.evidence)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        max_bytes: int | None = None,
        when_full: WhenFull = WhenFull.RAISE,
        kernel: Kernel | None = None,
    ) -> "VoxelMap":
        """Read a map that `save` wrote.

        Raises:
            DataError: If the file is no map, damaged, or of another version.
            FullError: If the map is larger than `max_bytes`.
        """
        found = read_map(Path(path))
        made = cls(
            float(found["voxel_size"]),
            device=device,
            max_bytes=max_bytes,
            when_full=when_full,
            kernel=kernel,
        )
        needed = Storage.bytes_for(max(LEAST_CAPACITY, len(found["keys"])))
        if max_bytes is not None and needed > max_bytes:
            raise FullError(needed, max_bytes)
        made.evidence = Evidence(*map(int, found["evidence"]))
        fill(made.storage, found, made.evidence.threshold)
        made.kernel.rehash(made.storage)
        return made

    def stats(self) -> dict[str, int]:
        """Count blocks, worlds, voxels by state, and bytes."""
        value = self.storage.log_odds[: self.storage.count]
        known = int((value != UNKNOWN).sum())
        occupied = int((value >= self.evidence.threshold).sum())
        worlds = (self.storage.keys[: self.storage.count] >> KEY_BITS).unique()
        return {
            "blocks": self.storage.count,
            "worlds": len(worlds),
            "occupied": occupied,
            "free": known - occupied,
            "bytes": self.nbytes,
        }

    def _insert(self, scan: Scan) -> Inserted:
        if self.later is not None:
            told = self.later.enqueue(self.storage, scan, self.evidence)
            self.later.raise_refused(self.max_bytes or 0)
            return told
        parts, total = list(self.kernel.parts(scan)), Inserted(0, 0, 0, 0)
        while parts:
            part = parts.pop(0)
            try:
                told = self.kernel.mark(self.storage, part)
                if len(part.worlds) > 1 and not self._fits(told):
                    raise MarksError(len(part.worlds))
                evicted = self._make_room(int(told.new_blocks), part)
                self.kernel.apply(self.storage, self.evidence)
            except BaseException as error:  # whatever it is, nothing must stay marked
                self.kernel.discard()
                if not isinstance(error, MarksError) or len(part.worlds) == 1:
                    raise
                parts = [*each_world(part), *parts]  # what does not fit at once may one by one
                continue
            told = told._replace(evicted_blocks=evicted)
            total = Inserted(*(a + b for a, b in zip(total, told, strict=True)))
        return total

    def _fits(self, told: Inserted) -> bool:
        needed = self.storage.count + int(told.new_blocks)
        if self.max_bytes is None or needed <= self.storage.capacity:
            return True
        return needed <= Storage.capacity_within(self.max_bytes)

    def _make_room(self, missing: int, scan: Scan | None = None) -> int:
        """Grow, evict what is far from a scan's sensors, or raise.

        Returns:
            How many blocks were evicted.
        """
        storage = self.storage
        needed = storage.count + missing
        if needed <= storage.capacity:
            return 0
        limit = needed if self.max_bytes is None else Storage.capacity_within(self.max_bytes)
        keep, evicted = None, 0
        if needed > limit:
            if self.when_full is WhenFull.EVICT and scan is not None:
                touched = self.kernel.touched()
                # A few more than must go: each time, all of the table is filled anew.
                for count in (max(needed - limit, limit // EVICTED_AT_ONCE), needed - limit):
                    keep = without_farthest(storage, scan, count=count, needed=touched)
                    if keep is not None:
                        break
            if keep is None:
                raise FullError(Storage.bytes_for(needed), self.max_bytes or 0)
            evicted = len(keep) - int(keep.sum())
            storage.keep(keep.nonzero()[:, 0])
            needed -= evicted
        small = storage.capacity < DOUBLED
        capacity = max(needed, storage.capacity * 2 if small else storage.capacity * 5 // 4)
        if self.max_bytes is not None:
            capacity = min(capacity, limit)
        try:
            if capacity > storage.capacity:  # a map at its cap keeps its arrays
                storage.grow(capacity)
        finally:  # where memory ran out, blocks may have been evicted all the same
            self.kernel.rehash(storage)
        return evicted

    def _keep(self, keep: Tensor) -> None:
        (slots,) = keep.nonzero(as_tuple=True)
        self.storage.keep(slots)
        self.kernel.rehash(self.storage)
