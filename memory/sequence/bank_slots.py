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
    count: Int[Tensor, "B L"]
    """How many inputs were merged into the entry, int64."""
    since: Int[Tensor, "B L"]
    """Writes since the oldest input in the entry that gradient still reaches, int64; −1 where it
    reaches none. Only where gradient is cut after some writes; zero elsewhere."""
    usage: Float[Tensor, "B L"]
    """Attention received since the entry was written, where a rule asks for it; zero elsewhere.

    One read hands out 1 in all."""


def empty_slots(anchor: Tensor, batch: int, capacity: int, tokens: int, width: int) -> Slots:
    """Return unused slots on the device and in the precision of `anchor`.

    Times and usage are float32 at least: bfloat16 cannot tell step 257 from 256.
    """
    precise = torch.promote_types(anchor.dtype, torch.float32)
    number = torch.zeros(batch, capacity, dtype=precise, device=anchor.device)
    counter = torch.zeros(batch, capacity, dtype=torch.int64, device=anchor.device)
    entries = anchor.new_zeros(batch, capacity, tokens, width)
    return Slots(entries, number, counter, counter.clone(), number.clone())


def in_use(age: Int[Tensor, " B"], capacity: int) -> Bool[Tensor, "B L"]:
    """Tell which slots are in use after `age` inputs."""
    return torch.arange(capacity, 0, -1, device=age.device) <= age[:, None]


def select_rows(rows: Float[Tensor, "B R N D"], index: Int[Tensor, "B K"]) -> Tensor:
    """Take K rows of every environment: `[B, K, N, D]`."""
    batch, number, tokens, width = rows.shape
    if batch > 1:
        index = index + torch.arange(0, batch * number, number, device=index.device)[:, None]
    taken = rows.reshape(batch * number, -1).index_select(0, index.flatten())
    return taken.view(batch, -1, tokens, width)


def cleaned(slots: Slots, used: Bool[Tensor, "B L"]) -> Slots:
    """Put zeros into the slots that are not in use, whatever they hold."""
    # A selection, not a product: NaN times zero is NaN. Several times as fast as torch.where.
    capacity = used.shape[1]
    slot = torch.arange(capacity, device=used.device)
    nothing = torch.zeros_like(slots.entries[:, :1])
    rows = torch.cat([slots.entries, nothing], dim=1)
    entries = select_rows(rows, torch.where(used, slot, capacity))
    return slots._replace(
        entries=entries,
        time=torch.where(used, slots.time, 0.0),
        usage=torch.where(used, slots.usage, 0.0),
    )


def appended(slots: Slots, new: Float[Tensor, "B N D"], time: Int[Tensor, " B"]) -> Slots:
    """Write an entry behind the last one: L+1 slots."""
    one = torch.ones_like(slots.count[:, :1])
    return Slots(
        torch.cat([slots.entries, new[:, None].to(slots.entries.dtype)], dim=1),
        torch.cat([slots.time, time[:, None].to(slots.time.dtype)], dim=1),
        torch.cat([slots.count, one], dim=1),
        torch.cat([slots.since + (slots.since >= 0), one - 1], dim=1),
        torch.cat([slots.usage, torch.zeros_like(slots.usage[:, :1])], dim=1),
    )


def removed(slots: Slots, gone: Int[Tensor, " B"]) -> Slots:
    """Take one slot out of every environment; the others move up."""
    slot = torch.arange(slots.time.shape[1] - 1, device=gone.device)
    source = slot + (slot >= gone[:, None])
    return Slots(
        select_rows(slots.entries, source),
        *(part.gather(1, source) for part in slots[1:]),
    )


def truncated(slots: Slots, writes: int) -> Slots:
    """Cut the gradient of the entries that lie `writes` writes back or more."""
    live = slots.since < writes
    entries = slots.entries
    if entries.requires_grad:
        entries = torch.where(live[:, :, None, None], entries, entries.detach())
    return slots._replace(entries=entries, since=torch.where(live, slots.since, -1))
