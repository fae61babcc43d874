"""The index of a data set: which frames of which files each episode has."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from engram.agents.demonstrations import layout
from engram.agents.demonstrations.columns import arrow
from engram.agents.demonstrations.statistics import Statistics
from engram.kernels.errors import DataError, is_whole

PLACES = ("/chunk_index", "/file_index", "/from_timestamp")
"""What the names of the columns end with that say where an episode is."""


class EpisodeTable:
    """The rows of `meta/episodes`, one per episode; rows of no complete episode are left out.

    Damage is collected, not raised: the other episodes can still be used.

    Args:
        folder: The data set.
        info: Its `meta/info.json`.
    """

    def __init__(self, folder: Path, info: dict[str, Any]):
        self.folder, self.count = folder, info["total_episodes"]
        self._frames: int = info["total_frames"]
        self.damage: dict[int, str] = {}
        """What is wrong, by episode."""
        self._chunks_size = info["chunks_size"]
        self._rows: dict[int, tuple[dict[str, list[Any]], int]] = {}
        self._tables: list[Any] = []
        broken = []
        for path in sorted((folder / "meta/episodes").glob("*/*.parquet")) if self.count else ():
            try:
                self._include(path)
            except DataError as error:
                broken.append(str(error))
        for episode in range(self.count):
            if episode not in self._rows and episode not in self.damage:
                why = broken[0] if broken else f"{folder / 'meta/episodes'} does not list it"
                self.damage[episode] = f"episode {episode}: {why}"

    def _include(self, path: Path) -> None:
        table = layout.read_table(path)
        needed = {"episode_index", "tasks", "length", "data/chunk_index", "data/file_index"}
        if lacking := sorted(needed - set(table.column_names)):
            raise DataError(f"{path} is damaged: it lacks {', '.join(lacking)}")
        plain = [name for name in table.column_names if not name.startswith("stats/")]
        places = {name for name in plain if name.endswith(PLACES[:2])}
        kinds = {name.rpartition("/")[0] for name in places}
        needed = {f"{kind}/{number}" for kind in kinds for number in ("chunk_index", "file_index")}
        if lacking := sorted(needed - places):
            raise DataError(f"{path} is damaged: it lacks {', '.join(lacking)}")
        columns = table.select(plain).to_pydict()
        judged = sorted(n for n in plain if n in ("length", "tasks") or n.endswith(PLACES))
        for row, episode in enumerate(columns["episode_index"]):
            if not is_whole(episode):
                raise DataError(f"{path} is damaged: its episode_index is {episode!r} in row {row}")
            if episode in self._rows:
                raise DataError(f"{path} is damaged: it lists episode {episode} again")
            if episode < self.count:
                self._rows[episode] = (columns, row)
                for name in judged:
                    if why := _wrong(name, columns[name][row], self._frames):
                        self.damage[episode] = f"episode {episode}: {path} is damaged: {why}"
        inside = _below(table, self.count)
        if len(inside):
            self._tables.append(inside)

    def get(self, episode: int, name: str) -> Any:
        """Return what the index says of an episode.

        Raises:
            DataError: If it says nothing.
        """
        if episode in self.damage:
            raise DataError(self.damage[episode])
        columns, row = self._rows[episode]
        if name not in columns or columns[name][row] is None:
            raise DataError(f"episode {episode}: {self.folder / 'meta/episodes'} lacks {name}")
        return columns[name][row]

    def file(self, episode: int, kind: str) -> tuple[int, int]:
        """Return (chunk, number) of the file of an episode; `kind` as "data" or "videos/<key>"."""
        return self.get(episode, f"{kind}/chunk_index"), self.get(episode, f"{kind}/file_index")

    @property
    def next_file(self) -> int:
        """The first number that no file of the data set has, chunks counted through."""
        numbers = [-1]
        for columns, row in self._rows.values():
            for name in columns:
                if name.endswith("/chunk_index"):
                    kind = name.removesuffix("/chunk_index")
                    chunk, number = columns[name][row], columns[f"{kind}/file_index"][row]
                    numbers.append(chunk * self._chunks_size + number)
        return max(numbers) + 1

    def statistics(self) -> list[dict[str, Statistics]]:
        """Return the statistics of every column of every episode, as far as they are stored."""
        found = []
        for table in self._tables:
            names = [name for name in table.column_names if name.startswith("stats/")]
            for row in table.select(names).to_pylist():
                episode: dict[str, Statistics] = {}
                for name, value in row.items():
                    _, key, statistic = name.split("/")
                    episode.setdefault(key, {})[statistic] = np.array(value)
                found.append(episode)
        return found

    def raise_damage(self) -> None:
        """Raise the first damage.

        Raises:
            DataError: If there is any.
        """
        for message in self.damage.values():
            raise DataError(message)

    @staticmethod
    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        """Write a file of the index."""
        pa = arrow()
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        with layout.whole_file(path) as file:
            pa.parquet.write_table(pa.table(columns), file)


def _wrong(name: str, value: Any, frames: int) -> str | None:
    """Return what is wrong with a judged entry of a data set of so many frames, if anything is."""
    if name == "length":
        fits, allowed = is_whole(value) and 1 <= value <= frames, f"1 to {frames} frames"
    elif name == "tasks":
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        fits, allowed = texts and bool(value), "a list of instructions"
    elif name.endswith(PLACES[:2]):
        fits, allowed = is_whole(value) and value >= 0, "a whole number from 0"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, allowed = number and 0 <= value < math.inf, "a time [s]"
    return None if fits else f"{name} is {value!r}; allowed: {allowed}"


def _below(table: Any, count: int) -> Any:
    """Return the rows of episodes below `count`."""
    import pyarrow.compute

    return table.filter(pyarrow.compute.field("episode_index") < count)
