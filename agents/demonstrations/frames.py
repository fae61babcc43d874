"""Files of a data set while they are open."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from engram.agents.demonstrations.columns import arrow
from engram.kernels.errors import DataError, one_line

FILES_OPEN = 32


F = TypeVar("F")


class OpenFiles:
    """Keeps the files that were used last open, for one process."""

    def __init__(self):
        self._process = os.getpid()
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._inherited: list[OrderedDict[Path, Any]] = []

    def get(self, path: Path, opening: Callable[[Path], F]) -> F:
        """Return the open file, opening it where it is not."""
        if self._process != os.getpid():
            # A forked process shares the position in its parent's files, and not the threads that
            # closing them would wait for: they are kept, and used no more.
            self._inherited.append(self._files)
            self._process, self._files = os.getpid(), OrderedDict()
        if path not in self._files:
            self._files[path] = opening(path)
        self._files.move_to_end(path)
        if len(self._files) > FILES_OPEN:
            self._files.popitem(last=False)[1].close()
        return self._files[path]

    def close(self) -> None:
        """Close all."""
        while self._files:
            self._files.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_process": 0, "_files": OrderedDict(), "_inherited": []}


class FrameFile:
    """An open Parquet file of frames.

    Args:
        path: Where it is.

    Raises:
        DataError: If it is missing, damaged, or no file of frames.
    """

    def __init__(self, path: Path):
        self.path = path
        pa = arrow()
        self._broken = (pa.ArrowException, OSError)
        try:
            self._file = pa.parquet.ParquetFile(path)
            index = self._file.read(["episode_index", "frame_index", "timestamp"])
            groups = self._file.metadata
        except FileNotFoundError:
            raise DataError(f"{path} does not exist") from None
        except self._broken as error:
            raise DataError(f"{path} is damaged: {one_line(error)}") from error
        if index.num_columns < 3:
            raise DataError(f"{path} is damaged: its columns are {self._file.schema_arrow.names}")
        self._episode = self._numbers(index, "episode_index", "iu")
        self._frame = self._numbers(index, "frame_index", "iu")
        self._time = self._numbers(index, "timestamp", "iuf")
        sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
        self._ends = np.cumsum(sizes)
        first = np.flatnonzero(np.diff(self._episode, prepend=self._episode[:1] - 1))
        self._first = dict(zip(self._episode[first].tolist(), first.tolist(), strict=True))

    def _numbers(self, table: Any, key: str, kinds: str) -> np.ndarray:
        """Return a column of the index, of one of NumPy's kinds."""
        column = table[key].to_numpy()
        if column.dtype.kind not in kinds:  # whole numbers of which some are missing are floats
            seen = f"{table.schema.field(key).type}, {table[key].null_count} entries missing"
            allowed = "numbers" if "f" in kinds else "whole numbers"
            raise DataError(f"{self.path} is damaged: {key} is {seen}; allowed: {allowed}")
        return column

    def locate(self, episode: int, length: int) -> tuple[int, Float[np.ndarray, " T"]]:
        """Return the first row of an episode and the time [s] of each of its frames.

        Raises:
            DataError: If the file does not hold exactly its frames, in order.
        """
        first = self._first.get(episode)
        if first is None:
            raise DataError(f"{self.path} holds none of its {length} frames")
        rows = slice(first, first + length)
        held = int((self._episode == episode).sum())
        if held != length or not np.array_equal(self._frame[rows], np.arange(length)):
            seen = f"{held} frames" if held != length else "frames out of order"
            raise DataError(f"{self.path} holds {seen}; allowed: frames 0 to {length - 1}")
        return first, self._time[rows].astype(np.float64)

    def read(self, first: int, wanted: Int[np.ndarray, " T"], keys: list[str]) -> Any:
        """Return columns of frames of the episode that begins at row `first`, as an Arrow table.

        Raises:
            DataError: If the file is damaged.
        """
        rows = first + wanted
        span = [rows.min(), rows.max()] if len(rows) else [first, first]
        low, high = np.searchsorted(self._ends, span, side="right")
        begins = int(self._ends[low - 1]) if low else 0
        try:
            table = self._file.read_row_groups(list(range(low, high + 1)), columns=keys)
            return table.take(rows - begins)
        except self._broken as error:
            raise DataError(f"{self.path} is damaged: {one_line(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
