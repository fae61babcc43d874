"""Consecutive frames for policies with state: LeRobot's own sampler shuffles single frames."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from engram.kernels.errors import DataError, InvalidValueError


class EpisodeChunkSampler:
    """A batch sampler that streams whole episodes through `lanes` rows, `length` frames at a time.

    Row b of a batch continues row b of the batch before, so the memory's state passes from one to
    the next while the gradient stays inside a chunk (truncated backpropagation through time).
    Where an episode ends, its row goes on with the next one, in the same chunk: nothing is padded
    and no frame is left out. Episodes come in a fresh random order each time all have been used.

    The stream never ends, and depends on the arguments alone: `begin` skips what an interrupted
    training saw. For `DataLoader(dataset, batch_sampler=...)` in one process; every process of a
    distributed training takes a seed of its own.

    Args:
        dataset: A LeRobotDataset; one built for some episodes streams those.
        lanes: Rows B.
        length: Frames T of a row in a batch; a batch has T·B samples, time first.
        seed: Of the order of episodes.
        begin: Batches to skip.

    Raises:
        DataError: If frames are missing inside an episode, or there are none at all.
    """

    def __init__(
        self, dataset: Any, *, lanes: int, length: int, seed: int = 0, begin: int = 0
    ) -> None:
        for name, value, least in (("lanes", lanes, 1), ("length", length, 1), ("begin", begin, 0)):
            if value < least:
                raise InvalidValueError(name, value, f"{least} or more")
        self.lanes, self.length, self.seed, self.begin = lanes, length, seed, begin
        self.episodes = _episodes(dataset)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the places in the dataset of T·B samples, again and again."""
        order = self._order()
        rows: list[list[int]] = [[] for _ in range(self.lanes)]
        batch = 0
        while True:
            for row in rows:
                while len(row) < self.length:
                    row.extend(next(order))
            if batch >= self.begin:
                yield [row[t] for t in range(self.length) for row in rows]
            for row in rows:
                del row[: self.length]
            batch += 1

    def _order(self) -> Iterator[range]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for index in torch.randperm(len(self.episodes), generator=generator).tolist():
                yield self.episodes[index]


def chunk_starts(batch: dict[str, Any], lanes: int) -> Bool[Tensor, "T B"]:
    """Say which samples of a batch are the first of their episode.

    Call it before LeRobot's preprocessor, which drops `frame_index`.
    """
    return (batch["frame_index"] == 0).unflatten(0, (-1, lanes))


def _episodes(dataset: Any) -> list[range]:
    """Where in the dataset each episode lies, by the frames themselves.

    The dataset's metadata count frames of episodes that were not loaded too.
    """
    # Columns as they are stored: reading samples would decode every image.
    columns = dataset.hf_dataset.with_format("numpy")
    episode, frame = (
        torch.as_tensor(columns[name][:].copy()).flatten()
        for name in ("episode_index", "frame_index")
    )
    if not len(episode):
        raise DataError("the dataset has no frames")
    bounds = [0, *(1 + episode.diff().nonzero().flatten()).tolist(), len(episode)]
    found = [range(first, end) for first, end in pairwise(bounds)]
    for places in found:
        _check_whole(int(episode[places.start]), frame[places.start : places.stop])
    return found


def _check_whole(episode: int, frame: Int[Tensor, " n"]) -> None:
    wrong = (frame != torch.arange(len(frame))).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        raise DataError(f"episode {episode}: frame {at} is number {int(frame[at])}; allowed: {at}")
