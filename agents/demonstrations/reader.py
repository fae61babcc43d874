"""Reading demonstrations: any LeRobot data set of version 3.0 on a local disk."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from engram.agents.demonstrations import layout, video
from engram.agents.demonstrations.columns import from_arrow
from engram.agents.demonstrations.episodes import EpisodeTable
from engram.agents.demonstrations.feature import (
    INDEX,
    Feature,
    beyond,
    from_json,
    image_size,
    not_finite,
)
from engram.agents.demonstrations.frames import FrameFile, OpenFiles
from engram.kernels.errors import DataError, InvalidValueError


class Demonstrations:
    """The episodes of a data set, numbered from 0.

    Files are opened when they are first needed and stay open. An instance may be sent to another
    process or be forked: each process opens its own.

    Args:
        folder: The data set, with `meta/info.json` in it.
        skip_damaged: Read everything once and leave out the episodes that are damaged; `damage`
            says which. Without it, reading a damaged episode raises.
        limits: The smallest and the largest number that columns of numbers may hold, by their
            names; an episode that exceeds them is damaged.

    Raises:
        DataError: If the folder holds no data set of version 3.0, or its index is damaged.
        MissingPackageError: If `pyarrow` or `av` is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        skip_damaged: bool = False,
        limits: Mapping[str, tuple[float, float]] | None = None,
    ):
        self.folder = Path(folder)
        self.limits = dict(limits or {})
        self.info: dict[str, Any] = layout.read_info(self.folder)
        """`meta/info.json`."""
        self.fps: float = self.info["fps"]
        """Frames per second."""
        declared = from_json(self.info.get("features"), self.folder / layout.INFO)
        self.features: dict[str, Feature] = {
            key: feature for key, feature in declared.items() if key not in INDEX
        }
        """The user's columns; `read` knows LeRobot's own too."""
        self._all = {**declared, **INDEX}
        self._table = EpisodeTable(self.folder, self.info)
        self._files = OpenFiles()
        self.damage: dict[int, str] = self._find_damage() if skip_damaged else {}
        """What is wrong with the episodes left out, by their number in the data set."""
        if not skip_damaged:
            self._table.raise_damage()
        kept = [number for number in range(self._table.count) if number not in self.damage]
        self.numbers: Int[np.ndarray, " E"] = np.array(kept, dtype=np.int64)
        """The number of each episode in the data set: 0, 1, 2, … unless some are left out."""

    @property
    def count(self) -> int:
        """Number of episodes."""
        return len(self.numbers)

    @property
    def lengths(self) -> Int[np.ndarray, " E"]:
        """Frames of each episode."""
        lengths = [self._table.get(int(number), "length") for number in self.numbers]
        return np.array(lengths, dtype=np.int64)

    def task(self, episode: int) -> str:
        """Return the instruction of an episode.

        Raises:
            DataError: If it has several: of which frames each is, is not read.
        """
        number = self._number(episode)
        said = [str(text) for text in self._table.get(number, "tasks")]
        if len(said) > 1:
            raise DataError(
                f"episode {number}: {self.folder} gives it the instructions {said}; allowed: one"
            )
        return said[0]

    def read(
        self, episode: int, keys: Iterable[str] | None = None, frames: Any = None
    ) -> dict[str, np.ndarray]:
        """Return columns of an episode, each [T, *shape]; images are uint8 [T, H, W, 3].

        Args:
            episode: Which, from 0 to `count` − 1.
            keys: Names of columns; None reads all of `features`.
            frames: Which frames, in any order, as integers from 0 to its length − 1; None reads
                the whole episode. Others raise: they never reach into another episode.

        Raises:
            InvalidValueError: If there is no such episode, column or frame.
            DataError: If a file is missing or damaged, or holds NaN or infinity; the message names
                file and episode.
        """
        number = self._number(episode)
        names = list(self.features) if keys is None else list(keys)
        for key in names:
            if key not in self._all:
                raise InvalidValueError("key", key, sorted(self._all))
        length = self._table.get(number, "length")
        wanted = np.arange(length) if frames is None else _frames(frames, length)
        return self._read(number, names, wanted)

    def _read(
        self, number: int, names: list[str], wanted: Int[np.ndarray, " T"]
    ) -> dict[str, np.ndarray]:
        """Read frames of an episode by its number in the data set."""
        try:
            chunk, place = self._table.file(number, "data")
            path = layout.place(self.folder, self.info.get("data_path"), chunk, place)
            file = self._files.get(path, FrameFile)
            first, times = file.locate(number, self._table.get(number, "length"))
            stored = [key for key in names if self._all[key].dtype != "video"]
            table = file.read(first, wanted, stored)
            columns = {}
            for key in names:
                feature = self._all[key]
                if feature.dtype == "video":
                    columns[key] = self._video(number, key, times[wanted])
                else:
                    limits = self.limits.get(key)
                    columns[key] = _checked(table, key, feature, wanted, path, limits)
            return columns
        except DataError as error:
            raise DataError(f"episode {number}: {error}") from error

    def _video(self, number: int, key: str, times: Float[np.ndarray, " T"]) -> np.ndarray:
        chunk, file = self._table.file(number, f"videos/{key}")
        path = layout.place(self.folder, self.info.get("video_path"), chunk, file, key)
        began = self._table.get(number, f"videos/{key}/from_timestamp")
        opened = self._files.get(path, video.Video)
        return opened.read(began + times, image_size(self.features[key]))

    def _number(self, episode: int) -> int:
        if not 0 <= episode < self.count:
            raise InvalidValueError("episode", episode, f"0 to {self.count - 1}")
        return int(self.numbers[episode])

    def quantiles(
        self, key: str, low: float = 0.01, high: float = 0.99
    ) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
        """Return two quantiles of each entry of a column over all frames, as normalisation needs.

        They are computed from the frames: the quantiles in `meta/stats.json` are means of those of
        the episodes, which are others.

        Raises:
            InvalidValueError: If it is no column of numbers, or not 0 ≤ low < high ≤ 1.
            DataError: If there is no episode, or one is damaged.
        """
        numeric = [
            k for k, f in self.features.items() if f.dtype not in ("video", "image", "string")
        ]
        if key not in numeric:
            raise InvalidValueError("key", key, numeric)
        if not 0 <= low < high <= 1:
            raise InvalidValueError("quantiles", (low, high), "0 <= low < high <= 1")
        if not self.count:
            raise DataError(f"{self.folder} holds no episode")
        column = np.concatenate([self.read(e, [key])[key] for e in range(self.count)])
        rows = column.reshape(len(column), -1).astype(np.float64)
        below, above = np.quantile(rows, [low, high], axis=0)
        return below, above

    def _find_damage(self) -> dict[int, str]:
        """Read every episode whole."""
        found = dict(self._table.damage)
        for number in range(self._table.count):
            if number not in found:
                try:
                    length = self._table.get(number, "length")
                    self._read(number, list(self.features), np.arange(length))
                except DataError as error:
                    found[number] = str(error)
        return dict(sorted(found.items()))

    def close(self) -> None:
        """Close the files; the next `read` opens them again."""
        self._files.close()


