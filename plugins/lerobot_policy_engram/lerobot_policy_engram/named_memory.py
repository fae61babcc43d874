"""Memories by name: engram's presets, the published banks, or any class."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from importlib import resources
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engram.kernels.errors import InvalidValueError, one_line
from engram.memory.sequence import SequenceMemory
from engram.memory.sequence.bank_presets import memoryvla, memoryvla_plus
from engram.memory.sequence.over_streams import OverStreams
from engram.memory.sequence.over_vectors import OverVectors
from lerobot_policy_engram.memory_config import MemoryConfig

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
    _refuse_targets(config.settings)
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
    _refuse_targets(config.settings)
    sizes = {"perceptual": perceptual, "cognitive": cognitive}
    if config.name in BANKS:
        return _built(config, partial(_bank(config), **sizes))
    if "." in config.name:
        return OverStreams(**sizes, memory=lambda _: make_memory(config), width=config.width)
    return _built(config, partial(_preset(config, "streams"), **sizes))


def presets(folder: str) -> list[str]:
    """Names of the files in a folder of engram's configuration."""
    files = (resources.files("engram.configs") / folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _preset(config: MemoryConfig, folder: str) -> Callable[..., Any]:
    if config.name not in presets(folder):
        allowed = [*presets(folder), *BANKS, "the dotted path of a SequenceMemory"]
        raise InvalidValueError("policy.memory.name", config.name, allowed)
    tree = _tree(folder, config.name)
    if folder == "streams" and "width" in tree:
        tree.width = config.width
    OmegaConf.set_struct(tree, True)  # a key that the file lacks is refused
    return _built(config, lambda: instantiate(OmegaConf.merge(tree, config.settings)))


def _tree(folder: str, name: str) -> Any:
    """Read a preset, and before it those that it builds on."""
    text = (resources.files("engram.configs") / folder / f"{name}.yaml").read_text()
    own: Any = OmegaConf.create(text)
    parts: Iterable[str] = own.pop("defaults", ["_self_"])
    return OmegaConf.merge(*(own if part == "_self_" else _tree(folder, part) for part in parts))


def _class(path: str) -> type[SequenceMemory[Any]]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, SequenceMemory)):
        raise InvalidValueError("policy.memory.name", path, "a SequenceMemory that is installed")
    return found


def _bank(config: MemoryConfig) -> Callable[..., SequenceMemory[Any]]:
    for key in config.settings:
        if key not in BANK_SETTINGS:
            raise InvalidValueError("policy.memory.settings", key, BANK_SETTINGS)
    return partial(BANKS[config.name], **config.settings)


def _refuse_targets(settings: Any) -> None:
    """Raise if settings name what to call: Hydra would call it, whatever it is."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if str(key).startswith("_"):
            raise InvalidValueError("policy.memory.settings", key, "names of settings")
        _refuse_targets(value)


def _built(config: MemoryConfig, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (TypeError, OmegaConfBaseException, InstantiationException) as error:
        why = f"settings of {config.name} ({one_line(error)})"
        raise InvalidValueError("policy.memory.settings", config.settings, why) from error
