"""Windows of demonstrations: which frames of an episode learning looks at."""

import abc

import torch
from jaxtyping import Int
from torch import Tensor

from engram.agents.imitation_batches import Batch, Batches, Demonstration
from engram.kernels.errors import InvalidValueError
from engram.memory import state as states


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


class Windows(Batches):
    """Every row is a window of another episode, seen from an empty memory on.

    Rows shorter than the longest are padded with their last frame; none of the actions there
    is real.

    Args:
        episodes: Demonstrations.
        rows: B.
        frames: Which frames of an episode a window shows.
        chunk: C.
        seed: Of the order, and of what `frames` draws.
    """

    def __init__(
        self,
        episodes: list[Demonstration],
        *,
        rows: int,
        frames: Choice,
        chunk: int,
        seed: int,
    ):
        super().__init__(episodes, rows=rows, chunk=chunk, seed=seed)
        self.frames = frames

    def next(self) -> Batch:
        """Return windows of the next episodes."""
        drawn = [self._draw() for _ in range(self.rows)]
        chosen = [self.frames.choose(self.episodes[i], self.generator) for i in drawn]
        longest = max(len(frames) for frames in chosen)
        rows = []
        for index, frames in zip(drawn, chosen, strict=True):
            padded = torch.cat([frames, frames[-1:].expand(longest - len(frames))])
            row = self._take(index, padded)
            exists = torch.arange(longest) < len(frames)
            rows.append(row._replace(real=row.real & exists[:, None]))
        return Batch(states.tree_map(lambda *each: torch.stack(each, 1), *rows), carried=False)