def check(folder: str | Path) -> dict[int, str]:
    """Read a whole data set; return what is wrong with its damaged episodes, by number.

    The others can be used with `Demonstrations(folder, skip_damaged=True)`.

    Raises:
        DataError: If `meta/info.json` cannot be read: then nothing can.
    """
    demonstrations = Demonstrations(folder, skip_damaged=True)
    demonstrations.close()
    return demonstrations.damage


def _frames(frames: Any, length: int) -> Int[np.ndarray, " T"]:
    wanted = np.asarray(frames)
    if wanted.size == 0:
        wanted = wanted.astype(np.int64).reshape(0)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise InvalidValueError("frames", frames, "integers in one dimension")
    outside = wanted[(wanted < 0) | (wanted >= length)]
    if len(outside):
        raise InvalidValueError("frame", int(outside[0]), f"0 to {length - 1}")
    return wanted.astype(np.int64)


def _checked(
    table: Any,
    key: str,
    feature: Feature,
    wanted: np.ndarray,
    path: Path,
    limits: tuple[float, float] | None,
) -> np.ndarray:
    if key not in table.column_names:
        raise DataError(f"{path} lacks the column {key}")
    try:
        column = from_arrow(table[key], feature, len(wanted))
    except DataError as error:
        raise DataError(f"{path}: {key}: {error}") from error
    bad, allowed = not_finite(column), "finite numbers"
    if bad is None and limits is not None:
        bad, allowed = beyond(column, *limits), f"{limits[0]:g} to {limits[1]:g}"
    if bad is not None:
        seen = f"{key} at frame {wanted[bad]} is {column[bad].tolist()}"
        raise DataError(f"{path}: {seen}; allowed: {allowed}")
    return column
