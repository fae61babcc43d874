"""What a memory changes in the configuration of a LeRobot policy, whichever policy it is."""

import copy
from dataclasses import fields
from typing import Any

from lerobot_policy_engram.memory_config import MemoryConfig


class RememberingConfig:
    """The part of a configuration that a memory adds; it comes before the policy's own class."""

    memory: MemoryConfig
    n_obs_steps: int

    def __post_init__(self) -> None:
        """Check the memory's settings with the policy's own."""
        super().__post_init__()  # type: ignore[misc]
        self.memory.check(self.n_obs_steps)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The window of frames that a training sample brings, the present one last."""
        return list(range(1 - self.memory.window, 1))

    def frame_config(self) -> Any:
        """Return the configuration of the policy without memory: its samples are single frames.

        A dataset built with it serves `EpisodeChunkSampler` and `forward_chunk`.
        """
        (plain,) = [base for base in type(self).__bases__ if base is not RememberingConfig]
        config = plain.__new__(plain)
        for field in fields(plain):
            setattr(config, field.name, copy.deepcopy(getattr(self, field.name)))
        return config
