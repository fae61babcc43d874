"""Surface normals of occupied voxels, by the plane that fits their neighbours best."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.kernels.queries import VoxelQueries

VOXELS_AT_ONCE = 1 << 15
"""Voxels that are looked at together; bounds memory, not the result."""


class Normals(NamedTuple):
    """Normals of the occupied voxels of a world, in Morton order."""

    centre: Float[Tensor, "n 3"]
    """[m], float64."""
    normal: Float[Tensor, "n 3"]
    """Unit vectors, float64, towards free space; zero where neighbours fix no plane."""
    curvature: Float[Tensor, " n"]
    """Least eigenvalue over their sum, 0 … ⅓: 0 where all neighbours lie in the plane."""


def surface_normals(held: VoxelQueries, radius: float, *, world: int = 0) -> Normals:
    """Fit planes to the occupied voxels within a radius of each (Hoppe et al. 1992, section 3.1).

    The normal is the eigenvector of the least eigenvalue of the neighbours' covariance. It points
    to the side on which there is more free space within the radius, and where both sides have as
    much, to that with less occupied space; a tie stays as the eigenvector came.

    Args:
        held: The map.
        radius: [m]; two to four voxels serve most maps.
        world: Which of the map's worlds.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidValueError("radius", radius, "finite numbers above 0 [m]")
    centre = held.occupied_centres(world=world)
    parts = [_fit(held, part, radius, world) for part in centre.split(VOXELS_AT_ONCE)]
    normal, curvature = (torch.cat(part) for part in zip(*parts, strict=True))
    return Normals(centre, normal, curvature)


def _fit(
    held: VoxelQueries, centre: Float[Tensor, "n 3"], radius: float, world: int
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    found = held.list_within(centre.float(), radius, world=world)
    count = found.offset.diff()
    of = torch.arange(len(count), device=count.device).repeat_interleave(count)
    apart = (found.voxel.double() + 0.5) * held.voxel_size - centre[of]
    mean = _sum(apart, of, len(centre)) / count[:, None]
    apart = apart - mean[of]
    products = _sum((apart[:, :, None] * apart[:, None, :]).flatten(1), of, len(centre))
    value, vector = torch.linalg.eigh(products.view(-1, 3, 3))
    normal = vector[..., 0]
    # A line, or a single point, has many normals.
    scale = value[:, 2].clamp(min=1e-12 * held.voxel_size**2)
    plane = value[:, 1] > 1e-6 * scale
    sign = _lighter_side(held, centre, normal, radius, world)
    normal = torch.where(plane[:, None], normal * sign[:, None], 0.0)
    return normal, value[:, 0].clamp(min=0) / value.sum(1).clamp(min=1e-300)


def _lighter_side(
    held: VoxelQueries,
    centre: Float[Tensor, "n 3"],
    normal: Float[Tensor, "n 3"],
    radius: float,
    world: int,
) -> Float[Tensor, " n"]:
    """+1 where a normal points to the freer side, else −1; by voxels along it."""
    steps = max(1, int(radius / held.voxel_size))
    score = torch.zeros(len(centre), dtype=torch.float64, device=centre.device)
    for step in range(1, steps + 1):
        for side in (1, -1):
            at = centre + normal * (side * step * held.voxel_size)
            seen = held.occupancy(at.float(), world=world)
            # One free voxel outweighs any number of occupied ones.
            score += side * ((seen == 0).double() * (steps + 1) - (seen == 1).double())
    return torch.where(score < 0, -1.0, 1.0).double()


def _sum(parts: Float[Tensor, "m c"], of: Int[Tensor, " m"], count: int) -> Float[Tensor, "n c"]:
    return parts.new_zeros(count, parts.shape[1]).index_add(0, of, parts)
