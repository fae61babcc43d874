"""Image encoders by name: engram's presets."""

from collections.abc import Callable

from torch import nn

from engram.kernels.errors import InvalidValueError
from lerobot_policy_engram.presets import built, built_from, presets, read_preset
from lerobot_policy_engram.vision_config import VisionConfig

KEY = "policy.vision"
"""Of the settings, in errors."""
WHOLE = "vlm"
"""A vision-language model, which reads the instruction, too: no image encoder."""


def make_vision(config: VisionConfig) -> Callable[[int, int], nn.Module]:
    """Return what builds an image encoder, given image size and features: a preset.

    Raises:
        InvalidValueError: If there is no such encoder, or it does not take these settings; also
            from what is returned, which besides raises what the encoder raises.
    """
    if config.name not in (allowed := encoders()):
        raise InvalidValueError(f"{KEY}.name", config.name, allowed)
    tree = read_preset("vision", config.name)
    make = built_from(tree, KEY, config.name, config.settings)
    return lambda *given: built(KEY, config.name, config.settings, lambda: make(*given))


def encoders() -> list[str]:
    """Names of the image encoders."""
    return [name for name in presets("vision") if name != WHOLE]
