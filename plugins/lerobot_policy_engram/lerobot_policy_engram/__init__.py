"""Memories for LeRobot policies. Importing this registers the policies with LeRobot."""

from lerobot_policy_engram.attach import attach_memory, attach_to_checkpoint, load_policy
from lerobot_policy_engram.chunks import EpisodeChunkSampler, chunk_starts
from lerobot_policy_engram.configuration_engram_act import EngramACTConfig
from lerobot_policy_engram.configuration_engram_diffusion import EngramDiffusionConfig
from lerobot_policy_engram.configuration_engram_smolvla import EngramSmolVLAConfig
from lerobot_policy_engram.configuration_engram_vla import EngramVLAConfig
from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.vision_config import VisionConfig

__all__ = [
    "EngramACTConfig",
    "EngramDiffusionConfig",
    "EngramSmolVLAConfig",
    "EngramVLAConfig",
    "EpisodeChunkSampler",
    "MemoryConfig",
    "VisionConfig",
    "attach_memory",
    "attach_to_checkpoint",
    "chunk_starts",
    "load_policy",
]
