"""Buttons light up one after another; later they are to be pressed in the same order."""

import math
from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import hold, press
from engram.envs.manipulation.props import COLORS, RGB, Button
from engram.envs.manipulation.task import Goal, Range, Task, check_between, check_least, scatter
from engram.envs.manipulation.world import World

_NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan")
_LIT: RGB = COLORS["white"]
_FLASH = (2, 1)
"""Steps that a button is lit, and that it is dark again."""


class ButtonsInOrder(Task):
    """Press the buttons in the order in which they lit up.

    After MIKASA-Robo's tasks of sequences (Cherepanov et al., 2025, arXiv 2502.10550). Buttons of
    different colours stand at random places. After `onset` steps, `length` different ones turn
    white for 2 steps each, with a step between. `gap` steps later the lamp turns green; presses
    count from then on. The first press is the first choice. A wrong press ends the episode; the
    whole sequence is success. A press leaves no trace: the button springs back, and nothing lights
    up.

    A policy without memory does not even know how far it has come: chance is that of the first
    press alone.

    Args:
        buttons: How many, 2 to 6.
        length: How many of them light up, 1 to `buttons`.
        patience: Steps for each press.
        gap: Steps between the last light and the decision, drawn from this range.
        onset: Steps before the first light, drawn from this range.
    """

    gradual = True
    instruction = "When the lamp is green, press the buttons in the order in which they lit up."

    def __init__(
        self,
        *,
        buttons: int = 4,
        length: int = 3,
        patience: int = 12,
        gap: Range = (5, 15),
        onset: Range = (1, 5),
    ):
        super().__init__(gap=gap, onset=onset)
        check_between(2, len(_NAMES), buttons=buttons)
        check_between(1, buttons, "a whole number, at most that of the buttons", length=length)
        check_least(1, patience=patience)
        self.length = length
        self.facts = math.perm(buttons, length)
        self.chance = 1 / buttons
        self.limit = self.onsets[1] + length * sum(_FLASH) + self.gaps[1] + length * patience
        self.buttons = _NAMES[:buttons]
        self.props = (*(Button(name, rgb=COLORS[name]) for name in self.buttons), LAMP)

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the buttons are."""
        places = scatter(random, len(self.buttons))
        for name, place in zip(self.buttons, places, strict=True):
            world.show(name, (*place, 0))
        self.places = dict(zip(self.buttons, places, strict=True))
        self.sequence = order(self.fact, len(self.buttons), self.length)
        self.done = 0
        self.down: set[str] = set()
        signal(world, False)

    @property
    def hints(self) -> int:
        """As many as buttons, for each press."""
        return self.length * len(self.buttons)

    def hidden(self) -> np.ndarray:
        """Which button comes when: a one-hot `[buttons]` per press, in a row, float32."""
        told = np.zeros((self.length, len(self.buttons)), dtype=np.float32)
        told[np.arange(self.length), self.sequence] = 1
        return told.ravel()

    def follow(self, world: World) -> None:
        """Light up, wait; then judge presses."""
        time = self.time - self.onset
        lights = self.length * sum(_FLASH)
        if 0 <= time < lights:
            self.phase = "cue"
            which, step = divmod(time, sum(_FLASH))
            name = self.buttons[self.sequence[which]]
            world.color(name, _LIT if step < _FLASH[0] else COLORS[name])
        elif lights <= time < lights + self.gap:
            self.phase = "gap"
        fresh = world.pressed - self.down
        self.down = world.pressed
        if not self.deciding and time >= lights + self.gap:
            self.decide()
            signal(world, True)
        elif self.deciding and fresh:
            right = fresh == {self.buttons[self.sequence[self.done]]}
            self.choose(right)
            self.done += right
            self.failed = not right
            self.succeeded = right and self.done == self.length

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait at home, then press one after another."""
        yield from hold(lambda: self.deciding)
        for which in order(fact, len(self.buttons), self.length):
            name = self.buttons[which]
            yield from press(world, name, self.places[name])


def order(fact: int, count: int, length: int) -> list[int]:
    """Return the sequence of `length` different integers below `count` that a number stands for."""
    left, sequence = list(range(count)), []
    for _ in range(length):
        fact, which = divmod(fact, len(left))
        sequence.append(left.pop(which))
    return sequence
