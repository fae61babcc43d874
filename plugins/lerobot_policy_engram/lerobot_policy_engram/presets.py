"""engram's own configuration files, as settings of a policy name them.

Configurations travel with checkpoints, so nothing in one can name code but what its key is for.
"""

from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engram.kernels.errors import InvalidValueError, one_line


def presets(folder: str) -> list[str]:
    """Names of the files in a folder of engram's configuration."""
    files = (resources.files("engram.configs") / folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_preset(folder: str, name: str) -> Any:
    """Read a preset, and before it those that it builds on."""
    text = (resources.files("engram.configs") / folder / f"{name}.yaml").read_text()
    own: Any = OmegaConf.create(text)
    parts: Iterable[str] = own.pop("defaults", ["_self_"])
    return OmegaConf.merge(
        *(own if part == "_self_" else read_preset(folder, part) for part in parts)
    )


def built_from(tree: Any, key: str, name: str, settings: dict[str, Any]) -> Any:
    """Build what a preset says, with changes.

    Args:
        tree: The preset.
        key: Of the settings in the policy's configuration: `policy.memory`.
        name: Of the preset.
        settings: Changes, nested as the preset is.

    Raises:
        InvalidValueError: If the preset has no such settings, or what it builds does not take them.
    """
    refuse_targets(key, settings)
    OmegaConf.set_struct(tree, True)  # a key that the file lacks is refused
    return built(key, name, settings, lambda: instantiate(OmegaConf.merge(tree, settings)))


def built(key: str, name: str, settings: dict[str, Any], build: Callable[[], Any]) -> Any:
    """Call `build`, and say which settings it does not take.

    Raises:
        InvalidValueError: If there are any.
    """
    try:
        return build()
    except (TypeError, OmegaConfBaseException, InstantiationException) as error:
        why = f"settings of {name} ({one_line(error)})"
        raise InvalidValueError(f"{key}.settings", settings, why) from error


def refuse_targets(key: str, settings: Any) -> None:
    """Raise if settings name what to call: Hydra would call it, whatever it is.

    Raises:
        InvalidValueError: If they do, however deep in dicts and lists.
    """
    if isinstance(settings, dict):
        for name in settings:
            if str(name).startswith("_"):
                raise InvalidValueError(f"{key}.settings", name, "names of settings")
    inside = settings.values() if isinstance(settings, dict) else settings
    for value in inside if isinstance(settings, dict | list | tuple) else ():
        refuse_targets(key, value)
