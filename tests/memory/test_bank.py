"""What a memory bank promises beyond the laws: gradient, dropout, devices, settings."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import (
    AbsoluteTime,
    AddFusion,
    AdjacentMerge,
    Bank,
    GateFusion,
    LeastUsed,
    LogarithmicTime,
    Oldest,
    OverVectors,
    RelativeTime,
    Streams,
    memoryvla,
    memoryvla_plus,
)
from engram.memory.sequence.bank_consolidation import earlier_time, mean_time

SHAPES = (3, 8), (1, 4)
VARIANTS: dict[str, dict[str, Any]] = {
    "raw": {},
    "counted_through_time": {
        "consolidation": AdjacentMerge(counted=True),
        "gradient_writes": None,
    },
    "fused": {"write_fused": True, "read_self": True, "gradient_writes": 2, "heads": 2},
    "least_used": {"consolidation": LeastUsed(), "gradient_writes": 1},
    "oldest_together": {"consolidation": Oldest(), "together": True, "fusion": AddFusion},
}

in_variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def build(capacity: int = 4, shapes: Any = SHAPES, **settings: Any) -> Bank:
    return Bank(*shapes, capacity=capacity, **settings).double()


def inputs(steps: int, batch: int = 2, shapes: Any = SHAPES, **where: Any) -> Streams:
    return Streams(*(torch.randn(steps, batch, *s, dtype=torch.float64, **where) for s in shapes))


def never(steps: int, batch: int = 2, **where: Any) -> Tensor:
    return torch.zeros(steps, batch, dtype=torch.bool, **where)


def reached(settings: dict[str, Any], read: int, steps: int = 8, capacity: int = 16) -> list[int]:
    """The inputs that the perceptual output of one step sends gradient to."""
    bank = build(capacity, **settings)
    x = inputs(steps, batch=1)
    x.perceptual.requires_grad_()
    y, _ = bank(x, bank.initial_state(1), never(steps, 1))
    (grad,) = torch.autograd.grad(y.perceptual[read].sin().sum(), x.perceptual)
    return grad.flatten(1).any(1).nonzero().flatten().tolist()


def test_detached_writes_carry_no_gradient() -> None:
    assert reached({}, 5) == [5]
    assert reached({"write_fused": True}, 5) == [5]
    assert reached({"gradient_writes": 0, "consolidation": LeastUsed()}, 5) == [5]


def test_gradient_of_raw_writes_lives_for_as_many_reads_as_asked() -> None:
    assert reached({"gradient_writes": 1}, 5) == [4, 5]
    assert reached({"gradient_writes": 3}, 5) == [2, 3, 4, 5]
    assert reached({"gradient_writes": 3}, 1) == [0, 1]
    assert reached({"gradient_writes": None}, 5) == [0, 1, 2, 3, 4, 5]


def test_gradient_of_fused_writes_goes_on_through_what_they_read() -> None:
    assert reached({"gradient_writes": 1, "write_fused": True}, 4) == [0, 1, 2, 3, 4]
    assert reached({"gradient_writes": None, "write_fused": True}, 4) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("write_fused", [False, True])
def test_gradient_passes_consolidation(write_fused: bool) -> None:
    through_time = {"gradient_writes": None, "write_fused": write_fused}
    assert reached(through_time, 7, capacity=2) == list(range(8))


def test_a_merged_entry_is_cut_as_a_whole_and_the_newest_input_is_not() -> None:
    settings: dict[str, Any] = {"gradient_writes": 2}  # capacity 1: everything merges at once
    found = [reached(settings, read, capacity=1) for read in range(6)]
    # After the write of 2, that of 0 is two writes back: the entry is cut, then takes in 2.
    assert found == [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4], [4, 5]]


@pytest.mark.parametrize("capacity", [1, 3])
def test_forward_and_steps_leave_the_same_bank(capacity: int) -> None:
    for settings in VARIANTS.values():
        bank = build(capacity, **settings)
        x, start = inputs(20), torch.rand(20, 2) < 0.1
        _, whole = bank(x, bank.initial_state(2), start)
        state = bank.initial_state(2)
        for t in range(20):
            _, state = bank.step(Streams(x.perceptual[t], x.cognitive[t]), state, start[t])
        torch.testing.assert_close(whole, state, rtol=1e-12, atol=1e-12)
        assert whole.perceptual.inputs.sum() > 0


@in_variants
def test_training_passes_through_consolidation(settings: dict[str, Any]) -> None:
    bank = build(3, **settings)
    x = inputs(12)
    y, state = bank(x, bank.initial_state(2), never(12))
    assert (state.age == 12).all()  # of three that fit
    torch.cat([y.perceptual.flatten(), y.cognitive.flatten()]).sin().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in bank.parameters())


@in_variants
def test_every_parameter_learns_from_the_first_update_on(settings: dict[str, Any]) -> None:
    """As initialised, unlike in the laws: no branch begins dead."""
    bank = build(**settings)
    y, _ = bank(inputs(6), bank.initial_state(2), never(6))
    torch.cat([y.perceptual.flatten(), y.cognitive.flatten()]).sin().sum().backward()
    for name, parameter in bank.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, name


def test_the_gate_begins_half_open() -> None:
    bank = build()
    x, h = torch.ones(1, 3, 8, dtype=torch.float64), -torch.ones(1, 3, 8, dtype=torch.float64)
    fused = bank.retrieval["perceptual"].fusion(x, h)
    assert fused.abs().max() < 0.02 and fused.abs().max() > 0


def test_an_empty_bank_is_skipped_or_reads_the_input() -> None:
    x = inputs(1)
    skipped, _ = build()(x, build().initial_state(2), never(1))
    torch.testing.assert_close(skipped, x)
    read, _ = build(read_self=True)(x, build().initial_state(2), never(1))
    assert (read.perceptual - x.perceptual).abs().min() > 1e-6


@pytest.mark.parametrize("rule", [AdjacentMerge(), LeastUsed()])
def test_dropout_acts_in_training_alone(rule: Any) -> None:
    bank = build(dropout=0.5, consolidation=rule)
    x = inputs(5)

    def run(model: Bank) -> Tensor:
        return model(x, model.initial_state(2), never(5))[0].perceptual

    assert not torch.equal(run(bank.train()), run(bank.train()))
    plain = build(consolidation=rule)
    plain.load_state_dict(bank.state_dict())
    torch.testing.assert_close(run(bank.eval()), run(plain))


class NoHost(TorchDispatchMode):
    """Refuses what would wait for a device: values on the host, and shapes that hang on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[override]
        assert not any(name in str(function) for name in self.FORBIDDEN), function
        return function(*args, **(kwargs or {}))


