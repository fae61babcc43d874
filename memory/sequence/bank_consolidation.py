"""What a full memory bank gives up for a new entry: the consolidation rules."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.memory.sequence.bank_slots import Slots, removed, select_rows

MergedTime = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The time of a merged entry, given the times of the older and the newer and the newer's share."""


def earlier_time(older: Tensor, newer: Tensor, share: Tensor) -> Tensor:
    """Return the time of the older entry."""
    del newer, share
    return older


def mean_time(older: Tensor, newer: Tensor, share: Tensor) -> Tensor:
    """Return the mean of both times, however many inputs each entry holds."""
    del share
    return (older + newer) / 2


def counted_time(older: Tensor, newer: Tensor, share: Tensor) -> Tensor:
    """Return the mean of both times weighted as the entries are."""
    return older + share * (newer - older)


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
        unit = F.normalize(entries, dim=-1)
        return (unit[:, :-1] * unit[:, 1:]).sum((-2, -1)) / entries.shape[2]

    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Put the average into the older one's slot and drop the newer."""
        kept = removed(slots, torch.where(full, best + 1, 0))
        # Where the bank was not full, slot `best` now holds row best + 1: merged with itself.
        pair = torch.stack([best + ~full, best + 1], dim=1)
        older, newer = select_rows(slots.entries, pair).unbind(1)
        count, time, since = (
            part.gather(1, pair) for part in (slots.count, slots.time, slots.since)
        )
        counts = torch.where(full, count.sum(1), count[:, 1])
        share = (
            (count[:, 1] / counts).to(time.dtype)
            if self.counted
            else torch.full_like(time[:, 0], 0.5)
        )
        row = torch.arange(len(best), device=best.device)
        share_of_tokens = share[:, None, None].to(older.dtype)
        return Slots(
            kept.entries.index_put((row, best), torch.lerp(older, newer, share_of_tokens)),
            kept.time.index_put((row, best), self.time(time[:, 0], time[:, 1], share)),
            kept.count.index_put((row, best), counts),
            kept.since.index_put((row, best), since.amax(1)),
            kept.usage,
        )


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
        return torch.zeros_like(slots.usage[:, 1:])

    def make_room(self, slots: Slots, best: Int[Tensor, " B"], full: Bool[Tensor, " B"]) -> Slots:
        """Drop the first, which is unused where the bank was not full."""
        del best, full
        return Slots(*(part[:, 1:] for part in slots))
