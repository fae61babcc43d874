"""The laws that every sequence memory obeys; a new memory joins by one line in MEMORIES."""

import pickle
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from engram.memory import state as states
from engram.memory.sequence import (
    GRU,
    HCAM,
    LSTM,
    AddFusion,
    AdjacentMerge,
    Bank,
    Block,
    Chain,
    GTrXL,
    LeastUsed,
    Memo,
    MemoryTokens,
    NoMemory,
    Oldest,
    OverStreams,
    OverVectors,
    PresentOnly,
    RelativeTime,
    SequenceMemory,
    Window,
    stack,
)
from engram.memory.sequence.bank_consolidation import counted_time, mean_time

D = 8


def bank(tokens: int = 3, cognitive: int = 1, **settings: Any) -> OverVectors:
    """A small bank of both streams, of vectors."""
    memory = partial(Bank, **{"capacity": 4, "layers": 1} | settings)
    widths = {"width": 4, "cognitive_tokens": cognitive, "cognitive_width": 6}
    return OverVectors(D, memory=memory, tokens=tokens, **widths)


def over_streams(memory: Any, **settings: Any) -> OverVectors:
    """A memory of vectors as one of streams as one of vectors."""
    inside = partial(OverStreams, memory=memory, width=6, **settings)
    return OverVectors(D, memory=inside, tokens=3, width=4, cognitive_width=6)


MEMORIES = {
    "none": lambda: NoMemory(D),
    "gru": lambda: GRU(D, 6),
    "lstm": lambda: LSTM(D, 6),
    "window": lambda: Window(D, window=5, heads=2),
    "window_of_two": lambda: Window(D, window=2, heads=2),
    "gtrxl": lambda: GTrXL(D, layers=2, memory=4, heads=2),
    "hcam": lambda: HCAM(D, chunk=3, capacity=4, top_k=2, heads=2),
    "hcam_no_local": lambda: HCAM(D, chunk=4, capacity=2, top_k=5, heads=1, local=0),
    "hcam_ages": lambda: HCAM(D, chunk=2, capacity=3, top_k=2, heads=4, age_encoding=True),
    "memo": lambda: Memo(D, layers=2, heads=2, segment=5, summary=2, capacity=3),
    "memo_replace": lambda: Memo(D, layers=1, heads=2, segment=3, summary=2, replace=True),
    "memo_every_step": lambda: Memo(D, layers=1, heads=2, segment=1, summary=1, capacity=2),
    "bank": lambda: bank(),
    "bank_fused": lambda: bank(
        cognitive=0,
        write_fused=True,
        read_self=True,
        gradient_writes=2,
        consolidation=AdjacentMerge(counted=True, time=counted_time),
    ),
    "bank_least_used": lambda: bank(tokens=0, consolidation=LeastUsed(), time_code=RelativeTime),
    "memory_tokens": lambda: MemoryTokens(D, tokens=2, heads=2, gradient_steps=2),
    "over_streams": lambda: over_streams(lambda width: Window(width, window=3, heads=2)),
    "block": lambda: Block(LSTM(D, 6)),
    "chain": lambda: Chain(GRU(D, D), Window(D, window=3, heads=2), LSTM(D, 5)),
    "stack": lambda: stack(
        D, layer=lambda width: HCAM(width, chunk=2, capacity=2, heads=2), layers=2
    ),
}
FURTHER = {
    "bank_heads": lambda: bank(heads=2, layers=2, capacity=3),
    "bank_counted": lambda: bank(consolidation=AdjacentMerge(counted=True), gradient_writes=3),
    "bank_together": lambda: bank(
        together=True, gradient_writes=None, consolidation=AdjacentMerge(time=mean_time)
    ),
    "bank_least_used_together": lambda: bank(
        together=True, consolidation=LeastUsed(), write_fused=True, gradient_writes=1
    ),
    "bank_oldest": lambda: bank(consolidation=Oldest(), fusion=AddFusion, gradient_writes=2),
    "memory_tokens_cut": lambda: MemoryTokens(D, heads=1, gradient_steps=1, keep=None),
    "over_streams_gru": lambda: over_streams(lambda width: GRU(width, 5)),
    "present_only": lambda: OverVectors(D, memory=PresentOnly, tokens=2, width=4),
    "memory_tokens_through_time": lambda: MemoryTokens(
        D, tokens=2, layers=2, heads=2, gradient_steps=None
    ),
}
"""Other settings of some of them, left to the slow tests."""
MEMORIES |= FURTHER
VECTORS = {"gru", "lstm", "block", "chain", "over_streams_gru"}
EMPTY_SLOTS = [name for name in MEMORIES if name not in VECTORS]
"""Memories whose initial state is empty slots, not a vector of zeros that is read."""
PURE_READS = ["none", "hcam_no_local"]
"""Memories whose output is what they recall and nothing of the present input."""
PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-5}


