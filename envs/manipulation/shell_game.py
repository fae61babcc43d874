"""A cube vanishes under one of several cups, the cups change places, and one is to be lifted."""

from collections.abc import Iterator

import numpy as np

from engram.envs.manipulation.lamp import LAMP, signal
from engram.envs.manipulation.motion import OPEN, hold, lift_cover
from engram.envs.manipulation.props import COLORS, Cover, Prop
from engram.envs.manipulation.task import Goal, Range, Task, check_between, check_least, check_range
from engram.envs.manipulation.world import World

_APART = 0.125
_LOWER = 3
_FOUND = 0.03


class ShellGame(Task):
    """Lift the cup that hides the cube.

    After MIKASA-Robo's ShellGame (Cherepanov et al., 2025, arXiv 2502.10550), with swaps. After
    `onset` steps the cube lies on the table for `cue` steps with its cup behind it; then the cup
    comes down over it. Pairs of cups change places along half circles. `gap` steps later the lamp
    turns green: from now on the cups can be touched. The first cup that is touched is the first
    choice; the right one lifted by 3 cm is success. Cups look alike, and the cube is not in the
    scene while it is covered.

    Args:
        cups: How many, 2 to 4.
        swaps: How many swaps, drawn from this range.
        pace: Steps per swap.
        cue: Steps that the cube is seen.
        patience: Steps for the decision.
        gap: Steps between the last swap and the decision, drawn from this range.
        onset: Steps before the cue, drawn from this range.
    """

    instruction = "When the lamp is green, lift the cup with the cube under it."

    def __init__(
        self,
        *,
        cups: int = 3,
        swaps: Range = (1, 3),
        pace: int = 4,
        cue: int = 5,
        patience: int = 25,
        gap: Range = (5, 15),
        onset: Range = (1, 5),
    ):
        super().__init__(gap=gap, onset=onset)
        check_between(2, 4, cups=cups)
        check_least(1, pace=pace, cue=cue, patience=patience)
        self.swaps = check_range("swaps", swaps)
        self.pace, self.cue = pace, cue
        self.facts = cups
        self.chance = 1 / cups
        shown = self.onsets[1] + cue + _LOWER + self.swaps[1] * pace
        self.limit = shown + self.gaps[1] + patience
        self.cups = self.alike = tuple(f"cup{i}" for i in range(cups))
        self.cube = Prop("cube", size=(0.017, 0.017, 0.017), rgb=COLORS["red"], solid=False)
        covers = (Cover(name, rgb=COLORS["cyan"]) for name in self.cups)
        self.props = (*covers, self.cube, LAMP)

    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw where the row of cups stands, and which change places when."""
        middle = np.array([0.33, 0.0]) + random.uniform(-1, 1, 2) * (0.025, 0.02)
        row = (np.arange(self.facts) - (self.facts - 1) / 2) * _APART
        self.places = np.stack([np.full(self.facts, middle[0]), middle[1] + row], axis=1)
        count = int(random.integers(self.swaps[0], self.swaps[1] + 1))
        self.pairs = [random.permutation(self.facts)[:2] for _ in range(count)]
        self.at = list(range(self.facts))
        """Place of each cup."""
        self.held: list[str] = []
        for name, place in zip(self.cups, self.places, strict=True):
            world.show(name, (*place, 0))
            world.harden(name, False)
        signal(world, False)

    def hidden(self) -> np.ndarray:
        """Where the cup with the cube is, from right to left: one-hot `[cups]` float32."""
        told = np.zeros(self.facts, dtype=np.float32)
        told[self.at[self.fact]] = 1
        return told

    def follow(self, world: World) -> None:
        """Uncover, cover, swap, wait; then judge touches and lifts."""
        covered = self.onset + self.cue
        swapping = covered + _LOWER
        waiting = swapping + self.pace * len(self.pairs)
        under = np.array([*self.places[self.fact], 0])
        if self.time < self.onset:
            return
        if self.time < swapping:
            self.phase = "cue"
            # The cup comes from behind and above, so that the camera sees the cube.
            left = 1.0 if self.time < covered else 1 - (self.time - covered + 1) / _LOWER
            world.move(self.cups[self.fact], under + left * np.array([-0.07, 0, 0.11]))
            if left > 0:
                world.show("cube", under + np.array([0, 0, 0.017]))
            else:
                world.hide("cube")
        elif self.time < waiting:
            self.phase = "swap"
            self._swap(world, self.time - swapping)
        elif self.time < waiting + self.gap:
            self.phase = "gap"
        if not self.deciding and self.time >= waiting + self.gap:
            self.decide()
            signal(world, True)
            for name in self.cups:
                world.harden(name, True)
        elif self.deciding:
            self._judge(world)

    def _swap(self, world: World, time: int) -> None:
        """Carry two cups along half circles round their middle."""
        which, step = divmod(time, self.pace)
        pair = self.pairs[which]
        first, second = self.places[pair]
        angle = np.pi * (step + 1) / self.pace
        middle, arm = (first + second) / 2, (first - second) / 2
        turned = np.array([-arm[1], arm[0]]) * np.sin(angle) + arm * np.cos(angle)
        movers = [self.at.index(int(place)) for place in pair]
        world.move(self.cups[movers[0]], (*(middle + turned), 0))
        world.move(self.cups[movers[1]], (*(middle - turned), 0))
        if step == self.pace - 1:
            self.at[movers[0]], self.at[movers[1]] = self.at[movers[1]], self.at[movers[0]]

    def _judge(self, world: World) -> None:
        touched = world.touched.intersection(self.cups)
        if touched:
            self.choose(touched == {self.cups[self.fact]})
        up = world.lift(self.cups[self.fact])
        if up > 0.01:
            world.show("cube", (*self.places[self.at[self.fact]], 0.017))
        else:
            world.hide("cube")
        self.succeeded = up >= _FOUND and self.cups[self.fact] in world.touched

    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Wait at home, then grasp the knob and lift."""
        yield from hold(lambda: self.deciding, opening=OPEN)
        yield from lift_cover(world, self.cups[fact], self.places[self.at[fact]])
