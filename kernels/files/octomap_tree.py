"""OctoMap's binary tree: two bytes for each inner node, depth first, from and to blocks of voxels.

Two bits for each child, the first child's lowest: unknown, free, occupied, or an inner node that
follows. Eight equal leaves are one. Children, voxels and blocks are in Morton order.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt16

from engram.kernels.grid import CELLS

DEPTH = 16
"""Levels below the root: the bits of a voxel's coordinate on one axis."""
BLOCK_DEPTH = DEPTH - 3
UNKNOWN_LEAF, FREE_LEAF, OCCUPIED_LEAF, INNER = range(4)
"""What two bits say of a child."""
ALL_FREE, ALL_OCCUPIED = 0x5555, 0xAAAA
"""Nodes whose children are equal leaves."""
CHILDREN = np.arange(8)


class Blocks(NamedTuple):
    """Blocks of 8 × 8 × 8 voxels."""

    code: Int[np.ndarray, " n"]
    """Their Morton codes, ascending, of the 2¹³ blocks per axis that an OctoMap has."""
    state: UInt8[np.ndarray, "n 512"]
    """Of each voxel: `UNKNOWN_LEAF`, `FREE_LEAF` or `OCCUPIED_LEAF`."""


class Leaves(NamedTuple):
    """Leaves at one depth."""

    code: Int[np.ndarray, " n"]
    """Their Morton codes, of the 2^depth nodes per axis there."""
    state: UInt8[np.ndarray, " n"]
    """`FREE_LEAF` or `OCCUPIED_LEAF`."""


def encode(blocks: Blocks) -> UInt16[np.ndarray, " m"]:
    """Return the inner nodes of the pruned tree, depth first.

    Level by level from the voxels to the root. An inner node comes before all that begins where it
    begins, so nodes sorted by the place of their first voxel, then by depth, are depth first.
    """
    if not len(blocks.code):
        return np.zeros(0, dtype=np.uint16)
    places, found = [], []
    code = (blocks.code[:, None] * (CELLS // 8) + np.arange(CELLS // 8)).ravel()
    word = np.zeros(len(code), dtype=np.uint16)
    for child, state in enumerate(blocks.state.reshape(-1, 8).T):
        word |= state.astype(np.uint16) << np.uint16(2 * child)
    known = word != 0
    code, word = code[known], word[known]
    for depth in reversed(range(DEPTH)):
        inner = (word != ALL_FREE) & (word != ALL_OCCUPIED)
        places.append(code[inner] << 3 * (DEPTH - depth) + 4 | depth)
        found.append(word[inner])
        state = np.where(inner, INNER, word & 3)
        first = np.flatnonzero(np.diff(code >> 3, prepend=-1))
        word = np.bitwise_or.reduceat(state << 2 * (code & 7), first).astype(np.uint16)
        code = code[first] >> 3
    return np.concatenate(found)[np.concatenate(places).argsort()]


def count_nodes(word: UInt16[np.ndarray, " m"]) -> int:
    """Count the nodes of a tree, leaves included, as OctoMap does."""
    if not len(word):
        return 0
    return 1 + int(np.unpackbits(((word | word >> 1) & ALL_FREE).view(np.uint8)).sum())


def decode(word: UInt16[np.ndarray, " m"]) -> list[Leaves]:
    """Return the leaves at depths 1 … 16.

    Before node i is read, s_i = 1 + Σ_{j<i} (c_j − 1) nodes are announced and not yet read, where
    node j has c_j inner children. Those of node i are read after it, child k where s first falls
    to s_i − 1 + c_i − k.

    Raises:
        ValueError: If these are not the inner nodes of one tree of that depth.
    """
    if not len(word):
        nothing = np.zeros(0, dtype=np.int64)
        return [Leaves(nothing, nothing.astype(np.uint8))] * DEPTH
    announced = np.zeros(len(word), dtype=np.int64)
    for child in range(8):
        announced += word >> 2 * child & 3 == INNER
    due = np.concatenate([[1], 1 + (announced - 1).cumsum()])
    if due[-1] > 0:
        raise ValueError(f"it ends where {due[-1]} more nodes are due")
    if (due[:-1] <= 0).any():
        over = len(word) - int((due <= 0).argmax())
        raise ValueError(f"it goes on for {over} nodes after its last")
    if not word.all():
        raise ValueError(f"inner node {int(word.argmin())} has no child")
    due = due[:-1]
    order = due.argsort(kind="stable")
    ranked = due[order] * len(word) + order
    leaves = []
    at, code = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for _ in range(DEPTH):
        state = (word[at][:, None] >> 2 * CHILDREN & 3).astype(np.uint8)  # [nodes, 8]
        child = code[:, None] * 8 + CHILDREN
        leaf = (state == FREE_LEAF) | (state == OCCUPIED_LEAF)
        leaves.append(Leaves(child[leaf], state[leaf]))
        inner = state == INNER
        falls_to = (due + announced)[at][:, None] - inner.cumsum(1)
        wanted = (falls_to * len(word) + at[:, None])[inner]
        at, code = order[np.searchsorted(ranked, wanted, side="right")], child[inner]
    if len(at):
        raise ValueError(f"{len(at)} nodes have children deeper than {DEPTH} levels")
    return leaves


def count_blocks(leaves: list[Leaves]) -> int:
    """Count the blocks that leaves touch."""
    large = sum(8 ** (BLOCK_DEPTH - 1 - i) * len(leaves[i].code) for i in range(BLOCK_DEPTH))
    return large + len(_shared(leaves))


def unfold(leaves: list[Leaves]) -> Blocks:
    """Return the voxels that leaves stand for."""
    shared = _shared(leaves)
    codes, fills = [shared], [np.zeros(len(shared), dtype=np.uint8)]
    for depth, each in enumerate(leaves[:BLOCK_DEPTH], 1):
        within = 8 ** (BLOCK_DEPTH - depth) if len(each.code) else 0
        codes.append((each.code[:, None] * within + np.arange(within)).ravel())
        fills.append(each.state.repeat(within))
    code = np.concatenate(codes)
    order = code.argsort()
    code = code[order]
    state = np.concatenate(fills)[order].repeat(CELLS).reshape(-1, CELLS)
    for depth, each in enumerate(leaves[BLOCK_DEPTH:], BLOCK_DEPTH + 1):
        parts = 8 ** (depth - BLOCK_DEPTH)
        row = np.searchsorted(code, each.code // parts)
        state.reshape(-1, parts, CELLS // parts)[row, each.code % parts] = each.state[:, None]
    return Blocks(code, state)


def _shared(leaves: list[Leaves]) -> Int[np.ndarray, " n"]:
    """Codes of the blocks that hold leaves smaller than a block."""
    small = enumerate(leaves[BLOCK_DEPTH:], 1)
    return np.unique(np.concatenate([each.code >> 3 * above for above, each in small]))
