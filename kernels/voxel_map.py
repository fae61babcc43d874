"""The voxel map: occupancy, rays and blocks of many worlds in one structure."""

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels import native
from engram.kernels.answers import Casts, FullError, Inserted, Neighbours, WhenFull
from engram.kernels.errors import InvalidValueError
from engram.kernels.eviction import block_distances, without_farthest
from engram.kernels.grid import BIAS, CELLS, KEY_BITS, WORLDS, Evidence, unmorton
from engram.kernels.map_file import fill, read_map, write_map
from engram.kernels.native import Native
from engram.kernels.occupancy import Occupancy
from engram.kernels.reference import Reference
from engram.kernels.scan import Bundle, Insert, Scan, Worlds
from engram.kernels.storage import LEAST_CAPACITY, UNKNOWN, Storage

Vector = Sequence[float] | Float[Tensor, " 3"]


class VoxelMap:
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
        kernel: Native | Reference | None = None,
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

    @property
    def device(self) -> torch.device:
        """Where the map lives."""
        return self.storage.device

    @property
    def nbytes(self) -> int:
        """Bytes of the map's arrays; `kernel.nbytes` adds what marking a scan takes."""
        return self.storage.nbytes

    def insert_points(
        self,
        points: Float[Tensor, "n 3"],
        origin: Vector,
        *,
        mode: Insert = Insert.RAY_PER_POINT,
        max_range: float = math.inf,
        world: int = 0,
    ) -> Inserted:
        """Add a scan.

        A voxel is hit where a point lies in it and else free where a ray passes, once per scan,
        however many points and rays there are.

        Args:
            points: Where the sensor saw something [m], float32; NaN and infinite ones are left out.
            origin: Where the sensor was [m].
            mode: What the scan says about the space before its points.
            max_range: Distance [m] at which rays end; points beyond are no hits.
            world: Which of the map's worlds was seen.

        Raises:
            FullError: If the map would exceed its cap; it is then as before.
        """
        scan = self._scan(points, origin, mode, max_range)
        self._check_world(world)
        counts = self.kernel.mark(scan)
        try:
            missing = self.kernel.missing(self.storage, world)
            evicted = self._make_room(missing, scan.origin, world)
        except FullError:
            self.kernel.discard()
            raise
        self.kernel.apply(self.storage, world, self.evidence)
        return Inserted(*counts, new_blocks=missing, evicted_blocks=evicted)

    def log_odds(self, points: Float[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]: int8 steps of log-odds, −128 where unknown."""
        self._check_worlds(world, points)
        return self.kernel.log_odds(
            self.storage, self._points(points), self._to_device(world), self.voxel_size
        )

    def occupancy(self, points: Float[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]: int8, 1 occupied, 0 free, −1 unknown."""
        value = self.log_odds(points, world=world)
        seen = torch.where(value >= self.evidence.threshold, 1, 0)
        return torch.where(value == UNKNOWN, -1, seen).to(torch.int8)

    def cast_rays(
        self,
        origins: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        *,
        max_range: float = math.inf,
        stop_at_unknown: bool = False,
        world: Worlds = 0,
    ) -> Casts:
        """Find the first occupied voxel along rays, by exact traversal.

        Args:
            origins: Where rays begin [m], on the grid.
            directions: Where they go, of any length above 0.
            max_range: Distance [m] at which rays end; at the latest they do at the grid's border.
            stop_at_unknown: Whether voxels that no scan touched stop a ray too.
            world: Which of the map's worlds, for all rays or for each.
        """
        self._check_worlds(world, origins)
        if not max_range > 0:
            raise InvalidValueError("max_range", max_range, "above 0 [m]")
        bundle = Bundle(
            origins.to(self.device, torch.float64),
            directions.to(self.device, torch.float64),
            float(max_range),
            stop_at_unknown,
        )
        distance, code = self.kernel.cast(
            self.storage, bundle, self._to_device(world), self.voxel_size
        )
        (bad,) = (code == -2).nonzero(as_tuple=True)
        if len(bad):
            at = int(bad[0])
            seen = f"{origins[at].tolist()} along {directions[at].tolist()}"
            allowed = "origins on the grid, finite directions of some length"
            raise InvalidValueError(f"ray {at}", seen, allowed)
        return Casts(distance, unmorton(code.clamp(min=0)) - BIAS)

    def nearest(
        self,
        points: Float[Tensor, "n 3"],
        k: int,
        *,
        max_distance: float = math.inf,
        world: Worlds = 0,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        """Find the k occupied voxels whose centres are nearest, nearest first.

        Args:
            points: Where to look [m].
            k: How many.
            max_distance: Beyond which none counts [m].
            world: Which of the map's worlds, for all points or for each.

        Returns:
            Distances [m], float64, infinite where there are fewer; and integer coordinates,
            the grid's least there. Of equally near voxels, that with the least Morton code first.
        """
        if k < 1:
            raise InvalidValueError("k", k, "1 or more")
        limit = self._voxels("max_distance", max_distance)
        return self.kernel.nearest(self.storage, *self._query(points, world), k, limit)

    def count_within(
        self, points: Float[Tensor, "n 3"], radius: float, *, world: Worlds = 0
    ) -> Int[Tensor, " n"]:
        """Count the occupied voxels whose centres lie within `radius` [m] of points [m]."""
        return self.kernel.count_within(
            self.storage, *self._query(points, world), self._voxels("radius", radius)
        )

    def list_within(
        self, points: Float[Tensor, "n 3"], radius: float, *, world: Worlds = 0
    ) -> Neighbours:
        """List the occupied voxels whose centres lie within `radius` [m] of points [m]."""
        found = self.kernel.list_within(
            self.storage, *self._query(points, world), self._voxels("radius", radius)
        )
        return Neighbours(*found)

    def occupied_centres(self, *, world: int = 0) -> Float[Tensor, "n 3"]:
        """Centres of the occupied voxels [m], float64, sorted by Morton code."""
        self._check_world(world)
        keys = self.storage.keys[: self.storage.count]
        (slots,) = (keys >> KEY_BITS == world).nonzero(as_tuple=True)
        slots = slots[keys[slots].argsort()]
        slot, cell = (self.storage.log_odds[slots] >= self.evidence.threshold).nonzero(
            as_tuple=True
        )
        block = keys[slots[slot]] & ((1 << KEY_BITS) - 1)
        voxel = unmorton(block * CELLS + cell) - BIAS
        return (voxel.double() + 0.5) * self.voxel_size

    def clear(self, worlds: Int[Tensor, " w"] | Sequence[int] | None = None) -> None:
        """Forget worlds, or all of them."""
        held = self.storage.keys[: self.storage.count] >> KEY_BITS
        if worlds is None:
            keep = torch.zeros_like(held, dtype=torch.bool)
        else:
            keep = ~torch.isin(held, torch.as_tensor(worlds, device=self.device))
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
        self._check_world(world)
        before = self.storage.count
        near = block_distances(self.storage, self.voxel_size, _vector("centre", centre)) <= radius
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
        kernel: Native | Reference | None = None,
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

    def _scan(self, points: Tensor, origin: Vector, mode: Insert, max_range: float) -> Scan:
        if not isinstance(mode, Insert):
            raise InvalidValueError("mode", mode, [str(each) for each in Insert])
        if not max_range > 0:
            raise InvalidValueError("max_range", max_range, "above 0 [m]")
        at = _vector("origin", origin)
        border = BIAS * self.voxel_size
        if not all(-border <= x < border for x in at):
            raise InvalidValueError("origin", at, f"within {border} m of the grid's centre")
        return Scan(self._points(points), at, self.voxel_size, float(max_range), mode)

    def _points(self, points: Tensor) -> Tensor:
        if points.ndim != 2 or points.shape[1] != 3:
            raise InvalidValueError("points", tuple(points.shape), "shape [n, 3]")
        return points.to(self.device, torch.float32)

    def _query(self, points: Tensor, world: Worlds) -> tuple[Tensor, Worlds, float]:
        self._check_worlds(world, points)
        return self._points(points), self._to_device(world), self.voxel_size

    def _voxels(self, name: str, metres: float) -> float:
        if not metres >= 0:
            raise InvalidValueError(name, metres, "0 or more [m]")
        return float(metres) / self.voxel_size

    def _to_device(self, world: Worlds) -> Worlds:
        return world if isinstance(world, int) else world.to(self.device, torch.int64)

    def _check_world(self, world: int) -> None:
        if not 0 <= world < WORLDS:
            raise InvalidValueError("world", world, f"0 to {WORLDS - 1}")

    def _check_worlds(self, world: Worlds, items: Tensor) -> None:
        if isinstance(world, int):
            self._check_world(world)
        elif world.shape != items.shape[:1]:
            raise InvalidValueError("world", tuple(world.shape), f"one for each of {len(items)}")
        elif len(world) and not (0 <= int(world.min()) and int(world.max()) < WORLDS):
            raise InvalidValueError("world", _extent(world), f"0 to {WORLDS - 1}")

    def _make_room(self, missing: int, origin: tuple[float, float, float], world: int) -> int:
        """Grow, evict or raise; return how many blocks were evicted."""
        storage = self.storage
        needed = storage.count + missing
        if needed <= storage.capacity:
            return 0
        limit = needed if self.max_bytes is None else Storage.capacity_within(self.max_bytes)
        keep = None
        if needed > limit:
            if self.when_full is WhenFull.EVICT:
                seen = storage.key(world, self.kernel.touched())
                distance = block_distances(storage, self.voxel_size, origin)
                keep = without_farthest(storage, distance, needed - limit, world=world, needed=seen)
            if keep is None:
                raise FullError(Storage.bytes_for(needed), self.max_bytes or 0)
        roomy = max(needed, storage.capacity + storage.capacity // 2)
        storage.grow(roomy if self.max_bytes is None else min(roomy, limit))
        self.kernel.rehash(storage)
        if keep is None:
            return 0
        self._keep(keep)
        return needed - limit

    def _keep(self, keep: Tensor) -> None:
        (slots,) = keep.nonzero(as_tuple=True)
        self.storage.keep(slots)
        self.kernel.rehash(self.storage)


def _vector(name: str, given: Vector) -> tuple[float, float, float]:
    numbers = torch.as_tensor(given, dtype=torch.float64).tolist()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise InvalidValueError(name, numbers, "three finite numbers [m]")
    return (numbers[0], numbers[1], numbers[2])


def _extent(x: Tensor) -> str:
    return f"{x.min().item()} … {x.max().item()}" if x.numel() else "nothing"


@functools.cache
def _say_once(device: str) -> None:
    warnings.warn(
        f"no compiled kernels for {device}: VoxelMap runs in torch alone, correct but slower",
        stacklevel=4,
    )


def choose_kernel(device: torch.device) -> Native | Reference:
    """Return the compiled kernels where there are any for the device."""
    if device.type == "cpu" and native.library() is not None:
        return Native()
    _say_once(str(device))
    return Reference()
