"""A button lights up some times; it is to be pressed as often, then the other one once."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import hold, press
from engram.envs.manipulation.props import COLORS, Button
from engram.envs.manipulation.task import Goal, Range, Task, check_least, scatter
from engram.envs.manipulation.world import World

_SLOT = (2, 2)
"""Steps that the button is lit, and that it is dark again."""


class CountPresses(Task):
    """Press the blue button as often as it lit up, then the red one.

    After `onset` steps the blue button turns white for 2 steps, 1 to `most` times. The flashes fall
    on random ones of `most` slots of 4 steps, so that the length of the show does not tell how many
    there were. `gap` steps later the lamp turns green; presses count from then on. Pressing the
    red button ends the episode: it is the first choice, right (and success) if the blue one was
    pressed as often as it lit up. A press leaves no trace, so one's own presses have to be
    remembered as well.

    Args:
        most: The largest number of flashes.
        patience: Steps for each press.
        gap: Steps between the last slot and the decision, drawn from this range.
        onset: Steps before the first slot, drawn from this range.
    """

    gradual = True
    instruction = "When the lamp is green, press blue as often as it lit up, then press red."

    def __init__(
        self,
        *,
        most: int = 4,
        patience: int = 6,
        gap: Range = (5, 15),
        onset: Range = (1, 5),
    ):
        super().__init__(gap=gap, onset=onset)
        check_least(2, most=most)
        check_least(1, patience=patience)
        self.facts = most
        self.chance = 1 / most
        # The way to the buttons takes longer than a press.
        self.limit = self.onsets[1] + most * sum(_SLOT) + self.gaps[1] + (most + 3) * patience
        self.props = (
            Button("count", rgb=COLORS["blue"]),
            Button("stop", rgb=COLORS["red"]),
            LAMP,
        )

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the buttons are, and in which slots the flashes fall."""
        places = scatter(random, 2)
        self.places = {"count": places[0], "stop": places[1]}
        for name, place in self.places.items():
            world.show(name, (*place, 0))
        self.slots = set(random.permutation(self.facts)[: self.fact + 1].tolist())
        self.presses = 0
        self.down: set[str] = set()
        signal(world, False)

    def follow(self, world: World) -> None:
        """Light up, wait; then count presses."""
        time = self.time - self.onset
        show = self.facts * sum(_SLOT)
        if 0 <= time < show:
            self.phase = "cue"
            slot, step = divmod(time, sum(_SLOT))
            lit = slot in self.slots and step < _SLOT[0]
            world.color("count", COLORS["white" if lit else "blue"])
        elif show <= time < show + self.gap:
            self.phase = "gap"
        fresh = world.pressed - self.down
        self.down = world.pressed
        if not self.deciding and time >= show + self.gap:
            self.decide()
            signal(world, True)
        elif self.deciding and "stop" in fresh:
            right = self.presses == self.fact + 1 and "count" not in fresh
            self.choose(right)
            self.succeeded, self.failed = right, not right
        elif self.deciding:
            self.presses += "count" in fresh

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait at home, then press."""
        yield from hold(lambda: self.deciding)
        for _ in range(fact + 1):
            yield from press(world, "count", self.places["count"])
        yield from press(world, "stop", self.places["stop"])
