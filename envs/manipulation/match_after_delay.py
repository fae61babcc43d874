"""A shape is shown; after a delay of very different lengths, the same one is to be touched."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from engram.envs.manipulation.motion import approach, hold, over
from engram.envs.manipulation.props import COLORS, Prop
from engram.envs.manipulation.task import Goal, Range, Task, check_least, scatter
from engram.envs.manipulation.world import World

_PALETTE = tuple(COLORS.values())[:8]
"""Without black: a black ball has no edges."""
_SIZES = {"box": (0.02, 0.02, 0.02), "cylinder": (0.02, 0.02), "sphere": (0.022,)}


class MatchAfterDelay(Task):
    """Touch the thing that has the colour and the shape of the one shown.

    After MemMimic's tasks of matching after a fixed or a random delay. Two colours and two of three
    shapes (box, cylinder, sphere) give four things; one of them is the sample, shown for `cue`
    steps near the middle. `gap` steps later all four stand at random places, and each of the other
    three shares the colour, the shape or neither with the sample: both must be remembered. The
    first touch is the first choice; whoever touches a wrong one may go on.

    The default gap reaches from 2 to 30 steps. Train on a part of it to see whether a memory
    extends to delays that it was not trained on.

    Args:
        cue: Steps that the sample is shown.
        patience: Steps for the decision.
        gap: Steps between sample and decision, drawn from this range.
        onset: Steps before the sample, drawn from this range.
    """

    instruction = "Touch the thing that has the color and the shape of the one shown before."
    facts = 4
    chance = 1 / 4

    def __init__(
        self, *, cue: int = 5, patience: int = 20, gap: Range = (2, 30), onset: Range = (1, 5)
    ):
        super().__init__(gap=gap, onset=onset)
        check_least(1, cue=cue, patience=patience)
        self.cue = cue
        self.limit = self.onsets[1] + cue + self.gaps[1] + patience
        # A body keeps its shape: two of each to choose from, and one to show.
        self.props = tuple(
            Prop(f"{shape}{i}", kind=shape, size=size)
            for shape, size in _SIZES.items()
            for i in ("0", "1", "_shown")
        )

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw two colours, two shapes, and the places."""
        shapes = [tuple(_SIZES)[i] for i in random.permutation(len(_SIZES))[:2]]
        colors = [_PALETTE[i] for i in random.permutation(len(_PALETTE))[:2]]
        self.pairs = [(shape, color) for shape, color in product(shapes, colors)]
        self.choices = [f"{shape}{i}" for shape, i in product(shapes, (0, 1))]
        self.places = scatter(random, 4)
        self.middle = np.array([0.33, 0.0]) + random.uniform(-0.04, 0.04, 2)

    @property
    def hints(self) -> int:
        """Three for the colour, one for each shape."""
        return 3 + len(_SIZES)

    def hidden(self) -> np.ndarray:
        """The sample's colour, and its shape one-hot: `[6]` float32."""
        shape, color = self.pairs[self.fact]
        return np.array([*color, *(shape == other for other in _SIZES)], dtype=np.float32)

    def follow(self, world: World) -> None:
        """Show, take away, offer; then judge touches."""
        shown = self.onset + self.cue
        shape, color = self.pairs[self.fact]
        if self.time == self.onset:
            self.phase = "cue"
            world.show(f"{shape}_shown", _standing(shape, self.middle), color)
        elif self.time == shown:
            self.phase = "gap"
            world.hide(f"{shape}_shown")
        if self.time == shown + self.gap:
            self.decide()
            for name, (kind, paint), place in zip(
                self.choices, self.pairs, self.places, strict=True
            ):
                world.show(name, _standing(kind, place), paint)
        elif self.deciding and (touched := world.touched.intersection(self.choices)):
            right = self.choices[self.fact]
            self.choose(touched == {right})
            self.succeeded = right in touched

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait at home with the gripper closed, then touch it."""
        yield from hold(lambda: self.deciding)
        yield from approach(world, over(world.position(self.choices[fact]), 0.015))


def _standing(shape: str, place: np.ndarray) -> tuple[float, float, float]:
    """Position of a thing that stands on the table."""
    return (float(place[0]), float(place[1]), _SIZES[shape][-1])
