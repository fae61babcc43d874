"""`--policy.type=engram_act`: ACT with a memory."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.remembering_config import RememberingConfig


@PreTrainedConfig.register_subclass("engram_act")
@dataclass
class EngramACTConfig(RememberingConfig, ACTConfig):
    """ACT's settings, and those of the memory."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
