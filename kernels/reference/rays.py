"""The voxels that rays visit, in closed form. Twin of source/ray.h, and its explanation."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.grid import FRACTION, MIRROR, ONE, morton, unmorton

STEPS_AT_ONCE = 1 << 21
"""Slabs that are looked at together; bounds memory, not the result."""


class Rays(NamedTuple):
    """n rays, cut into slabs of one voxel along their dominant axis.

    Axes are in the order (dominant, the other two), and those along which a ray decreases are
    mirrored, so that every slope is 0 … 1. Within a slab a ray moves by at most one voxel along
    each of the others.
    """

    axis: Int[Tensor, "n 3"]
    mirrored: Bool[Tensor, "n 3"]
    begin: Int[Tensor, "n 3"]
    """Fixed point."""
    end: Int[Tensor, "n 3"]
    slope: Int[Tensor, "n 2"]
    """Of the two others per slab, fixed point."""
    first: Int[Tensor, "n 2"]
    """Their coordinates where the first slab is left."""
    slabs: Int[Tensor, " n"]
    """Slabs before the last one."""


class Visits(NamedTuple):
    """Slabs of rays, and the three codes, not always different, that each one visits in order."""

    ray: Int[Tensor, " s"]
    slab: Int[Tensor, " s"]
    code: Int[Tensor, "s 3"]


def make_rays(begin: Int[Tensor, "n 3"], end: Int[Tensor, "n 3"]) -> Rays:
    """Cut rays between fixed-point coordinates."""
    length = (end - begin).abs()
    dominant = torch.where(length[:, 1] > length[:, 0], 1, 0)
    longest = length.gather(1, dominant[:, None])[:, 0]
    dominant = torch.where(length[:, 2] > longest, 2, dominant)
    others = torch.stack([(dominant == 0).long(), 2 - (dominant == 2).long()], dim=1)
    axis = torch.cat([dominant[:, None], others], dim=1)
    begin, end, length = (part.gather(1, axis) for part in (begin, end, length))
    mirrored = end < begin
    begin, end = (torch.where(mirrored, MIRROR - part, part) for part in (begin, end))
    share = length[:, 1:].double() / length[:, :1].double()  # correctly rounded everywhere
    slope = torch.where(length[:, :1] > 0, share * ONE, 0.0).to(torch.int64)
    rest = ONE - (begin[:, :1] & (ONE - 1))
    first = begin[:, 1:] + (slope * rest >> FRACTION)
    slabs = (end[:, 0] >> FRACTION) - (begin[:, 0] >> FRACTION)
    return Rays(axis, mirrored, begin, end, slope, first, slabs)


def visits(rays: Rays) -> Iterator[Visits]:
    """Go through all slabs of all rays, many at a time, in the order of rays and slabs."""
    total = (rays.slabs + 1).cumsum(0)
    first = 0
    while first < len(total):
        before = int(total[first - 1]) if first else 0
        last = int(torch.searchsorted(total, before + STEPS_AT_ONCE, right=True))
        last = max(last, first + 1)
        yield _visits(rays, first, last)
        first = last


def _visits(rays: Rays, first: int, last: int) -> Visits:
    count = rays.slabs[first:last] + 1
    ray = torch.repeat_interleave(torch.arange(first, last, device=count.device), count)
    slab = torch.arange(len(ray), device=ray.device) - (count.cumsum(0) - count)[ray - first]
    across = rays.first[ray] + (slab[:, None] - 1) * rays.slope[ray]
    entry = torch.where(slab[:, None] == 0, rays.begin[ray, 1:], across)
    leave = torch.where(
        (slab == rays.slabs[ray])[:, None], rays.end[ray, 1:], across + rays.slope[ray]
    )
    # In float32, whose one rounding per product is the same everywhere.
    rest: Float[Tensor, "s 2"] = (ONE - (entry & (ONE - 1))).float()
    slope = rays.slope[ray].float()
    second_first = rest[:, 0] * slope[:, 1] < rest[:, 1] * slope[:, 0]
    (y, z), (y_out, z_out) = (entry >> FRACTION).unbind(1), (leave >> FRACTION).unbind(1)
    x = (rays.begin[ray, 0] >> FRACTION) + slab
    path = [
        torch.stack([x, y, z], dim=1),
        torch.stack(
            [x, torch.where(second_first, y_out, y), torch.where(second_first, z, z_out)], dim=1
        ),
        torch.stack([x, y_out, z_out], dim=1),
    ]
    codes = []
    for mirrored in path:
        cell = torch.where(rays.mirrored[ray], (MIRROR >> FRACTION) - mirrored, mirrored)
        codes.append(morton(torch.empty_like(cell).scatter_(1, rays.axis[ray], cell)))
    return Visits(ray, slab, torch.stack(codes, dim=1))


def entered(rays: Rays, seen: Visits, which: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Share of a ray at which it enters voxels.

    Args:
        rays: All rays.
        seen: What some of them visit.
        which: Entries of `seen.code`, flattened, that differ from the one before in their slab.
    """
    at, step = which // 3, which % 3
    ray = seen.ray[at]
    cell = unmorton(seen.code.flatten()[which]).gather(1, rays.axis[ray])
    cell = torch.where(rays.mirrored[ray], (MIRROR >> FRACTION) - cell, cell)
    before = unmorton(seen.code.flatten()[(which - 1).clamp(min=0)]).gather(1, rays.axis[ray])
    before = torch.where(rays.mirrored[ray], (MIRROR >> FRACTION) - before, before)
    # The first voxel of a slab is entered through the slab's border, others along a lesser axis.
    lesser = torch.where(cell[:, 1] != before[:, 1], 1, 2)
    axis = torch.where(step == 0, 0, lesser)[:, None]
    way = (rays.end[ray] - rays.begin[ray]).gather(1, axis)[:, 0].double()
    part = ((cell << FRACTION) - rays.begin[ray]).gather(1, axis)[:, 0].double()
    share = torch.where(way > 0, part / way, 0.0)
    return torch.where((seen.slab[at] == 0) & (step == 0), 0.0, share)
