"""The memory of a policy: built from a class or a callable, and named in a file."""

import importlib
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from engram.kernels.errors import DataError, InvalidValueError
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
    """Return the class and its keywords in JSON's types, or None where that cannot rebuild them."""
    if not (isinstance(memory, type) and issubclass(memory, SequenceMemory)):
        return None
    name = {"module": memory.__module__, "class": memory.__qualname__, "settings": settings}
    try:
        same = json.loads(json.dumps(name)) == name
        return name if same and find(name) is memory else None
    except (DataError, TypeError, ValueError):
        return None


def find(described: dict[str, Any]) -> type[SequenceMemory[Any]]:
    """Return the class that `describe` named.

    A file from a stranger must not choose what is imported: a module outside engram is looked up
    among those that the program has imported itself.

    Raises:
        DataError: If there is no such class.
    """
    module, name = str(described["module"]), str(described["class"])
    held: Any = sys.modules.get(module)
    if held is None and module.startswith("engram.memory."):
        try:
            held = importlib.import_module(module)
        except ModuleNotFoundError:
            held = None
    found = getattr(held, name, None)
    if not (isinstance(found, type) and issubclass(found, SequenceMemory)):
        raise DataError(
            f"memory is {module}.{name}, which is not imported or no SequenceMemory; allowed: "
            "to import it first, or load(path, memory=...)"
        )
    return found
