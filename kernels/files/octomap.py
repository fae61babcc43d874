"""Voxel maps as OctoMap's binary tree files (`.bt`), to and from other programs."""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from engram.kernels.checks import checked_world
from engram.kernels.errors import DataError, InvalidValueError
from engram.kernels.files import octomap_tree
from engram.kernels.files.octomap_tree import FREE_LEAF, OCCUPIED_LEAF, Blocks, Leaves
from engram.kernels.files.whole import whole_file
from engram.kernels.grid import BIAS, morton, unmorton
from engram.kernels.kernel import Kernel
from engram.kernels.regions import blocks_of_world
from engram.kernels.storage import UNKNOWN, Storage
from engram.kernels.voxel_map import VoxelMap

FIRST_LINE = "# Octomap OcTree binary file"
SECOND_LINE = "# (feel free to add / change comments, but leave the first line as it is!)"
ID = "OcTree"
REACH = 1 << (octomap_tree.DEPTH - 1)
"""Voxels from the origin to the border of an OctoMap, on each axis."""
CORNER = (BIAS - REACH) // 8
"""Where OctoMap's grid begins in ours, in blocks, on each axis."""
MOST_BLOCKS = 1 << 21
"""Blocks that a file may unfold to, 1.4 GB: a single leaf can stand for 2⁴⁵ voxels."""


class Header(NamedTuple):
    """What a file says before its tree."""

    size: int
    """Nodes, leaves included; an empty tree has none."""
    resolution: float
    """Edge of a voxel [m]."""


def write_octomap(held: VoxelMap, path: str | Path, *, world: int = 0) -> None:
    """Write a world as OctoMap's `writeBinary` does: each voxel occupied, free or unknown.

    The same voxels give the same bytes. The file appears whole or not at all.

    Deviations from OctoMap: all is pruned that can be, where OctoMap stops at the first level that
    has nothing to prune; and a resolution that its six digits do not hold is written in full.

    Args:
        held: The map.
        path: The file, by custom `*.bt`.
        world: Which of the map's worlds.

    Raises:
        InvalidValueError: If the world reaches beyond OctoMap's 2¹⁶ voxels per axis.
    """
    word = octomap_tree.encode(_to_blocks(held, checked_world(world)))
    short = f"{held.voxel_size:g}"
    resolution = short if float(short) == held.voxel_size else repr(held.voxel_size)
    lines = [
        FIRST_LINE,
        SECOND_LINE,
        "#",
        f"id {ID}",
        f"size {octomap_tree.count_nodes(word)}",
        f"res {resolution}",
        "data\n",
    ]
    with whole_file(Path(path)) as file:
        file.write("\n".join(lines).encode())
        file.write(word.astype("<u2").tobytes())


def read_octomap(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    kernel: Kernel | None = None,
) -> VoxelMap:
    """Read a file that OctoMap's `writeBinary` or `write_octomap` wrote, into world 0.

    Occupied voxels get the greatest log-odds and free ones the least, as OctoMap does it.

    Args:
        path: The file, by custom `*.bt`.
        device: Where the map lives.
        kernel: What computes; the compiled kernels where there are any, unless given.

    Raises:
        DataError: If the file is no such tree, damaged, or unfolds to more than 2²¹ blocks.
    """
    try:
        header, leaves = _parse(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable binary OctoMap: {error}") from error
    made = VoxelMap(header.resolution, device=device, kernel=kernel)
    _fill(made, octomap_tree.unfold(leaves))
    return made


def _parse(content: bytes) -> tuple[Header, list[Leaves]]:
    header, data = _split(content)
    if len(data) % 2:
        raise ValueError("it ends within a node")
    word = np.frombuffer(data, dtype="<u2").astype(np.uint16)
    leaves = octomap_tree.decode(word)
    nodes = octomap_tree.count_nodes(word)
    if nodes != header.size:
        raise ValueError(f"size is {header.size}; allowed: {nodes}, the nodes that it holds")
    blocks = octomap_tree.count_blocks(leaves)
    if blocks > MOST_BLOCKS:
        allowed = f"up to {MOST_BLOCKS}"
        raise ValueError(f"it unfolds to {blocks} blocks of 8 × 8 × 8 voxels; allowed: {allowed}")
    return header, leaves


def _split(content: bytes) -> tuple[Header, bytes]:
    """Read the lines of the header; return it and what follows."""
    stream = io.BytesIO(content)
    first = stream.readline()
    if not first.startswith(FIRST_LINE.encode()):
        raise ValueError(f"it begins with {first.rstrip()[:40]!r}; allowed: {FIRST_LINE!r}")
    told: dict[str, str] = {}
    for line in stream:
        key, *value = line.decode(errors="replace").split(maxsplit=1) or ["#"]
        if key == "data":
            return _checked(told), stream.read()
        if key in ("id", "size", "res"):
            told[key] = "".join(value).strip()
        elif not key.startswith("#"):
            raise ValueError(f"its header has {key[:40]!r}; allowed: id, size, res, data")
    raise ValueError("its header does not end with a line 'data'")


def _checked(told: dict[str, str]) -> Header:
    if told.get("id") != ID:
        raise ValueError(f"id is {told.get('id')!r}; allowed: {ID!r}")
    try:
        header = Header(int(told.get("size", "")), float(told.get("res", "")))
    except ValueError:
        seen = f"size is {told.get('size')!r} and res {told.get('res')!r}"
        raise ValueError(f"{seen}; allowed: a whole number and a number") from None
    if not (header.resolution > 0 and math.isfinite(header.resolution)):
        raise ValueError(f"res is {header.resolution}; allowed: finite numbers above 0 [m]")
    return header


def _to_blocks(held: VoxelMap, world: int) -> Blocks:
    slots, blocks = blocks_of_world(held.storage, world)
    value = held.storage.log_odds[slots]
    state = torch.zeros_like(value, dtype=torch.uint8)
    state.masked_fill_(value != UNKNOWN, FREE_LEAF)
    state.masked_fill_(value >= held.evidence.threshold, OCCUPIED_LEAF)
    seen = (state > 0).any(1)
    block = unmorton(blocks[seen]) - CORNER
    if bool(((block < 0) | (block >= REACH // 4)).any()):
        corner = 8 * block - REACH
        found = f"blocks from {corner.amin(0).tolist()} to {(corner.amax(0) + 7).tolist()}"
        raise InvalidValueError(f"world {world}", found, f"voxels -{REACH} to {REACH - 1}")
    return Blocks(morton(block).numpy(force=True), state[seen].numpy(force=True))


def _fill(made: VoxelMap, blocks: Blocks) -> None:
    """Put blocks into an empty map."""
    storage, count = made.storage, len(blocks.code)
    if count > storage.capacity:
        storage.grow(count)
    code = morton(unmorton(torch.from_numpy(blocks.code)) + CORNER)
    storage.append(Storage.key(0, code).to(storage.device))
    state = torch.from_numpy(blocks.state).to(storage.device)
    value = storage.log_odds[:count]
    value.masked_fill_(state == FREE_LEAF, made.evidence.low)
    value.masked_fill_(state == OCCUPIED_LEAF, made.evidence.high)
    storage.summarise(torch.arange(count, device=storage.device), made.evidence.threshold)
    made.kernel.rehash(storage)
