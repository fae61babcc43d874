"""Occupied voxels near points, by comparing every point with every voxel."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import BIAS, CELLS, KEY_BITS, on_grid, unmorton
from engram.kernels.scan import Asked
from engram.kernels.storage import Storage

PAIRS_AT_ONCE = 1 << 22
"""Distances that are computed together; bounds memory, not the result."""


class Voxels:
    """All occupied voxels of a map, sorted by code, and their distances to points.

    Args:
        storage: The map.
        asked: The points.
    """

    def __init__(self, storage: Storage, asked: Asked):
        keys = storage.keys[: storage.count]
        place = torch.arange(64, device=keys.device)
        bits = storage.occupied[: storage.count, :, None] >> place & 1
        slot, word, bit = bits.nonzero(as_tuple=True)
        code = (keys[slot] & ((1 << KEY_BITS) - 1)) * CELLS + word * 64 + bit
        order = code.argsort(stable=True)
        self.code, self.world = code[order], keys[slot][order] >> KEY_BITS
        self.centre = unmorton(self.code).double() + 0.5
        self.asked = asked

    def nearest(self, k: int, limit: float) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Squared distances in voxels, infinite, and codes, −1, where there are fewer."""
        points = self.asked.points
        distances = torch.full((len(points), k), float("inf"), dtype=torch.float64)
        distances = distances.to(points.device)
        codes = torch.full_like(distances, -1, dtype=torch.int64)
        for rows, square in self._squares():
            square = torch.where(square <= limit * limit, square, float("inf"))
            # Voxels are sorted by code and the sort is stable: ties go by code.
            best, index = square.sort(dim=1, stable=True)
            kept = min(k, best.shape[1])
            best, index = best[:, :kept], index[:, :kept]
            distances[rows, :kept] = best
            codes[rows, :kept] = torch.where(best.isfinite(), self.code[index], -1)
        return distances, codes

    def within(
        self, radius: float
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " m"], Int[Tensor, " m"]]:
        """Counts per point, squared distances and codes, point after point."""
        counts, distances, codes = [], [], []
        for _, square in self._squares():
            near = (square <= radius * radius) & square.isfinite()
            counts.append(near.sum(1))
            distances.append(square[near])
            codes.append(self.code.expand(len(square), -1)[near])
        none = self.code[:0]
        return (
            torch.cat([none, *counts]),
            torch.cat([none.double(), *distances]),
            torch.cat([none, *codes]),
        )

    def _squares(self) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r v"]]]:
        points, worlds, voxel_size = self.asked
        voxels = points.double() * (1 / voxel_size)
        inside = on_grid(voxels)
        at = torch.where(inside[:, None], voxels, 0.0) + BIAS
        rows = max(1, PAIRS_AT_ONCE // max(1, len(self.code)))
        for part in torch.arange(len(points), device=points.device).split(rows):
            x, y, z = (at[part, None] - self.centre).unbind(-1)
            square = x * x + y * y + z * z
            world = worlds if isinstance(worlds, int) else worlds[part, None]
            yield (
                part,
                torch.where((self.world == world) & inside[part, None], square, float("inf")),
            )
