"""A memory for a policy that exists."""

import copy
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy

from engram.kernels.errors import DataError, InvalidValueError
from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.remembering import RememberingPolicy

POLICIES = ("act", "diffusion", "smolvla")
"""LeRobot's policies that a memory can be attached to; `engram_<name>` is the policy with one."""


def attach_memory(policy: PreTrainedPolicy, config: MemoryConfig | None = None) -> Any:
    """Give a policy a memory, in place; until it is trained the policy does what it did before.

    The policy keeps its weights and stays an instance of its class. It becomes one of the class
    `engram_<name>`, whose checkpoints LeRobot's own commands read (`--policy.path=...`).

    Args:
        policy: Of a kind in `POLICIES`, no subclass of one.
        config: The memory; a GRU unless given.

    Returns:
        The same object.

    Raises:
        InvalidValueError: If the policy is of another kind, or there is no such memory.
    """
    if type(policy).name not in POLICIES or type(policy) is not get_policy_class(policy.name):
        raise InvalidValueError("policy", type(policy).__name__, POLICIES)
    name = f"engram_{policy.name}"
    plain, whole = policy.config, PreTrainedConfig.get_choice_class(name)
    remembering = whole.__new__(whole)
    memory = copy.deepcopy(config) if config is not None else MemoryConfig()
    remembering.__dict__.update(copy.deepcopy(vars(plain)), memory=memory)
    memory.check(plain.n_obs_steps)
    policy.__class__, policy.config = get_policy_class(name), remembering
    try:
        policy.attach()
    except BaseException:
        policy.__class__, policy.config = get_policy_class(plain.type), plain
        raise
    return policy


def load_policy(path: Path | str, **kwargs: Any) -> PreTrainedPolicy:
    """Load a policy that `save_pretrained` wrote, whatever its kind, in evaluation mode.

    Args:
        path: The folder that holds `config.json` and `model.safetensors`.
        kwargs: Passed to the policy's `from_pretrained`.

    Raises:
        DataError: If the folder or a weight is missing, or the file is damaged.
    """
    if not (Path(path) / "config.json").is_file():
        raise DataError(f"checkpoint {path} has no config.json")
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type)
    if not issubclass(policy, RememberingPolicy):
        raise InvalidValueError("type", config.type, [f"engram_{name}" for name in POLICIES])
    return policy.from_pretrained(path, config=config, **kwargs)