@in_variants
def test_nothing_waits_for_the_device(settings: dict[str, Any]) -> None:
    bank = build(2, **settings)
    x, start = inputs(6), never(6)
    with NoHost():
        y, _ = bank(x, bank.initial_state(2), start)
        _, state = bank.step(inputs_at(x, 0), bank.initial_state(2), start[0])
        y.perceptual.sum().backward()
    bank = bank.to("meta")
    x, start = inputs(6, device="meta"), never(6, device="meta")
    y, state = bank(x, bank.initial_state(2), start)
    y, state = bank.step(inputs_at(y, 0), state, start[0])
    assert {leaf.device.type for _, leaf in states.leaves((y, state))} == {"meta"}


def inputs_at(x: Streams, t: int) -> Streams:
    return Streams(x.perceptual[t], x.cognitive[t])


def test_a_stream_without_tokens_costs_nothing_and_changes_nothing() -> None:
    both = build()
    one = build(shapes=((3, 8), (0, 4)))
    found = one.load_state_dict(both.state_dict(), strict=False)
    assert not found.missing_keys and all("cognitive" in key for key in found.unexpected_keys)
    x = inputs(9)
    expected, _ = both(x, both.initial_state(2), never(9))
    y, _ = one(x._replace(cognitive=x.cognitive[:, :, :0]), one.initial_state(2), never(9))
    torch.testing.assert_close(y.perceptual, expected.perceptual)
    assert y.cognitive.shape == (9, 2, 0, 4)


def test_streams_of_separate_banks_do_not_mix() -> None:
    bank = build()
    x, other = inputs(9), inputs(9)
    y, _ = bank(x, bank.initial_state(2), never(9))
    z, _ = bank(x._replace(cognitive=other.cognitive), bank.initial_state(2), never(9))
    torch.testing.assert_close(y.perceptual, z.perceptual)
    assert not torch.equal(y.cognitive, z.cognitive)


def test_relative_time_does_not_know_when_the_episode_began() -> None:
    """Old entries pushed out, what is left is read alike at any hour; absolute time tells it."""
    tail, heads = inputs(6, shapes=((3, 8), (0, 4))), (inputs(4), inputs(9))
    for code, alike in ((RelativeTime, True), (LogarithmicTime, True), (AbsoluteTime, False)):
        bank = build(3, ((3, 8), (0, 4)), consolidation=Oldest(), time_code=code)
        ends = []
        for head in heads:
            perceptual = torch.cat([head.perceptual, tail.perceptual])
            x = Streams(perceptual, perceptual.new_zeros(len(perceptual), 2, 0, 4))
            y, _ = bank(x, bank.initial_state(2), never(len(perceptual)))
            ends.append(y.perceptual[-3:])
        assert torch.allclose(*ends, atol=1e-12) == alike