def each(names: Iterable[str]) -> list[Any]:
    """The names, as parameters of a test."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in FURTHER else n for n in names]


everywhere = pytest.mark.parametrize("name", each(MEMORIES))
precisely = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def build(name: str, dtype: torch.dtype = torch.float64) -> SequenceMemory[Any]:
    memory = MEMORIES[name]().to(dtype)
    for parameter in memory.parameters():  # zeros (biases, age codes) would hide mistakes
        torch.nn.init.normal_(parameter, std=0.4)
    return memory


def inputs(steps: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random inputs under random starts: none, several, in a row, at the first step or not."""
    start = torch.rand(steps, batch) < torch.tensor([0.0, 0.05, 0.2, 0.6])[:batch]
    return torch.randn(steps, batch, D, dtype=dtype), start


def lived(memory: SequenceMemory[Any], batch: int, dtype: torch.dtype, steps: int = 17) -> Any:
    """A state in the middle of its life, seeded, each environment in its own phase."""
    state = memory.randomize(memory.initial_state(batch), torch.arange(1, batch + 1))
    x, start = inputs(steps, batch, dtype)
    with torch.no_grad():
        return memory(x, state, start)[1]


def step_through(
    memory: SequenceMemory[Any], x: Tensor, state: Any, start: Tensor
) -> tuple[Tensor, Any]:
    outputs = []
    for x_t, start_t in zip(x, start, strict=True):
        y, state = memory.step(x_t, state, start_t)
        outputs.append(y)
    return torch.stack(outputs), state


def poison(state: Any) -> Any:
    """Fill every floating-point slot with NaN."""
    return states.tree_map(
        lambda leaf: leaf.fill_(float("nan")) if leaf.is_floating_point() else leaf, state
    )


def close(a: Any, b: Any, dtype: torch.dtype) -> None:
    torch.testing.assert_close(a, b, atol=PRECISIONS[dtype], rtol=PRECISIONS[dtype])


@everywhere
@precisely
def test_forward_equals_repeated_step(name: str, dtype: torch.dtype) -> None:
    memory = build(name, dtype)
    state = lived(memory, 4, dtype)
    x, start = inputs(40, 4, dtype)
    stepped, after_steps = step_through(memory, x, states.snapshot(state), start)
    whole, after = memory(x, states.snapshot(state), start)
    close(whole, stepped, dtype)
    more, starts = inputs(23, 4, dtype)
    close(memory(more, after, starts)[0], memory(more, after_steps, starts)[0], dtype)


@everywhere
@precisely
def test_forward_equals_repeated_step_without_gradients(name: str, dtype: torch.dtype) -> None:
    memory = build(name, dtype)
    state = memory.initial_state(4)
    x, start = inputs(31, 4, dtype)
    with torch.inference_mode():
        stepped, _ = step_through(memory, x, states.snapshot(state), start)
    close(memory(x, state, start)[0], stepped.clone(), dtype)


@everywhere
@precisely
def test_splitting_time_changes_nothing(name: str, dtype: torch.dtype) -> None:
    memory = build(name, dtype)
    state = lived(memory, 4, dtype)
    x, start = inputs(60, 4, dtype)
    whole, _ = memory(x, states.snapshot(state), start)
    for cuts in ([1, 59], [30, 30], [7, 1, 2, 33, 17], [59, 1]):
        carried = states.snapshot(state)
        parts = []
        for x_part, start_part in zip(x.split(cuts), start.split(cuts), strict=True):
            y, carried = memory(x_part, carried, start_part)
            parts.append(y)
        close(torch.cat(parts), whole, dtype)


