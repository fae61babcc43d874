"""Operations by sorting and searching, in torch alone."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import (
    BIAS,
    CELLS,
    FRACTION,
    ONE,
    Evidence,
    morton,
    on_grid,
    square_root,
    to_fixed,
    unmorton,
)
from engram.kernels.kernel import Kernel, each_world
from engram.kernels.reference.nearest import Voxels
from engram.kernels.reference.projection import seen_through
from engram.kernels.reference.rays import entered, make_rays, visits
from engram.kernels.scan import Asked, Bundle, Images, Insert, Inserted, Scan, Worlds
from engram.kernels.storage import UNKNOWN, Storage


class Marks(NamedTuple):
    """What a scan of one world touched."""

    world: int
    hit: Int[Tensor, " h"]
    """Codes of voxels, each once, sorted."""
    free: Int[Tensor, " f"]
    """Likewise, none of them hit."""


class _Ends(NamedTuple):
    """Points of a scan on the grid."""

    fixed: Int[Tensor, "m 3"]
    seen: Tensor  # [m], whether within range


class Reference(Kernel):
    """Operations by sorting and searching: no hash table, and any device that torch has."""

    def __init__(self) -> None:
        self.marks: Marks | None = None

    @property
    def nbytes(self) -> int:
        return 0

    def parts(self, scan: Scan) -> Iterable[Scan]:
        return each_world(scan)

    def mark(self, storage: Storage, scan: Scan) -> Inserted:
        if scan.mode is Insert.RAY_PER_VOXEL:
            ends, counts = self._ends(scan._replace(max_range=float("inf")))
            codes = morton(ends.fixed >> FRACTION).unique()
            ends = self._centres(codes, scan)
        else:
            ends, counts = self._ends(scan)
        hit = morton(ends.fixed[ends.seen] >> FRACTION).unique()
        free = hit[:0]
        if scan.images is not None:
            free = seen_through(scan.images, scan.voxel_size, scan.max_range)
        elif scan.mode is not Insert.ENDPOINT:
            free = self._carve(ends.fixed, scan)
        self.marks = Marks(int(scan.worlds), hit, free[~torch.isin(free, hit)])
        return counts._replace(new_blocks=int((storage.find(self.touched()) < 0).sum()))

    def touched(self) -> Int[Tensor, " k"]:
        assert self.marks is not None
        blocks = torch.cat([self.marks.hit, self.marks.free]) >> 9
        return Storage.key(self.marks.world, blocks.unique())

    def apply(self, storage: Storage, by: Evidence) -> None:
        assert self.marks is not None
        keys = self.touched()
        storage.append(keys[storage.find(keys) < 0])
        for codes, change in ((self.marks.hit, by.hit), (self.marks.free, by.miss)):
            at = self.locate(storage, codes, self.marks.world)
            flat = storage.log_odds.view(-1)
            old = flat[at].to(torch.int64)
            new = torch.where(old == UNKNOWN, 0, old) + change
            flat[at] = new.clamp(by.low, by.high).to(torch.int8)
        storage.summarise(storage.find(keys), by.threshold)
        self.marks = None

    def discard(self) -> None:
        self.marks = None

    def rehash(self, storage: Storage) -> None:
        pass  # no table is used

    def unproject(self, images: Images) -> Float[Tensor, "B n 3"]:
        z, camera = images.depth.double(), images.camera
        v, u = (torch.arange(n, dtype=torch.float64, device=z.device) for n in z.shape[1:])
        # Not tensor / number, which torch may compute as a product with the reciprocal.
        x = (u - camera.cx) / torch.full_like(u, camera.fx) * z
        y = ((v - camera.cy) / torch.full_like(v, camera.fy))[:, None] * z
        rows = images.poses_camera_to_world[:, :3, :, None, None].unbind(1)
        sums = [row[:, 0] * x + row[:, 1] * y + row[:, 2] * z + row[:, 3] for row in rows]
        points = torch.stack(sums, dim=-1).float()
        return torch.where((z > 0)[..., None], points, float("nan")).flatten(1, 2)

    def locate(
        self, storage: Storage, codes: Int[Tensor, " n"], worlds: Worlds
    ) -> Int[Tensor, " n"]:
        slot = storage.find(storage.key(worlds, codes >> 9))
        return torch.where(slot < 0, -1, slot * CELLS + (codes & (CELLS - 1)))

    def log_odds(self, storage: Storage, asked: Asked) -> Int[Tensor, " n"]:
        voxels = asked.points.double() * (1 / asked.voxel_size)
        inside = on_grid(voxels)
        cell = torch.where(inside[:, None], voxels, 0.0).floor().to(torch.int64) + BIAS
        at = torch.where(inside, self.locate(storage, morton(cell), asked.worlds), -1)
        return torch.where(at < 0, UNKNOWN, storage.log_odds.view(-1)[at]).to(torch.int8)

    def cast(
        self, storage: Storage, bundle: Bundle
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        worlds, voxel_size = bundle.worlds, bundle.voxel_size
        good, end, reach = _reach(bundle, voxel_size)
        begin = torch.where(good[:, None], bundle.origins, 0.0)
        rays = make_rays(*(to_fixed(part * (1 / voxel_size)) for part in (begin, end)))
        distance = torch.full_like(reach, float("inf"))
        code = torch.where(good, -1, -2)
        for seen in visits(rays):
            world = worlds if isinstance(worlds, int) else worlds[seen.ray].repeat_interleave(3)
            at = self.locate(storage, seen.code.flatten(), world)
            stop = (at >= 0) & (storage.occupied.view(-1)[at >> 6] >> (at & 63) & 1).bool()
            if bundle.stop_at_unknown:
                stop |= (at < 0) | ~(storage.known.view(-1)[at >> 6] >> (at & 63) & 1).bool()
            (at,) = stop.nonzero(as_tuple=True)
            # Rays and slabs are in order: the first stop of each ray is the one to keep.
            ray, place = seen.ray[at // 3].unique(return_inverse=True)
            first = torch.full_like(ray, len(stop)).scatter_reduce(0, place, at, "amin")
            code[ray] = seen.code.flatten()[first]
            distance[ray] = entered(rays, seen, first) * reach[ray]
        refused = ~good
        code[refused], distance[refused] = -2, float("inf")
        return distance, code

    def nearest(
        self, storage: Storage, asked: Asked, k: int, limit: float
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        square, code = Voxels(storage, asked).nearest(k, limit)
        distance = (square_root(square) * asked.voxel_size).float()
        return distance, (unmorton(code.clamp(min=0)) - BIAS).int()

    def count_within(self, storage: Storage, asked: Asked, radius: float) -> Int[Tensor, " n"]:
        return Voxels(storage, asked).within(radius)[0]

    def list_within(
        self, storage: Storage, asked: Asked, radius: float
    ) -> tuple[Int[Tensor, " n_plus_1"], Float[Tensor, " m"], Int[Tensor, "m 3"]]:
        count, square, code = Voxels(storage, asked).within(radius)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        distance = (square_root(square) * asked.voxel_size).float()
        return offset, distance, (unmorton(code) - BIAS).int()

    def _ends(self, scan: Scan) -> tuple[_Ends, Inserted]:
        at = scan.points[0].double()
        finite = at.isfinite().all(1)
        at = at[finite]
        origin = scan.origins[0].to(at.device)
        seen, at = _shorten(at, origin, scan.max_range)
        voxels = at * (1 / scan.voxel_size)
        inside = on_grid(voxels)
        ends = _Ends(to_fixed(voxels[inside]), seen[inside])
        hits = int(ends.seen.sum())
        counts = Inserted(
            hits=hits,
            beyond_range=len(ends.seen) - hits,
            not_finite=len(finite) - len(at),
            off_grid=len(at) - len(ends.seen),
        )
        return ends, counts

    def _centres(self, codes: Int[Tensor, " n"], scan: Scan) -> _Ends:
        """Ends of rays to the centres of voxels."""
        cell = unmorton(codes)
        origin = scan.origins[0].to(codes.device)
        centre = ((cell - BIAS).double() + 0.5) * scan.voxel_size
        seen, at = _shorten(centre, origin, scan.max_range)
        fixed = torch.where(
            seen[:, None],
            (cell << FRACTION) + ONE // 2,
            to_fixed(at * (1 / scan.voxel_size)),
        )
        return _Ends(fixed, seen)

    def _carve(self, ends: Int[Tensor, "m 3"], scan: Scan) -> Int[Tensor, " f"]:
        """Codes of what rays pass through before the voxels in which they end."""
        origin = scan.origins.to(ends.device)
        begin = to_fixed(origin * (1 / scan.voxel_size))
        last = morton(ends >> FRACTION)
        found = [last[:0]]
        for seen in visits(make_rays(begin.expand_as(ends), ends)):
            found.append(seen.code[seen.code != last[seen.ray, None]].unique())
        return torch.cat(found).unique()


def _reach(bundle: Bundle, voxel_size: float) -> tuple[Tensor, Tensor, Float[Tensor, " n"]]:
    """Return which rays are any, where they end [m], and how far that is [m]."""
    inner = BIAS * voxel_size - voxel_size / 2
    x, y, z = bundle.directions.unbind(1)
    length = square_root(x * x + y * y + z * z)
    good = on_grid(bundle.origins * (1 / voxel_size)) & (length > 0) & length.isfinite()
    along = torch.where(good[:, None], bundle.directions / length[:, None], 0.0)
    begin = torch.where(good[:, None], bundle.origins, 0.0)
    # Not where(…, inner, -inner), which is float32.
    room = (inner * along.sign() - begin) / along
    room = torch.where(along == 0, float("inf"), room.clamp(min=0)).amin(1)
    reach = torch.where(good, room.clamp(max=bundle.max_range), 0.0)
    return good, begin + along * reach[:, None], reach


def _shorten(
    at: Float[Tensor, "n 3"], origin: Float[Tensor, " 3"], limit: float
) -> tuple[Tensor, Float[Tensor, "n 3"]]:
    """Bring points beyond the limit back to it; return which were within, and the points."""
    apart = at - origin
    x, y, z = apart.unbind(1)
    square = x * x + y * y + z * z
    within = square <= limit * limit
    # Not limit / tensor, which torch computes as a product with the reciprocal.
    share = torch.full_like(square, limit) / square_root(square)
    return within, torch.where(within[:, None], at, origin + apart * share[:, None])
