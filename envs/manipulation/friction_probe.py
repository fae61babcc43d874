"""A puck of unknown friction is to be pushed so that it stops on a strip."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import over, reach, stroke
from engram.envs.manipulation.props import COLORS, Block, Prop
from engram.envs.manipulation.task import Goal, Range, Task, check_least
from engram.envs.manipulation.world import World

FRICTION = (0.025, 0.06, 0.13)
"""Coefficients of the three kinds of puck; each puck's own is within 4 % of one of them."""
SLIDE = 0.08
"""How far the puck has to slide from the bar to the middle of the strip [m]."""
_GRAVITY = 9.81
_START = 0.25
_BAR = 0.335
_THICK = 0.008
_RADIUS = 0.022
_HEIGHT = 0.012
_STRIP = (0.025, 0.08)
_ROLL = 12
"""Steps from the bar to the judgement."""
_PROBE = 0.3
"""Speed of the scripted probe [m/s]."""
_CRADLE = -0.25
"""A gap of 3 cm between the fingers, in which a round puck stays."""


class FrictionProbe(Task):
    """Find out how a puck slides, then push it onto the white strip.

    After MemMimic's iterative pushing. A bar across the table stops the gripper and lets the puck
    through below it, so that the speed at the bar alone decides how far the puck slides. All pucks
    of an episode have the same friction. The first push is a probe: there is no strip yet. 1.2 s
    after the puck passed the bar it is taken away and a new one laid; `gap` steps later the lamp
    turns green and the strip appears, its middle 8 cm beyond where the bar stops the push. Each
    puck whose middle comes to rest on the strip, 5 cm wide and 16 cm long, is a hit. The first push
    after the probe is the first choice; any hit is success.

    The kinds of friction are so far apart that no speed suits two of them: chance is 1/3.

    Args:
        pushes: How many after the probe.
        patience: Steps for each push, besides the 12 that the puck slides.
        gap: Steps between probe and decision, drawn from this range.
    """

    gradual = True
    instruction = "Push the puck once. When the lamp is green, stop it on the strip."
    facts = len(FRICTION)
    chance = 1 / len(FRICTION)

    def __init__(self, *, pushes: int = 2, patience: int = 25, gap: Range = (5, 15)):
        super().__init__(gap=gap)
        check_least(1, pushes=pushes, patience=patience)
        self.pushes = pushes
        self.limit = (pushes + 1) * (patience + _ROLL) + self.gaps[1]
        self.props = (
            Block(
                "puck",
                kind="cylinder",
                size=(_RADIUS, _HEIGHT),
                rgb=COLORS["blue"],
                mass=0.05,
                priority=1,
            ),
            Prop("bar", size=(_THICK, 0.22, 0.022), rgb=(0.6, 0.6, 0.66)),
            Prop(
                "strip",
                kind="mark",
                size=(*_STRIP, 0.001),
                rgb=COLORS["white"],
                solid=False,
            ),
            LAMP,
        )

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw the friction and where across the table the puck lies."""
        friction = FRICTION[self.fact] * random.uniform(0.96, 1.04)
        world.model.geom_friction[world.geom["puck"], 0] = friction
        self.start = np.array([_START, random.uniform(-0.1, 0.1)])
        self.passed: int | None = None
        """When the puck of this push passed the bar."""
        self.probed: int | None = None
        """When the first puck was taken away."""
        self.pushed = 0
        self.phase = "probe"
        world.show("bar", (_BAR, 0, 0.054))
        self._lay(world)
        signal(world, False)

    @property
    def strip(self) -> np.ndarray:
        """Middle of the strip [m]."""
        return np.array([_BAR - _THICK + _RADIUS + SLIDE, self.start[1]])

    def follow(self, world: World) -> None:
        """Judge pucks that have slid; lay new ones."""
        if self.probed is not None and not self.deciding:
            if self.time >= self.probed + self.gap:
                self.decide("aim")
                world.show("strip", (*self.strip, 0.001))
                signal(world, True)
        place = world.position("puck")
        if self.passed is None:
            self.passed = self.time if place[0] > _BAR else None
        elif self.time >= self.passed + _ROLL:
            self._judge(world, place)

    def _judge(self, world: World, place: np.ndarray) -> None:
        if self.probed is None:
            self.phase, self.probed = "gap", self.time
        elif self.deciding:
            on = bool(np.all(np.abs(place[:2] - self.strip) <= _STRIP))
            hit = on and world.speed("puck") < 0.02
            self.choose(hit)
            self.pushed += 1
            self.succeeded = hit
            self.failed = not hit and self.pushed == self.pushes
        if not self.succeeded:
            self._lay(world)

    def _lay(self, world: World) -> None:
        world.show("puck", (*self.start, _HEIGHT))
        self.passed = None

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Probe at one speed; then push at the speed that the friction asks for."""
        yield from self.push(world, _PROBE)
        while not self.deciding:
            yield Goal(self._behind(0.15), _CRADLE)
        while True:
            yield from self.push(world, float(np.sqrt(2 * FRICTION[fact] * _GRAVITY * SLIDE)))

    def push(self, world: World, speed: float) -> Iterator[Goal]:
        """Go behind the puck and push it to the bar at a speed [m/s]; rise and wait."""
        yield from reach(world, over(world.tcp, 0.04) if world.tcp[2] < 0.1 else world.tcp, _CRADLE)
        yield from reach(world, self._behind(0.10), _CRADLE)
        yield from reach(world, self._behind(0.015), _CRADLE)
        yield from stroke(world, lambda: self.passed is not None, speed, _CRADLE)
        while self.passed is not None:
            yield Goal(self._behind(0.15), _CRADLE)

    def _behind(self, height: float) -> np.ndarray:
        return np.array([self.start[0] - _RADIUS - 0.065, self.start[1], height])