@everywhere
def test_starts_in_step_are_starts_all_the_same(name: str) -> None:
    memory = build(name)
    state = lived(memory, 4, torch.float64)
    x, start = torch.randn(40, 4, D, dtype=torch.float64), torch.zeros(40, 4, dtype=torch.bool)
    start[[0, 11, 12, 30]] = True
    start[20, 1:3] = True
    whole, after = memory(x, states.snapshot(state), start)
    stepped, after_steps = step_through(memory, x, state, start)
    close(whole, stepped, torch.float64)
    close(memory(x, after, start)[0], memory(x, after_steps, start)[0], torch.float64)


@everywhere
@precisely
def test_forward_equals_step_where_inputs_repeat(name: str, dtype: torch.dtype) -> None:
    """Chunks of the same inputs in another order tie but for rounding."""
    memory = build(name, dtype)
    symbols = torch.randn(2, D, dtype=dtype)
    x = symbols[torch.randint(0, 2, (60, 4))]
    start = torch.rand(60, 4) < 0.03
    state = memory.randomize(memory.initial_state(4), torch.arange(1, 5))
    stepped, _ = step_through(memory, x, states.snapshot(state), start)
    close(memory(x, state, start)[0], stepped, dtype)


@everywhere
def test_gradients_do_not_depend_on_how_time_is_split(name: str) -> None:
    memory = build(name)
    state = lived(memory, 4, torch.float64)
    x, start = inputs(24, 4, torch.float64)
    found = []
    for run in (memory, lambda *args: step_through(memory, *args)):
        memory.zero_grad()
        leaf = x.clone().requires_grad_()
        y, _ = run(leaf, states.snapshot(state), start)
        (y.sin().sum() + 0 * leaf.sum()).backward()
        found.append([leaf.grad, *(p.grad for p in memory.parameters())])
    close(found[0], found[1], torch.float64)


@everywhere
def test_nothing_leaks_through_a_start(name: str) -> None:
    memory = build(name)
    start = torch.zeros(30, 4, dtype=torch.bool)
    start[torch.tensor([0, 5, 13, 29]), torch.arange(4)] = True
    x = torch.randn(30, 4, D, dtype=torch.float64)
    other = torch.where(start.cumsum(0)[..., None] > 0, x, torch.randn_like(x) * 100)
    after = start.cumsum(0) > 0
    seeds = torch.arange(7, 11)  # equal draws: those of a scope follow from its seed alone
    state = memory.randomize(lived(memory, 4, torch.float64), seeds)
    y, _ = memory(x, states.snapshot(state), start)
    elsewhere = memory.randomize(lived(memory, 4, torch.float64, steps=18), seeds)
    z, _ = memory(other, elsewhere, start)
    close(y[after], z[after], torch.float64)
    leaf = x.clone().requires_grad_()
    y, _ = memory(leaf, memory.initial_state(4), start)
    (y[after].sum() + 0 * leaf.sum()).backward()
    assert leaf.grad is not None and not leaf.grad[~after].any()


@everywhere
def test_a_start_discards_a_poisoned_state(name: str) -> None:
    memory = build(name)
    x = torch.randn(20, 3, D, dtype=torch.float64)
    start = torch.zeros(20, 3, dtype=torch.bool)
    start[0] = True
    clean, _ = memory(x, memory.initial_state(3), start)
    leaf = x.clone().requires_grad_()
    y, _ = memory(leaf, poison(memory.initial_state(3)), start)
    close(y, clean, torch.float64)
    (y.sum() + 0 * leaf.sum()).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize("name", each(EMPTY_SLOTS))
@pytest.mark.parametrize("steps", [1, 2, 9, 40])
def test_unused_slots_may_hold_nan(name: str, steps: int) -> None:
    memory = build(name)
    x = torch.randn(steps, 3, D, dtype=torch.float64)
    start = torch.zeros(steps, 3, dtype=torch.bool)
    clean, _ = memory(x, memory.initial_state(3), start)
    for run in (memory, lambda *args: step_through(memory, *args)):
        memory.zero_grad()
        y, _ = run(x, poison(memory.initial_state(3)), start)
        close(y, clean, torch.float64)
        if y.requires_grad:
            y.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@everywhere
