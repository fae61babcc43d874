"""Recording the scripted policy of a manipulation task as demonstrations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engram.agents.demonstrations.feature import Episode, Feature
from engram.agents.seeds import derive
from engram.envs.manipulation.environment import ManipulationEnv
from engram.envs.manipulation.oracle import Oracle
from engram.kernels.errors import EngramError

ATTEMPTS = 100
"""Episodes tried before a demonstration is given up."""
STATE = "observation.state"
OBJECTS = "observation.environment_state"
HIDDEN = "observation.hidden"
"""The fact that must be remembered; no policy but the told one sees it."""
SHOWN = "shown"
"""1 while it is in view, or comes about: what a memory must not miss."""
REVEALING = ("cue", "swap", "bring", "probe", "search")
"""Phases of tasks in which it does."""
KNOWN = "known"
"""1 once the fact follows from what was in view."""
DECISION = "decision"
"""1 while actions depend on it."""
ASTRAY = "astray"
"""1 while the robot is led astray: the actions of the frames after are answers to that."""


class OracleFailedError(EngramError):
    """The scripted policy did not solve a task."""

    def __init__(self, task: str, seed: int):
        super().__init__(
            f"{task}: the scripted policy failed {ATTEMPTS} times in a row from seed {seed} on; "
            "allowed: settings that it can solve (less noise, more patience)"
        )


def features_of(env: ManipulationEnv) -> dict[str, Feature]:
    """Return the columns that `record` fills."""
    space = env.observation_space
    numbers = {
        STATE: space["proprioception"].shape,  # type: ignore[index]
        HIDDEN: (env.task.hints,),
        "action": env.action_space.shape,
        SHOWN: (1,),
        KNOWN: (1,),
        DECISION: (1,),
        ASTRAY: (1,),
    }
    if env.senses.objects:
        numbers[OBJECTS] = space["objects"].shape  # type: ignore[index]
    columns = {name: Feature("float32", tuple(shape)) for name, shape in numbers.items()}
    for camera in env.senses.cameras:
        size = env.senses.size
        names = ["height", "width", "channel"]
        columns[f"observation.images.{camera}"] = Feature("video", (size, size, 3), names)
    return columns


def record(
    env: ManipulationEnv, *, seed: int, number: int, noise: float = 0.0, stray: float = 0.0
) -> Episode:
    """Record a successful episode; which one follows from the seed and its number alone.

    With noise or strays, what is executed is disturbed and what is recorded is the action that
    would have been right: episodes then show the way back.

    Args:
        env: Any; it is reset.
        seed: Of the whole recording.
        number: Of the episode in it.
        noise: Standard deviation of the noise on what is executed, in units of the action.
        stray: Probability, per step, that the robot is led astray; see `Oracle`.

    Raises:
        OracleFailedError: If the scripted policy keeps failing.
    """
    for attempt in range(ATTEMPTS):
        world = derive(seed, f"demonstration {number} attempt {attempt}")
        oracle = Oracle(noise=noise, stray=stray, seed=derive(world, "noise"))
        frames, solved = _play(env, oracle, world)
        if solved:
            columns = {name: np.stack([f[name] for f in frames]) for name in frames[0]}
            return Episode(columns, env.instruction)
    raise OracleFailedError(type(env.task).__name__, seed)


def _play(
    env: ManipulationEnv, oracle: Oracle, seed: int
) -> tuple[list[dict[str, np.ndarray]], bool]:
    observation, info = env.reset(seed=seed)
    frames, ended, began = [], False, False
    while not ended:
        action = oracle.act(env)
        executed = oracle.disturb(action)
        shown = info["phase"] in REVEALING
        began = began or shown
        told = {
            SHOWN: shown,
            KNOWN: info["decision"] or (began and not (shown and env.task.gradual)),
            DECISION: info["decision"],
            ASTRAY: oracle.astray,
        }
        frames.append(_frame(env, observation, action, told))
        observation, _, terminated, truncated, info = env.step(executed)
        ended = terminated or truncated
    return frames, bool(info["success"])


def _frame(
    env: ManipulationEnv,
    observation: dict[str, np.ndarray],
    action: np.ndarray,
    told: dict[str, Any],
) -> dict[str, np.ndarray]:
    frame = {
        STATE: observation["proprioception"],
        HIDDEN: env.task.hidden(),
        "action": action.astype(np.float32),
        **{name: np.array([bool(value)], dtype=np.float32) for name, value in told.items()},
    }
    if env.senses.objects:
        frame[OBJECTS] = observation["objects"]
    cameras: Sequence[str] = env.senses.cameras
    return frame | {f"observation.images.{name}": observation[name] for name in cameras}
