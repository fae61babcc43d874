"""Auxiliary losses: what they may look at, and that they can be learnt."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.auxiliary import Auxiliary

T, B, D, A = 6, 2, 5, 3
VECTOR = spaces.Box(-np.inf, np.inf, (2,))
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "two_from_seven": spaces.Discrete(2, start=7),
    "five_from_seven": spaces.Discrete(5, start=7),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[4, -1]),
    "pairs": spaces.MultiDiscrete([2, 2]),
    "bits": spaces.MultiBinary([2, 3]),
    "binary_bytes": spaces.Box(0, 1, (2, 3), np.uint8),
    "number": spaces.Box(-1, 1, ()),
    "row": spaces.Box(-1, 1, (1, 3)),
    "doubles": spaces.Box(0, 1, (3,), np.float64),
    "symbols": spaces.Box(0, 7, (2, 7, 7), np.uint8),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "dict": spaces.Dict({"type": spaces.Discrete(3), "robot.arm": spaces.Box(-1, 1, (2,))}),
}
LOSSES = ["reconstruct", "predict", "recall"]


def draw(space: spaces.Space[Any], steps: int, batch: int) -> Any:
    def tensors(sample: Any) -> Any:
        if isinstance(sample, dict):
            return {name: tensors(part) for name, part in sample.items()}
        return torch.as_tensor(sample).unflatten(0, (steps, batch))

    many = batch_space(space, steps * batch)
    many.seed(0)
    return tensors(many.sample())


def nothing(*steps: int) -> Tensor:
    """Flags that are up at some steps of environment 0."""
    flags = torch.zeros(T, B, dtype=torch.bool)
    flags[list(steps), 0] = True
    return flags


def gradient_of(auxiliary: Auxiliary, observation: Tensor, start: Tensor, ended: Tensor) -> Tensor:
    """Which observations the loss depends on, `[T, B]`."""
    observation = observation.clone().requires_grad_()
    features = torch.ones(T, B, D)
    action = torch.ones(T, B, A)
    losses = auxiliary(features, observation, action, start, ended, torch.Generator())
    (gradient,) = torch.autograd.grad(sum(losses.values()), observation)
    return gradient.abs().sum(-1) > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SPACES)
def test_every_observation_space_can_be_decoded_and_learnt(name: str, loss: str) -> None:
    """Eight fixed observations with codes that tell them apart are fitted."""
    steps, width = 5, 16
    space = SPACES[name]
    auxiliary = Auxiliary(space, width, A, **{loss: 1.0})
    optimizer = torch.optim.Adam(auxiliary.parameters(), lr=1e-2)
    observation = draw(space, steps, B)
    features, action = torch.randn(steps, B, width), torch.randn(steps, B, A)
    flags = torch.zeros(steps, B, dtype=torch.bool)
    history = []
    for _ in range(60):
        generator = torch.Generator().manual_seed(1)
        (total,) = auxiliary(features, observation, action, flags, flags, generator).values()
        assert total.shape == ()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert np.isfinite(history).all()
    assert history[-1] < 0.6 * history[0]
    assert history[-1] >= 0


def test_reconstruct_aims_at_every_observation() -> None:
    seen = gradient_of(
        Auxiliary(VECTOR, D, A, reconstruct=1.0), torch.randn(T, B, 2), nothing(3), nothing(2)
    )
    assert seen.all()


def test_predict_aims_at_what_follows_within_the_scope() -> None:
    seen = gradient_of(
        Auxiliary(VECTOR, D, A, predict=1.0), torch.randn(T, B, 2), nothing(3), nothing(2)
    )
    assert seen[:, 0].tolist() == [False, True, True, False, True, True]
    assert seen[:, 1].tolist() == [False, True, True, True, True, True]


def test_predict_aims_at_no_new_episode_of_the_same_scope() -> None:
    """A trial holds several episodes: o_{t+1} is then the first of the next, whatever a_t was."""
    seen = gradient_of(
        Auxiliary(VECTOR, D, A, predict=1.0), torch.randn(T, B, 2), nothing(), nothing(2)
    )
    assert seen[:, 0].tolist() == [False, True, True, False, True, True]


def test_the_last_action_of_a_chunk_predicts_nothing() -> None:
    auxiliary = Auxiliary(VECTOR, D, A, predict=1.0)
    observation, flags = torch.randn(T, B, 2), nothing()
    features = torch.randn(T, B, D, requires_grad=True)
    (loss,) = auxiliary(features, observation, torch.randn(T, B, A), flags, flags).values()
    loss.backward()
    assert features.grad is not None
    assert not features.grad[-1].any()
    assert features.grad[:-1].abs().sum(-1).all()


def targets_of_recall(start: Tensor, *, horizon: int) -> dict[tuple[int, int], set[int]]:
    """Which step each step may be asked for, found by asking often."""
    space = spaces.Box(-np.inf, np.inf, (1,))
    auxiliary = Auxiliary(space, D, A, recall=1.0, horizon=horizon)
    generator = torch.Generator().manual_seed(0)
    observation = torch.arange(T, dtype=torch.float32)[:, None, None].expand(T, B, 1)
    features, action = torch.zeros(T, B, D), torch.zeros(T, B, A)
    asked: dict[tuple[int, int], set[int]] = {}

    def hear(layer: Any, args: Any) -> None:
        heard.append(args[1])

    handle = auxiliary.recall.register_forward_pre_hook(hear)
    for _ in range(80):
        heard: list[Tensor] = []
        auxiliary(features, observation, action, start, nothing(), generator)
        for place, step in enumerate(heard[0].flatten().tolist()):
            asked.setdefault(divmod(place, B), set()).add(int(step))
    handle.remove()
    return asked


def test_recall_asks_for_every_earlier_step_of_the_scope_and_no_other() -> None:
    asked = targets_of_recall(nothing(0, 3), horizon=32)
    assert [asked[t, 0] for t in (1, 2, 4, 5)] == [{0}, {0, 1}, {3}, {3, 4}]
    assert [asked[t, 1] for t in range(1, T)] == [set(range(t)) for t in range(1, T)]


def test_recall_reaches_no_further_than_its_horizon() -> None:
    asked = targets_of_recall(nothing(), horizon=2)
    assert [asked[t, 0] for t in (1, 2, 3, 4, 5)] == [{0}, {0, 1}, {1, 2}, {2, 3}, {3, 4}]


def test_a_first_step_recalls_nothing() -> None:
    auxiliary = Auxiliary(VECTOR, D, A, recall=1.0)
    features = torch.randn(T, B, D, requires_grad=True)
    observation, action = torch.randn(T, B, 2), torch.randn(T, B, A)
    (loss,) = auxiliary(features, observation, action, nothing(0, 3), nothing(2)).values()
    loss.backward()
    assert features.grad is not None
    asked = features.grad.abs().sum(-1) > 0
    assert asked[:, 0].tolist() == [False, True, True, False, True, True]
    assert asked[:, 1].tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("loss", ["predict", "recall"])
def test_a_loss_is_the_mean_over_valid_steps_and_zero_where_there_is_none(loss: str) -> None:
    auxiliary = Auxiliary(VECTOR, D, A, **{loss: 1.0})
    observation, action = torch.randn(T, B, 2), torch.randn(T, B, A)
    every = torch.ones(T, B, dtype=torch.bool)
    (none,) = auxiliary(torch.randn(T, B, D), observation, action, every, every).values()
    assert none == 0
    # One valid step: its loss, undiluted by the others.
    every[1, 0] = False
    first = torch.zeros(T, B, dtype=torch.bool)
    features = torch.randn(T, B, D)
    (one,) = auxiliary(features, observation, action, every, first).values()
    part = slice(0, 2)
    alone = torch.tensor([[True], [False]])
    (same,) = auxiliary(
        features[part, :1], observation[part, :1], action[part, :1], alone, first[part, :1]
    ).values()
    torch.testing.assert_close(one, same)


def test_weights_scale_their_losses() -> None:
    single, double = (
        Auxiliary(VECTOR, D, A, reconstruct=w, predict=3 * w, recall=w) for w in (1.0, 2.0)
    )
    double.load_state_dict(single.state_dict())
    given = (torch.randn(T, B, D), torch.randn(T, B, 2), torch.randn(T, B, A), nothing(), nothing())
    one = single(*given, torch.Generator().manual_seed(0))
    two = double(*given, torch.Generator().manual_seed(0))
    assert list(one) == LOSSES
    for name in LOSSES:
        torch.testing.assert_close(2 * one[name], two[name])


def test_numbers_between_zero_and_one_are_regressed_and_not_taken_for_bits() -> None:
    auxiliary = Auxiliary(SPACES["doubles"], D, A, reconstruct=1.0)
    observation = torch.full((T, B, 3), 0.5, dtype=torch.float64)
    given = (observation, torch.zeros(T, B, A), nothing(), nothing())
    optimizer = torch.optim.Adam(auxiliary.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (loss,) = auxiliary(torch.ones(T, B, D), *given).values()
        loss.backward()
        optimizer.step()
    assert loss < 0.01  # a logistic loss of 0.5 is never below log 2


def test_without_weights_there_is_nothing() -> None:
    auxiliary = Auxiliary(VECTOR, D, A)
    assert not auxiliary.active
    assert not list(auxiliary.parameters())
    given = (torch.randn(T, B, D), torch.randn(T, B, 2), torch.randn(T, B, A), nothing(), nothing())
    assert auxiliary(*given) == {}


@pytest.mark.parametrize("setting", [{name: -0.1} for name in LOSSES] + [{"horizon": 0}], ids=str)
def test_a_bad_setting_is_refused_by_name(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidValueError, match=rf"auxiliary\.{name} is .*; allowed: "):
        Auxiliary(VECTOR, D, A, **setting)


def test_a_space_that_cannot_be_decoded_is_refused_by_name() -> None:
    with pytest.raises(InvalidValueError, match=r"observation space is Text.*; allowed: "):
        Auxiliary(spaces.Text(3), D, A, reconstruct=1.0)
