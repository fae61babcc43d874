"""Windows of demonstrations: rows of a batch that each show another episode."""

import torch

from engram.agents.imitation_batches import Batch, Batches
from engram.agents.imitation_frames import Choice, Demonstration
from engram.memory import state as states


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
