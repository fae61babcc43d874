"""SB3's names for the settings of PPO and of its policy, and those that have no meaning here."""

import math
import sys
from typing import Any

from engram.agents.ppo import PPOSettings
from engram.kernels.errors import InvalidValueError

LONGEST_CHUNK = 128
"""Steps that gradients flow through at most, unless a chunk is given."""

# Name, the one value that asks for nothing, and why no other is taken.
REFUSED: dict[str, tuple[Any, str]] = {
    "clip_range_vf": (None, "None (the value loss is not clipped)"),
    "rollout_buffer_class": (None, "None (a rollout is a value, not a buffer)"),
    "rollout_buffer_kwargs": (None, "None (a rollout is a value, not a buffer)"),
    "sde_sample_freq": (-1, "-1 (no state-dependent exploration)"),
    "target_kl": (None, "None (all epochs are run)"),
    "use_sde": (False, "False (no state-dependent exploration)"),
}
POLICY_NAMES = {
    "width": "width",
    "lstm_hidden_size": "width",  # as SB3's recurrent policies call it
    "normalize": "normalize",
    "auxiliary": "auxiliary",
}


def refuse(others: dict[str, Any], taken: list[str]) -> None:
    """Refuse settings that `MemoryPPO` does not take, unless they ask for nothing.

    Args:
        others: Keywords without a parameter.
        taken: Names of the parameters, for the error.
    """
    for name, value in others.items():
        if name == "policy":
            raise InvalidValueError(name, value, "no policy: memory=HCAM takes its place")
        if name not in REFUSED:
            raise InvalidValueError("setting", name, taken)
        nothing, why = REFUSED[name]
        if value != nothing:
            raise InvalidValueError(name, value, why)


def policy_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `MemoryPolicy` that `policy_kwargs` stands for."""
    for name, value in given.items():
        if name not in POLICY_NAMES:
            allowed = f"{', '.join(POLICY_NAMES)} (encoder, memory and heads have no other layers)"
            raise InvalidValueError(f"policy_kwargs[{name!r}]", value, allowed)
    if {"width", "lstm_hidden_size"} <= given.keys():
        raise InvalidValueError(
            "policy_kwargs['lstm_hidden_size']", given["lstm_hidden_size"], "without width"
        )
    settings = {POLICY_NAMES[name]: value for name, value in given.items()}
    width = settings.get("width", 1)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InvalidValueError("policy_kwargs['width']", width, "a whole number, 1 or more")
    return settings


def ppo_settings(
    *,
    n_envs: int,
    n_steps: int,
    batch_size: int,
    chunk: int | None,
    n_epochs: int,
    learning_rate: float,
    gamma: float,
    gae_lambda: float,
    clip_range: float,
    ent_coef: float,
    vf_coef: float,
    max_grad_norm: float,
    normalize_advantage: bool,
) -> PPOSettings:
    """Return what these settings mean to our PPO.

    The learning rate is given as the final one, for `PPO.update(..., progress=1)`: a schedule may
    end at 0, where PPO's initial rate must be above it. SB3's value loss is the squared error,
    ours half of it.

    Raises:
        InvalidValueError: If one cannot work, under its SB3 name.
    """
    whole = {"n_steps": n_steps, "batch_size": batch_size, "n_epochs": n_epochs, "chunk": chunk}
    for name, value in whole.items():
        if name == "chunk" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(name, value, "a whole number, 1 or more")
    _within(1.0, gamma=gamma, gae_lambda=gae_lambda)
    _within(math.inf, learning_rate=learning_rate, clip_range=clip_range)
    _within(math.inf, ent_coef=ent_coef, vf_coef=vf_coef)
    _within(math.inf, max_grad_norm=max_grad_norm)
    if max_grad_norm == 0:
        raise InvalidValueError("max_grad_norm", max_grad_norm, "finite numbers above 0")
    steps = n_steps * n_envs
    if steps % batch_size:
        allowed = f"divisors of n_steps * n_envs = {n_steps} * {n_envs} = {steps}"
        raise InvalidValueError("batch_size", batch_size, allowed)
    common = math.gcd(n_steps, batch_size)
    if chunk is None:
        chunk = max(c for c in range(1, min(common, LONGEST_CHUNK) + 1) if common % c == 0)
    if common % chunk:
        allowed = f"divisors of both n_steps = {n_steps} and batch_size = {batch_size}"
        raise InvalidValueError("chunk", chunk, allowed)
    return PPOSettings(
        rollout=n_steps,
        chunk=chunk,
        epochs=n_epochs,
        minibatches=steps // batch_size,
        final_learning_rate=learning_rate,
        discount=gamma,
        trace=gae_lambda,
        # No ratio but 1 lies within either.
        clip=max(clip_range, sys.float_info.min),
        entropy=ent_coef,
        value=2 * vf_coef,
        max_gradient=max_grad_norm,
        normalize_advantage=normalize_advantage,
    )


def _within(most: float, **numbers: Any) -> None:
    allowed = "0 to 1" if most == 1 else "finite numbers, 0 or more"
    for name, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= most:
            raise InvalidValueError(name, value, allowed)
