"""Memories for LeRobot policies. Importing this registers the policies with LeRobot."""

from lerobot_policy_engram.attach import attach_memory, load_policy
from lerobot_policy_engram.configuration_engram_act import EngramACTConfig
from lerobot_policy_engram.memory_config import MemoryConfig

__all__ = [
    "EngramACTConfig",
    "MemoryConfig",
    "attach_memory",
    "load_policy",
]
