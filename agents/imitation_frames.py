"""Demonstrations, and which frames of an episode learning looks at."""

import abc
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.policies.perception import Sight


class Demonstration(NamedTuple):
    """One episode of T frames."""

    sight: Sight
    """What was seen, `[T, ...]`."""
    action: Float[Tensor, "T A"]
    """What was done."""
    cue: Float[Tensor, "T Q"]
    """What must be remembered, where the recording says so: of size 0 elsewhere."""
    shown: Float[Tensor, " T"]
    """1 while it is in view, where the recording says so; else 0."""
    decision: Float[Tensor, " T"]
    """1 where the action depends on it, where the recording says so; else 0."""
    astray: Float[Tensor, " T"]
    """1 where something else was done than the action, where the recording says so; else 0."""


class Choice(abc.ABC):
    """Which frames of an episode a window shows."""

    @abc.abstractmethod
    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return frame numbers, rising."""


def check_count(count: int) -> int:
    """Return a number of frames, if there can be so many.

    Raises:
        InvalidValueError: If not.
    """
    if count < 1:
        raise InvalidValueError("count", count, "1 or more")
    return count


class EveryFrame(Choice):
    """All of them, as acting will see them."""

    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Return 0 … T−1."""
        del generator
        return torch.arange(len(episode.action))


class RandomFrames(Choice):
    """Distinct frames drawn uniformly, in order (MemoryVLA's groups, which may miss a cue).

    Args:
        count: How many, if the episode has as many.
    """

    def __init__(self, count: int = 16):
        self.count = check_count(count)

    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw without replacement."""
        order = torch.randperm(len(episode.action), generator=generator)
        return order[: self.count].sort().values


class JitteredFrames(Choice):
    """One frame drawn from each of `count` equal parts: no gap exceeds two parts.

    Args:
        count: How many, if the episode has as many.
    """

    def __init__(self, count: int = 16):
        self.count = check_count(count)

    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw one frame per part."""
        length = len(episode.action)
        count = min(self.count, length)
        edges = torch.arange(count + 1) * length // count
        sizes = edges.diff()
        draw = torch.rand(count, generator=generator)
        return edges[:-1] + (draw * sizes).long().clamp(max=sizes - 1)


class CueFrames(Choice):
    """Jittered frames, and every frame in which the cue is in view.

    Args:
        count: Of the jittered frames.
    """

    def __init__(self, count: int = 16):
        self.jittered = JitteredFrames(count)

    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw one frame per part, and add those of the cue."""
        drawn = self.jittered.choose(episode, generator)
        return torch.cat([drawn, (episode.shown > 0).nonzero()[:, 0]]).unique()


class DecisiveFrames(Choice):
    """Every frame in which the cue is in view or on which it is acted, and some of the others.

    The others (waiting, mostly) are the larger part of an episode and teach the least. The share
    of them that is kept is drawn anew for every window, and so is each of them: waiting seems
    shorter than it is, and never twice the same. Where a recording marks no frame at all,
    every frame is kept.

    Args:
        least: Smallest share.
        most: Largest share.
    """

    def __init__(self, least: float = 0.1, most: float = 1.0):
        if not 0 <= least <= 1:
            raise InvalidValueError("least", least, "0 … 1")
        if not least <= most <= 1:
            raise InvalidValueError("most", most, f"least = {least} … 1")
        self.least, self.most = least, most

    def choose(self, episode: Demonstration, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw a share, and then the frames."""
        marked = (episode.shown > 0) | (episode.decision > 0)
        if not marked.any():
            return torch.arange(len(marked))
        share = self.least + (self.most - self.least) * torch.rand((), generator=generator)
        kept = torch.rand(len(marked), generator=generator) < share
        return (marked | kept).nonzero()[:, 0]
