"""What a manipulation task is: its props, its course, its hidden fact and who solved it."""

import abc
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from engram.envs.manipulation.props import Prop
from engram.envs.manipulation.world import World
from engram.kernels.errors import InvalidValueError, is_whole

Range = int | Sequence[int]
"""The fewest and the most of something, both included; one number means exactly so many."""


class Goal(NamedTuple):
    """Where a scripted policy wants the gripper next."""

    position: np.ndarray
    """[m]"""
    opening: float = -1.0
    """-1 (closed) to 1 (open)."""


class Task(abc.ABC):
    """One task: it decides what is where and when, and judges.

    An episode begins with `begin`; after every control step the environment calls `advance`. The
    hidden fact is an integer in `[0, facts)` that the policy has to remember. It is drawn apart
    from everything else: two episodes of one seed that differ in the fact alone differ in nothing
    else, and while `deciding` nothing that is observed depends on it.

    Args:
        gap: Steps between what is shown and the decision, drawn anew each episode.
        onset: Steps before anything is shown, one or more, drawn anew each episode.
    """

    props: tuple[Prop, ...]
    """All that can be on the table, in the order of the object observations."""
    alike: tuple[str, ...] = ()
    """Props that look the same and change places: objects list them from right to left, so that
    the row does not tell which is which."""
    instruction: str
    """The task in words; the same in every episode."""
    gradual: bool = False
    """Whether the fact comes bit by bit, and follows only from all that was shown."""
    facts: int
    """How many hidden facts there are, equally likely."""
    chance: float
    """How often a guess is right, and so the first choice of the best policy that has no memory and
    leaves itself no note in the world (a gripper opened by as much as says which, for example)."""
    limit: int
    """Steps after which an episode is cut off."""

    def __init__(self, *, gap: Range = (5, 15), onset: Range = (1, 5)):
        self.gaps = check_range("gap", gap)
        self.onsets = check_range("onset", onset, least=1)
        self.fact = 0
        self.clear()

    def clear(self) -> None:
        """Forget the episode."""
        self.time = 0
        self.phase = "wait"
        self.deciding = False
        self.succeeded = False
        self.failed = False
        self.first_choice = math.nan
        self.onset = self.gap = 0

    def begin(self, world: World, random: np.random.Generator, fact: int | None = None) -> None:
        """Start an episode in a world that has just been reset.

        Args:
            world: Where it happens.
            random: Where every draw comes from.
            fact: The hidden fact; drawn unless given.

        Raises:
            InvalidValueError: If there is no such fact.
        """
        self.clear()
        drawn = int(random.integers(self.facts))
        if fact is not None:
            check_between(0, self.facts - 1, "a whole number, or None", fact=fact)
        self.fact = drawn if fact is None else int(fact)
        self.onset = int(random.integers(self.onsets[0], self.onsets[1] + 1))
        self.gap = int(random.integers(self.gaps[0], self.gaps[1] + 1))
        self.draw(world, random)

    @abc.abstractmethod
    def draw(self, world: World, random: np.random.Generator) -> None:
        """Draw all else that differs between episodes, and lay the table."""

    def advance(self, world: World) -> None:
        """Take note of a control step: move what moves by itself, judge what was done."""
        self.time += 1
        self.follow(world)

    @abc.abstractmethod
    def follow(self, world: World) -> None:
        """What `advance` does in this task; `time` counts the steps done."""

    @abc.abstractmethod
    def script(self, world: World, fact: int) -> Iterator[Goal]:
        """Yield, step by step, where one who believes in a hidden fact wants the gripper."""

    @property
    def hints(self) -> int:
        """Numbers in `hidden()`."""
        return self.facts

    def hidden(self) -> np.ndarray:
        """The hidden fact, for policies that are told: one-hot, `[hints]` float32."""
        told = np.zeros(self.facts, dtype=np.float32)
        told[self.fact] = 1
        return told

    def decide(self, phase: str = "decide") -> None:
        """Enter the phase in which the policy needs what it remembers."""
        self.phase = phase
        self.deciding = True

    def choose(self, correct: bool) -> None:
        """Note a choice; only the first one of an episode counts."""
        if math.isnan(self.first_choice):
            self.first_choice = float(correct)


def check_range(name: str, value: Range, *, least: int = 0) -> tuple[int, int]:
    """Return the ends of a range of steps.

    Raises:
        InvalidValueError: If it is not two whole numbers, least <= low <= high.
    """
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if not (len(pair) == 2 and all(map(is_whole, pair)) and least <= pair[0] <= pair[1]):
        allowed = f"two whole numbers [low, high], {least} <= low <= high"
        raise InvalidValueError(name, value, allowed)
    return int(pair[0]), int(pair[1])


def check_least(least: int, **settings: int) -> None:
    """Check settings that must be a whole number of some size at least.

    Raises:
        InvalidValueError: If one is not.
    """
    for name, value in settings.items():
        if not is_whole(value) or value < least:
            raise InvalidValueError(name, value, f"{least} or more, a whole number")


def check_between(low: int, high: int, kind: str = "a whole number", /, **settings: int) -> None:
    """Check settings that must be a whole number from low to high, both included.

    Args:
        low: The least.
        high: The most.
        kind: What is allowed, in words.
        settings: By name.

    Raises:
        InvalidValueError: If one is not.
    """
    for name, value in settings.items():
        if not is_whole(value) or not low <= value <= high:
            raise InvalidValueError(name, value, f"{low} to {high}, {kind}")


_ROWS, _COLUMNS = np.divmod(np.arange(12), 4)
CELLS = np.stack([0.25 + 0.082 * _ROWS, -0.165 + 0.11 * _COLUMNS], axis=1)
"""Middles of the twelve fields of the table that things stand in, `[12, 2]` [m]."""
RIM = (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)
"""The fields that leave the middle of the table free."""


def scatter(
    random: np.random.Generator, count: int, cells: Sequence[int] = tuple(range(12))
) -> np.ndarray:
    """Draw `count` places in as many of the cells, `[count, 2]` [m], 5 cm apart or more."""
    chosen = CELLS[random.permutation(np.array(cells))[:count]]
    return chosen + random.uniform(-1, 1, (count, 2)) * (0.012, 0.028)
