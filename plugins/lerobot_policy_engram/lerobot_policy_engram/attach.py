"""A memory for a policy that exists."""

import copy
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy

from engram.kernels.errors import DataError, InvalidValueError
from lerobot_policy_engram.memory_config import MemoryConfig

POLICIES = ("act", "diffusion", "smolvla")
"""LeRobot's policies that a memory can be attached to; `engram_<name>` is the policy with one."""


def attach_memory(policy: PreTrainedPolicy, config: MemoryConfig | None = None) -> Any:
    """Give a policy a memory, in place; until it is trained the policy does what it did before.

    Its losses, too, are the same numbers for the same seed, unless the memory has dropout
    (`memoryvla_plus`) and draws random numbers of its own.

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
    # Fields alone: LeRobot 0.6 hangs the dataset's metadata on a configuration as well.
    kept = {field.name: copy.deepcopy(getattr(plain, field.name)) for field in fields(plain)}
    remembering.__dict__.update(kept, memory=memory)
    memory.check(plain.n_obs_steps)
    policy.__class__, policy.config = get_policy_class(name), remembering
    try:
        policy.attach()
    except BaseException:
        policy.__class__, policy.config = get_policy_class(plain.type), plain
        raise
    return policy


def attach_to_checkpoint(
    source: Path | str, target: Path | str, config: MemoryConfig | None = None
) -> None:
    """Give the policy of a checkpoint a memory; `lerobot-train --policy.path=target` trains it on.

    Args:
        source: The folder of a policy without memory, its processors included.
        target: The folder to write, which must not exist.
        config: The memory; a GRU unless given.

    Raises:
        DataError: If there is no policy in `source`, or `target` exists.
        InvalidValueError: As `attach_memory` does.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise DataError(f"{target} exists; allowed: a new folder")
    saved = _saved_config(source)
    policy = get_policy_class(saved.type).from_pretrained(source, config=saved, strict=True)
    attach_memory(policy, config)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in source.glob("policy_*"):  # the processors, with the statistics of the data
            shutil.copy(file, partial)
        policy.save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_policy(path: Path | str, **kwargs: Any) -> PreTrainedPolicy:
    """Load a policy that `save_pretrained` wrote, whatever its kind, in evaluation mode.

    Args:
        path: The folder that holds `config.json` and `model.safetensors`.
        kwargs: Passed to the policy's `from_pretrained`.

    Raises:
        DataError: If the folder or a weight is missing, or the file is damaged.
    """
    config = _saved_config(Path(path))
    policy = get_policy_class(config.type)
    if not config.type.startswith("engram_"):
        allowed = ["engram_vla", *(f"engram_{name}" for name in POLICIES)]
        raise InvalidValueError("type", config.type, allowed)
    return policy.from_pretrained(path, config=config, **kwargs)


def _saved_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise DataError(f"checkpoint {folder} has no config.json")
    return PreTrainedConfig.from_pretrained(folder)
