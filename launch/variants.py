"""What a study runs beside memories: arguments under a name, compared as memories are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engram.kernels.errors import EngramError, InvalidValueError
from engram.launch.config import UsageError
from engram.launch.folder import flat

VARIANTS = "variants"
"""Where a study lists them: names of lists of arguments."""
OF_READING = "folder", "episodes", "skip_damaged"
"""Keys of demonstrations that decide which are read, not how one was recorded."""
CONTROL = "control"
"""Key of demonstrations: what actions mean."""
BEFORE = "engram.envs.manipulation.EndEffectorControl"
"""What they meant in recordings that do not say it: there was nothing else."""
RECORDED_FORMAT = 2
"""Of what tasks show, when, and of the columns that say so; the first one was not written down."""
SHARED = (
    *("task", "task.name", "tasks", "memory", "memories", VARIANTS, "study"),
    *("seeds", "device", "out", "resume", "workers"),
)
"""Keys of all runs together, which no variant sets."""


def check_variants(
    seen: Any, taken: list[str], check_choice: Callable[[str, str], None]
) -> dict[str, list[str]]:
    """Check what a study calls its variants, and what they set.

    Args:
        seen: What the configuration holds.
        taken: Names of memories.
        check_choice: Refuses values that a key which names a file does not have.

    Raises:
        EngramError: On the first that cannot be run, by its name.
    """
    if not isinstance(seen, dict):
        raise InvalidValueError(VARIANTS, seen, "a name each for lists of key=value")
    for name, arguments in seen.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            allowed = "letters, digits and underscores, but for names of memories"
            raise InvalidValueError(f"a name in {VARIANTS}", name, allowed)
        if not isinstance(arguments, list) or not arguments:
            raise InvalidValueError(f"{VARIANTS}.{name}", arguments, "a list of key=value")
        keys = [_key(name, argument) for argument in arguments]
        if len(set(keys)) < len(keys):
            raise InvalidValueError(f"{VARIANTS}.{name}", arguments, "every key once")
        with named_in_errors(name):
            for argument in arguments:
                key, _, value = argument.partition("=")
                check_choice(key, value)
    return seen


def _key(name: str, argument: Any) -> str:
    key, equals, _ = argument.partition("=") if isinstance(argument, str) else ("", "", "")
    key = key.lstrip("+")
    if not equals or not key or key in SHARED:
        allowed = f"key=value, key none of {', '.join(SHARED)}"
        raise InvalidValueError(f"{VARIANTS}.{name}", argument, allowed)
    return key


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """Say of errors of the configuration in which variant they are."""
    try:
        yield
    except EngramError as error:
        raise UsageError(f"{VARIANTS}.{name}: {error}") from error


def recorded_with(tree: dict[str, Any]) -> dict[str, Any]:
    """Return, by dotted keys, what decides a recording; how long it is does not."""
    wanted = {k: v for k, v in tree["demonstrations"].items() if k not in OF_READING}
    wanted[CONTROL] = wanted[CONTROL]["_target_"]
    return flat({"task": {k: tree["task"][k] for k in ("name", "settings")}, **wanted}) | {
        "format": RECORDED_FORMAT
    }


def recording_name(task: str, name: str, tree: dict[str, Any], plain: dict[str, Any]) -> str:
    """Return what the demonstrations of a variant are called: as the task's, if they are these.

    Args:
        task: The task.
        name: The variant.
        tree: Its configuration.
        plain: That of the task, without it.

    Raises:
        UsageError: If they would have to be recorded, but a folder is given.
    """
    mine, theirs = recorded_with(tree), recorded_with(plain)
    changed = [key for key in mine if mine[key] != theirs.get(key)]
    if not changed:
        return task
    if (folder := tree["demonstrations"]["folder"]) is not None:
        raise UsageError(
            f"{changed[0]} is {mine[changed[0]]!r}, but demonstrations.folder is {folder!r}; "
            "allowed: null, where a variant changes what is recorded"
        )
    return f"{task}-{name}"
