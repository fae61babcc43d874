"""The scripted policy that knows the hidden fact: it demonstrates, and proves tasks solvable."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.environment import ManipulationEnv
from engram.envs.manipulation.task import Goal
from engram.kernels.errors import InvalidValueError


class Oracle:
    """Follows the task's script in one environment.

    For demonstrations, `act` gives the label and `disturb(label)` what to execute: the noise
    carries the arm to states from which the script then shows the way back.

    Args:
        noise: Standard deviation of the noise on what is executed, in units of the action.
        blind: Whether the hidden fact is guessed anew in each episode instead of known: what a
            policy without memory achieves.
        seed: Seed of noise and guesses.
    """

    def __init__(self, *, noise: float = 0.0, blind: bool = False, seed: int = 0):
        if not 0 <= noise < float("inf"):
            raise InvalidValueError("noise", noise, "0 or more")
        self.noise = noise
        self.blind = blind
        self.random = np.random.default_rng(seed)
        self.episode: tuple[ManipulationEnv, int] | None = None
        self.goals: Iterator[Goal] = iter(())
        self.goal: Goal | None = None

    def act(self, env: ManipulationEnv) -> np.ndarray:
        """Return the action of this step, float32; where the script ends, its last goal holds."""
        episode = (env, env.episodes)
        if episode != self.episode:
            task = env.task
            fact = int(self.random.integers(task.facts)) if self.blind else task.fact
            self.episode, self.goals = episode, task.script(env.world, fact)
        self.goal = next(self.goals, self.goal)
        assert self.goal is not None, "a script begins with a goal"
        return env.control.toward(self.goal.position, self.goal.opening)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        """Return a noisy copy; the gripper is left as it is."""
        noise = self.noise * self.random.standard_normal(action.shape)
        noise[-1] = 0
        return np.clip(action + noise, -1, 1).astype(np.float32)
