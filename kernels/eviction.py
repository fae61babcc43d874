"""Which blocks a map lets go: those that are far from where the sensor is."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.grid import BIAS, KEY_BITS, unmorton
from engram.kernels.storage import Storage


def block_distances(
    storage: Storage, voxel_size: float, centre: tuple[float, float, float]
) -> Float[Tensor, " s"]:
    """Distance of every block to a point [m], zero where the block holds it, whatever its world."""
    keys = storage.keys[: storage.count]
    edge = 8 * voxel_size
    least = (unmorton(keys & ((1 << KEY_BITS) - 1)) - BIAS // 8).double() * edge
    at = torch.tensor(centre, dtype=torch.float64, device=keys.device)
    apart = (least - at).clamp(min=0) + (at - least - edge).clamp(min=0)
    return torch.linalg.vector_norm(apart, dim=1)


def without_farthest(
    storage: Storage,
    distance: Float[Tensor, " s"],
    count: int,
    *,
    world: int,
    needed: Int[Tensor, " k"],
) -> Bool[Tensor, " s"] | None:
    """Say which blocks to keep when `count` of a world are to go, the farthest first.

    Args:
        storage: The blocks.
        distance: Of each.
        count: How many are to go.
        world: Whose.
        needed: Keys of blocks that stay.

    Returns:
        None where there are not so many. Of blocks equally far, the older ones go.
    """
    keys = storage.keys[: storage.count]
    may_go = (keys >> KEY_BITS == world) & ~torch.isin(keys, needed)
    if count > int(may_go.sum()):
        return None
    keep = torch.ones_like(may_go)
    order = torch.where(may_go, distance, -1.0).argsort(descending=True, stable=True)
    keep[order[:count]] = False
    return keep
