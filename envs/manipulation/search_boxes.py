"""A cube is in one of several closed boxes; no box should be opened twice."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import OPEN, hold, lift_cover, press
from engram.envs.manipulation.props import COLORS, Button, Cover, Prop
from engram.envs.manipulation.task import CELLS, Goal, Range, Task, check_between, check_least
from engram.envs.manipulation.world import World

_BUTTON = np.array([0.225, 0.0])
_OPENED = 0.03


class SearchBoxes(Task):
    """Lift box after box until the cube is found, none of them twice.

    Under a green lamp the boxes can be lifted. Once an empty one has been lifted and let go, the
    lamp turns red and all are latched; pressing the button and waiting for `gap` steps makes it
    green again. On the way to the button the arm loses its place, so that only memory tells which
    boxes were seen. Lifting the box with the cube is success. `first_choice_correct` is 1 if no box
    had been lifted twice by then, and 0 as soon as one is.

    What has to be remembered is not drawn but comes about: the hidden part of the observation is
    which boxes have been opened, from right to left. `script` opens them from right to left. The
    drawn fact is the box with the cube, which nobody is told. Whoever lifts any box each time opens
    none twice with a probability of 0.75, 0.63, 0.55 for 2, 3, 4 boxes: chance.

    Args:
        boxes: How many, 2 to 4.
        patience: Steps for each box.
        gap: Steps between the button and the green lamp, drawn from this range.
    """

    instruction = "Find the cube. When the lamp is red, press the button. Open no box twice."

    def __init__(self, *, boxes: int = 3, patience: int = 28, gap: Range = (1, 4)):
        super().__init__(gap=gap)
        check_between(2, 4, boxes=boxes)
        check_least(1, patience=patience)
        self.facts = boxes
        self.chance = chance_without_repeats(boxes)
        self.limit = boxes * (patience + self.gaps[1])
        self.boxes = tuple(f"box{i}" for i in range(boxes))
        covers = (
            Cover(name, kind="box", size=(0.032, 0.032, 0.028), rgb=COLORS["orange"])
            for name in self.boxes
        )
        cube = Prop("cube", size=(0.015, 0.015, 0.015), rgb=COLORS["blue"], solid=False)
        self.props = (*covers, cube, Button("button", rgb=COLORS["magenta"]), LAMP)

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the boxes are, one in each of as many columns."""
        columns = np.sort(random.permutation(4)[: self.facts])
        x = random.uniform(0.33, 0.42, self.facts)
        y = CELLS[columns, 1] + random.uniform(-0.02, 0.02, self.facts)
        self.places = np.stack([x, y], axis=1)
        self.opened = np.zeros(self.facts, dtype=np.float32)
        self.open: int | None = None
        """The box that is up."""
        self.due: int | None = None
        """When the lamp turns green, once the button was pressed."""
        self.ready = True
        self.phase = "search"
        for name, place in zip(self.boxes, self.places, strict=True):
            world.show(name, (*place, 0))
            world.latch(name, False)
        world.show("button", (*_BUTTON, 0))
        signal(world, True)

    def hidden(self) -> np.ndarray:
        """Which boxes have been opened, `[boxes]` float32."""
        return self.opened.copy()

    def follow(self, world: World) -> None:
        """Judge lifts; latch and release the boxes."""
        if self.ready:
            self._look(world)
        elif self.due is None:
            if "button" in world.pressed:
                self.due = self.time + self.gap
        if not self.ready and self.due is not None and self.time >= self.due:
            self._release(world)

    def _look(self, world: World) -> None:
        heights = [world.lift(name) for name in self.boxes]
        if heights[self.fact] > 0.01:
            world.show("cube", (*self.places[self.fact], 0.015))
        else:
            world.hide("cube")
        up = int(np.argmax(heights))
        if self.open is None and heights[up] >= _OPENED:
            self.open = up
            if self.opened[up]:
                self.choose(False)
            self.opened[up] = 1
            if up == self.fact:
                self.choose(True)
                self.succeeded = True
        elif self.open is not None:
            down = heights[self.open] < 0.005
            if down and self.boxes[self.open] not in world.touched:
                self.open, self.ready, self.due = None, False, None
                self.phase, self.deciding = "closed", False
                for name in self.boxes:
                    world.latch(name, True)
                signal(world, False)

    def _release(self, world: World) -> None:
        self.ready = True
        self.decide("search")
        for name in self.boxes:
            world.latch(name, False)
        signal(world, True)

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Open one box after another from right to left."""
        del fact  # nobody is told
        for name, place in zip(self.boxes, self.places, strict=True):
            yield from self.visit(world, name, place)

    def visit(self, world: World, name: str, place: np.ndarray) -> Iterator[Goal]:
        """Lift a box and let it go; then press the button and wait for the lamp."""
        yield from lift_cover(world, name, place)
        yield from press(world, "button", _BUTTON)
        yield from hold(lambda: self.ready, opening=OPEN)


def chance_without_repeats(count: int) -> float:
    """Return how often random draws with replacement meet one item before any repetition."""
    chance, distinct = 0.0, 1.0
    for drawn in range(count):
        chance += distinct / count
        distinct *= (count - 1 - drawn) / count
    return chance
