"""Memo against a transformer without any cache, by hand, and each defect of the original."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import Memo
from engram.memory.sequence.memo import MemoState

D = 8


def build(dtype: torch.dtype = torch.float64, **settings: Any) -> Memo:
    small = {"layers": 2, "heads": 2, "segment": 5, "summary": 2, "capacity": 9}
    memory = Memo(D, **{**small, **settings}).to(dtype)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return memory


def no_start(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.bool)


def run(memory: Memo, x: Tensor, state: MemoState | None = None) -> tuple[Tensor, MemoState]:
    return memory(x, state or memory.initial_state(x.shape[1]), no_start(x))


def step_through(memory: Memo, x: Tensor, state: Any, start: Tensor) -> tuple[Tensor, Any]:
    outputs = []
    for x_t, start_t in zip(x, start, strict=True):
        y, state = memory.step(x_t, state, start_t)
        outputs.append(y)
    return torch.stack(outputs), state


def transformer(memory: Memo, x: Tensor, position: Tensor, visible: Tensor) -> Tensor:
    """A plain transformer over a whole input: no cache, rotary positions as complex numbers.

    Args:
        memory: Whose weights are used.
        x: Tokens `[Q, D]`.
        position: `[Q, Q]`, of query i (on the diagonal) and of the key j that i sees.
        visible: `[Q, Q]`.
    """
    size = D // memory.heads
    angle = torch.tensor([1e4 ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
    distance = position.diagonal()[:, None] - position
    turn = torch.polar(torch.ones(()).double(), distance[..., None] * angle)
    for layer in memory.layers:
        q, k, v = layer.qkv(layer.norm(x)).view(-1, 3, memory.heads, size).unbind(1)
        q, k = (torch.complex(part[..., : size // 2], part[..., size // 2 :]) for part in (q, k))
        logits = torch.einsum("qhc,khc,qkc->hqk", q, k.conj(), turn).real / math.sqrt(size)
        weight = logits.masked_fill(~visible, -math.inf).softmax(-1)
        x = x + layer.out(torch.einsum("hqk,khd->qhd", weight, v).reshape(-1, D))
        x = x + layer.mlp(x)
    return memory.norm(x)


def naive(memory: Memo, x: Tensor, lengths: list[int]) -> Tensor:
    """Read one scope `[T, D]` as [S_1 … S_n | segment | queries], from the beginning each time."""
    m, capacity = memory.summary, memory.capacity
    summaries: list[Tensor] = []
    outputs = []
    for segment, length in zip(x.split(lengths), lengths, strict=True):
        n = len(summaries)
        whole = torch.cat([*summaries, segment, memory.queries])
        count = len(whole)
        # Block of each token: its summary's number, or n for the segment and the queries.
        block = torch.tensor([i for i in range(n) for _ in range(m)] + [n] * (length + m))
        place = torch.cat([torch.arange(m).repeat(n), torch.arange(length + m)])
        visible, position = torch.zeros(2, count, count, dtype=torch.int64)
        for i in range(count):
            # When summary b is encoded it is itself one of those kept; a segment is not.
            made = int(block[i]) + (int(block[i]) < n)
            evicted = max(0, made - capacity)
            for j in range(i + 1):
                visible[i, j] = block[j] >= evicted or block[j] == n
                position[i, j] = (block[j] - evicted) * m + place[j]
        y = transformer(memory, whole, position, visible.bool())
        outputs.append(y[n * m : n * m + length])
        summaries.append(y[n * m + length :])
    return torch.cat(outputs)


def drawn(memory: Memo, state: MemoState, env: int, steps: int) -> list[int]:
    """Segment lengths that follow from the seed in a state, cut off at `steps`."""
    lengths: list[int] = []
    while sum(lengths) < steps:
        number = torch.tensor(len(lengths))
        lengths.append(int(memory.segment_length(state.seed[env], number)))
    lengths[-1] -= sum(lengths) - steps
    return lengths


VARIANTS = {
    "accumulate": {},
    "evict": {"capacity": 2},
    "replace": {"replace": True},
    "one_layer": {"layers": 1, "summary": 1, "capacity": 3},
    "segments_of_one": {"segment": 1, "capacity": 3},
    "segments_of_three": {"segment": 3, "summary": 1},
    "longer_than_the_chunk": {"segment": 300},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("random", [False, True], ids=["fixed", "drawn"])
def test_equals_a_transformer_without_cache(name: str, random: bool) -> None:
    memory = build(**VARIANTS[name], jitter=0.4)
    x = torch.randn(23, 2, D).double()
    state = memory.initial_state(2)
    if random:
        state = memory.randomize(state, torch.tensor([3, 4]))
    with torch.no_grad():
        y, _ = run(memory, x, states.snapshot(state))
        stepped, _ = step_through(memory, x, states.snapshot(state), no_start(x))
        for env in range(2):
            lengths = drawn(memory, state, env, 23)
            expected = naive(memory, x[:, env], lengths)
            torch.testing.assert_close(y[:, env], expected, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(stepped[:, env], expected, atol=1e-9, rtol=1e-9)


def test_the_gradient_equals_that_of_the_transformer_without_cache() -> None:
    memory = build(capacity=3)
    x = torch.randn(21, 1, D, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (run(memory, x)[0][:, 0], naive(memory, x[:, 0], [5, 5, 5, 5, 1])):
        memory.zero_grad()
        x.grad = None
        y.sin().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in memory.parameters())])
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)


def test_a_summary_that_can_be_worked_out_by_hand() -> None:
    # Keys are zero, so attention is the mean of the values that are seen; values are the first
    # feature of LN(x), which for D = 2 is ±1; no MLP; W_o passes it on to the first feature.
    memory = Memo(2, layers=1, heads=1, segment=2, summary=1, capacity=4).double()
    (layer,) = memory.layers
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
        layer.norm.weight.fill_(1.0)
        layer.qkv.weight[4, 0] = 1.0  # rows 0–1 queries, 2–3 keys, 4–5 values
        layer.out.weight[0, 0] = 1.0
        memory.norm.weight.fill_(1.0)
        memory.queries.copy_(torch.tensor([[0.0, 4.0]]))  # its value is −1
    layer.norm.eps = memory.norm.eps = 0.0
    x = torch.tensor([[0, 0.9], [0.1, 0], [0, 0.4], [0, 0.4]]).double()[:, None]
    y, state = run(memory, x)
    # Values −1, 1 of segment 1. Step 0 reads −1: (−1, 0.9), normed (−1, 1).
    # Step 1 reads (−1 + 1)/2 = 0: (0.1, 0), normed (1, −1).
    # The query reads (−1 + 1 − 1)/3: (−1/3, 4), normed S = (−1, 1), whose own value is −1.
    # Step 2 reads (−1 − 1)/2 = −1 from [S, x]: (−1, 0.4), normed (−1, 1); step 3 likewise.
    expected = torch.tensor([[-1, 1], [1, -1], [-1, 1], [-1, 1]]).double()
    torch.testing.assert_close(y[:, 0], expected)
    # Segment 2 asks for a summary too: its value is −1 again. Keys are zero.
    assert state.segment.tolist() == [2] and state.place.tolist() == [0]
    torch.testing.assert_close(
        state.summary[0, :2, 0, 1, 0, 0], torch.tensor([-1.0, -1.0]).double()
    )
    assert not state.summary[:, :2, :, 0].any()


@pytest.mark.parametrize("segment", [1, 3, 300])
def test_segments_may_have_any_length(segment: int) -> None:
    memory = build(torch.float32, segment=segment, layers=1)
    x = torch.randn(310, 2, D)
    y, state = run(memory, x)
    assert y.isfinite().all()
    assert state.segment.tolist() == [310 // segment] * 2
    assert state.place.tolist() == [310 % segment] * 2


def test_what_was_drawn_while_acting_is_replayed_while_learning() -> None:
    memory = build(segment=4, capacity=3, jitter=0.5)
    state = memory.randomize(memory.initial_state(5), torch.arange(5))
    x = torch.randn(60, 5, D).double()
    start = torch.rand(60, 5) < 0.08
    with torch.no_grad():
        _, state = step_through(memory, x[:20], state, start[:20])
        stored = states.snapshot(state)
        acted, after = step_through(memory, x[20:], state, start[20:])
    learned, replayed = memory(x[20:], stored, start[20:])
    torch.testing.assert_close(learned, acted, atol=1e-10, rtol=1e-10)
    for name in ("place", "segment", "seed"):
        assert torch.equal(getattr(replayed, name), getattr(after, name))


def test_scopes_of_any_phase_and_number_fit_into_one_chunk() -> None:
    memory = build(segment=3, capacity=2)
    state = memory.randomize(memory.initial_state(3), torch.tensor([5, 6, 7]))
    x = torch.randn(40, 3, D).double()
    start = torch.zeros(40, 3, dtype=torch.bool)
    begins = [[0, 11, 12, 30], [7], []]
    for env, steps in enumerate(begins):
        start[steps, env] = True
    with torch.no_grad():
        y, _ = memory(x, states.snapshot(state), start)
        for env, steps in enumerate(begins):
            edges = sorted({0, *steps, 40})
            seed = state
            for begin, end in pairwise(edges):
                if begin in steps:  # a scope that begins moves on to its own draws
                    seed = memory.step(x[0], states.snapshot(seed), torch.ones(3).bool())[1]
                expected = naive(memory, x[begin:end, env], drawn(memory, seed, env, end - begin))
                torch.testing.assert_close(y[begin:end, env], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("segment", "jitter"), [(10, 0.2), (16, 0.2), (256, 0.2), (5, 0.9)])
def test_drawn_lengths_are_within_the_jitter_and_all_of_them_occur(
    segment: int, jitter: float
) -> None:
    memory = build(segment=segment, jitter=jitter)
    state = memory.randomize(memory.initial_state(400), torch.arange(400))
    numbers = torch.arange(100).expand(400, 100)
    lengths = memory.segment_length(state.seed[:, None].expand(400, 100), numbers)
    low, high = segment * (1 - jitter), segment * (1 + jitter)
    allowed = range(max(1, math.floor(low + 1e-9)), math.ceil(high - 1e-9))
    assert sorted(set(lengths.flatten().tolist())) == [*allowed]
    assert memory.lengths.shortest == allowed[0] and memory.lengths.longest == allowed[-1]
    # ⌊l⌋ is half a step below l on average; the standard error is below 0.2 % of the range.
    assert lengths.double().mean() == pytest.approx(segment - 0.5, abs=0.01 * (high - low))
    # Neighbours in environment, segment and scope draw independently.
    for shifted in (lengths.roll(1, 0), lengths.roll(1, 1)):
        pairs = torch.stack([lengths.flatten(), shifted.flatten()]).double()
        assert abs(torch.corrcoef(pairs)[0, 1]) < 0.02


def test_a_state_that_was_never_seeded_has_fixed_lengths() -> None:
    memory = build(segment=7, jitter=0.5)
    state = memory.initial_state(3)
    start = torch.zeros(3, dtype=torch.bool)
    lengths = memory.segment_length(state.seed[:1].expand(50), torch.arange(50))
    assert lengths.tolist() == [7] * 50
    _, state = memory.step(torch.randn(3, D).double(), state, ~start)
    assert not state.seed.any()  # nor does a new scope seed it


def test_seeding_within_a_segment_ends_it_and_terminates() -> None:
    memory = build(segment=10, jitter=0.5)
    x = torch.randn(9, 40, D).double()
    _, state = run(memory, x)
    state = memory.randomize(state, torch.arange(40))
    first = memory.segment_length(state.seed, torch.zeros(40, dtype=torch.int64))
    assert (first < 9).any() and (first > 10).any()
    more = torch.randn(30, 40, D).double()
    y, after = run(memory, more, states.snapshot(state))
    stepped, _ = step_through(memory, more, states.snapshot(state), no_start(more))
    torch.testing.assert_close(y, stepped)
    assert (after.segment >= 2).all()
    # Those that are past their new length end with the very next input.
    _, soon = memory.step(more[0], states.snapshot(state), no_start(more)[0])
    assert torch.equal(soon.segment == 1, first <= 10)


def test_gradients_flow_from_the_last_output_through_every_segment_to_the_first_input() -> None:
    memory = build(capacity=1, segment=4)  # each summary must pass on what the last one held
    x = torch.randn(22, 2, D, dtype=torch.float64, requires_grad=True)
    y, _ = run(memory, x)
    y[-1, 0].sin().sum().backward()
    assert x.grad is not None
    assert (x.grad[:, 0].abs().amax(-1) > 0).all()
    assert not x.grad[:, 1].any()


def test_the_oldest_summary_is_evicted_and_its_slot_taken() -> None:
    memory = build(summary=2, capacity=3, segment=2)
    x, held = torch.randn(12, 1, D).double(), []
    state = memory.initial_state(1)
    for piece in x.split(2):
        _, state = run(memory, piece, state)
        held.append(state.summary.clone())
    assert held[0].shape[1] == 6
    for number in range(3, 6):  # summary 3 takes the place of 0, 4 of 1, 5 of 2
        slots = torch.arange(6) // 2 == number % 3
        assert torch.equal(held[number][:, ~slots], held[number - 1][:, ~slots])
        assert (held[number][:, slots] != held[number - 1][:, slots]).any()


def test_a_reencoded_summary_depends_on_older_summaries_and_not_on_raw_inputs() -> None:
    memory = build(segment=4, summary=1)
    with torch.no_grad():
        x = torch.randn(8, 1, D).double()
        _, state = run(memory, x[:4])
        alone = memory._run(
            memory._summary(torch.randn(1, 1, D).double(), torch.tensor([1])),
            [[state.summary[:, :1, layer]] for layer in range(2)],
            torch.tensor([[True]]),
        )
        assert alone[1][0].shape == (1, 1, 2, 2, D // 2)
        # The first summary's own keys stay what they were when the second is made.
        _, later = run(memory, x[4:], states.snapshot(state))
    assert torch.equal(later.summary[:, 0], state.summary[:, 0])
    assert later.segment.tolist() == [2] and (later.summary[:, 1] != 0).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: d_in / heads even, with d_in = 8"),
        ({"heads": 8}, "heads is 8"),
        ({"heads": 0}, "heads is 0"),
        ({"layers": 0}, "layers is 0; allowed: 1 or more"),
        ({"segment": 0}, "segment is 0; allowed: 1 or more"),
        ({"summary": 0}, "summary is 0; allowed: 1 or more"),
        ({"capacity": 0}, "capacity is 0; allowed: 1 or more"),
        ({"jitter": 1.0}, "jitter is 1.0; allowed: 0 up to"),
        ({"jitter": -0.1}, "jitter is -0.1"),
        ({"expand": 0.0}, "expand is 0.0; allowed: 1 / d_in"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Memo(D, **settings)
