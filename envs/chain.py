"""One-bit recall: a cue at the first step, silence, and a question at the last."""

from typing import NamedTuple

import gymnasium
import torch
from jaxtyping import Int
from torch import Tensor

from engram.envs.vector import BatchedEnv, Step
from engram.kernels.errors import InvalidValueError

NO_CUE = 2


class Chain(NamedTuple):
    """A bit to remember and the place in the chain."""

    bit: Int[Tensor, " N"]
    """The cue, 0 or 1, int64."""
    time: Int[Tensor, " N"]
    """Steps taken, int64."""


class ChainBit(BatchedEnv[Chain]):
    """Answer at the end of the chain with the bit seen at its start.

    The observation is (cue, last): cue is the bit at the first step and 2 after it, last is 1 at
    the step whose action scores. That step follows the cue by `length` steps, so an episode takes
    length + 1 actions. The last action earns 1 if it equals the bit; nothing else earns anything.
    `info["success"]` is that reward.

    Args:
        num_envs: Number of worlds N.
        length: Steps without a cue, the answering one included.
        device: Where every tensor lives.
        seed: Seed of the generator.
    """

    chance = 0.5
    optimum = 1.0

    def __init__(
        self,
        num_envs: int,
        *,
        length: int = 30,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if length < 1:
            raise InvalidValueError("length", length, "1 or more")
        self.length = length
        spaces = gymnasium.spaces
        observation, action = spaces.MultiDiscrete([3, 2]), spaces.Discrete(2)
        super().__init__(num_envs, observation, action, device=device, seed=seed)

    def draw(self, count: int) -> Chain:
        """Draw a bit per world."""
        bit = self.random_integers(2, count)
        return Chain(bit, torch.zeros_like(bit))

    def observe(self) -> Int[Tensor, "N 2"]:
        """Return (cue, last)."""
        bit, time = self.worlds
        cue = torch.where(time == 0, bit, NO_CUE)
        return torch.stack([cue, (time >= self.length).long()], dim=1)

    def advance(self, action: Tensor) -> Step:
        """Take a step; score it if it was the last."""
        bit, time = self.worlds
        last = time == self.length
        success = ((action == bit) & last).float()
        self.worlds = Chain(bit, time + 1)
        never = torch.zeros_like(last)
        return Step(self.observe(), success, last, never, {"success": success.clone()})
