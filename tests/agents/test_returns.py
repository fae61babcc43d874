"""Return arithmetic: numbers worked by hand, then a slow reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engram.agents.returns import generalized_advantages, normalize

HALF = 0.5
"""γ = λ = 1/2 keep every number below exact in binary."""


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*up: int, steps: int = 3) -> Tensor:
    return torch.tensor([[t in up] for t in range(steps)])


def advantages(**changes: Any) -> list[float]:
    """Three steps: r = 1, 2, 4; V = 8, 4, 2 and 16 after them; an episode's last is worth 32."""
    given: dict[str, Any] = {
        "reward": column(1, 2, 4),
        "value": column(8, 4, 2),
        "last_value": column(16)[0],
        "terminated": flags(),
        "truncated": flags(),
        "final_value": column(32, 32, 32),
        "discount": HALF,
        "trace": HALF,
    }
    return generalized_advantages(**(given | changes))[:, 0].tolist()


def test_an_episode_that_goes_on() -> None:
    # δ = 1 + 4/2 − 8 = −5, 2 + 2/2 − 4 = −1, 4 + 16/2 − 2 = 10; A = δ + A'/4
    assert advantages() == [-5 + (-1 + 10 / 4) / 4, -1 + 10 / 4, 10]


def test_termination_is_worth_nothing_more() -> None:
    # δ_1 = 2 − 4 = −2, and A_1 takes nothing from step 2
    assert advantages(terminated=flags(1)) == [-5 - 2 / 4, -2, 10]


def test_truncation_bootstraps_with_the_value_of_the_last_observation() -> None:
    # δ_1 = 2 + 32/2 − 4 = 14, and A_1 takes nothing from step 2
    assert advantages(truncated=flags(1)) == [-5 + 14 / 4, 14, 10]


def test_an_episode_that_terminates_at_its_limit_is_terminated() -> None:
    both = advantages(truncated=flags(1), terminated=flags(1))
    assert both == advantages(terminated=flags(1))


def test_the_value_after_the_last_step_counts_only_if_the_episode_goes_on() -> None:
    assert advantages(terminated=flags(2))[2] == 4 - 2
    assert advantages(truncated=flags(2))[2] == 4 + 32 / 2 - 2


def test_without_trace_an_advantage_is_one_temporal_difference() -> None:
    assert advantages(trace=0.0) == [-5, -1, 10]


def test_with_full_trace_an_advantage_is_the_discounted_return_less_the_value() -> None:
    assert advantages(trace=1.0) == [1 + 2 / 2 + 4 / 4 + 16 / 8 - 8, 2 + 4 / 2 + 16 / 4 - 4, 10]


def test_without_discount_only_the_reward_counts() -> None:
    assert advantages(discount=0.0) == [1 - 8, 2 - 4, 4 - 2]


def test_a_rollout_of_one_step() -> None:
    one = {"reward": column(1), "value": column(8), "final_value": column(32)}
    down, up = flags(steps=1), flags(0, steps=1)
    assert advantages(**one, terminated=down, truncated=down) == [1 + 16 / 2 - 8]
    assert advantages(**one, terminated=up, truncated=down) == [1 - 8]
    assert advantages(**one, terminated=down, truncated=up) == [1 + 32 / 2 - 8]


def test_what_is_not_used_may_be_nan() -> None:
    nan = torch.full((3, 1), torch.nan, dtype=torch.float64)
    nan[1] = 32
    assert advantages(truncated=flags(1), final_value=nan) == advantages(truncated=flags(1))


def reference(
    reward: Tensor,
    value: Tensor,
    last_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_value: Tensor,
    discount: float,
    trace: float,
) -> Tensor:
    """Σ_k (γλ)^k δ_{t+k}, episode by episode, as the paper writes it."""
    steps, batch = reward.shape
    advantage = torch.zeros_like(reward)
    for b in range(batch):
        for t in range(steps):
            for k in range(t, steps):
                if terminated[k, b]:
                    following = 0.0
                elif truncated[k, b]:
                    following = float(final_value[k, b])
                else:
                    following = float(value[k + 1, b] if k + 1 < steps else last_value[b])
                delta = reward[k, b] + discount * following - value[k, b]
                advantage[t, b] += (discount * trace) ** (k - t) * delta
                if terminated[k, b] or truncated[k, b]:
                    break
    return advantage


@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_many_environments_with_random_ends_agree_with_the_sum(
    discount: float, trace: float
) -> None:
    steps, batch = 15, 6
    reward, value, final = torch.randn(3, steps, batch, dtype=torch.float64)
    last = torch.randn(batch, dtype=torch.float64)
    often = torch.tensor([0.0, 0.1, 0.3, 0.3, 0.6, 1.0])
    terminated, truncated = (torch.rand(steps, batch) < often for _ in range(2))
    given = (reward, value, last, terminated, truncated, final)
    torch.testing.assert_close(
        generalized_advantages(*given, discount=discount, trace=trace),
        reference(*given, discount, trace),
    )


def test_normalised_numbers_have_mean_zero_and_deviation_one() -> None:
    x = normalize(torch.randn(7, 5) * 3 + 10)
    assert x.shape == (7, 5)
    assert float(x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_normalising_by_hand() -> None:
    assert normalize(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1])


def test_numbers_that_do_not_differ_become_zero() -> None:
    assert normalize(torch.tensor([4.0])).tolist() == [0]
    assert normalize(torch.full((3, 2), 4.0)).tolist() == [[0, 0]] * 3
