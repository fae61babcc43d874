"""Checks the values of a composed configuration: of the kind that the YAML files have."""

import math
from typing import Any

from engram.kernels.errors import InvalidValueError

LEAST: dict[str, int] = {
    "num_envs": 1,
    "threads": 1,
    "checkpoint_seconds": 0,
    "policy.width": 1,
    "evaluation.episodes": 1,
    "evaluation.num_envs": 1,
    "sweep.samples": 1,
    "sweep.reduction": 2,
    "sweep.first": 0,
}
"""Numbers that only the command line reads, and the least each may be."""


def conform(
    tree: dict[str, Any], defaults: dict[str, Any], *, least: dict[str, int] = LEAST
) -> dict[str, Any]:
    """Return a configuration whose every value is of the kind of its default.

    Whole numbers may be written as 1e6. A value whose default is null may be of any kind; keys
    without a default were added on purpose.

    Args:
        tree: The configuration, resolved.
        defaults: The same groups, without the values that were typed.
        least: The least that numbers may be, by their dotted keys.

    Raises:
        InvalidValueError: On the first value of another kind, not finite, or below its least.
    """
    conformed = _conform(tree, defaults, "")
    for key, bound in least.items():
        value: Any = conformed
        for name in key.split("."):
            value = value[name]
        if value < bound:
            raise InvalidValueError(key, value, f"{bound:g} or more")
    return conformed


def _conform(value: Any, default: Any, key: str) -> Any:
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise InvalidValueError(key, value, f"keys below it: {', '.join(default) or 'any'}")
        below = f"{key}." if key else ""
        return {name: _conform(v, default.get(name), below + name) for name, v in value.items()}
    if default is None and isinstance(value, dict):
        return {name: _conform(v, None, f"{key}.{name}") for name, v in value.items()}
    if isinstance(value, list):
        for entry in value:
            _conform(entry, None, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValueError(key, value, "finite numbers")
    if key in ("seeds", "workers", "device", "memories", "tasks", "imitation.bfloat16"):
        return value  # of several kinds; config.py checks them
    return _of_kind(value, default, key)


def _of_kind(value: Any, default: Any, key: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvalidValueError(key, value, "true, false")
    elif isinstance(default, int):
        if not number or value != int(value):
            raise InvalidValueError(key, value, "whole numbers")
        return int(value)
    elif isinstance(default, float):
        if not number:
            raise InvalidValueError(key, value, "numbers")
        return float(value)
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise InvalidValueError(key, value, "a name")
    elif isinstance(default, list) and not isinstance(value, list):
        raise InvalidValueError(key, value, "a list")
    return value
