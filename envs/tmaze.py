"""The passive T-maze: a cue at the start, a corridor, and a choice at its end."""

from typing import NamedTuple

import gymnasium
import torch
from jaxtyping import Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Step
from engram.kernels.errors import InvalidValueError

FORWARD, LEFT, RIGHT, BACK = range(4)
NO_CUE = 2


class Maze(NamedTuple):
    """Where the reward lies, and where the agent stands."""

    goal: Int[Tensor, " N"]
    """Arm of the reward: 0 left, 1 right, int64."""
    place: Int[Tensor, " N"]
    """Steps from the start; `length` is the junction and `length` + 1 an arm, int64."""
    time: Int[Tensor, " N"]
    """Steps taken, int64."""


class TMaze(BatchedEnv[Maze]):
    """Walk a corridor and turn to the arm that a cue named at the start (Bakker 2001).

    The observation is (cue, place). The cue is the arm of the reward (0 left, 1 right) in the
    first observation of an episode and 2 ever after, also when the agent walks back to the start.
    The place is 0 at the start, 1 in the corridor, 2 at the junction, 3 in an arm.

    Actions are 0 forward, 1 left, 2 right, 3 back. The junction lies `length` steps ahead; left
    and right enter an arm there and end the episode, with reward 1 in the named arm and 0 in the
    other. A move into a wall stays in place. No other reward is given, so nothing but the end
    tells a policy that walking pays. `info["success"]` is the reward.

    Args:
        num_envs: Number of worlds N.
        length: Steps from the start to the junction.
        time_limit: Steps after which an episode is truncated; twice the shortest way unless given.
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    truncates = True
    chance = 0.5
    optimum = 1.0

    def __init__(
        self,
        num_envs: int,
        *,
        length: int = 10,
        time_limit: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if length < 1:
            raise InvalidValueError("length", length, "1 or more")
        shortest = length + 1
        self.length = length
        self.time_limit = 2 * shortest if time_limit is None else time_limit
        if self.time_limit < shortest:
            raise InvalidValueError("time_limit", time_limit, f"{shortest} (length + 1) or more")
        spaces = gymnasium.spaces
        observation, action = spaces.MultiDiscrete([3, 4]), spaces.Discrete(4)
        super().__init__(num_envs, observation, action, device=device, seed=seed)

    def draw(self, count: int) -> Maze:
        """Hide the reward and stand at the start."""
        goal = self.random_integers(2, count)
        return Maze(goal, torch.zeros_like(goal), torch.zeros_like(goal))

    def observe(self) -> Int[Tensor, "N 2"]:
        """Return (cue, place)."""
        goal, place, time = self.worlds
        cue = torch.where(time == 0, goal, NO_CUE)
        landmark = (place > 0).long() + (place >= self.length) + (place > self.length)
        return torch.stack([cue, landmark], dim=1)

    def advance(self, action: Tensor) -> Step:
        """Move, unless a wall is in the way."""
        goal, place, time = self.worlds
        turn = (action == LEFT) | (action == RIGHT)
        entered = turn & (place == self.length)
        success = (entered & (action == goal + LEFT)).float()
        walk = (action == FORWARD).long() - (action == BACK).long()
        place = (place + walk).clamp(0, self.length) + entered
        time = time + 1
        self.worlds = Maze(goal, place, time)
        truncated = (time >= self.time_limit) & ~entered
        return Step(self.observe(), success, entered, truncated, {"success": success.clone()})
