"""Batches of demonstrations for cloning with memory, and the source that streams episodes."""

import abc
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engram.agents import checkpoint
from engram.agents.imitation_frames import Choice, Demonstration, EveryFrame
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory import state as states
from engram.policies.perception import Sight


class Frames(NamedTuple):
    """Frames of demonstrations, with any number of axes before those named here."""

    sight: Sight
    action: Float[Tensor, "*n C A"]
    """What was done at a frame and the C − 1 after it."""
    real: Bool[Tensor, "*n C"]
    """Which of these are to be learnt: within the episode, and before the robot was led astray, as
    an answer to what has not happened is no plan; padding is never real."""
    cue: Float[Tensor, "*n Q"]
    shown: Float[Tensor, "*n"]
    decision: Float[Tensor, "*n"]
    start: Bool[Tensor, "*n"]
    """Where the memory begins."""
    end: Float[Tensor, "*n P"]
    """Proprioception in the last frame of the episode."""


class Batch(NamedTuple):
    """T frames of B rows; padding, where there is any, comes last."""

    frames: Frames
    """`[T, B, ...]`."""
    carried: bool
    """Whether row b goes on where row b of the batch before ended."""


class Batches(abc.ABC):
    """An endless source of batches.

    Args:
        episodes: Demonstrations, all of one layout.
        rows: B.
        chunk: C.
        seed: Of the order.

    Raises:
        DataError: If a demonstration has no frames, or another layout than the first, or holds a
            number that is not finite.
    """

    def __init__(self, episodes: list[Demonstration], *, rows: int, chunk: int, seed: int):
        if not episodes:
            raise InvalidValueError("episodes", 0, "one or more demonstrations")
        check_layout(episodes)
        for name, value in (("rows", rows), ("chunk", chunk)):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        self.episodes, self.rows, self.chunk = episodes, rows, chunk
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = []
        self.digest = _digest(episodes)

    @abc.abstractmethod
    def next(self) -> Batch:
        """Return the next batch."""

    def tensors(self) -> dict[str, Tensor]:
        """Name what decides which batches come next."""
        order = torch.tensor(self.order, dtype=torch.int64)
        lengths = torch.tensor([len(episode.action) for episode in self.episodes])
        return {
            "random": self.generator.get_state(),
            "order": order,
            "lengths": lengths,
            "digest": self.digest,
        }

    def check(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Check that `load` can go on from tensors of a checkpoint.

        Raises:
            DataError: If they are of other demonstrations or of another kind of batches.
        """
        wanted = self.tensors()
        wanted["order"] = tensors.get("order", wanted["order"])  # shrinks as it is played
        seen, here = tensors.get("lengths"), wanted["lengths"]
        if seen is not None and not torch.equal(seen.cpu(), here):
            raise DataError(
                f"checkpoint {source}: demonstrations are {len(seen)} of {int(seen.sum())} frames; "
                f"allowed: those that the run began with, not {len(here)} of {int(here.sum())}"
            )
        digest = tensors.get("digest")
        if digest is not None and not torch.equal(digest.cpu(), self.digest):
            raise DataError(
                f"checkpoint {source}: demonstrations have the digest {digest.tolist()}; "
                f"allowed: those that the run began with, not {self.digest.tolist()}"
            )
        checkpoint.check(tensors, wanted, source)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on where `tensors` were taken."""
        self.generator.set_state(tensors["random"].cpu())
        self.order = tensors["order"].tolist()

    def _draw(self) -> int:
        """Return an episode; all come once before any comes again."""
        if not self.order:
            self.order = torch.randperm(len(self.episodes), generator=self.generator).tolist()
        return self.order.pop()

    def _take(self, index: int, frames: Int[Tensor, " T"]) -> Frames:
        """Return frames of an episode; the memory begins with the first of them.

        Actions past the end repeat the last one and are not real, nor are those after a frame at
        which the robot was led astray; none is of another place.
        """
        episode = self.episodes[index]
        ahead = frames[:, None] + torch.arange(self.chunk)
        length = len(episode.action)
        if int(frames.min()) < 0 or int(frames.max()) >= length:
            raise InvalidValueError("frames of an episode", frames.tolist(), f"0 to {length - 1}")
        within = ahead.clamp(max=length - 1)
        real = ahead < length
        real[:, 1:] &= episode.astray[within].cumsum(-1)[:, :-1] == 0
        return Frames(
            states.tree_map(lambda part: part[frames], episode.sight),
            episode.action[within],
            real,
            episode.cue[frames],
            episode.shown[frames],
            episode.decision[frames],
            torch.arange(len(frames)) == 0,
            episode.sight.proprioception[-1:].expand(len(frames), -1),
        )


def check_layout(episodes: list[Demonstration]) -> None:
    """Check that demonstrations can be learnt from together.

    Raises:
        DataError: If one has no frames, or columns of several lengths, or another layout than the
            first, or actions or senses that are not finite.
    """
    layout: dict[str, tuple[int, ...]] = {}
    for number, episode in enumerate(episodes):
        columns = dict(states.leaves(episode))
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1 or not min(lengths):
            raise DataError(
                f"demonstration {number} has columns of {sorted(lengths)} frames; "
                "allowed: one length of 1 or more"
            )
        shapes = {name: tuple(column.shape[1:]) for name, column in columns.items()}
        layout = layout or shapes
        if shapes != layout:
            raise DataError(
                f"demonstration {number} has columns {shapes}; allowed, as the first: {layout}"
            )
        for name, column in columns.items():
            # What is not known yet is NaN in the cue.
            if name == "cue" or not column.is_floating_point():
                continue
            if not (finite := column.isfinite().reshape(len(column), -1).all(1)).all():
                frame = int(finite.int().argmin())
                raise DataError(
                    f"demonstration {number}: {name} at frame {frame} is "
                    f"{column[frame].tolist()}; allowed: finite numbers"
                )


class Streaming(Batches):
    """Rows play episodes from their first frame to their last, one after another, in T frames.

    Nothing is padded. The memory of a row is carried, detached, from batch to batch: gradients
    are cut after T frames, memory is not.

    Args:
        episodes: Demonstrations.
        rows: B.
        steps: T.
        frames: Which frames of an episode are played; all unless given.
        chunk: C.
        seed: Of the order, and of what `frames` draws.
    """

    def __init__(
        self,
        episodes: list[Demonstration],
        *,
        rows: int,
        steps: int,
        frames: Choice | None = None,
        chunk: int,
        seed: int,
    ):
        super().__init__(episodes, rows=rows, chunk=chunk, seed=seed)
        if steps < 1:
            raise InvalidValueError("steps", steps, "1 or more")
        self.steps = steps
        self.frames = frames or EveryFrame()
        self.playing = [-1] * rows  # no episode yet
        self.ahead = [torch.arange(0)] * rows  # frames of it that are still to be played
        self.longest = max(len(episode.action) for episode in episodes)
        self.first = True

    def next(self) -> Batch:
        """Return the next T frames of every row."""
        rows = [self._row(row) for row in range(self.rows)]
        carried, self.first = not self.first, False
        return Batch(states.tree_map(lambda *each: torch.stack(each, 1), *rows), carried)

    def tensors(self) -> dict[str, Tensor]:
        """Name what decides which batches come next."""
        ahead = torch.full((self.rows, self.longest), -1)
        for row, frames in zip(ahead, self.ahead, strict=True):
            row[: len(frames)] = frames
        return super().tensors() | {
            "playing": torch.tensor(self.playing, dtype=torch.int64),
            "ahead": ahead,
            "first": torch.tensor(self.first),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on where `tensors` were taken."""
        super().load(tensors)
        self.playing = tensors["playing"].tolist()
        self.ahead = [row[row >= 0] for row in tensors["ahead"].cpu()]
        self.first = bool(tensors["first"])

    def _row(self, row: int) -> Frames:
        pieces = []
        missing = self.steps
        while missing:
            begins = not len(self.ahead[row])
            if begins:
                self.playing[row] = self._draw()
                episode = self.episodes[self.playing[row]]
                self.ahead[row] = self.frames.choose(episode, self.generator)
            frames, self.ahead[row] = self.ahead[row][:missing], self.ahead[row][missing:]
            piece = self._take(self.playing[row], frames)
            pieces.append(piece._replace(start=piece.start & begins))
            missing -= len(frames)
        return states.tree_map(lambda *each: torch.cat(each), *pieces)


def _digest(episodes: list[Demonstration]) -> Tensor:
    """Return a checksum of all that episodes hold, but of their images that of the first ones."""
    crc = 0
    for episode in episodes:
        images = {name: image[:1] for name, image in episode.sight.images.items()}
        episode = episode._replace(sight=episode.sight._replace(images=images))
        for _, part in states.leaves(episode):
            crc = zlib.crc32(part.contiguous().numpy().data, crc)
    return torch.tensor([crc])
