"""One manipulation world as a Gymnasium environment."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from engram.envs.manipulation.camera import shared_camera
from engram.envs.manipulation.control import Control, EndEffectorControl
from engram.envs.manipulation.observation import Senses, check_cameras
from engram.envs.manipulation.task import Task
from engram.envs.manipulation.tasks import TASKS
from engram.envs.manipulation.world import PERIOD, World
from engram.kernels.errors import InvalidValueError

ACTION_LIMITS = (-1.0, 1.0)
"""Smallest and largest value of each number of an action."""
RATE = round(1 / PERIOD)
"""Steps per second."""
PORTRAIT = 480
"""Side of the pictures that `render` returns [pixels]."""


class ManipulationEnv(gymnasium.Env):
    """An arm at a table with a memory task, at 10 Hz.

    Observations are a Dict: one uint8 `[S, S, 3]` picture per camera, `proprioception` float32
    `[12]` (five joint angles [rad], gripper opening [m], gripper position [m], how far ahead of it
    the place is that the servos steer for [m]) and, where asked for, `objects`, `oracle` and
    `instruction`; see `Senses`. Actions are float32 in [-1, 1]; what they mean is up to `control`.
    The reward is 1 at success.

    An episode ends (terminated) at success, or where success has become impossible, and is cut off
    (truncated) at the task's limit. Everything follows from `reset(seed=...)`. `info` has, at each
    step, `success`, `first_choice_correct` (NaN until a choice was made), `decision` (1 while the
    policy must use what it remembers) and `phase`.

    Args:
        task: Name in `TASKS`.
        control: Makes the control of a world: `EndEffectorControl` or `JointControl`.
        cameras: Which of "top" and "wrist" give a picture.
        size: Side of a picture [pixels].
        objects: Whether visible things are listed as numbers.
        oracle: Whether the hidden fact is told.
        instruction: Whether the instruction is given as bytes.
        render_mode: None or "rgb_array".
        settings: Keywords of the task.

    Raises:
        MissingPackageError: If `engram[manipulation]` is not installed.
        InvalidValueError: If there is no such task, setting or camera.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}  # noqa: RUF012

    def __init__(
        self,
        task: str = "remember_color",
        *,
        control: Callable[[World], Control] = EndEffectorControl,
        cameras: Sequence[str] = ("top",),
        size: int = 64,
        objects: bool = False,
        oracle: bool = False,
        instruction: bool = False,
        render_mode: str | None = None,
        **settings: Any,
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidValueError("render_mode", render_mode, (None, "rgb_array"))
        self.render_mode = render_mode
        self.senses = Senses(check_cameras(cameras), size, objects, oracle, instruction)
        self.task = make_task(task, **settings)
        self.world = World(self.task.props)
        self.control = control(self.world)
        self.observation_space = self.senses.space(self.task)
        self.action_space = spaces.Box(*ACTION_LIMITS, (self.control.size,), dtype=np.float32)
        self.steps = 0
        self.episodes = 0
        """Episodes begun."""

    @property
    def instruction(self) -> str:
        """What to do, in words."""
        return self.task.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; `options={"fact": k}` sets the hidden fact and nothing else.

        Raises:
            InvalidValueError: If there is no such fact.
        """
        super().reset(seed=seed)
        self.world.reset()
        self.task.begin(self.world, self.np_random, (options or {}).get("fact"))
        self.world.settle()
        self.control.reset()
        self.steps = 0
        self.episodes += 1
        return self.senses.observe(self.world, self.task, self.control), self._info()

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for a tenth of a second.

        Raises:
            InvalidValueError: If the action has another shape, is beyond [-1, 1] or not a number.
            ResetNeeded: Before the first `reset`.
        """
        if not self.episodes:
            raise gymnasium.error.ResetNeeded("step came before reset; allowed: reset, then step")
        self.control.act(check_action(action, (self.control.size,)))
        self.world.step()
        self.task.advance(self.world)
        self.world.settle()
        self.steps += 1
        task = self.task
        terminated = task.succeeded or task.failed
        truncated = not terminated and bool(self.steps >= task.limit)
        observation = self.senses.observe(self.world, task, self.control)
        return observation, float(task.succeeded), terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """Return the scene from the top camera, `[480, 480, 3]` uint8, in mode "rgb_array"."""
        if self.render_mode is None:
            return None
        return shared_camera(PORTRAIT, fine=True).picture(self.world, "top")

    def _info(self) -> dict[str, Any]:
        return {
            "success": float(self.task.succeeded),
            "first_choice_correct": self.task.first_choice,
            "decision": float(self.task.deciding),
            "phase": self.task.phase,
        }


def check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an action, or those of several worlds, as numbers.

    Raises:
        InvalidValueError: If it has another shape, is beyond [-1, 1] or not a number.
    """
    allowed = f"{' x '.join(map(str, shape))} numbers from -1 to 1"
    try:
        value = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError("action", action, allowed) from error
    if value.shape != shape:
        raise InvalidValueError("action", action, allowed)
    within = np.abs(value) <= 1  # NaN fails every comparison
    if not within.all():
        place = tuple(np.argwhere(~within)[0].tolist())
        name = f"action[{', '.join(map(str, place))}]"
        raise InvalidValueError(name, float(value[place]), "-1 to 1")
    return value


def make_task(name: str, **settings: Any) -> Task:
    """Make a task by its name.

    Raises:
        InvalidValueError: If there is no such task, or it has no such setting.
    """
    if name not in TASKS:
        raise InvalidValueError("task", name, TASKS)
    known = inspect.signature(TASKS[name]).parameters
    if unknown := [key for key in settings if key not in known]:
        raise InvalidValueError(f"a setting of {name}", unknown[0], known)
    return TASKS[name](**settings)
