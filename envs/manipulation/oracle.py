"""The scripted policy that knows the hidden fact: it demonstrates, and proves tasks solvable."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.environment import ManipulationEnv
from engram.envs.manipulation.task import Goal
from engram.kernels.errors import InvalidValueError

STRAY = (2, 6)
"""Steps that a stray lasts, least and most."""
CLEAR = 0.1
"""Height above which a hand holds and pushes nothing [m]."""


class Oracle:
    """Follows the task's script in one environment.

    For demonstrations, `act` gives the label and `disturb(label)` what to execute: it carries the
    arm to states from which the script then shows the way back. Noise alone leaves the arm near
    where the script wants it, however long it lasts, as every label undoes all of it; a clone
    drifts farther. Hence strays: now and then, while the hand is above
    everything that stands on the table, the arm is led astray for some steps, evenly in a random
    direction, with its fingers open or closed: what a clone missed or lost it must see taken again.

    Args:
        noise: Standard deviation of the noise on what is executed, in units of the action.
        stray: Probability, per step with the hand up, that a stray begins.
        blind: Whether the hidden fact is guessed anew in each episode instead of known: what a
            policy without memory achieves.
        seed: Seed of noise and guesses.
    """

    def __init__(
        self, *, noise: float = 0.0, stray: float = 0.0, blind: bool = False, seed: int = 0
    ):
        if not 0 <= noise < float("inf"):
            raise InvalidValueError("noise", noise, "0 or more")
        if not 0 <= stray < 1:
            raise InvalidValueError("stray", stray, "0 or more, less than 1")
        self.noise, self.stray = noise, stray
        self.blind = blind
        self.random = np.random.default_rng(seed)
        self.episode: tuple[ManipulationEnv, int] | None = None
        self.goals: Iterator[Goal] = iter(())
        self.goal: Goal | None = None
        self.remaining = 0  # steps of the stray
        self.direction = np.zeros(0)
        self.astray = False
        """Whether the last `disturb` led the arm astray: what it did then tells nothing."""

    def act(self, env: ManipulationEnv) -> np.ndarray:
        """Return the action of this step, float32; where the script ends, its last goal holds."""
        episode = (env, env.episodes)
        if episode != self.episode:
            task = env.task
            fact = int(self.random.integers(task.facts)) if self.blind else task.fact
            self.episode, self.goals = episode, task.script(env.world, fact)
            self.remaining = 0
        self.goal = next(self.goals, self.goal)
        assert self.goal is not None, "a script begins with a goal"
        return env.control.toward(self.goal.position, self.goal.opening)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        """Return what is executed instead of an action; only strays move the fingers."""
        noise = self.noise * self.random.standard_normal(action.shape)
        noise[-1] = 0
        if self._free() and self.random.random() < self.stray:
            self.remaining = int(self.random.integers(*STRAY, endpoint=True))
            self.direction = self.random.uniform(-1, 1, len(action))
            self.direction[-1] = np.sign(self.direction[-1])
        self.astray = self.remaining > 0
        if self.astray:
            self.remaining -= 1
            return self.direction.astype(np.float32)
        return np.clip(action + noise, -1, 1).astype(np.float32)

    def _free(self) -> bool:
        """Whether a stray may begin."""
        if not self.stray or self.remaining or self.episode is None:
            return False
        return bool(self.episode[0].world.tcp[2] > CLEAR)
