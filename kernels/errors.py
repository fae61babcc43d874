"""The root of every error that engram raises on a user's mistake."""

import numbers
from collections.abc import Iterable
from typing import Any


class EngramError(Exception):
    """A user's mistake; the message names the value seen and the values allowed."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by the message: constructors take other arguments."""
        return _with_message, (type(self), str(self))


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, NumPy's included; true and false are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _with_message(kind: type[EngramError], message: str) -> EngramError:
    error = kind.__new__(kind)
    error.args = (message,)
    return error


class InvalidValueError(EngramError, ValueError):
    """A setting has a value that is not allowed."""

    def __init__(self, name: str, seen: object, allowed: str | Iterable[object]):
        choices = allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))
        super().__init__(f"{name} is {seen!r}; allowed: {choices}")


class DataError(EngramError, ValueError):
    """A file that the user gave is missing, damaged or of an unknown version."""


class DeviceError(EngramError, RuntimeError):
    """A CUDA device failed; what it was told before may have failed too."""

    def __init__(self, function: str, error: int):
        super().__init__(f"CUDA error {error} in {function}")


class MissingPackageError(EngramError, ImportError):
    """A package that an extra brings is not installed."""

    def __init__(self, missing: str, extra: str):
        super().__init__(f"package {missing!r} is missing; run: pip install engram[{extra}]")
