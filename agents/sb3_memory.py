"""The memory of a policy: built from a class or a callable, and named in a file."""

import inspect
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import sequence
from engram.memory.sequence.base import SequenceMemory

ALLOWED = "a class of engram.memory.sequence, or a callable of the width that returns a memory"


def builder(memory: Any, settings: dict[str, Any]) -> Callable[[int], SequenceMemory[Any]]:
    """Return a function of the width that builds the memory.

    Args:
        memory: A class or a callable; its first operand is the width.
        settings: Its keywords.

    Raises:
        InvalidValueError: If it cannot be called, or, once called, returns something else.
    """
    if not callable(memory):
        raise InvalidValueError("memory", memory, ALLOWED)

    try:
        inspect.signature(memory).bind(1, **settings)
    except TypeError as error:
        raise InvalidValueError("memory_kwargs", settings, f"its keywords ({error})") from None

    def build(width: int) -> SequenceMemory[Any]:
        built = memory(width, **settings)
        if not isinstance(built, SequenceMemory):
            raise InvalidValueError("memory", memory, ALLOWED)
        return built

    return build


def describe(memory: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return what builds the memory in JSON's types, or None where that could not rebuild it.

    A class has a name, and so has whatever `engram.memory.sequence` exports; `functools.partial`
    adds settings to one. A setting is JSON's, or again something of this kind, as the layer of a
    stack is.
    """
    if isinstance(memory, partial):
        return None if memory.args else describe(memory.func, {**memory.keywords, **settings})
    place, name = getattr(memory, "__module__", ""), getattr(memory, "__qualname__", "")
    if name in sequence.__all__ and getattr(sequence, name) is memory:
        place = sequence.__name__
    kept = {}
    for key, value in settings.items():
        kind = "memory" if callable(value) else "value"
        kept[key] = {kind: describe(value, {}) if callable(value) else value}
        if kept[key] == {"memory": None}:
            return None
    described = {"module": place, "name": name, "settings": kept}
    try:
        same = json.loads(json.dumps(described)) == described
        return described if same and _find(place, name) is memory else None
    except (DataError, TypeError, ValueError):
        return None


def rebuild(described: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the callable and the settings that `describe` described.

    A file from a stranger must not choose what is imported or called: outside
    `engram.memory.sequence`, only memories that the program has imported itself are found.

    Raises:
        DataError: If there is no such memory.
    """
    settings = {}
    for key, setting in described["settings"].items():
        if "memory" in setting:
            layer, inner = rebuild(setting["memory"])
            settings[key] = partial(layer, **inner) if inner else layer
        else:
            settings[key] = setting["value"]
    return _find(str(described["module"]), str(described["name"])), settings


def _find(module: str, name: str) -> Any:
    held = sys.modules.get(module)
    found = getattr(held, name, None)
    if held is sequence and name in sequence.__all__:
        return found
    if not (isinstance(found, type) and issubclass(found, SequenceMemory)):
        raise DataError(
            f"memory is {module}.{name}, which is not imported or no SequenceMemory; allowed: "
            "to import it first, or load(path, memory=...)"
        )
    return found
