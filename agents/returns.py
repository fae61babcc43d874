"""Return arithmetic: pure functions, each checked by hand in tests/agents/test_returns.py."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantages(
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T B"],
    last_value: Float[Tensor, " B"],
    terminated: Bool[Tensor, "T B"],
    truncated: Bool[Tensor, "T B"],
    final_value: Float[Tensor, "T B"],
    *,
    discount: float,
    trace: float,
) -> Float[Tensor, "T B"]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    δ_t = r_t + γ V'_t − V_t and A_t = δ_t + γ λ c_t A_{t+1}, where V'_t = 0 if step t terminated,
    the value of the episode's last observation if it was truncated, and V_{t+1} otherwise;
    c_t = 0 where an episode ended, else 1.

    Args:
        reward: r_t for t in [0, T).
        value: V_t, the value of the observation that action t answered.
        last_value: V_T, of the observation after the last action.
        terminated: Whether step t ended an episode for good.
        truncated: Whether step t was the last that was allowed.
        final_value: Value of the last observation of a truncated episode, read with the memory
            as it was before the reset; used only where `truncated` and not `terminated`.
        discount: γ.
        trace: λ.
    """
    following = torch.cat([value[1:], last_value[None]])
    following = torch.where(truncated, final_value, following)
    following = torch.where(terminated, 0.0, following)
    delta = reward + discount * following - value
    carry = discount * trace * (~(terminated | truncated)).to(value.dtype)
    advantage = torch.empty_like(value)
    running = torch.zeros_like(last_value)
    for t in range(len(reward) - 1, -1, -1):
        running = delta[t] + carry[t] * running
        advantage[t] = running
    return advantage


def normalize(
    x: Float[Tensor, "*n"], over_learners: Callable[[Tensor], Tensor] = lambda mean: mean
) -> Float[Tensor, "*n"]:
    """(x − mean) / (deviation + 1e−8); a single number becomes zero.

    Args:
        x: Numbers.
        over_learners: Takes the mean over those who hold other numbers, equally many.
    """
    centred = x - over_learners(x.mean())
    return centred / (over_learners(centred.square().mean()).sqrt() + 1e-8)
