"""Heads: probabilities, entropies, draws, and what the environment gets."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.heads import (
    Categorical,
    ContinuousHead,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    make_head,
)

WIDTH = 5
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete_from_three": spaces.Discrete(4, start=3),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[0, 5]),
    "box": spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([1.0, 9.0], np.float32)),
}


def gaussian(mean: float, std: float) -> SquashedGaussian:
    numbers = torch.tensor([[mean], [std]], dtype=torch.float64)
    return SquashedGaussian(numbers[0], numbers[1].log())


def integrate(distribution: SquashedGaussian, of: Any) -> float:
    """∫ p(a) f(log p(a)) da over −1 … 1, with a = tanh u."""
    u = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    wide = SquashedGaussian(
        distribution.mean.expand(len(u), 1), distribution.log_std.expand(len(u), 1)
    )
    log_p = wide.log_prob(u[:, None])
    # da = (1 − tanh² u) du, and log(1 − tanh² u) = −2 log cosh u
    log_da = -2 * (u.abs() + torch.log1p((-2 * u.abs()).exp()) - np.log(2))
    return float(torch.trapezoid((log_p + log_da).exp() * of(log_p), u))


def test_probabilities_of_all_integers_sum_to_one() -> None:
    policy = Categorical(torch.randn(3, 4, 6))
    every = torch.arange(6).expand(3, 4, 6)
    total = torch.stack([policy.log_prob(a) for a in every.unbind(-1)]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3, 4))


def test_probabilities_of_all_combinations_sum_to_one() -> None:
    policy = MultiCategorical(torch.randn(2, 7), [3, 4])
    every = [torch.tensor(pair).expand(2, 2) for pair in product(range(3), range(4))]
    total = torch.stack([policy.log_prob(action) for action in every]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2))


@pytest.mark.parametrize(("mean", "std"), [(0, 0.3), (0.5, 1), (-2, 0.1), (1, 3), (0, 7)])
def test_the_density_of_a_squashed_action_integrates_to_one(mean: float, std: float) -> None:
    assert integrate(gaussian(mean, std), torch.ones_like) == pytest.approx(1, abs=1e-6)


def test_the_density_of_a_squashed_action_is_that_of_tanh_by_hand() -> None:
    action = torch.tensor([0.4], dtype=torch.float64)  # u; a = tanh 0.4
    normal = np.exp(-0.5 * (0.4 - 0.1) ** 2 / 0.25) / np.sqrt(2 * np.pi * 0.25)
    expected = np.log(normal / (1 - np.tanh(0.4) ** 2))
    assert float(gaussian(0.1, 0.5).log_prob(action)) == pytest.approx(expected)


@pytest.mark.parametrize(("mean", "std"), [(0, 0.3), (0.5, 1), (-2, 0.1), (1, 3), (0, 7), (9, 1)])
def test_the_entropy_of_a_squashed_gaussian_is_that_of_its_density(mean: float, std: float) -> None:
    policy = gaussian(mean, std)
    expected = -integrate(policy, lambda log_p: log_p)
    assert float(policy.entropy()) == pytest.approx(expected, abs=0.1)


def test_no_bounded_action_has_more_entropy_than_a_uniform_one() -> None:
    """Otherwise an entropy bonus would drive every action to its bounds."""
    for std in (0.5, 1, 2, 4, 7):
        assert float(gaussian(0, std).entropy()) < np.log(2)


def test_entropy_of_integers_by_hand() -> None:
    policy = Categorical(torch.tensor([0.5, 0.25, 0.25]).log())
    assert float(policy.entropy()) == pytest.approx(1.5 * np.log(2))
    uniform = MultiCategorical(torch.zeros(1, 5), [3, 2])
    assert float(uniform.entropy()) == pytest.approx(np.log(6))


def test_impossible_integers_have_no_share_in_the_gradient_of_entropy() -> None:
    logits = torch.tensor([0.0, 1.0, -1e4], requires_grad=True)
    Categorical(logits).entropy().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_integers_are_drawn_with_their_probabilities() -> None:
    p = torch.tensor([0.1, 0.6, 0.3])
    policy = Categorical(p.log().expand(30_000, 3))
    share = policy.sample(torch.Generator().manual_seed(0)).bincount(minlength=3) / 30_000
    torch.testing.assert_close(share, p, atol=0.01, rtol=0)


def test_parts_of_an_action_are_drawn_independently() -> None:
    p, q = torch.tensor([0.1, 0.6, 0.3]), torch.tensor([0.8, 0.2])
    policy = MultiCategorical(torch.cat([p, q]).log().expand(30_000, 5), [3, 2])
    drawn = policy.sample(torch.Generator().manual_seed(0))
    share = (drawn[:, 0] * 2 + drawn[:, 1]).bincount(minlength=6).view(3, 2) / 30_000
    torch.testing.assert_close(share, p[:, None] * q, atol=0.01, rtol=0)


def test_real_numbers_are_drawn_from_their_gaussian() -> None:
    policy = SquashedGaussian(torch.full((30_000, 1), 0.7), torch.full((30_000, 1), -1.0))
    u = policy.sample(torch.Generator().manual_seed(0))
    assert u.mean() == pytest.approx(0.7, abs=0.01)
    assert u.std() == pytest.approx(np.exp(-1), abs=0.01)


@pytest.mark.parametrize("name", SPACES)
def test_draws_follow_from_the_generator_alone(name: str) -> None:
    policy = make_head(SPACES[name], WIDTH)(torch.randn(3, 2, WIDTH))
    drawn = []
    for _ in range(2):
        drawn.append(policy.sample(torch.Generator().manual_seed(3)))
        torch.randn(7)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_whatever_is_drawn_is_an_action_of_the_space(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name]
    head = make_head(space, WIDTH).to(dtype)
    policy = head(10 * torch.randn(200, WIDTH, dtype=dtype))
    for action in (policy.sample(), policy.mode()):
        assert all(a.numpy() in space for a in head.to_env(action).detach())


def test_bounds_are_kept_to_the_last_digit() -> None:
    low = torch.rand(10_000) * -3
    high = torch.rand(10_000) * 5 + 0.1
    head = ContinuousHead(WIDTH, low, high)
    for extreme in (-40.0, 40.0):
        sent = head.to_env(torch.full((10_000,), extreme))
        assert (sent >= low).all()
        assert (sent <= high).all()


def test_the_mode_is_the_likeliest_action() -> None:
    head = make_head(SPACES["multi_discrete"], WIDTH)
    policy = head(torch.randn(4, WIDTH))
    every = [torch.tensor(pair).expand(4, 2) for pair in product(range(3), range(2))]
    best = torch.stack([policy.log_prob(action) for action in every]).amax(0)
    torch.testing.assert_close(policy.log_prob(policy.mode()), best)


@pytest.mark.parametrize("name", SPACES)
def test_encoded_actions_have_the_promised_size_and_tell_actions_apart(name: str) -> None:
    head = make_head(SPACES[name], WIDTH)
    drawn = head(torch.randn(50, WIDTH)).sample()
    code = head.encode(drawn)
    assert code.shape == (50, head.size)
    assert len(code.unique(dim=0)) == len(drawn.unique(dim=0))
    assert code.abs().max() <= 1


@pytest.mark.parametrize("name", SPACES)
def test_a_fresh_policy_is_close_to_undecided(name: str) -> None:
    features = torch.randn(64, WIDTH)
    head = make_head(SPACES[name], WIDTH)
    policy = head(features)
    calm: Distribution = head(torch.zeros_like(features))
    assert (policy.entropy() - calm.entropy()).abs().max() < 0.01


@pytest.mark.parametrize("name", SPACES)
def test_a_float64_head_computes_in_float64(name: str) -> None:
    head = make_head(SPACES[name], WIDTH).double()
    policy = head(torch.randn(2, WIDTH, dtype=torch.float64))
    log_prob: Tensor = policy.log_prob(policy.sample())
    assert log_prob.dtype == policy.entropy().dtype == torch.float64


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 1, (2, 2)),
        spaces.MultiBinary(3),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
    ids=str,
)
def test_a_space_without_head_is_refused_by_name(space: spaces.Space[Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"action space is .*; allowed: Discrete"):
        make_head(space, WIDTH)
