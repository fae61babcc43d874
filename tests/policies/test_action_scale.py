"""The scale of actions: exact at its ends, and blind to nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engram.kernels.errors import DataError, InvalidValueError
from engram.policies.action_scale import ActionScale

LOW, HIGH = torch.tensor([-2.0, 0.0, 0.5]), torch.tensor([2.0, 1.0, 0.5])


def test_quantiles_become_one_and_what_lies_beyond_is_cut() -> None:
    scale = ActionScale(LOW, HIGH)
    action = torch.tensor([[-2.0, 0.0, 0.5], [2.0, 1.0, 0.5], [1.0, 0.25, 0.5], [9.0, -7.0, 0.5]])
    expected = torch.tensor([[-1.0, -1.0, 0], [1.0, 1.0, 0], [0.5, -0.5, 0], [1.0, -1.0, 0]])
    torch.testing.assert_close(scale.normalize(action), expected)


def test_within_the_quantiles_there_and_back_is_the_same() -> None:
    scale = ActionScale(LOW, HIGH)
    action = torch.lerp(LOW, HIGH, torch.rand(7, 5, 3))
    torch.testing.assert_close(scale.restore(scale.normalize(action)), action)


def test_a_number_that_never_moves_stays_put() -> None:
    scale = ActionScale(LOW, HIGH)
    assert (scale.restore(torch.randn(50, 3) * 3)[:, 2] == 0.5).all()


@given(
    low=st.floats(-1, 1, width=32), high=st.floats(-1, 1, width=32), z=st.floats(-2, 2, width=32)
)
def test_a_restored_action_never_leaves_the_quantiles(low: float, high: float, z: float) -> None:
    low, high = sorted((low, high))
    scale = ActionScale(torch.tensor([low]), torch.tensor([high]))
    assert low <= float(scale.restore(torch.tensor([z]))) <= high


def test_the_ends_are_met_exactly_whatever_the_rounding() -> None:
    low, high = torch.randn(2, 2000).sort(0).values
    assert (low + (high - low) > high).any(), "the plain formula rounds beyond"
    scale = ActionScale(low, high)
    assert torch.equal(scale.restore(torch.ones(2000)), high)
    assert torch.equal(scale.restore(-torch.ones(2000)), low)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2])
def test_actions_that_are_not_finite_are_refused(bad: float, place: int) -> None:
    action = torch.zeros(4, 3)
    action[2, place] = bad
    with pytest.raises(DataError, match=r"an action is \[.*(nan|inf).*\]; allowed: finite numbers"):
        ActionScale(LOW, HIGH).normalize(action)


def test_actions_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="an action has 4 numbers; allowed: 3"):
        ActionScale(LOW, HIGH).normalize(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("low", "high"), [([1.0], [0.0]), ([0.0], [float("inf")]), ([float("nan")], [1.0])]
)
def test_quantiles_that_make_no_scale_are_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(InvalidValueError, match=r"action quantiles is .*; allowed: finite"):
        ActionScale(torch.tensor(low), torch.tensor(high))


def test_actions_drawn_in_half_precision_are_restored_in_full() -> None:
    scale = ActionScale(torch.tensor([-1.0]), torch.tensor([3.0]))
    restored = scale.restore(torch.tensor([[0.5]], dtype=torch.bfloat16))
    assert restored.dtype == torch.float32 and restored.item() == 2.0


def test_the_scale_travels_with_the_weights() -> None:
    scale, other = ActionScale(LOW, HIGH), ActionScale(LOW * 0, HIGH * 0)
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.low, LOW) and torch.equal(other.high, HIGH)