def test_times_of_a_low_precision_bank_are_exact() -> None:
    bank = Bank((1, 4), (0, 1), capacity=2, consolidation=Oldest()).bfloat16()
    x = Streams(*(torch.zeros(300, 1, *shape, dtype=torch.bfloat16) for shape in ((1, 4), (0, 1))))
    _, state = bank(x, bank.initial_state(1), never(300, 1))
    assert state.perceptual.time.tolist() == [[298.0, 299.0]]
    assert state.perceptual.entries.dtype == torch.bfloat16


def test_the_presets_differ_as_published() -> None:
    first, plus = memoryvla((4, 16), (1, 32)), memoryvla_plus((4, 16), (1, 32), capacity=5)
    blocks = [bank.retrieval["perceptual"].blocks for bank in (first, plus)]
    assert [(len(b), b[0].heads, b[0].dropout) for b in blocks] == [(2, 1, 0.0), (2, 4, 0.1)]
    assert [bank.write_fused for bank in (first, plus)] == [False, True]
    assert [bank.gradient_writes for bank in (first, plus)] == [0, 0]
    widths = [bank.retrieval["cognitive"].time_code.width for bank in (first, plus)]
    assert widths == [32 // 4, 256] and (first.capacity, plus.capacity) == (16, 5)
    assert [bank.retrieval["cognitive"].read_self for bank in (first, plus)] == [False, True]
    for bank, time in ((first, earlier_time), (plus, mean_time)):
        assert isinstance(bank.consolidation, AdjacentMerge)
        assert bank.consolidation.time is time and not bank.consolidation.counted
        assert isinstance(bank.retrieval["cognitive"].time_code, AbsoluteTime)
        gate = bank.retrieval["perceptual"].fusion
        assert isinstance(gate, GateFusion)
        x, h = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
        torch.testing.assert_close(gate(x, h), (x + h) / 2, atol=0.05, rtol=0)  # half open


def test_the_cognitive_stream_of_the_paper_has_its_size() -> None:
    with torch.device("meta"):
        bank = memoryvla((0, 256), (1, 4096))
    assert sum(p.numel() for p in bank.parameters()) == pytest.approx(423.7e6, rel=1e-3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shapes": ((0, 8), (0, 4))}, "tokens is 0; allowed: 1 or more in one of the streams"),
        ({"shapes": ((-1, 8), (1, 4))}, r"perceptual is \(-1, 8\); allowed: 0 or more tokens"),
        ({"shapes": ((1, 8), (1, 0))}, r"cognitive is \(1, 0\); allowed: 0 or more tokens"),
        ({"heads": 3}, "heads is 3; allowed: divisors of the perceptual width 8"),
        ({"heads": 8}, "heads is 8; allowed: divisors of the cognitive width 4"),
        ({"heads": 0}, "heads is 0; allowed: 1 or more"),
        ({"capacity": 0}, "capacity is 0; allowed: 1 or more"),
        ({"layers": 0}, "layers is 0; allowed: 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: from 0"),
        ({"gradient_writes": -1}, "gradient_writes is -1; allowed: 0 or more, or None"),
        ({"time_code": partial(AbsoluteTime, width=7)}, "width is 7; allowed: even numbers"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        build(**settings)


def test_over_vectors_refuses_an_output_without_features() -> None:
    with pytest.raises(InvalidValueError, match="d_out is 0; allowed: 1 or more"):
        OverVectors(8, memory=Bank, d_out=0)


def test_over_vectors_sends_each_stream_its_part() -> None:
    seen = []

    class Spy(Bank):
        def forward(self, x: Streams, state: Any, start: Tensor) -> Any:  # type: ignore[override]
            seen.append(x)
            return super().forward(x, state, start)

    memory = OverVectors(8, memory=Spy, tokens=2, width=3, cognitive_width=5, d_out=7)
    y, _ = memory(torch.randn(4, 2, 8), memory.initial_state(2), never(4))
    assert y.shape == (4, 2, 7)
    assert seen[0].perceptual.shape == (4, 2, 2, 3) and seen[0].cognitive.shape == (4, 2, 1, 5)
