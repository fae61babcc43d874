"""`--policy.type=engram_smolvla`: SmolVLA with a memory."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.remembering_config import RememberingConfig


@PreTrainedConfig.register_subclass("engram_smolvla")
@dataclass
class EngramSmolVLAConfig(RememberingConfig, SmolVLAConfig):
    """SmolVLA's settings, and those of the memory."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
