"""ManiSkill's nested observations as one Dict of tensors that memories and encoders take."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from engram.envs.vector import Observation

CAMERA_MATRICES = "sensor_param"
"""The part of an observation that describes cameras rather than the world; it is left out."""


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a nested observation or space, without the camera matrices."""
    for name, part in tree.items():
        if name == CAMERA_MATRICES:
            continue
        if isinstance(part, Mapping):
            yield from leaves(part, f"{path}{name}/")
        else:
            yield f"{path}{name}", part


def flat(observation: Any) -> Observation:
    """Flatten an observation, copied: cameras draw over the images they handed out."""
    if isinstance(observation, Mapping):
        return {name: flat(part) for name, part in leaves(observation)}
    if observation.ndim == 1:
        observation = observation[:, None]  # one number per world
    dtype = torch.uint8 if observation.dtype == torch.uint8 else torch.float32
    return observation.to(dtype, copy=True)


def flat_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space of what `flat` returns."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: flat_space(part) for name, part in leaves(space.spaces)})
    assert isinstance(space, spaces.Box), space
    if space.dtype == np.uint8:
        return space
    shape = space.shape or (1,)
    low, high = (
        np.broadcast_to(bound, shape).astype(np.float32) for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, dtype=np.float32)
