"""Errors say the same in every process."""

import pickle

import pytest
from gymnasium import spaces

from engram.agents.training import DivergedError
from engram.envs.adapter import UnknownEnvironmentError, UnsupportedSpaceError
from engram.kernels.errors import (
    DataError,
    DeviceError,
    EngramError,
    InvalidValueError,
    MissingPackageError,
    one_line,
)


def all_kinds(kind: type[EngramError]) -> set[type[EngramError]]:
    return {kind}.union(*(all_kinds(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(
    "error",
    [
        EngramError("no"),
        InvalidValueError("ray.workers", -1, "0 or more"),
        DataError("checkpoint x is damaged"),
        DeviceError("launch", 7),
        MissingPackageError("ray", "ray"),
        DivergedError("value_loss", float("nan"), 3),
        UnknownEnvironmentError("CartPol-v1"),
        UnsupportedSpaceError("action space", spaces.Text(3), "Box"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_travels_with_its_message(error: EngramError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_every_kind_of_error_travels() -> None:
    for kind in all_kinds(EngramError):
        error = kind.__new__(kind)
        error.args = ("said",)
        assert str(pickle.loads(pickle.dumps(error))) == "said"


def test_lines_are_joined() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
