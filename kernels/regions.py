"""Parts of a map: boxes, camera frusta, and the map as an octree, at any level."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import BIAS, CELLS, KEY_BITS, VOXEL_BITS, unmorton
from engram.kernels.scan import Camera
from engram.kernels.storage import UNKNOWN, Storage

BLOCK_MASK = (1 << KEY_BITS) - 1


class Nodes(NamedTuple):
    """Nodes of the octree at one level, those that hold anything, in Morton order."""

    level: int
    """A node's edge is 2^level voxels; 0 are voxels, 3 blocks, `VOXEL_BITS` the root."""
    node: Int[Tensor, "n 3"]
    """Coordinates floor(p / (2^level · voxel_size)), int32; of the root, zeros."""
    occupied: Int[Tensor, " n"]
    """Occupied voxels in the node."""
    free: Int[Tensor, " n"]
    unknown: Int[Tensor, " n"]


class KnownVoxels(NamedTuple):
    """Known voxels of a region, in Morton order."""

    voxel: Int[Tensor, "n 3"]
    """Coordinates floor(p / voxel_size), int32."""
    occupied: Bool[Tensor, " n"]
    """Whether occupied; free otherwise."""


class View(NamedTuple):
    """What a camera looks at."""

    camera: Camera
    pose_camera_to_world: Float[Tensor, "4 4"]
    """float64, rigid."""
    depth: tuple[float, float]
    """Least and greatest depth [m]."""


def nodes(storage: Storage, level: int, world: int, threshold: int) -> Nodes:
    """Sum a world up to nodes of 2^level voxels."""
    if not 0 <= level <= VOXEL_BITS:
        raise InvalidValueError("level", level, f"0 to {VOXEL_BITS}")
    slots, blocks = blocks_of_world(storage, world)
    value = storage.log_odds[slots]
    within = 8 ** min(level, 3)
    known, occupied = (
        flags.view(len(slots), CELLS // within, within).sum(-1)
        for flags in (value != UNKNOWN, value >= threshold)
    )
    if level < 3:
        children = torch.arange(CELLS // within, device=blocks.device)
        code = blocks[:, None] * len(children) + children
        there = known > 0
        code, known, occupied = code[there], known[there], occupied[there]
    else:
        code, index = (blocks >> 3 * (level - 3)).unique(return_inverse=True)
        known, occupied = (
            torch.zeros_like(code).scatter_add(0, index, part[:, 0]) for part in (known, occupied)
        )
    # The root's own corner is the grid's; every other node lies on one side of the centre.
    node = (unmorton(code) - (BIAS >> level)).int()
    return Nodes(level, node, occupied, known - occupied, 8**level - known)


def box(
    storage: Storage,
    least: Int[Tensor, " 3"],
    most: Int[Tensor, " 3"],
    world: int,
    threshold: int,
) -> KnownVoxels:
    """Return the known voxels with coordinates least … most, both included."""
    slots, blocks = blocks_of_world(storage, world)
    corner = 8 * unmorton(blocks) - BIAS
    (near,) = ((corner <= most) & (corner + 7 >= least)).all(1).nonzero(as_tuple=True)
    found = _known(storage, slots[near], blocks[near], threshold)
    inside = ((found.voxel >= least) & (found.voxel <= most)).all(1)
    return KnownVoxels(found.voxel[inside], found.occupied[inside])


def frustum(
    storage: Storage, view: View, voxel_size: float, world: int, threshold: int
) -> KnownVoxels:
    """Return the known voxels whose centres a camera sees, whatever stands before them."""
    slots, blocks = blocks_of_world(storage, world)
    pose, depth = view.pose_camera_to_world, view.depth
    rotation, translation = pose[:3, :3], pose[:3, 3]

    def camera(centres: Tensor) -> Tensor:
        return (centres - translation) @ rotation

    # A block is kept unless the ball around it lies beyond one of the planes.
    middle = camera((8 * unmorton(blocks) - BIAS + 4).double() * voxel_size)
    radius = 4 * 3**0.5 * voxel_size
    planes = _planes(view.camera).to(middle.device)
    near = (middle @ planes.t() >= -radius).all(1)
    near &= (middle[:, 2] >= depth[0] - radius) & (middle[:, 2] <= depth[1] + radius)
    found = _known(storage, slots[near], blocks[near], threshold)
    at = camera((found.voxel.double() + 0.5) * voxel_size)
    seen = (at @ planes.t() >= 0).all(1) & (at[:, 2] >= depth[0]) & (at[:, 2] <= depth[1])
    return KnownVoxels(found.voxel[seen], found.occupied[seen])


def _planes(camera: Camera) -> Float[Tensor, "4 3"]:
    """Unit normals, pointing inwards, of the planes through the image's borders."""
    left, right = -0.5 - camera.cx, camera.width - 0.5 - camera.cx
    top, bottom = -0.5 - camera.cy, camera.height - 0.5 - camera.cy
    normals = [
        [camera.fx, 0, -left],
        [-camera.fx, 0, right],
        [0, camera.fy, -top],
        [0, -camera.fy, bottom],
    ]
    planes = torch.tensor(normals, dtype=torch.float64)
    return planes / planes.norm(dim=1, keepdim=True)


def blocks_of_world(storage: Storage, world: int) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
    """Return the slots of a world's blocks and their Morton codes, sorted by these."""
    keys = storage.keys[: storage.count]
    (slots,) = (keys >> KEY_BITS == world).nonzero(as_tuple=True)
    slots = slots[keys[slots].argsort()]
    return slots, keys[slots] & BLOCK_MASK


def _known(
    storage: Storage, slots: Int[Tensor, " s"], blocks: Int[Tensor, " s"], threshold: int
) -> KnownVoxels:
    value = storage.log_odds[slots]
    block, cell = (value != UNKNOWN).nonzero(as_tuple=True)
    voxel = (unmorton(blocks[block] * CELLS + cell) - BIAS).int()
    return KnownVoxels(voxel, value[block, cell] >= threshold)
