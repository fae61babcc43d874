"""Consolidation worked out by hand: raw writes, one token of two features per entry."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engram.memory.sequence import AdjacentMerge, Bank, LeastUsed, Oldest, Streams
from engram.memory.sequence.bank import BankState
from engram.memory.sequence.bank_consolidation import (
    Consolidation,
    counted_time,
    mean_time,
)
from engram.memory.sequence.bank_slots import Slots

LIKE_THE_LAST = [[1.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 9.0]]
"""The first entry is unlike the others, which are alike."""


def written(
    inputs: Any,
    rule: Consolidation,
    capacity: int = 2,
    start: Tensor | None = None,
    **settings: Any,
) -> BankState:
    """The bank after `[T, (B,) D]` inputs of one token."""
    x = torch.tensor(inputs)
    x = x[:, None, None] if x.ndim == 2 else x[:, :, None]
    bank = Bank((1, 2), (0, 1), capacity=capacity, consolidation=rule, **settings)
    start = torch.zeros(x.shape[:2], dtype=torch.bool) if start is None else start
    batch = x.shape[1]
    streams = Streams(x, x.new_zeros(len(x), batch, 0, 1))
    return bank(streams, bank.initial_state(batch), start)[1]


@pytest.mark.parametrize(
    "rule, entry, time",
    [
        (AdjacentMerge(), 6.0, 1.0),  # ((2 + 4)/2 + 9)/2; the time of the first of the three
        (AdjacentMerge(time=mean_time), 6.0, 2.25),  # ((1 + 2)/2 + 3)/2
        (AdjacentMerge(time=counted_time), 6.0, 2.25),  # shares are one half here
        (AdjacentMerge(counted=True), 5.0, 1.0),  # (2 + 4 + 9)/3
        (AdjacentMerge(counted=True, time=mean_time), 5.0, 2.25),
        (AdjacentMerge(counted=True, time=counted_time), 5.0, 2.0),  # (1 + 2 + 3)/3
    ],
)
def test_the_two_most_alike_are_merged(rule: AdjacentMerge, entry: float, time: float) -> None:
    slots = written(LIKE_THE_LAST, rule).perceptual
    torch.testing.assert_close(slots.entries[0, :, 0], torch.tensor([[1.0, 0.0], [0.0, entry]]))
    torch.testing.assert_close(slots.time[0], torch.tensor([0.0, time]))
    assert slots.inputs.tolist() == [[1, 3]]


def test_a_pair_in_the_middle_is_merged_and_the_rest_moves_up() -> None:
    inputs = [[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]
    slots = written(inputs, AdjacentMerge(), capacity=3).perceptual
    expected = torch.tensor([[1.0, 0.0], [0.05, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(slots.entries[0, :, 0], expected)
    assert slots.time.tolist() == [[0.0, 1.0, 3.0]] and slots.inputs.tolist() == [[1, 2, 1]]


def test_the_first_of_equal_pairs_is_merged() -> None:
    slots = written([[1.0, 0.0]] * 5, AdjacentMerge(), capacity=3).perceptual
    assert slots.inputs.tolist() == [[3, 1, 1]] and slots.time.tolist() == [[0.0, 3.0, 4.0]]


def test_likeness_is_the_mean_over_tokens_of_their_cosines() -> None:
    # Cosines of the pairs: 1 and 0, then 0.6 twice. By products the long tokens would win.
    entries = torch.tensor([[[10.0, 0.0], [0.0, 1.0]], [[10.0, 0.0], [1.0, 0.0]]])
    entries = torch.cat([entries, torch.tensor([[[6.0, 8.0], [3.0, -4.0]]])])[None]
    slots = Slots(entries, *(torch.zeros(1, 3) for _ in range(4)))
    scores = AdjacentMerge().scores(slots, torch.tensor([2]))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.6]]))


def test_zero_tokens_are_like_nothing() -> None:
    slots = Slots(torch.zeros(1, 3, 1, 2), *(torch.zeros(1, 3) for _ in range(4)))
    assert AdjacentMerge().scores(slots, torch.tensor([2])).tolist() == [[0.0, 0.0]]


def test_nothing_is_merged_before_the_bank_is_full() -> None:
    state = written([[1.0, 0.0]] * 3, AdjacentMerge(), capacity=4)
    assert state.age.tolist() == [3]
    slots = state.perceptual
    assert slots.time[0, 1:].tolist() == [0.0, 1.0, 2.0] and slots.inputs[0, 1:].tolist() == [1] * 3


def test_the_oldest_goes() -> None:
    slots = written(LIKE_THE_LAST, Oldest()).perceptual
    assert slots.entries[0, :, 0].tolist() == LIKE_THE_LAST[2:] and slots.time.tolist() == [[2, 3]]


def test_the_least_used_for_its_age_goes_and_never_the_new_one() -> None:
    usage = torch.tensor([[0.9, 0.2, 0.1, 0.0]])  # per read that they lived: 0.225, 0.067, 0.1
    time = torch.tensor([[0.0, 1.0, 3.0, 4.0]])
    empty = torch.zeros(1, 0, dtype=torch.int64)
    entries = torch.arange(4.0).view(1, 4, 1, 1)
    slots = Slots(entries, time, torch.ones(1, 4, dtype=torch.int64), empty, usage)
    rule = LeastUsed()
    scores = rule.scores(slots, torch.tensor([4]))
    torch.testing.assert_close(scores, -torch.tensor([[0.9 / 4, 0.2 / 3, 0.1]]))
    kept = rule.make_room(slots, scores.argmax(1), torch.tensor([True]))
    assert kept.entries.flatten().tolist() == [0.0, 2.0, 3.0]
    assert kept.time.tolist() == [[0.0, 3.0, 4.0]]
    kept = rule.make_room(slots, scores.argmax(1), torch.tensor([False]))
    assert kept.entries.flatten().tolist() == [1.0, 2.0, 3.0]


def test_usage_is_handed_out_by_attention_and_sums_to_one_per_read() -> None:
    slots = written(LIKE_THE_LAST, LeastUsed(), capacity=8, heads=2).perceptual
    assert slots.usage[0, -1] == 0
    torch.testing.assert_close(slots.usage[0, -4:].sum(), torch.tensor(3.0))  # of reads 1, 2, 3


def test_streams_give_up_different_entries_unless_they_decide_together() -> None:
    # Perceptual pairs: likeness 1, 0.6; cognitive pairs: 0, 1. The means: 0.5, 0.8.
    perceptual = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])[:, None, None]
    cognitive = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[:, None, None]
    start = torch.zeros(3, 1, dtype=torch.bool)
    found = []
    for together in (False, True):
        bank = Bank((1, 2), (1, 2), capacity=2, together=together)
        _, state = bank(Streams(perceptual, cognitive), bank.initial_state(1), start)
        found.append((state.perceptual.inputs.tolist(), state.cognitive.inputs.tolist()))
    assert found == [([[2, 1]], [[1, 2]]), ([[1, 2]], [[1, 2]])]


def test_environments_start_and_fill_on_their_own() -> None:
    alike, unlike = [1.0, 0.0], [0.0, 1.0]
    inputs = [[alike, alike], [alike, alike], [unlike, unlike], [unlike, unlike]]
    start = torch.zeros(4, 2, dtype=torch.bool)
    start[2, 1] = True
    state = written(inputs, AdjacentMerge(), start=start)
    assert state.age.tolist() == [4, 2]
    assert state.perceptual.time.tolist() == [[0.0, 2.0], [0.0, 1.0]]
    assert state.perceptual.inputs.tolist() == [[2, 2], [1, 1]]
