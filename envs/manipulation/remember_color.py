"""A coloured cube is shown and taken away; later the same colour is to be touched among others."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.motion import approach, hold, over
from engram.envs.manipulation.props import COLORS, Prop
from engram.envs.manipulation.task import Goal, Range, Task, check_between, check_least, scatter
from engram.envs.manipulation.world import World

_PALETTE = tuple(COLORS.values())
_CUBE = (0.02, 0.02, 0.02)


class RememberColor(Task):
    """Touch the cube of the colour that was shown.

    After MIKASA-Robo's RememberColor (Cherepanov et al., 2025, arXiv 2502.10550). After `onset`
    steps a cube stands near the middle of the table for `cue` steps. `gap` steps later cubes of
    all colours stand at random places. Whoever touches a wrong one may go on; the first touch is
    the first choice. Cubes do not move.

    Here the arm may move at all times, and touching is enough: it need not stand still.

    Args:
        colors: How many colours, 2 to 9: the first of red, green, blue, yellow, magenta, cyan,
            orange, white, black.
        cue: Steps that the cube is shown.
        patience: Steps for the decision.
        gap: Steps between cue and decision, drawn from this range.
        onset: Steps before the cue, drawn from this range.
    """

    instruction = "Touch the cube that has the color of the cube shown before."

    def __init__(
        self,
        *,
        colors: int = 3,
        cue: int = 5,
        patience: int = 20,
        gap: Range = (5, 15),
        onset: Range = (1, 5),
    ):
        super().__init__(gap=gap, onset=onset)
        check_between(2, len(_PALETTE), colors=colors)
        check_least(1, cue=cue, patience=patience)
        self.cue = cue
        self.facts = colors
        self.chance = 1 / colors
        self.limit = self.onsets[1] + cue + self.gaps[1] + patience
        self.choices = tuple(f"cube{i}" for i in range(colors))
        self.props = (*(Prop(name, size=_CUBE) for name in self.choices), Prop("cue", size=_CUBE))
        self.places = np.zeros((colors, 2))
        self.order = np.arange(colors)

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the cue and the cubes will stand, and which cube has which colour."""
        self.cue_place = np.array([0.32, 0.0]) + random.uniform(-0.04, 0.04, 2)
        self.places = scatter(random, self.facts)
        self.order = random.permutation(self.facts)

    def cube(self, color: int) -> str:
        """The cube of a colour."""
        return self.choices[int(np.flatnonzero(self.order == color)[0])]

    def follow(self, world: World) -> None:
        """Show, take away, offer; then judge touches."""
        shown = self.onset + self.cue
        if self.time == self.onset:
            self.phase = "cue"
            world.show("cue", (*self.cue_place, 0.02), _PALETTE[self.fact])
        elif self.time == shown:
            self.phase = "gap"
            world.hide("cue")
        if self.time == shown + self.gap:
            self.decide()
            for name, place, color in zip(self.choices, self.places, self.order, strict=True):
                world.show(name, (*place, 0.02), _PALETTE[color])
        elif self.deciding and (touched := world.touched.intersection(self.choices)):
            right = self.cube(self.fact)
            self.choose(touched == {right})
            self.succeeded = right in touched

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait at home with the gripper closed, then touch the cube."""
        yield from hold(lambda: self.deciding)
        yield from approach(world, over(world.position(self.cube(fact)), 0.015))
