"""A block is carried to the middle; later it has to go back to where it stood."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import OPEN, carry, hold, over, stay
from engram.envs.manipulation.props import COLORS, Block, Prop
from engram.envs.manipulation.task import (
    RIM,
    Goal,
    Range,
    Task,
    check_between,
    check_least,
    scatter,
)
from engram.envs.manipulation.world import World

_MIDDLE = np.array([0.332, 0.0])
_NEAR = 0.03
_STILL = 0.02
_HEIGHT = 0.02


class PutBack(Task):
    """Carry the block to the white mark, wait for the green lamp, carry it back.

    After MemoryBench's put_block_back (Fang et al., 2025, arXiv 2501.18564), with a wait in place
    of its button. After `onset` steps the block stands on one of several equal grey marks. Once it
    rests on the white mark, released, `gap` steps pass; then the lamp turns green. The first grey
    mark that it is then put down on is the first choice (wrong where it rests off all marks, away
    from the middle); resting on the right one, released, is success. A block rests on a mark within
    3 cm of its middle.

    Nothing but the block's own place tells where it came from; a policy that puts it down off the
    middle on purpose can leave itself a note of at most 3 cm.

    Args:
        marks: How many places it may come from, 2 to 6.
        patience: Steps for each of the two carries.
        gap: Steps between them, drawn from this range.
        onset: Steps before the block is there, drawn from this range.
    """

    instruction = "Move the block to the white mark. When the lamp is green, put it back."

    def __init__(
        self, *, marks: int = 4, patience: int = 30, gap: Range = (5, 15), onset: Range = (1, 5)
    ):
        super().__init__(gap=gap, onset=onset)
        check_between(2, 6, marks=marks)
        check_least(1, patience=patience)
        self.patience = patience
        self.facts = marks
        self.chance = 1 / marks
        self.limit = self.onsets[1] + 2 * patience + self.gaps[1]
        self.marks = tuple(f"mark{i}" for i in range(marks))
        disc = {"kind": "mark", "size": (0.032, 0.001), "solid": False}
        self.props = (
            Block("block", rgb=COLORS["red"]),
            Prop("middle", rgb=COLORS["white"], **disc),
            *(Prop(name, rgb=(0.42, 0.38, 0.36), **disc) for name in self.marks),
            LAMP,
        )

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the marks are."""
        self.places = scatter(random, self.facts, RIM)
        self.brought: int | None = None
        for name, place in zip(self.marks, self.places, strict=True):
            world.show(name, (*place, 0.001))
        world.show("middle", (*_MIDDLE, 0.001))
        signal(world, False)

    @property
    def hints(self) -> int:
        """Two coordinates."""
        return 2

    def hidden(self) -> np.ndarray:
        """Where the block has to go, x and y [m]: `[2]` float32."""
        return self.places[self.fact].astype(np.float32)

    def follow(self, world: World) -> None:
        """Lay the block; wait for it to be brought, then for the gap, then for its return."""
        if self.time == self.onset:
            self.phase = "bring"
            world.show("block", (*self.places[self.fact], _HEIGHT))
        if self.time <= self.onset:
            return
        rests = self._rests(world)
        place = world.position("block")[:2]
        central = bool(np.linalg.norm(place - _MIDDLE) <= _NEAR)
        if self.brought is None:
            if rests and central:
                self.phase, self.brought = "gap", self.time
        if self.brought is not None and not self.deciding:
            if self.time >= self.brought + self.gap:
                self.decide("return")
                signal(world, True)
        elif self.deciding and rests and not central:
            apart = np.linalg.norm(self.places - place, axis=1)
            nearest = int(apart.argmin())
            on = bool(apart[nearest] <= _NEAR)
            if on or np.linalg.norm(place - _MIDDLE) > 2 * _NEAR:
                self.choose(on and nearest == self.fact)
            self.succeeded = on and nearest == self.fact

    @staticmethod
    def _rests(world: World) -> bool:
        """Whether the block lies on the table and nobody touches it."""
        low = world.position("block")[2] < _HEIGHT + 0.005
        return bool(low) and "block" not in world.touched and world.speed("block") < _STILL

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait for it, carry it over, wait above it, carry it back."""
        yield from hold(lambda: "block" in world.shown, opening=OPEN)
        middle = np.array([*_MIDDLE, _HEIGHT])
        yield from carry(world, "block", middle)
        above = over(middle, 0.09)
        yield from hold(lambda: self.deciding, above, OPEN)
        yield from carry(world, "block", np.array([*self.places[fact], _HEIGHT]))
        yield from stay(1, above, OPEN)
