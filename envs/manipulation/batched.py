"""Manipulation worlds as a batch that learners take."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from engram.envs.adapter import GymnasiumEnv
from engram.envs.manipulation.control import Control, EndEffectorControl
from engram.envs.manipulation.environment import ManipulationEnv, check_action, make_task
from engram.envs.manipulation.world import World
from engram.kernels.errors import MissingPackageError

MEASURES = ("success", "first_choice_correct", "decision")


class Manipulation(GymnasiumEnv):
    """N copies of a manipulation task, in this process, in a few or one process each.

    `info` has `success`, `first_choice_correct` and `decision`, each `[N]` float32. What is
    observed, and what actions mean, is as in `ManipulationEnv`.

    Args:
        num_envs: Number of worlds N.
        task: Name in `TASKS`.
        settings: Keywords of the task.
        control: Makes the control of a world: `EndEffectorControl` or `JointControl`.
        cameras: Which of "top" and "wrist" give a picture.
        size: Side of a picture [pixels].
        objects: Whether visible things are listed as numbers.
        oracle: Whether the hidden fact is told.
        instruction: Whether the instruction is given as bytes.
        asynchronous: Whether each world has a process of its own.
        processes: How many processes share the worlds instead, best as many as cores; 0 for none.
        device: Where the tensors handed out live; MuJoCo runs on the host.
        seed: Seed of the first reset.

    Raises:
        MissingPackageError: If `engram[manipulation]` is not installed.
        InvalidValueError: If there is no such task, setting or camera.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "remember_color",
        settings: Mapping[str, Any] | None = None,
        control: Callable[[World], Control] = EndEffectorControl,
        cameras: Sequence[str] = ("top",),
        size: int = 64,
        objects: bool = False,
        oracle: bool = False,
        instruction: bool = False,
        asynchronous: bool = False,
        processes: int = 0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        self.first_choice_chance = make_task(task, **(settings or {})).chance
        for package in ("mujoco", "mink"):
            if importlib.util.find_spec(package) is None:
                raise MissingPackageError(package, "manipulation")
        super().__init__(
            num_envs,
            environment=ManipulationEnv,
            settings={
                "task": task,
                "control": control,
                "cameras": cameras,
                "size": size,
                "objects": objects,
                "oracle": oracle,
                "instruction": instruction,
                **(settings or {}),
            },
            asynchronous=asynchronous,
            processes=processes,
            measures=MEASURES,
            device=device,
            seed=seed,
        )

    def check_actions(self, actions: Any) -> None:
        """Refuse what one of the worlds would refuse, so that none acts without the others."""
        super().check_actions(actions)
        check_action(actions, self.action_space.shape or ())
