"""RLlib's new API stack with any sequence memory.

    config = PPOConfig().environment("CartPole-v1")
    config = memory_config(config, HCAM, memory_kwargs={"chunk": 4}, width=64, max_seq_len=32)
    algorithm = config.build_algo()

`MemoryModule` also works alone, with RLlib's own connectors, which keep the state of every step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence.base import SequenceMemory
from engram.policies.rllib_learner import MemoryPPOLearner
from engram.policies.rllib_module import MemoryModule
from engram.policies.rllib_states import CarryStates, ChunkStates, KeepStates

__all__ = [
    "CarryStates",
    "ChunkStates",
    "KeepStates",
    "MemoryModule",
    "MemoryPPOLearner",
    "memory_config",
]


def memory_config(
    config: PPOConfig,
    memory: Callable[..., SequenceMemory[Any]],
    *,
    memory_kwargs: Mapping[str, Any] | None = None,
    width: int = 64,
    max_seq_len: int = 32,
) -> PPOConfig:
    """Let PPO act and learn with a memory.

    Sets the module (`MemoryModule`), the connectors that keep one state per sequence instead of
    one per step, and the learner that standardises advantages over real steps alone. Connectors
    that are set already come before these; a learner class that is set already stays.

    Args:
        config: Of PPO, for one agent and at most one learner; changed in place.
        memory: Builds the memory, given its input width.
        memory_kwargs: Keywords for it.
        width: Features of the observation's code.
        max_seq_len: Steps that gradients flow through.

    Returns:
        The same configuration.

    Raises:
        InvalidValueError: If the configuration is of another kind.
    """
    if not isinstance(config, PPOConfig):
        raise InvalidValueError("config", type(config).__name__, "PPOConfig")
    if config.is_multi_agent:
        raise InvalidValueError("policies", [*config.policies], "one agent")
    if (config.num_learners or 0) > 1:
        allowed = "0 or 1 (several learners cut episodes anywhere)"
        raise InvalidValueError("num_learners", config.num_learners, allowed)
    settings = {
        "memory": memory,
        "memory_kwargs": dict(memory_kwargs or {}),
        "width": width,
        "max_seq_len": max_seq_len,
    }
    config.rl_module(rl_module_spec=RLModuleSpec(MemoryModule, model_config=settings))
    config.env_runners(
        env_to_module_connector=partial(_behind, config._env_to_module_connector, CarryStates),
        module_to_env_connector=partial(_behind, config._module_to_env_connector, KeepStates),
    )
    config.learners(learner_connector=partial(_behind, config._learner_connector, ChunkStates))
    if config._learner_class is None:
        config.learners(learner_class=MemoryPPOLearner)
    return config


def _behind(
    build: Callable[..., Any] | None, piece: type[ConnectorV2], *spaces: Any
) -> list[ConnectorV2]:
    """Build the connectors that were set, then one of ours."""
    theirs = build(*spaces) if build else []
    return [*([theirs] if isinstance(theirs, ConnectorV2) else theirs), piece()]
