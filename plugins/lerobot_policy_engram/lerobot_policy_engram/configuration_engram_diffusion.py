"""`--policy.type=engram_diffusion`: Diffusion policy with a memory."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.remembering_config import RememberingConfig


@PreTrainedConfig.register_subclass("engram_diffusion")
@dataclass
class EngramDiffusionConfig(RememberingConfig, DiffusionConfig):
    """Diffusion policy's settings, and those of the memory."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
