"""Feature vectors of voxels: rows of a torch tensor, so that gathers stay in autograd."""

import enum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.answers import FullError
from engram.kernels.checks import checked_points, checked_worlds
from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import BIAS, CELLS, morton, on_grid
from engram.kernels.queries import VoxelQueries
from engram.kernels.scan import Worlds

LEAST_ROWS = 64


class Write(enum.Enum):
    """What becomes of a voxel's features when new ones arrive."""

    MEAN = "mean"
    """The mean of all that were ever written; summed in float64, but kept in the features' type: in
    half precision it stands still once a new one changes it by less than a digit."""
    LAST = "last"
    """The last ones; of several in one call, those that come last in it."""
    GATED = "gated"
    """old + g (new − old): g is the mean of the gates that a voxel receives in one call, and `new`
    the mean of the features by their gates. A voxel without features takes `new`."""


class Written(NamedTuple):
    """What became of features."""

    voxels: int
    """Voxels that were written."""
    new: int
    """Those of them that had no row."""
    left_out: int
    """Points in no block of the map, so that nothing owns their features; and those whose features
    are not finite, or whose gate is 0."""


class VoxelFeatures:
    """C numbers for every voxel that was given some: colours, embeddings, tokens.

    Rows are integers. `features.values[features.rows(points)]` is an ordinary gather, through
    which gradients flow where `values` requires them; writing is no part of the graph. Where rows
    run out, `values` becomes a new, longer tensor, which an optimiser has to be told. A row
    belongs to its voxel until the voxel's block leaves the map (eviction, `clear`,
    `clear_outside`), and is then given to another one.

    Args:
        held: The map whose voxels they are.
        channels: C.
        dtype: Of the values.
        max_rows: Cap; none unless given.
    """

    values: Float[Tensor, "R C"]
    """By row; undefined in rows that no voxel owns."""
    weight: Float[Tensor, " R"]
    """How many were written, for the mean."""

    def __init__(
        self,
        held: VoxelQueries,
        channels: int,
        *,
        dtype: torch.dtype = torch.float32,
        max_rows: int | None = None,
    ):
        if channels < 1:
            raise InvalidValueError("channels", channels, "1 or more")
        if not dtype.is_floating_point:
            raise InvalidValueError("dtype", dtype, "floating-point types")
        self.held, self.max_rows = held, max_rows
        self.values = torch.zeros(0, channels, dtype=dtype, device=held.device)
        self.weight = torch.zeros(0, dtype=torch.float32, device=held.device)
        # A block with features has a page: 512 rows, −1 where a voxel has none.
        self._page_of_slot = self._none(held.storage.capacity)
        self._pages = self._none(0, CELLS).int()
        self._free_pages, self._free_rows = self._none(0), self._none(0)
        held.storage.followers.add(self)

    @property
    def count(self) -> int:
        """Rows that voxels own."""
        return len(self.values) - len(self._free_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        index = (self._page_of_slot, self._pages, self._free_pages, self._free_rows)
        return sum(part.nbytes for part in (self.values, self.weight, *index))

    def rows(self, points: Float[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Rows of the voxels that hold points [m], int64; −1 where there is none."""
        return self._rows(self._places(points, world))

    def rows_of(self, voxels: Int[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Rows of voxels, given by their coordinates, int64; −1 where there is none."""
        return self._rows(self._places_of(voxels, world))

    @torch.no_grad()
    def write(
        self,
        points: Float[Tensor, "n 3"],
        features: Float[Tensor, "n C"],
        how: Write = Write.MEAN,
        *,
        gate: Float[Tensor, " n"] | None = None,
        world: Worlds = 0,
    ) -> Written:
        """Give features to the voxels that hold points.

        Args:
            points: [m]
            features: Of each point.
            how: What becomes of older ones.
            gate: 0 … 1 for each point, for `Write.GATED`.
            world: Which of the map's worlds, for all points or for each.

        Raises:
            FullError: If more than `max_rows` rows were needed; nothing is written then.
        """
        if features.shape != (len(points), self.values.shape[1]):
            allowed = [len(points), self.values.shape[1]]
            raise InvalidValueError("features", list(features.shape), f"shape {allowed}")
        wanted = (len(points),) if how is Write.GATED else None
        shape = None if gate is None else tuple(gate.shape)
        if shape != wanted:
            raise InvalidValueError("gate", shape, f"{wanted} in {how}")
        part = features.new_ones(len(points)) if gate is None else gate
        if not bool(((part >= 0) & (part <= 1)).all()):
            seen = f"{float(part.min())} … {float(part.max())}"
            raise InvalidValueError("gate", seen, "0 to 1")
        place = self._places(points, world)
        counts = (part > 0).to(place.device) & features.isfinite().all(1).to(place.device)
        (item,) = ((place >= 0) & counts).nonzero(as_tuple=True)
        place, index, count = place[item].unique(return_inverse=True, return_counts=True)
        rows = self._rows(place)
        fresh = rows < 0
        rows[fresh] = self._own(place[fresh])
        # Sums of half precision would lose what is added to them.
        new = features[item].to(self.held.device, torch.float64)
        if how is Write.LAST:
            last = torch.zeros_like(rows).scatter_reduce(
                0, index, torch.arange(len(index), device=index.device), "amax"
            )
            mean, share = new[last], new.new_ones(len(rows))
        else:
            part = part.to(new)[item]
            total = part.new_zeros(len(rows)).index_add(0, index, part)
            sums = new.new_zeros(len(rows), new.shape[1]).index_add(0, index, part[:, None] * new)
            mean = sums / total[:, None]
            share = total / count
            if how is Write.MEAN:
                share = count / (count + self.weight[rows])
        old = torch.where(fresh[:, None], mean, self.values[rows].to(new))
        self.values[rows] = (old + share.to(new)[:, None] * (mean - old)).to(self.values)
        self.weight[rows] = torch.where(fresh, 0.0, self.weight[rows]) + count
        return Written(len(rows), int(fresh.sum()), len(points) - len(item))

    def owners(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Places of the voxels that own rows, and their rows."""
        self._follow_growth()
        (slot,) = (self._page_of_slot >= 0).nonzero(as_tuple=True)
        rows = self._pages[self._page_of_slot[slot]]
        index, cell = (rows >= 0).nonzero(as_tuple=True)
        return slot[index] * CELLS + cell, rows[index, cell].long()

    @torch.no_grad()
    def assign(
        self,
        place: Int[Tensor, " n"],
        values: Float[Tensor, "n C"],
        weight: Float[Tensor, " n"],
    ) -> None:
        """Give rows to places, each once, that have none."""
        self._follow_growth()
        rows = self._own(place)
        self.values[rows], self.weight[rows] = values, weight

    def keep(self, order: Int[Tensor, " n"]) -> None:
        """Follow the map's blocks to their new slots, and free the rows of those that left."""
        self._follow_growth()
        page = self._page_of_slot
        stays = torch.zeros_like(page, dtype=torch.bool)
        stays[order] = True
        gone = page[~stays & (page >= 0)]
        rows = self._pages[gone].flatten().long()
        self._free_rows = torch.cat([self._free_rows, rows[rows >= 0]])
        self._free_pages = torch.cat([self._free_pages, gone])
        self._pages[gone] = -1
        self._page_of_slot = self._none(len(page))
        self._page_of_slot[: len(order)] = page[order]

    def _places(self, points: Tensor, world: Worlds) -> Int[Tensor, " n"]:
        points = checked_points(points, self.held.device)
        voxels = points.double() * (1 / self.held.voxel_size)
        inside = on_grid(voxels)
        floor = torch.where(inside[:, None], voxels, 0.0).floor().long()
        return torch.where(inside, self._places_of(floor, world), -1)

    def _places_of(self, voxels: Tensor, world: Worlds) -> Int[Tensor, " n"]:
        worlds = checked_worlds(world, voxels, self.held.device)
        voxels = voxels.to(self.held.device, torch.int64)
        inside = ((voxels >= -BIAS) & (voxels < BIAS)).all(1)
        codes = morton(torch.where(inside[:, None], voxels, 0) + BIAS)
        return torch.where(inside, self.held.kernel.locate(self.held.storage, codes, worlds), -1)

    def _rows(self, place: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        self._follow_growth()
        page = torch.where(place < 0, -1, self._page_of_slot[place.clamp(min=0) // CELLS])
        if not len(self._pages):
            return page
        return torch.where(page < 0, -1, self._pages[page, place % CELLS].long())

    def _own(self, place: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Give rows to places that have none."""
        slots = (place // CELLS).unique()
        slots = slots[self._page_of_slot[slots] < 0]
        rows = self._take_rows(len(place))  # may raise, and comes first
        pages = len(slots) - len(self._free_pages)
        if pages > 0:
            more = max(pages, len(self._pages) // 4)
            first = len(self._pages)
            self._pages = torch.cat([self._pages, self._none(more, CELLS).int()])
            ahead = torch.arange(first + more - 1, first - 1, -1, device=place.device)
            self._free_pages = torch.cat([ahead, self._free_pages])
        keep = len(self._free_pages) - len(slots)
        self._page_of_slot[slots] = self._free_pages[keep:].flip(0)
        self._free_pages = self._free_pages[:keep]
        self._pages[self._page_of_slot[place // CELLS], place % CELLS] = rows.int()
        return rows

    def _take_rows(self, count: int) -> Int[Tensor, " n"]:
        lacking = count - len(self._free_rows)
        if lacking > 0:
            first = len(self.values)
            more = max(lacking, first // 4, LEAST_ROWS)
            if self.max_rows is not None:
                more = min(more, self.max_rows - first)
            if more < lacking:
                raise FullError(first + lacking, self.max_rows or 0, "rows")
            empty = self.values.new_zeros(more, self.values.shape[1])
            grown = torch.cat([self.values.detach(), empty])
            self.values = grown.requires_grad_(self.values.requires_grad)
            self.weight = torch.cat([self.weight, self.weight.new_zeros(more)])
            ahead = torch.arange(first + more - 1, first - 1, -1, device=self.values.device)
            self._free_rows = torch.cat([ahead, self._free_rows])
        keep = len(self._free_rows) - count
        rows, self._free_rows = self._free_rows[keep:].flip(0), self._free_rows[:keep]
        return rows

    def _follow_growth(self) -> None:
        more = self.held.storage.capacity - len(self._page_of_slot)
        if more > 0:
            self._page_of_slot = torch.cat([self._page_of_slot, self._none(more)])

    def _none(self, *shape: int) -> Tensor:
        return torch.full(shape, -1, dtype=torch.int64, device=self.held.device)
