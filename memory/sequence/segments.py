"""Where segments begin and end: drawn lengths, and the plan that reads a chunk in few rounds."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SCOPE = -0x61C8864680B583EA
"""Step from a scope's seed to the next one's; even, so that an odd seed never becomes 0."""
SEGMENT = 0x632BE59BD9B4E019
"""Step from a segment's draw to the next one's."""


class Lengths(NamedTuple):
    """The law that segment lengths are drawn from: ⌊segment·(1 − j + 2 j u)⌋, u in [0, 1).

    u is a hash of seed and segment number, in integers throughout: every device draws the same.
    """

    segment: int
    """Length without a draw."""
    jitter: float
    """Largest relative change j, below 1."""

    @property
    def shortest(self) -> int:
        """Lower bound of every length."""
        return max(1, self._low() >> 24)

    @property
    def longest(self) -> int:
        """Upper bound of every length."""
        return max(self.segment, (self._low() + (self._spread() << 4) - 1) >> 24)

    def draw(self, seed: Int[Tensor, "*n"], number: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Length of segment `number` (from 0) of a scope; a seed of 0 draws nothing."""
        share = mix(mix(seed) + SEGMENT * (number + 1)) & 0xFFFFFF  # 24 bits
        drawn = (self._low() + (self._spread() * share >> 20)) >> 24
        return torch.where(seed == 0, self.segment, drawn.clamp(min=1))

    def _low(self) -> int:
        return round(self.segment * (1 - self.jitter) * 2**24)

    def _spread(self) -> int:
        return round(self.segment * 2 * self.jitter * 2**20)


def next_seed(seed: Int[Tensor, "*n"], scopes: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Seed of the scope that many scopes later; 0, no seed, stays 0."""
    return torch.where(seed == 0, 0, seed + SCOPE * scopes)


def mix(value: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Scramble int64 integers; overflow wraps on every device (after Vigna's splitmix64)."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


class Round(NamedTuple):
    """What is read at once: one piece of one segment in each of the plan's first n rows."""

    rows: int
    """n, at least 1."""
    width: int
    """Length of the longest piece; 0 where summaries are encoded and nothing is read."""
    finished: int
    """Of the rows without a further round, the first so many are the last of an environment."""
    left: int
    """Rows of the next round: those that completed a segment whose summary is needed."""


class Plan(NamedTuple):
    """How a chunk is read: scopes are independent, so each is a row, and rounds run over rows.

    The rows that take part in a round come first in it, in every round: taking them is a slice.
    """

    env: Int[Tensor, " n"]
    """Environment of each row."""
    segment: Int[Tensor, " n"]
    """Segments completed before the row's first input."""
    place: Int[Tensor, " n"]
    """Inputs of the running segment before the row's first input."""
    length: Int[Tensor, "n R"]
    """Inputs in the piece of each row and round."""
    seed: Int[Tensor, " n"]
    """Seed of each row's scope."""
    input: Int[Tensor, " P"]
    """Which input, t·B + b, lies at each place (round, row, offset); T·B where none does."""
    ended: Int[Tensor, " e"]
    """Environments whose last row is in this plan, in the order in which they finish."""
    rounds: list[Round]
    slots: tuple[int, int]
    """Largest number of completed segments and of raw inputs in a state that is carried on."""


def plan_rounds(
    start: Bool[Tensor, "T B"],
    place: Int[Tensor, " B"],
    segment: Int[Tensor, " B"],
    seed: Int[Tensor, " B"],
    lengths: Lengths,
) -> list[Plan]:
    """Cut every environment at its starts and at the ends of its segments.

    Rows that go on from a past and rows that have none are planned apart: the latter then never
    carry empty slots through attention.

    Args:
        start: Scope beginnings.
        place: Inputs of the running segment before the chunk.
        segment: Segments completed before it.
        seed: Seed of the running scope.
        lengths: The law of segment lengths.
    """
    steps = len(start)
    begins = start.clone()
    begins[0] = True
    env, first = begins.t().nonzero(as_tuple=True)  # [n], environment-major
    last = torch.cat([env[1:], env.new_full((1,), -1)]) != env
    end = torch.where(last, steps, first.roll(-1))
    scopes = start.cumsum(0)[first, env]
    carried = scopes == 0
    segment, place = (torch.where(carried, part[env], 0) for part in (segment, place))
    seed = next_seed(seed[env], scopes)
    # A row's first segment takes one step or more, every further one the shortest length or more.
    most = 2 + (int((end - first).max()) - 1) // lengths.shortest
    numbers = segment[:, None] + torch.arange(most, device=env.device)
    drawn = lengths.draw(seed[:, None].expand_as(numbers), numbers)
    # A state that is seeded within a segment may be past its new end: then the next step ends it.
    drawn[:, 0] = (drawn[:, 0] - place).clamp(min=1)
    bound = first[:, None] + drawn.cumsum(1)
    # A summary at the very end of a scope is needed only if the scope may go on.
    complete = bound < (end + last)[:, None]
    upto = torch.minimum(bound, end[:, None])
    begin = torch.cat([first[:, None], upto[:, :-1]], dim=1)
    pieces = 1 + complete.sum(1)
    rows = _Rows(env, segment, place, upto - begin, seed, begin, pieces, last)
    old = segment + place > 0
    chosen = [group for group in (old.nonzero()[:, 0], (~old).nonzero()[:, 0]) if len(group)]
    return [_plan(_Rows._make(part[group] for part in rows), start.shape) for group in chosen]


class _Rows(NamedTuple):
    """Rows that are planned together."""

    env: Tensor  # [n]
    segment: Tensor  # [n]
    place: Tensor  # [n]
    length: Tensor  # [n, R]
    seed: Tensor  # [n]
    begin: Tensor  # [n, R], first step of each piece
    pieces: Tensor  # [n], rounds that the row takes part in
    last: Tensor  # [n], whether it is the last of its environment


def _plan(rows: _Rows, shape: torch.Size) -> Plan:
    """Sort the rows by their number of rounds and say where every input goes."""
    steps, batch = shape
    order = (2 * rows.pieces + rows.last).argsort(descending=True, stable=True)
    rows = _Rows._make(part[order] for part in rows)
    rounds, slots = _counts(rows)
    inputs = []
    for number, (n, width, *_) in enumerate(rounds):
        offset = torch.arange(width, device=order.device)
        present = (rows.begin[:n, number, None] + offset) * batch + rows.env[:n, None]
        exists = offset < rows.length[:n, number, None]
        inputs.append(torch.where(exists, present, steps * batch).flatten())
    ended = torch.cat([rows.env[part.left : part.left + part.finished] for part in rounds])
    return Plan(*rows[:5], torch.cat(inputs), ended, rounds, slots)


def _counts(rows: _Rows) -> tuple[list[Round], tuple[int, int]]:
    """Fetch all sizes in one transfer: on a GPU each one would wait for the device."""
    most = rows.length.shape[1]
    number = torch.arange(most, device=rows.length.device)
    pieces = rows.pieces[:, None]
    table = [
        (pieces > number).sum(0),
        rows.length.amax(0),
        ((pieces == number + 1) & rows.last[:, None]).sum(0),
        torch.stack([rows.segment.max(), rows.place.max()]),
    ]
    counts = torch.cat(table).tolist()
    taking, width, finished = counts[:most], counts[most : 2 * most], counts[2 * most : 3 * most]
    columns = zip(taking, width, finished, [*taking[1:], 0], strict=True)
    return [Round(*column) for column in columns if column[0]], (counts[-2], counts[-1])