def test_environments_are_independent(name: str) -> None:
    memory = build(name)
    state = lived(memory, 4, torch.float64)
    x, start = inputs(33, 4, torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    whole, _ = memory(x, states.snapshot(state), start)
    permuted, _ = memory(x[:, order], states.take(state, order), start[:, order])
    close(permuted, whole[:, order], torch.float64)
    alone, _ = memory(x[:, 1:2], states.take(state, torch.tensor([1])), start[:, 1:2])
    close(alone, whole[:, 1:2], torch.float64)


@everywhere
def test_the_state_never_grows(name: str) -> None:
    memory = build(name)
    state = memory.initial_state(2)
    size = states.nbytes(state)
    x, start = inputs(200, 2, torch.float64)
    with torch.no_grad():
        for x_t, start_t in zip(x, start, strict=True):
            _, state = memory.step(x_t, state, start_t)
            assert states.nbytes(state) == size
        _, state = memory(x, state, start)
    assert states.nbytes(state) == size
    assert all(len(leaf) == 2 for _, leaf in states.leaves(state))


@everywhere
def test_every_parameter_gets_a_gradient(name: str) -> None:
    memory = build(name)
    x, _ = inputs(30, 4, torch.float64)
    y, _ = memory(x, memory.initial_state(4), torch.zeros(30, 4, dtype=torch.bool))
    y.sin().sum().backward() if y.requires_grad else None
    for parameter_name, parameter in memory.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-9, parameter_name


@pytest.mark.parametrize("name", PURE_READS)
def test_an_empty_memory_reads_exactly_zero(name: str) -> None:
    memory = build(name)
    x = torch.randn(4, 3, D, dtype=torch.float64)
    start = torch.zeros(4, 3, dtype=torch.bool)
    assert not memory(x, memory.initial_state(3), start)[0].any()
    assert not memory.step(x[0], poison(memory.initial_state(3)), start[0])[0].any()


@everywhere
def test_the_first_output_depends_on_the_first_input_alone(name: str) -> None:
    memory = build(name)
    x = torch.randn(3, D, dtype=torch.float64)
    fresh, _ = memory.step(x, memory.initial_state(3), torch.zeros(3, dtype=torch.bool))
    used = lived(memory, 3, torch.float64)
    again, _ = memory.step(x, used, torch.ones(3, dtype=torch.bool))
    close(again, fresh, torch.float64)


@everywhere
def test_state_survives_pickle_and_safetensors(name: str) -> None:
    memory = build(name)
    state = lived(memory, 3, torch.float64)
    x, start = inputs(12, 3, torch.float64)
    expected, _ = memory(x, states.snapshot(state), start)
    pickled = pickle.loads(pickle.dumps(state))
    close(memory(x, pickled, start)[0], expected, torch.float64)
    stored = load(save(states.flatten(state)))
    restored = states.unflatten(stored, memory.initial_state(3))
    close(memory(x, restored, start)[0], expected, torch.float64)


@everywhere
def test_a_reset_is_a_start_of_the_named_environments_only(name: str) -> None:
    memory = build(name)
    state = lived(memory, 3, torch.float64)
    mask = torch.tensor([True, False, True])
    x = torch.randn(5, 3, D, dtype=torch.float64)
    still = torch.zeros(5, 3, dtype=torch.bool)
    begun = still.clone()
    begun[0] = mask
    expected, _ = memory(x, states.snapshot(state), begun)
    y, _ = memory(x, memory.reset(state, mask), still)
    close(y, expected, torch.float64)


@everywhere
@pytest.mark.parametrize("steps", [1, 20])
def test_mixed_precision_leaves_the_state_as_precise_as_it_was(name: str, steps: int) -> None:
    memory = build(name, torch.float32)
    state = lived(memory, 3, torch.float32)
    before = [(leaf.dtype, leaf.shape) for _, leaf in states.leaves(state)]
    x, start = inputs(steps, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = memory(x, state, start)
        again, state = memory(x.bfloat16(), state, start)
    assert [(leaf.dtype, leaf.shape) for _, leaf in states.leaves(state)] == before
    if y.requires_grad:
        (y.float().sum() + again.float().sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@everywhere
def test_the_initial_state_follows_the_memory_to_its_device_and_precision(name: str) -> None:
    memory = build(name, torch.float64).to("meta")
    leaves = [leaf for _, leaf in states.leaves(memory.initial_state(2))]
    assert {leaf.device.type for leaf in leaves} == {"meta"}
    assert {leaf.dtype for leaf in leaves} <= {torch.float64, torch.int64}
