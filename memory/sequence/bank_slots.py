"""The entries of a memory bank: fixed slots, newest last, and what is done to them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Slots(NamedTuple):
    """L entries of one stream in order of time, newest last; the unused slots come first.

    After n inputs of a scope the last min(n, L) slots are in use. The others hold anything.
    """

    entries: Float[Tensor, "B L N D"]
    """Tokens as they were written, or averages of them where entries were merged."""
    time: Float[Tensor, "B L"]
    """When the entry was written: inputs since its scope began; merging may make it a fraction."""
    inputs: Int[Tensor, "B L"]
    """How many inputs the entry holds, int64: 1, or more where entries were merged."""
    since: Int[Tensor, "B K"]
    """Writes since the oldest input in the entry that gradient still reaches, int64; −1 where it
    reaches none. No columns (K is 0, not L) unless gradient is cut after some writes."""
    usage: Float[Tensor, "B U"]
    """Attention received since the entry was written; one read hands out 1 in all. No columns
    (U is 0, not L) unless the consolidation rule asks for it."""


def empty_slots(
    anchor: Tensor, batch: int, capacity: int, tokens: int, width: int, *, since: bool, usage: bool
) -> Slots:
    """Return unused slots on the device and in the precision of `anchor`.

    Times and usage are float32 at least: bfloat16 cannot tell step 257 from 256.

    Args:
        anchor: A parameter.
        batch: Environments.
        capacity: Slots, L.
        tokens: Tokens of an entry.
        width: Features of a token.
        since: Whether writes since are counted.
        usage: Whether usage is measured.
    """
    precise = torch.promote_types(anchor.dtype, torch.float32)

    def zeros(columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, columns, dtype=dtype, device=anchor.device)

    return Slots(
        anchor.new_zeros(batch, capacity, tokens, width),
        zeros(capacity, precise),
        zeros(capacity, torch.int64),
        zeros(capacity if since else 0, torch.int64),
        zeros(capacity if usage else 0, precise),
    )


def in_use(age: Int[Tensor, " B"], capacity: int) -> Bool[Tensor, "B L"]:
    """Tell which slots are in use after `age` inputs."""
    return torch.arange(capacity, 0, -1, device=age.device) <= age[:, None]


def select_rows(rows: Float[Tensor, "B R N D"], index: Int[Tensor, "B K"]) -> Tensor:
    """Take K rows of every environment: `[B, K, N, D]`."""
    batch, number, tokens, width = rows.shape
    if batch > 1:
        index = index + torch.arange(0, batch * number, number, device=index.device)[:, None]
    # Whole rows are copied at once, where gather and torch.where go number by number.
    taken = rows.reshape(batch * number, -1).index_select(0, index.flatten())
    return taken.view(batch, -1, tokens, width)


def cleaned(slots: Slots, used: Bool[Tensor, "B L"]) -> Slots:
    """Put zeros into the slots that are not in use, whatever they hold."""
    # A selection, not a product: NaN times zero is NaN.
    capacity = used.shape[1]
    rows = torch.cat([slots.entries, torch.zeros_like(slots.entries[:, :1])], dim=1)
    index = torch.where(used, torch.arange(capacity, device=used.device), capacity)
    return slots._replace(
        entries=select_rows(rows, index),
        time=slots.time.masked_fill(~used, 0.0),
        usage=slots.usage.masked_fill(~used, 0.0) if slots.usage.shape[1] else slots.usage,
    )


def appended(slots: Slots, new: Float[Tensor, "B N D"], time: Int[Tensor, " B"]) -> Slots:
    """Write an entry behind the last one: L+1 slots."""
    time, since, usage = time[:, None], slots.since, slots.usage
    one = torch.ones_like(time)
    if since.shape[1]:
        since = torch.cat([torch.where(since < 0, -1, since + 1), one - 1], dim=1)
    if usage.shape[1]:
        usage = torch.cat([usage, torch.zeros_like(usage[:, :1])], dim=1)
    return Slots(
        torch.cat([slots.entries, new[:, None].to(slots.entries.dtype)], dim=1),
        torch.cat([slots.time, time.to(slots.time.dtype)], dim=1),
        torch.cat([slots.inputs, one], dim=1),
        since,
        usage,
    )


def joined(slots: Slots, more: Slots) -> Slots:
    """Put the slots of both side by side."""
    return Slots(*(torch.cat(parts, 1) for parts in zip(slots, more, strict=True)))


def selected(slots: Slots, source: Int[Tensor, "B K"]) -> Slots:
    """Take some of the slots of every environment, in the order given."""
    return Slots(
        select_rows(slots.entries, source),
        *(part.gather(1, source) if part.shape[1] else part for part in slots[1:]),
    )


def removed(slots: Slots, gone: Int[Tensor, " B"]) -> Slots:
    """Take one slot out of every environment; the older ones move up."""
    slot = torch.arange(slots.time.shape[1] - 1, device=gone.device)
    return selected(slots, slot + (slot >= gone[:, None]))


def truncated(slots: Slots, writes: int) -> Slots:
    """Cut the gradient of the entries that lie `writes` writes back or more."""
    live = slots.since < writes
    entries = slots.entries
    if entries.requires_grad:
        entries = torch.where(live[:, :, None, None], entries, entries.detach())
    return slots._replace(entries=entries, since=torch.where(live, slots.since, -1))
