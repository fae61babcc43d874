"""Which memory a policy gets, and how it is trained, as it stands in LeRobot's config.json."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
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
from engram.memory.sequence.over_streams import OverStreams, PresentOnly
from engram.memory.sequence.over_vectors import OverVectors

BANKS: dict[str, Callable[..., SequenceMemory[Any]]] = {
    "memoryvla": memoryvla,
    "memoryvla_plus": memoryvla_plus,
}
"""Perceptual-cognitive banks: memories of tokens, where the others are memories of vectors."""
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


@dataclass
class MemoryConfig:
    """The memory that is attached to a policy.

    A value on the command line is written `--policy.memory.name=hcam`.
    """

    name: str = "gru"
    """A preset of engram (a file in its `configs/memory`: gru, window, hcam, memo, …), one of
    `BANKS`, or the dotted path of a `SequenceMemory` class that takes its width first."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What to change in the preset, nested as its file is, or the other arguments of the class."""
    width: int = 128
    """Features of the memory's input."""
    window: int = 16
    """Frames, the present one included, that one training sample goes back in time. It is the
    length of the gradient, not of the memory: acting, the memory runs as long as an episode."""
    grid: int = 3
    """Cells along each side of a camera's feature map, each averaged, that the memory is given."""
    through_features: bool = True
    """Whether the past frames train the policy's image encoder too. False saves most of the
    activations of a window; the present frame trains the encoder in either case."""
    lr: float | None = None
    """Learning rate of the memory; the policy's where None. Policies are often fine-tuned at rates
    too low for what starts from nothing."""

    def check(self, n_obs_steps: int) -> None:
        """Refuse what cannot be trained.

        Args:
            n_obs_steps: Frames that the policy itself looks at.

        Raises:
            InvalidValueError: If a number is too small.
        """
        least = {"width": 1, "window": max(1, n_obs_steps), "grid": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InvalidValueError(
                    f"policy.memory.{name}", getattr(self, name), f"{bound} or more"
                )
        if self.lr is not None and self.lr <= 0:
            raise InvalidValueError("policy.memory.lr", self.lr, "more than 0, or null")


def make_memory(config: MemoryConfig) -> SequenceMemory[Any]:
    """Build the memory of vectors that a configuration names; a bank cuts them into tokens.

    Configurations travel with checkpoints, so nothing in one can name code that is no memory.

    Raises:
        InvalidValueError: If there is no such memory, or it does not take these settings.
    """
    _refuse_targets(config.settings)
    if config.name in BANKS:
        return OverVectors(config.width, memory=_bank(config))
    if "." in config.name:
        build: Any = _memory_class(config.name)
        settings = config.settings
    else:
        tree = _preset(config.name)
        try:
            build = instantiate(OmegaConf.merge(tree, config.settings))
        except (OmegaConfBaseException, InstantiationException) as error:
            raise _bad_settings(config, error) from error
        settings = {}
    try:
        memory = build(config.width, **settings)
    except (TypeError, InstantiationException) as error:
        raise _bad_settings(config, error) from error
    assert isinstance(memory, SequenceMemory), type(memory)
    return memory


def make_stream_memory(
    config: MemoryConfig, perceptual: tuple[int, int], cognitive: tuple[int, int]
) -> SequenceMemory[Any]:
    """Build the memory of token streams that a configuration names.

    A memory of vectors reads all tokens into one vector of `config.width` features.

    Args:
        config: The memory.
        perceptual: Tokens and features of the perceptual stream.
        cognitive: Likewise of the cognitive stream.

    Raises:
        InvalidValueError: If there is no such memory, or it does not take these settings.
    """
    if config.name in BANKS:
        return _bank(config)(perceptual, cognitive)
    if config.name == "none":
        return PresentOnly(perceptual, cognitive)
    return OverStreams(
        perceptual, cognitive, memory=lambda _: make_memory(config), width=config.width
    )


def presets() -> list[str]:
    """Names of the memories that engram configures."""
    files = (resources.files("engram.configs") / "memory").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _bank(config: MemoryConfig) -> Callable[..., SequenceMemory[Any]]:
    for key in config.settings:
        if key not in BANK_SETTINGS:
            raise InvalidValueError("policy.memory.settings", key, BANK_SETTINGS)
    return partial(BANKS[config.name], **config.settings)


def _preset(name: str) -> Any:
    if name not in presets():
        allowed = [*presets(), *BANKS, "the dotted path of a SequenceMemory"]
        raise InvalidValueError("policy.memory.name", name, allowed)
    text = (resources.files("engram.configs") / "memory" / f"{name}.yaml").read_text()
    tree = OmegaConf.create(text)
    OmegaConf.set_struct(tree, True)  # a key that the file lacks is refused
    return tree


def _memory_class(path: str) -> type[SequenceMemory[Any]]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, SequenceMemory)):
        raise InvalidValueError("policy.memory.name", path, "a SequenceMemory that is installed")
    return found


def _refuse_targets(settings: Any) -> None:
    """Raise if settings name what to call: Hydra would call it, whatever it is."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if str(key).startswith("_"):
            raise InvalidValueError("policy.memory.settings", key, "names of settings")
        _refuse_targets(value)


def _bad_settings(config: MemoryConfig, error: Exception) -> InvalidValueError:
    return InvalidValueError(
        "policy.memory.settings",
        config.settings,
        f"settings of {config.name} ({one_line(error)})",
    )
