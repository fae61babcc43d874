"""Reading one map in the frame of another, voxel by voxel, so that the two can be added."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import BIAS, CELLS, KEY_BITS, morton, unmorton
from engram.kernels.queries import VoxelQueries
from engram.kernels.storage import UNKNOWN, Storage

BLOCKS_AT_ONCE = 1 << 12
"""Blocks that are read together; bounds memory, not the result."""


def seen_from(
    other: VoxelQueries, pose_other_to_map: Float[Tensor, "4 4"], device: torch.device
) -> Iterator[tuple[Int[Tensor, " k"], Int[Tensor, "k 512"]]]:
    """Read another map at the centres of voxels of this one.

    Every voxel here takes what the other map holds at its centre, so that a turned surface gets
    no holes; where the grids coincide it is a copy.

    Args:
        other: A map with voxels of the same size.
        pose_other_to_map: Rigid, float64.
        device: Where the result goes.

    Yields:
        Keys of blocks, sorted and each once in all, and their log-odds, int8.
    """
    inverse = torch.linalg.inv(pose_other_to_map)
    cells = unmorton(torch.arange(CELLS, device=other.device))
    for world, blocks in _touched(other, pose_other_to_map):
        for part in blocks.split(BLOCKS_AT_ONCE):
            voxel = (8 * unmorton(part)[:, None] + cells).view(-1, 3) - BIAS
            at = _transform((voxel.double() + 0.5) * other.voxel_size, inverse)
            source = (at * (1 / other.voxel_size)).floor().long()
            inside = ((source >= -BIAS) & (source < BIAS)).all(1)
            code = morton(torch.where(inside[:, None], source, 0) + BIAS)
            place = torch.where(inside, other.kernel.locate(other.storage, code, world), -1)
            value = other.storage.log_odds.view(-1)[place.clamp(min=0)]
            value = torch.where(place < 0, UNKNOWN, value).view(-1, CELLS).to(torch.int8)
            held = (value != UNKNOWN).any(1)
            yield Storage.key(world, part[held]).to(device), value[held].to(device)


def _touched(
    other: VoxelQueries, pose: Float[Tensor, "4 4"]
) -> Iterator[tuple[int, Int[Tensor, " k"]]]:
    """Codes of the blocks, sorted, that the other map's blocks may reach into, world by world."""
    storage = other.storage
    keys = storage.keys[: storage.count]
    edge = 8 * other.voxel_size
    radius = 4 * 3**0.5 + 1e-6 * 8  # [voxel], around a block, however it is turned
    for world in (keys >> KEY_BITS).unique().tolist():
        block = unmorton(keys[keys >> KEY_BITS == world] & ((1 << KEY_BITS) - 1))
        centre = _transform((block.double() + 0.5 - BIAS / 8) * edge, pose) / edge + BIAS / 8
        low, high = ((centre + side * radius / 8).floor().long() for side in (-1, 1))
        steps = torch.cartesian_prod(*3 * [torch.arange(3, device=low.device)])
        near = low[:, None] + steps
        found = near[(near <= high[:, None]).all(-1)]
        found = found[((found >= 0) & (found < 2 * BIAS // 8)).all(1)]
        yield world, morton(found).unique()


def _transform(points: Float[Tensor, "n 3"], pose: Float[Tensor, "4 4"]) -> Float[Tensor, "n 3"]:
    return points @ pose[:3, :3].mT + pose[:3, 3]
