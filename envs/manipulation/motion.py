"""Pieces of scripted motion: each yields where the gripper should be until it has got there."""

from collections.abc import Callable, Iterator

import numpy as np

from engram.envs.manipulation.arm import HOME
from engram.envs.manipulation.task import Goal
from engram.envs.manipulation.world import World

CLOSED, OPEN = -1.0, 1.0
HOVER = 0.09
"""How far above a thing the gripper travels [m]."""
_NEAR = 0.012
"""How near is there [m]."""


def over(position: np.ndarray, height: float) -> np.ndarray:
    """Return the position so much higher [m]."""
    return position + np.array([0, 0, height])


def hold(
    world: World,
    until: Callable[[], bool],
    position: np.ndarray | None = None,
    opening: float = CLOSED,
) -> Iterator[Goal]:
    """Stay at a position, home unless given, until something holds."""
    place = np.array(HOME) if position is None else position
    while not until():
        yield Goal(place, opening)


def reach(
    world: World, position: np.ndarray, opening: float = CLOSED, *, near: float = _NEAR
) -> Iterator[Goal]:
    """Go straight to a position."""
    while np.abs(world.tcp - position).max() > near:
        yield Goal(position, opening)


def approach(world: World, position: np.ndarray, opening: float = CLOSED) -> Iterator[Goal]:
    """Go over a position, then down to it."""
    above = over(position, HOVER)
    while np.abs(world.tcp[:2] - position[:2]).max() > _NEAR:
        yield Goal(above, opening)
    yield from reach(world, position, opening)


def stay(steps: int, position: np.ndarray, opening: float) -> Iterator[Goal]:
    """Stay for some steps, while the fingers move."""
    for _ in range(steps):
        yield Goal(position, opening)
