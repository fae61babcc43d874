"""Memories by name: engram's presets, the published banks, or any class."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import SequenceMemory
from engram.memory.sequence.bank_presets import memoryvla, memoryvla_plus
from engram.memory.sequence.over_streams import OverStreams
from engram.memory.sequence.over_vectors import OverVectors
from lerobot_policy_engram.memory_config import MemoryConfig
from lerobot_policy_engram.presets import built, built_from, presets, read_preset, refuse_targets

KEY = "policy.memory"
"""Of the settings, in errors."""

BANKS: dict[str, Callable[..., SequenceMemory[Any]]] = {
    "memoryvla": memoryvla,
    "memoryvla_plus": memoryvla_plus,
}
"""The two published banks, which are memories of tokens."""
BANK_SETTINGS = (
    "capacity",
    "dropout",
    "gradient_writes",
    "heads",
    "layers",
    "read_self",
    "together",
    "write_fused",
)


def make_memory(config: MemoryConfig) -> SequenceMemory[Any]:
    """Build a memory of vectors: a preset of `configs/memory`, a bank over tokens, or a class.

    Configurations travel with checkpoints, so nothing in one can name code that is no memory.

    Raises:
        InvalidValueError: If there is no such memory, or it does not take these settings.
    """
    refuse_targets(KEY, config.settings)
    if config.name in BANKS:
        return OverVectors(config.width, memory=_bank(config))
    if "." in config.name:
        return _built(config, partial(_class(config.name), config.width, **config.settings))
    return _built(config, partial(_preset(config, "memory"), config.width))


def make_stream_memory(
    config: MemoryConfig, perceptual: tuple[int, int], cognitive: tuple[int, int]
) -> SequenceMemory[Any]:
    """Build a memory of token streams: a preset of `configs/streams`, a bank, or a class.

    Args:
        config: The memory; `width` is that of the vector into which a memory of vectors reads
            all tokens.
        perceptual: Tokens and features of the perceptual stream.
        cognitive: Likewise of the cognitive stream.

    Raises:
        InvalidValueError: If there is no such memory, or it does not take these settings.
    """
    refuse_targets(KEY, config.settings)
    sizes = {"perceptual": perceptual, "cognitive": cognitive}
    if config.name in BANKS:
        return _built(config, partial(_bank(config), **sizes))
    if "." in config.name:
        return OverStreams(**sizes, memory=lambda _: make_memory(config), width=config.width)
    return _built(config, partial(_preset(config, "streams"), **sizes))


def _preset(config: MemoryConfig, folder: str) -> Callable[..., Any]:
    if config.name not in presets(folder):
        allowed = [*presets(folder), *BANKS, "the dotted path of a SequenceMemory"]
        raise InvalidValueError(f"{KEY}.name", config.name, allowed)
    tree = read_preset(folder, config.name)
    if folder == "streams" and "width" in tree:
        tree.width = config.width
    return built_from(tree, KEY, config.name, config.settings)


def _class(path: str) -> type[SequenceMemory[Any]]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, SequenceMemory)):
        raise InvalidValueError(f"{KEY}.name", path, "a SequenceMemory that is installed")
    return found


def _bank(config: MemoryConfig) -> Callable[..., SequenceMemory[Any]]:
    for key in config.settings:
        if key not in BANK_SETTINGS:
            raise InvalidValueError(f"{KEY}.settings", key, BANK_SETTINGS)
    return partial(BANKS[config.name], **config.settings)


def _built(config: MemoryConfig, build: Callable[[], Any]) -> Any:
    return built(KEY, config.name, config.settings, build)
