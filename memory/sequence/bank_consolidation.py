"""What a full memory bank gives up for a new entry: the consolidation rules."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.memory.sequence.bank_slots import Slots, joined, removed, selected

MergedTime = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""The time of a merged entry, given the times of the older and the newer and the newer's share."""


def earlier_time(older: Tensor, newer: Tensor, share: Tensor | float) -> Tensor:
    """Return the time of the older entry."""
    del newer, share
    return older


def mean_time(older: Tensor, newer: Tensor, share: Tensor | float) -> Tensor:
    """Return the mean of both times, however many inputs each entry holds."""
    del share
    return torch.lerp(older, newer, 0.5)


def counted_time(older: Tensor, newer: Tensor, share: Tensor | float) -> Tensor:
    """Return the mean of both times weighted as the entries are."""
    return _between(older, newer, share)


class Consolidation(abc.ABC):
    """Makes room in a full bank: of L+1 entries, the new one last, L stay.

    A rule works on the device, on all environments at once, and decides without gradient.
    """

    reads_usage: bool = False
    """Whether the attention that entries receive must be recorded."""

    @abc.abstractmethod
    def scores(self, slots: Slots, now: Int[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """Rate L ways to make room; the highest is taken, the first among equals.

        Args:
            slots: L+1 entries, none of them unused where the rating counts.
            now: Time of the new entry.
        """

    @abc.abstractmethod
    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Return L of L+1 slots: the first one is dropped where the bank was not full.

        Args:
            slots: L+1 slots, the new entry last.
            best: Which of the L ways to take where it was.
            full: Whether all L slots before the new one are in use.
        """


@dataclass(frozen=True)
class AdjacentMerge(Consolidation):
    """Merges the two entries adjacent in time that are most alike (MemoryVLA, arXiv 2508.19236).

    The likeness of entries a, b is the mean over tokens i of cos(a_i, b_i). The merged entry is
    (1 − s) a + s b of the older a and the newer b.

    Args:
        counted: s is b's share of the inputs that both hold, so an entry is the average of all its
            inputs; otherwise, as published, s = 1/2, and of n inputs that join one after another
            the k-th last weighs 2^−k.
        time: The time of the merged entry.
    """

    counted: bool = False
    time: MergedTime = earlier_time

    def scores(self, slots: Slots, now: Int[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """Rate pairs by their likeness; one that holds a zero token scores zero for it."""
        del now
        entries = slots.entries.detach()
        norm = torch.linalg.vector_norm(entries, dim=-1)
        dot = (entries[:, :-1] * entries[:, 1:]).sum(-1)
        return (dot / (norm[:, :-1] * norm[:, 1:]).clamp(min=1e-8)).mean(-1)

    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Put the average into the older one's slot and drop the newer."""
        # The slot of the older one; −1 where there is room, and row 0, which is unused, goes.
        target = torch.where(full, best, -1)
        pair = selected(slots, torch.stack([target.clamp(min=0), target + 1], dim=1))
        inputs = pair.inputs.sum(1, keepdim=True).clamp(min=1)  # unused slots may say 0
        share = pair.inputs[:, 1:].to(pair.time.dtype) / inputs if self.counted else 0.5
        older, newer = pair.time.chunk(2, 1)
        time = self.time(older, newer, share)
        older, newer = pair.entries.chunk(2, 1)
        merged = Slots(
            _between(older, newer, share),
            time,
            inputs,
            pair.since.amax(1, keepdim=True) if pair.since.shape[1] else pair.since,
            pair.usage.sum(1, keepdim=True) if pair.usage.shape[1] else pair.usage,
        )
        slot = torch.arange(slots.time.shape[1] - 1, device=target.device)
        source = slot + (slot > target[:, None])
        source = torch.where(slot == target[:, None], len(slot) + 1, source)
        return selected(joined(slots, merged), source)


def _between(older: Tensor, newer: Tensor, share: Tensor | float) -> Tensor:
    """Return (1 − share) · older + share · newer, of tensors `[B, 1, ...]`."""
    if isinstance(share, Tensor):
        share = share.view(-1, *[1] * (older.ndim - 1)).to(older.dtype)
    return torch.lerp(older, newer, share)


@dataclass(frozen=True)
class LeastUsed(Consolidation):
    """Drops the entry that was attended to least for its age (XMem, arXiv 2207.07115).

    The usage of an entry is the attention it received, summed over its tokens and averaged over
    queries, heads and layers, divided by the number of reads it has lived through. The new entry
    stays. XMem keeps prototypes of what it drops; this rule does not.
    """

    reads_usage: bool = True

    def scores(self, slots: Slots, now: Int[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """Rate entries by how little they are used."""
        lifetime = now[:, None] - slots.time[:, :-1]
        return -slots.usage[:, :-1] / lifetime.clamp(min=1)

    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Drop the one that was chosen."""
        return removed(slots, torch.where(full, best, 0))


@dataclass(frozen=True)
class Oldest(Consolidation):
    """Drops the oldest entry: a window over the last L inputs."""

    def scores(self, slots: Slots, now: Int[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """Rate all alike, so that the first is taken."""
        del now
        return torch.zeros_like(slots.time[:, 1:])

    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Drop the first, which is unused where the bank was not full."""
        del best, full
        return Slots(*(part[:, 1:] for part in slots))
