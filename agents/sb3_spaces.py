"""Spaces as Stable-Baselines3 hands them out, and as our policies read them."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor

from engram.envs.adapter import UnsupportedSpaceError
from engram.kernels.errors import DataError


def observed(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space of what `arrange` makes of observations.

    SB3 moves the channels of an image to the front, `[C, H, W]`; our encoders want them last.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: observed(part) for name, part in space.items()})
    if not isinstance(space, spaces.Box):
        return space
    low, high = space.low, space.high
    if _channels_first(space):
        low, high = np.moveaxis(low, 0, -1), np.moveaxis(high, 0, -1)
    dtype = np.float32 if space.dtype == np.float64 else space.dtype
    with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)  # type: ignore[arg-type]


def arrange(observation: Any, space: spaces.Space[Any]) -> Any:
    """Turn observations `[n, ...]` of an SB3 environment into those of `observed(space)`.

    Args:
        observation: A tensor, or a dict of tensors.
        space: Of one observation, as SB3 has it.
    """
    if isinstance(space, spaces.Dict):
        return {name: arrange(observation[name], part) for name, part in space.items()}
    if isinstance(space, spaces.Box) and _channels_first(space):
        observation = observation.movedim(-3, -1)
    return observation.float() if observation.dtype == torch.float64 else observation


def acted(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the action space that a head is made for: MultiBinary [n] is n choices of two.

    Raises:
        UnsupportedSpaceError: If no head fits.
    """
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return spaces.MultiDiscrete([2] * space.shape[0])
    vector = len(space.shape or ()) == 1
    if isinstance(space, spaces.Box) and vector and np.issubdtype(space.dtype, np.floating):
        if space.is_bounded():
            return space
    elif isinstance(space, spaces.Discrete) or (isinstance(space, spaces.MultiDiscrete) and vector):
        return space
    allowed = "Discrete, MultiDiscrete [n], MultiBinary [n], bounded Box [n] of floats"
    raise UnsupportedSpaceError("action space", space, allowed)


def native(action: Any, space: spaces.Space[Any]) -> np.ndarray:
    """Turn what a head's `to_env` gives, `[n, ...]`, into what an SB3 environment takes."""
    array = action.numpy(force=True) if isinstance(action, Tensor) else np.asarray(action)
    array = array.astype(space.dtype)
    if isinstance(space, spaces.Box):  # float32 may round past a bound given in float64
        array = np.clip(array, space.low, space.high)
    return array


def describe(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return the space in JSON's types."""
    kind: dict[str, Any] = {"kind": type(space).__name__}
    if isinstance(space, spaces.Dict):
        return {**kind, "parts": {name: describe(part) for name, part in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {**kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        numbers = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {**kind, **numbers, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {**kind, "n": space.n if isinstance(space.n, int) else list(space.shape)}
    assert isinstance(space, spaces.Box), f"a policy of {space} was built"
    bounds = {"low": _bound(space.low), "high": _bound(space.high)}
    return {**kind, **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}


def rebuild(facts: dict[str, Any]) -> spaces.Space[Any]:
    """Return the space that `describe` described.

    Raises:
        DataError: If nothing was ever described so.
    """
    try:
        return _rebuild(facts)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"space {str(facts)[:80]} is no space that was saved: {error}") from error


def _rebuild(facts: dict[str, Any]) -> spaces.Space[Any]:
    kind = facts["kind"]
    if kind == "Dict":
        return spaces.Dict({name: _rebuild(part) for name, part in facts["parts"].items()})
    if kind == "Discrete":
        return spaces.Discrete(facts["n"], start=facts["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(facts["nvec"], dtype=facts["dtype"], start=facts["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(facts["n"])
    if kind != "Box":
        raise ValueError(f"kind is {kind!r}; allowed: Box, Dict, Discrete, MultiBinary, ...")
    dtype = np.dtype(facts["dtype"])
    low, high = (
        np.broadcast_to(np.array(facts[end], dtype=np.float64).astype(dtype), facts["shape"])
        if dtype.kind == "f"
        else np.broadcast_to(np.array(facts[end], dtype=dtype), facts["shape"])
        for end in ("low", "high")
    )
    return spaces.Box(low, high, dtype=dtype)  # type: ignore[arg-type]


def _bound(bound: np.ndarray) -> Any:
    """The bound of a Box: one number where all are equal; infinities as words, as JSON wants."""
    if bound.size and (bound == bound.flat[0]).all():
        bound = bound.flat[0]
    numbers = np.asarray(bound)
    if numbers.dtype.kind == "f" and np.isinf(numbers).any():
        return numbers.astype(str).tolist()
    return numbers.tolist()


def _channels_first(space: spaces.Box) -> bool:
    return is_image_space(space) and is_image_space_channels_first(space)
