"""Pieces of scripted motion: each yields where the gripper should be until it has got there."""

from collections.abc import Callable, Iterator

import numpy as np

from engram.envs.manipulation.arm import HOME
from engram.envs.manipulation.props import Button, Cover
from engram.envs.manipulation.task import Goal
from engram.envs.manipulation.world import PERIOD, World

CLOSED, OPEN = -1.0, 1.0
HOVER = 0.09
"""How far above a thing the gripper travels [m]."""
NEAR = 0.012
"""How near is there [m]."""


def over(position: np.ndarray, height: float) -> np.ndarray:
    """Return the position so much higher [m]."""
    return position + np.array([0, 0, height])


def hold(
    until: Callable[[], bool], position: np.ndarray | None = None, opening: float = CLOSED
) -> Iterator[Goal]:
    """Stay at a position, home unless given, until something is so; one step at least."""
    place = np.array(HOME) if position is None else position
    yield Goal(place, opening)
    while not until():
        yield Goal(place, opening)


def reach(
    world: World, position: np.ndarray, opening: float = CLOSED, *, near: float = NEAR
) -> Iterator[Goal]:
    """Go straight to a position."""
    while np.abs(world.tcp - position).max() > near:
        yield Goal(position, opening)


def approach(world: World, position: np.ndarray, opening: float = CLOSED) -> Iterator[Goal]:
    """Go over a position, then down to it."""
    above = over(position, HOVER)
    while np.abs(world.tcp[:2] - position[:2]).max() > NEAR:
        yield Goal(above, opening)
    yield from reach(world, position, opening)


def stay(steps: int, position: np.ndarray, opening: float) -> Iterator[Goal]:
    """Stay for some steps, while the fingers move."""
    for _ in range(steps):
        yield Goal(position, opening)


def grasp(position: np.ndarray) -> Iterator[Goal]:
    """Close the fingers."""
    yield from stay(2, position, CLOSED)


def carry(world: World, block: str, place: np.ndarray) -> Iterator[Goal]:
    """Take a block, put it down at a place, let go and rise.

    It is lowered while it comes near, and let go wherever it then is within 2 cm: a clone that
    knows the place to 2 cm would wait forever above it for the last one. A block that was dropped
    on the way is taken again.
    """
    while np.linalg.norm(world.position(block)[:2] - place[:2]) > 0.02:
        spot = world.position(block)
        yield from approach(world, spot, OPEN)
        yield from grasp(spot)
        yield from reach(world, over(spot, 0.05), near=0.02)
        yield from travel(world, block, over(place, 0.05))
        yield from lower(world, over(place, 0.004))
        yield from stay(2, over(place, 0.004), OPEN)
    yield from reach(world, over(place, 0.06), OPEN, near=0.02)


def travel(world: World, block: str, position: np.ndarray) -> Iterator[Goal]:
    """Carry a held block nearly over a place; stop where it was dropped."""
    while np.abs(world.tcp - position)[:2].max() > 0.025 and block in world.touched:
        yield Goal(position, CLOSED)


def lower(world: World, position: np.ndarray) -> Iterator[Goal]:
    """Go straight down to a position, to 2 cm across and to 8 mm in height."""
    while np.any(np.abs(world.tcp - position) > (0.02, 0.02, 0.008)):
        yield Goal(position, CLOSED)


def lift_cover(world: World, name: str, place: np.ndarray) -> Iterator[Goal]:
    """Take a cover by its knob, lift it by 4 cm and let go.

    Where the knob was missed, or lost on the way up, it is taken again.
    """
    cover = world.props[name]
    assert isinstance(cover, Cover)
    knob = np.array([*place, cover.knob])
    highest = 0.0
    while highest < 0.03:
        yield from approach(world, knob, OPEN)
        yield from grasp(knob)
        for goal in reach(world, over(knob, 0.045)):
            yield goal
            highest = max(highest, world.lift(name))
    yield from stay(1, knob, OPEN)
    while world.lift(name) > 0.003 or world.tcp[2] < knob[2] + 0.03:
        yield Goal(over(knob, 0.05), OPEN)


def stroke(world: World, until: Callable[[], bool], speed: float, opening: float) -> Iterator[Goal]:
    """Push along x at a speed [m/s] until something is so."""
    aim = world.tcp
    while not until():
        aim = aim + np.array([speed * PERIOD, 0, 0])
        yield Goal(aim, opening)


def press(world: World, button: str, place: np.ndarray) -> Iterator[Goal]:
    """Press a button down and let it up again, with the gripper closed."""
    prop = world.props[button]
    assert isinstance(prop, Button)
    top = np.array([*place, prop.top + 0.009])
    while np.abs(world.tcp[:2] - place).max() > NEAR:
        yield Goal(over(top, 0.03))
    while button not in world.pressed:
        yield Goal(over(top, -prop.travel - 0.01))
    while button in world.pressed or world.lift(button) < -0.004:
        yield Goal(over(top, 0.03))
