"""Which blocks a map lets go: those that are far from where the sensor is."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.grid import BIAS, KEY_BITS, unmorton
from engram.kernels.scan import Scan
from engram.kernels.storage import Storage


def block_distances(
    storage: Storage, voxel_size: float, centre: Float[Tensor, "*s 3"]
) -> Float[Tensor, " s"]:
    """Distance [m] of every block, whatever its world, to a point, or to one for each.

    Zero where a block holds the point.
    """
    keys = storage.keys[: storage.count]
    edge = 8 * voxel_size
    least = (unmorton(keys & ((1 << KEY_BITS) - 1)) - BIAS // 8).double() * edge
    apart = (least - centre).clamp(min=0) + (centre - least - edge).clamp(min=0)
    return torch.linalg.vector_norm(apart, dim=1)


def without_farthest(
    storage: Storage, scan: Scan, *, count: int, needed: Int[Tensor, " k"]
) -> Bool[Tensor, " s"] | None:
    """Say which blocks to keep when `count` are to go, those farthest from their sensor first.

    Args:
        storage: The blocks.
        scan: Whose worlds make room.
        count: How many are to go.
        needed: Keys of blocks that stay.

    Returns:
        None where there are not so many. Of blocks equally far, those with the least keys go.
    """
    keys = storage.keys[: storage.count]
    worlds, order = scan.worlds.to(keys.device).sort()
    at = torch.searchsorted(worlds, keys >> KEY_BITS).clamp(max=len(worlds) - 1)
    may_go = (worlds[at] == keys >> KEY_BITS) & ~torch.isin(keys, needed)
    if count > int(may_go.sum()):
        return None
    origins = scan.origins.to(keys.device)[order][at]
    distance = block_distances(storage, scan.voxel_size, origins)
    keep = torch.ones_like(may_go)
    by_key = keys.argsort()
    ranked = torch.where(may_go, distance, -1.0)[by_key].argsort(descending=True, stable=True)
    keep[by_key[ranked[:count]]] = False
    return keep
