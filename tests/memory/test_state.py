"""Functions on states."""

from typing import Any, NamedTuple

import pytest
import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from engram.memory import state as states


class Inner(NamedTuple):
    table: Float[Tensor, "B M D"]
    count: Int[Tensor, " B"]


class Outer(NamedTuple):
    inner: Inner
    parts: tuple[Tensor, Inner]


def make(batch: int = 3, first: float = 0.0) -> Outer:
    """Every number tells its environment: `first` + b."""
    index = torch.arange(batch) + first
    inner = Inner(index[:, None, None].expand(batch, 2, 4).clone(), index.to(torch.int64))
    return Outer(inner, (index.clone(), Inner(*(leaf.clone() for leaf in inner))))


def numbers(state: Any) -> list[list[float]]:
    """First number of every environment, per leaf."""
    return [
        leaf.flatten(1)[:, 0].tolist() if leaf.ndim > 1 else leaf.tolist() for leaf in all_of(state)
    ]


def all_of(state: Any) -> list[Tensor]:
    return [leaf for _, leaf in states.leaves(state)]


def test_leaves_are_named_by_their_path_in_a_fixed_order() -> None:
    assert [path for path, _ in states.leaves(make())] == [
        "inner.table",
        "inner.count",
        "parts.0",
        "parts.1.table",
        "parts.1.count",
    ]
    assert [path for path, _ in states.leaves(torch.zeros(2))] == [""]


def test_where_chooses_whole_environments_whatever_the_other_holds() -> None:
    other = states.tree_map(
        lambda leaf: leaf.fill_(torch.nan) if leaf.is_floating_point() else leaf, make(first=10)
    )
    mixed = states.where(torch.tensor([True, False, True]), make(first=20), make())
    assert numbers(mixed) == [[20, 1, 22]] * 5
    clean = states.where(torch.tensor([True, True, True]), make(), other)
    assert numbers(clean) == [[0, 1, 2]] * 5
    assert type(mixed) is Outer and type(mixed.parts[1]) is Inner


def test_take_selects_in_order_repeats_and_shares_no_memory() -> None:
    state = make()
    taken = states.take(state, torch.tensor([2, 0, 2]))
    assert numbers(taken) == [[2, 0, 2]] * 5
    for leaf in all_of(taken):
        leaf.zero_()
    assert numbers(state) == [[0, 1, 2]] * 5


def test_concatenate_undoes_take() -> None:
    state = make()
    pieces = [states.take(state, torch.tensor([b])) for b in range(3)]
    assert numbers(states.concatenate(pieces)) == numbers(state)


def test_detach_shares_memory_and_snapshot_does_not() -> None:
    state = make()
    state = state._replace(parts=(state.parts[0].requires_grad_(), state.parts[1]))
    cut, kept = states.detach(state), states.snapshot(state)
    assert not any(leaf.requires_grad for leaf in all_of(cut) + all_of(kept))
    assert all(
        a.data_ptr() == b.data_ptr() for a, b in zip(all_of(cut), all_of(state), strict=True)
    )
    with torch.no_grad():
        for leaf in all_of(state):
            leaf.add_(5)
    assert numbers(cut) == [[5, 6, 7]] * 5 and numbers(kept) == [[0, 1, 2]] * 5


def test_nbytes_counts_every_tensor() -> None:
    # Two tables of 3·2·4 floats, two counters of 3 int64, one vector of 3 floats.
    assert states.nbytes(make()) == 2 * 24 * 4 + 2 * 3 * 8 + 3 * 4
    assert states.nbytes(()) == 0


def test_flatten_and_unflatten_are_inverse_through_safetensors() -> None:
    state = make()
    restored = states.unflatten(load(save(states.flatten(state))), make(first=7))
    assert type(restored) is Outer
    assert numbers(restored) == numbers(state)
    alone = torch.arange(3.0)
    assert torch.equal(states.unflatten(states.flatten(alone), torch.zeros(3)), alone)


def test_unflatten_takes_another_number_of_environments() -> None:
    restored = states.unflatten(states.flatten(make(5)), make(2))
    assert numbers(restored) == [[0, 1, 2, 3, 4]] * 5


def test_unflatten_refuses_what_does_not_fit() -> None:
    tensors = states.flatten(make())
    with pytest.raises(ValueError, match=r"inner.table is \[3, 2, 5\]; allowed: \[B, \*\[2, 4\]\]"):
        states.unflatten({**tensors, "inner.table": torch.zeros(3, 2, 5)}, make())
    with pytest.raises(KeyError, match=r"parts\.0"):
        states.unflatten({k: v for k, v in tensors.items() if k != "parts.0"}, make())


def test_states_of_different_structure_do_not_mix() -> None:
    with pytest.raises(ValueError, match="zip"):
        states.tree_map(torch.add, (torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(AssertionError, match="a state is tensors in tuples, not list"):
        states.tree_map(torch.neg, [torch.zeros(1)])
