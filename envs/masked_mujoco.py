"""Gymnasium's MuJoCo tasks with the velocities hidden, so that memory must supply them."""

import importlib.util
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float

from engram.envs.adapter import GymnasiumEnv
from engram.kernels.errors import InvalidValueError, MissingPackageError

TASKS = ("InvertedPendulum", "Hopper", "HalfCheetah", "Walker2d")


class PositionsOnly(gymnasium.ObservationWrapper):
    """Keeps the generalised positions of a MuJoCo observation, as float32."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        # The observations of these tasks are the positions, then the velocities, nothing else.
        structure: dict[str, int] = env.get_wrapper_attr("observation_structure")
        self.positions = structure["qpos"]
        total = self.positions + structure["qvel"]
        assert env.observation_space.shape == (total,), (structure, env.observation_space)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.positions,), dtype=np.float32
        )

    def observation(self, observation: np.ndarray) -> Float[np.ndarray, " positions"]:
        """Return the positions [m, rad]."""
        return observation[: self.positions].astype(np.float32)


class MaskedMujoco(GymnasiumEnv):
    """A MuJoCo locomotion or balance task (Gymnasium v5) that shows positions only.

    Actions are continuous (Box). Rewards, ends and the limit of 1000 steps are Gymnasium's.

    Args:
        num_envs: Number of worlds N.
        task: "InvertedPendulum", "Hopper", "HalfCheetah" or "Walker2d".
        settings: Keywords for the Gymnasium environment.
        asynchronous: Whether each world has a process of its own.
        device: Where the tensors handed out live; MuJoCo runs on the host.
        seed: Seed of the first reset.

    Raises:
        MissingPackageError: If `engram[mujoco]` is not installed.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "InvertedPendulum",
        settings: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if task not in TASKS:
            raise InvalidValueError("task", task, TASKS)
        for package in ("mujoco", "imageio"):
            if importlib.util.find_spec(package) is None:
                raise MissingPackageError(package, "mujoco")
        super().__init__(
            num_envs,
            environment=partial(make_masked, f"{task}-v5"),
            settings=settings,
            asynchronous=asynchronous,
            device=device,
            seed=seed,
        )


def make_masked(environment: str, **settings: Any) -> gymnasium.Env:
    """Make one MuJoCo environment without velocities."""
    return PositionsOnly(gymnasium.make(environment, **settings))
