"""The arrays that hold a map: blocks of voxels by slot, and a hash table from keys to slots."""

import weakref
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import CELLS, KEY_BITS

UNKNOWN = -128
"""Log-odds of a voxel that no scan has touched."""
EMPTY = -1
"""Key of a free place in the table."""
BLOCK_BYTES = CELLS + 2 * 64 + 8
"""Bytes of a block: log-odds, two masks, key."""
PLACE_BYTES = 16
LEAST_CAPACITY = 64
SUMMARISED = 1 << 14
"""Blocks summarised at a time, which takes some 4 kB each."""


class Follower(Protocol):
    """What holds something for every block, by slot."""

    def keep(self, order: Int[Tensor, " n"]) -> None:
        """Follow `Storage.keep`: slot i is what slot order[i] was."""


class Storage:
    """Blocks of 8 × 8 × 8 voxels.

    Slots 0 … count − 1 are in use. Voxels of a block are in Morton order, so that eight
    consecutive ones are an octant and a mask's 64-bit word is a cube of 4 × 4 × 4.

    Args:
        device: Where the arrays live.
    """

    keys: Int[Tensor, " S"]
    """`world << KEY_BITS | Morton code of the block`."""
    log_odds: Int[Tensor, "S 512"]
    """int8; `UNKNOWN` where nothing was seen."""
    known: Int[Tensor, "S 8"]
    """A bit per voxel: whether it was seen."""
    occupied: Int[Tensor, "S 8"]
    """A bit per voxel: whether it counts as occupied."""
    table: Int[Tensor, "P 2"]
    """Key and slot; open addressing, at most 60 % full. Only the compiled kernels use it."""
    counter: Int[Tensor, " 1"]
    """Slots in use: on the device, so that kernels take slots without asking the host."""
    followers: weakref.WeakSet[Follower]
    """What is told when blocks move, for as long as others hold it."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.followers = weakref.WeakSet()
        self._allocate(LEAST_CAPACITY)

    def __getstate__(self) -> dict[str, Any]:
        # What follows belongs to others, and is not copied with the arrays.
        return self.__dict__ | {"followers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"followers": weakref.WeakSet()}

    @property
    def count(self) -> int:
        """Slots in use; waits for the device."""
        return int(self.counter)

    @count.setter
    def count(self, slots: int) -> None:
        self.counter.fill_(slots)

    @property
    def capacity(self) -> int:
        """Slots S."""
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = (self.keys, self.log_odds, self.known, self.occupied, self.table)
        return sum(part.nbytes for part in parts)

    @staticmethod
    def bytes_for(capacity: int) -> int:
        """Bytes of the arrays with that many slots."""
        return capacity * BLOCK_BYTES + _places(capacity) * PLACE_BYTES

    @staticmethod
    def capacity_within(nbytes: int) -> int:
        """Largest capacity whose arrays take no more bytes."""
        fits, exceeds = 0, 1 + nbytes // BLOCK_BYTES
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if Storage.bytes_for(middle) <= nbytes:
                fits = middle
            else:
                exceeds = middle
        return fits

    @staticmethod
    def key(world: int | Int[Tensor, "*n"], block: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Keys of blocks, given by their Morton codes, in a world."""
        return block | world << KEY_BITS

    def find(self, keys: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Slots of keys, −1 where there is none; by search, without the table."""
        count = self.count
        if not count:
            return torch.full_like(keys, -1)
        ordered, slot = self.keys[:count].sort()
        at = torch.searchsorted(ordered, keys).clamp(max=count - 1)
        return torch.where(ordered[at] == keys, slot[at], -1)

    def append(self, keys: Int[Tensor, " n"]) -> None:
        """Give slots to new keys; there is room for them, and the table is not told."""
        begin = self.count
        end = begin + len(keys)
        if end > self.capacity:
            raise InvalidValueError("blocks", end, f"up to {self.capacity}")
        self.keys[begin:end] = keys
        self.log_odds[begin:end] = UNKNOWN
        self.known[begin:end] = 0
        self.occupied[begin:end] = 0
        self.count = end

    def grow(self, capacity: int) -> None:
        """Make room; what is held stays in its slot, and the table is not told."""
        old = (self.keys, self.log_odds, self.known, self.occupied)
        self._allocate(capacity)
        new = (self.keys, self.log_odds, self.known, self.occupied)
        count = self.count
        for source, target in zip(old, new, strict=True):
            target[:count] = source[:count]

    def keep(self, slots: Int[Tensor, " n"]) -> None:
        """Drop all blocks but these, in ascending order; the table is not told.

        Those beyond the first n slots move to where others left.
        """
        count = len(slots)
        stays = torch.zeros(self.count, dtype=torch.bool, device=self.device)
        stays[slots] = True
        order = torch.arange(count, device=self.device)
        order[~stays[:count]] = slots[slots >= count]
        for follower in self.followers:  # first: what they raise leaves the map whole
            follower.keep(order)
        (holes,) = (~stays[:count]).nonzero(as_tuple=True)
        for part in (self.keys, self.log_odds, self.known, self.occupied):
            part[holes] = part[order[holes]]
        self.count = count

    def summarise(self, slots: Int[Tensor, " n"], threshold: int) -> None:
        """Compute the masks of blocks from their log-odds."""
        for part in slots.split(SUMMARISED):
            value = self.log_odds[part]
            self.known[part] = _pack(value != UNKNOWN)
            self.occupied[part] = _pack(value >= threshold)

    def _allocate(self, capacity: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        # All of them, and only then in place of the old ones: memory may run out in between.
        made = (
            zeros(capacity),
            zeros(capacity, CELLS, dtype=torch.int8),
            zeros(capacity, 8),
            zeros(capacity, 8),
            torch.full((_places(capacity), 2), EMPTY, device=self.device),
        )
        self.keys, self.log_odds, self.known, self.occupied, self.table = made


def _places(capacity: int) -> int:
    """Places of a table that is at most 60 % full; a power of two."""
    return 1 << max(4, (capacity * 5 // 3).bit_length())


def _pack(bits: Tensor) -> Int[Tensor, "n 8"]:
    """Pack 512 booleans per row into eight words."""
    place = torch.arange(64, device=bits.device)
    # Bit 63 is the sign; the sum wraps to it.
    return (bits.view(-1, 8, 64).to(torch.int64) << place).sum(-1)
