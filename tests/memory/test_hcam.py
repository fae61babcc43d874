"""HCAM's ring of chunks: what can be read, from when on, and until when."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import HCAM, NoMemory
from engram.memory.sequence.hcam import HCAMState

D = 4


def build(**settings: Any) -> HCAM:
    """An HCAM whose every parameter matters; without local path unless asked for."""
    memory = HCAM(D, **{"chunk": 3, "capacity": 2, "top_k": 2, "heads": 1, "local": 0, **settings})
    memory = memory.double()
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return memory


def run(memory: HCAM, x: Tensor, start: Tensor | None = None) -> tuple[Tensor, HCAMState]:
    if start is None:
        start = torch.zeros(x.shape[:2], dtype=torch.bool)
    return memory(x, memory.initial_state(x.shape[1]), start)


def influence(memory: HCAM, x: Tensor, at: int) -> list[int]:
    """Steps whose output changes with input `at`; by perturbation, since what is stored is cut."""
    other = x.clone()
    other[at] += torch.randn_like(other[at])
    changed = (run(memory, x)[0] - run(memory, other)[0]).abs().amax((1, 2)) > 1e-9
    return changed.nonzero()[:, 0].tolist()


def test_a_chunk_read_worked_out_by_hand() -> None:
    # Two chunks of two steps without position code. The first feature of a step is its key among
    # the summaries, the second its value; attention inside a chunk is uniform.
    memory = HCAM(2, chunk=2, capacity=2, top_k=2, heads=1, local=0).double()
    attention = memory.attention
    attention.position.zero_()
    weights = {
        "query.weight": [[1.0, 0.0], [0.0, 0.0]],
        "key.weight": [[1.0, 0.0], [0.0, 0.0]],
        "within_query.weight": [[0.0, 0.0], [0.0, 0.0]],
        "within_query.bias": [0.0, 0.0],
        "within_key.weight": [[1.0, 0.0], [0.0, 1.0]],
        "within_value.weight": [[0.0, 1.0], [0.0, 0.0]],
        "within_value.bias": [0.0, 0.0],
        "linear.weight": [[1.0, 0.0], [0.0, 1.0]],
        "linear.bias": [0.0, 0.5],
    }
    attention.load_state_dict({k: torch.tensor(v).double() for k, v in weights.items()})
    a = math.sqrt(2) * math.log(3)  # the scores are divided by √d = √2
    x = torch.tensor([[0, 2], [0, 4], [2 * a, 10], [0, 14], [1, 0]]).double()[:, None]
    y, _ = run(memory, x)
    # Nothing is complete at steps 0 and 1. At 2 and 3 only chunk 0 is: mean value 3.
    # At 4 the summaries have first features 0 and a, so scores 0 and ln 3: 3/4 + 12·3/4 = 9.75.
    expected = torch.tensor([[0, 0], [0, 0], [3, 0.5], [3, 0.5], [9.75, 0.5]]).double()
    torch.testing.assert_close(y[:, 0], expected)


def test_reads_exactly_zero_until_the_first_chunk_is_complete() -> None:
    memory = build()
    y, _ = run(memory, torch.randn(8, 2, D).double())
    assert not y[:3].any()
    assert y[3:].abs().amin() > 0


def test_a_chunk_can_be_read_from_the_step_after_its_completion() -> None:
    memory = build(capacity=8, top_k=8)
    x = torch.randn(12, 2, D).double()
    # An input acts on its own step as the query, but only once one chunk is there to be read.
    assert influence(memory, x, 0) == [*range(3, 12)]
    assert influence(memory, x, 4) == [4, *range(6, 12)]
    assert influence(memory, x, 5) == [5, *range(6, 12)]


def test_what_is_older_than_the_capacity_has_no_influence() -> None:
    memory = build(capacity=2, top_k=2)  # two chunks of three steps
    x = torch.randn(15, 2, D).double()
    # Chunk 0 (steps 0 to 2) is readable at 3 … 8; at 9 chunks 1 and 2 have taken its place.
    assert influence(memory, x, 1) == [*range(3, 9)]
    assert influence(memory, x, 3) == [3, *range(6, 12)]


def test_the_unfinished_chunk_is_seen_through_the_local_path_alone() -> None:
    memory = build(chunk=4, capacity=4, top_k=4, local=3)
    x = torch.randn(12, 2, D).double()
    # Step 4 begins chunk 1: three steps of window, then silence until the chunk is complete at 8.
    assert influence(memory, x, 4) == [4, 5, 6, *range(8, 12)]
    assert influence(build(chunk=4, capacity=4, top_k=4), x, 4) == [4, *range(8, 12)]
    assert isinstance(build(local=0).local, NoMemory)


def test_every_environment_has_its_own_phase() -> None:
    memory = build(capacity=3)
    x = torch.randn(14, 3, D).double()
    start = torch.zeros(14, 3, dtype=torch.bool)
    start[0, 0] = start[1, 1] = start[5, 2] = True
    y, state = run(memory, x, start)
    assert state.time.tolist() == [14, 13, 9]
    for env, begin in enumerate((0, 1, 5)):
        alone, _ = run(memory, x[begin:, env : env + 1])
        torch.testing.assert_close(y[begin:, env : env + 1], alone)
        assert not y[begin : begin + 3, env].any()


def test_the_summary_is_the_mean_and_the_contents_carry_the_position_code() -> None:
    memory = build(capacity=2)
    x = torch.randn(10, 1, D).double()  # chunks 0, 1, 2 and one step of chunk 3; slots 3
    _, state = run(memory, x)
    code = memory.attention.position
    for chunk in (1, 2):
        steps = x[3 * chunk : 3 * chunk + 3, 0]
        torch.testing.assert_close(state.keys[0, chunk], steps.mean(0))
        torch.testing.assert_close(state.contents[0, chunk], steps + code)
    torch.testing.assert_close(state.keys[0, 0], x[9, 0] / 3)  # slot 3 mod 3, being filled
    torch.testing.assert_close(state.contents[0, 0, 0], x[9, 0] + code[0])


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_fewer_chunks_than_k_are_no_error(top_k: int) -> None:
    memory = build(capacity=3, top_k=top_k)
    x = torch.randn(7, 2, D).double()
    y, _ = run(memory, x)
    assert y.isfinite().all() and y[3:].abs().amin() > 0
    assert memory.attention.top_k == min(top_k, 3)


def test_nothing_stored_gets_a_gradient_through_the_far_path() -> None:
    memory = build(capacity=4)
    x = torch.randn(12, 2, D, dtype=torch.float64, requires_grad=True)
    y, state = run(memory, x)
    y[-1].sum().backward()
    assert x.grad is not None
    assert not x.grad[:-1].any() and x.grad[-1].all()
    assert not any(leaf.requires_grad for _, leaf in states.leaves(state))


def test_an_age_can_be_addressed_whatever_the_contents() -> None:
    memory = build(chunk=2, capacity=4, top_k=1, age_encoding=True)
    attention = memory.attention
    assert attention.age is not None
    with torch.no_grad():
        attention.key.weight.zero_()
        attention.query.weight.copy_(torch.ones(D, D))
        attention.age.zero_()
        attention.age[2] = 50.0  # the chunk after which two more were completed
    x = torch.rand(16, 1, D).double() + 1.0  # positive: so is every query's sum
    # At 8 and 9 four chunks are complete: the one wanted is chunk 1, steps 2 and 3; at 10, 11 the
    # next.
    for step in (8, 9):
        assert step in influence(memory, x, 2) and step in influence(memory, x, 3)
        assert not any(step in influence(memory, x, other) for other in (0, 1, 4, 5, 6, 7))
    assert 10 in influence(memory, x, 4) and 10 not in influence(memory, x, 2)


def test_the_state_holds_one_chunk_more_than_can_be_read() -> None:
    state = build(chunk=3, capacity=2).initial_state(5)
    assert state.contents.shape == (5, 3, 3, D) and state.keys.shape == (5, 3, D)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_any_chunk_of_training_reads_what_steps_read(steps: int) -> None:
    memory = build(chunk=3, capacity=2, local=2)
    x = torch.randn(28, 2, D).double()
    whole, _ = run(memory, x)
    state, parts = memory.initial_state(2), []
    for piece in x.split(steps):
        y, state = memory(piece, state, torch.zeros(piece.shape[:2], dtype=torch.bool))
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_in": 5}, "d_in is 5; allowed: even numbers"),
        ({"capacity": 0}, "capacity is 0; allowed: 1 or more"),
        ({"chunk": 0}, "chunk is 0; allowed: 1 or more"),
        ({"top_k": 0}, "top_k is 0; allowed: 1 or more"),
        ({"heads": 3}, "heads is 3; allowed: divisors of"),
        ({"local": 1}, "local is 1; allowed: 0 for none, or 2 or more"),
        ({"local": -3}, "local is -3"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        HCAM(**{"d_in": 4, **settings})


def test_chunks_of_one_step_work_with_the_default_local_path() -> None:
    memory = HCAM(4, chunk=1, capacity=3, top_k=2)
    y, _ = run(memory, torch.randn(6, 2, 4))
    assert y.isfinite().all()


def test_a_start_after_a_very_long_scope_does_not_blind_the_next_one() -> None:
    # Chunks of the old scope are ages old; whatever their age, they rank behind what can be read.
    torch.manual_seed(0)
    memory = HCAM(8, chunk=8, capacity=16, top_k=4, heads=2, local=0).double()
    x = torch.randn(100, 1, 8, dtype=torch.float64)
    start = torch.zeros(100, 1, dtype=torch.bool)
    start[3] = True
    state = memory.initial_state(1)._replace(time=torch.tensor([5_000_000]))
    other = states.snapshot(state)
    y, _ = memory(x, state, start)
    for t in range(100):
        each, other = memory.step(x[t], other, start[t])
        torch.testing.assert_close(y[t], each, rtol=0, atol=1e-10)
    assert (y[12:].abs().amax(-1) > 1e-3).all()


def test_under_autocast_chunks_are_chosen_as_precisely_as_without() -> None:
    torch.manual_seed(0)
    attention = HCAM(8, chunk=1, capacity=64, top_k=4, heads=2, local=0).attention
    x, keys = torch.randn(2, 50, 8), torch.randn(2, 64, 8)
    visible = torch.ones(2, 50, 64, dtype=torch.bool)
    index, relevance = attention.choose(x, keys, visible)
    with torch.autocast("cpu", torch.bfloat16):
        again, same = attention.choose(x, keys, visible)
    assert torch.equal(index, again)
    assert torch.equal(relevance, same)
