"""Episodes that are complete but not yet part of the data set: one file each.

A Parquet or MP4 file can be read only after its end is written, so an episode added to a growing
one would be lost with its writer. Each waits in a file of its own until enough of them are there.
"""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram.agents.demonstrations import layout
from engram.agents.demonstrations.columns import arrow
from engram.agents.demonstrations.layout import whole_file
from engram.agents.demonstrations.lock import FolderLock
from engram.agents.demonstrations.statistics import Statistics
from engram.kernels.errors import DataError, one_line

DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError),
    *(KeyError, ValueError, TypeError, AttributeError, RuntimeError),
)
"""What reading a damaged archive raises: RuntimeError where a bit says that it is encrypted."""


class WaitingDamagedError(DataError):
    """An episode that waits cannot be read, or one before others is gone.

    Args:
        seen: What is wrong.
    """

    def __init__(self, seen: str):
        super().__init__(f"{seen}; `set_aside(folder)` keeps the others")
        self.seen = seen


class Pending(NamedTuple):
    """A complete episode, ready to be copied into the files of the data set."""

    number: int
    """Its number in the data set, once there; what it holds may still say another."""
    task: str
    """Its instruction."""
    length: int
    """Its frames."""
    statistics: dict[str, Statistics]
    """Of every column, by name."""
    table: bytes
    """Its rows as a Parquet file."""
    videos: dict[str, bytes]
    """Its MP4 by camera."""


def path_of(folder: Path, index: int) -> Path:
    """Return the file of a waiting episode."""
    return folder / layout.PENDING / f"episode-{index:06d}.zip"


def write(folder: Path, episode: Pending) -> int:
    """Write a waiting episode whole; return its bytes."""
    facts = {
        "task": episode.task,
        "length": episode.length,
        "statistics": {
            key: {name: value.tolist() for name, value in column.items()}
            for key, column in episode.statistics.items()
        },
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("episode.json", json.dumps(facts))
        archive.writestr("table.parquet", episode.table)
        for camera, video in episode.videos.items():
            archive.writestr(f"{camera}.mp4", video)
    content = file.getvalue()
    with whole_file(path_of(folder, episode.number)) as output:
        output.write(content)
    return len(content)


def read(folder: Path, index: int) -> Pending:
    """Read a waiting episode.

    Raises:
        WaitingDamagedError: If the file is damaged.
    """
    path = path_of(folder, index)
    try:
        with zipfile.ZipFile(path) as archive:  # a zip checks its content by CRC-32
            content = {name: archive.read(name) for name in archive.namelist()}
        facts: dict[str, Any] = json.loads(content.pop("episode.json"))
        table = content.pop("table.parquet")
        statistics = {
            key: {name: np.array(value) for name, value in column.items()}
            for key, column in facts["statistics"].items()
        }
        videos = {name.removesuffix(".mp4"): video for name, video in content.items()}
        return Pending(index, facts["task"], facts["length"], statistics, table, videos)
    except DAMAGE as error:
        raise WaitingDamagedError(f"{path} is damaged: {one_line(error)}") from error


def waiting(folder: Path, committed: int) -> list[int]:
    """Return the numbers of waiting episodes in order; remove what is in the data set already.

    Raises:
        WaitingDamagedError: If one is missing between others.
    """
    kept = []
    for number, path in _files(folder).items():
        if number < committed:
            path.unlink()
        else:
            kept.append(number)
    wanted = range(committed, committed + len(kept))
    if lacking := sorted(set(wanted) - set(kept)):
        place = folder / layout.PENDING
        raise WaitingDamagedError(f"{place} lacks episode {lacking[0]}: it holds {kept}")
    return kept


def set_aside(folder: str | Path) -> list[Path]:
    """Put waiting episodes that are damaged out of the way; the others move up and stay.

    For a data set that a writer refuses to go on with, because an episode that no file of the
    data set holds yet cannot be read or is gone. Killed on its way, it can be called again. What
    `engram demos` recorded needs it not: remove `.pending`, and the same command records again.

    Args:
        folder: The data set.

    Returns:
        The damaged files, under the names they have now.

    Raises:
        DataError: If the data set itself is damaged, or a writer has it open.
    """
    folder = Path(folder)
    layout.read_info(folder)  # before the lock, which would make a folder of any name
    lock, damaged = FolderLock(folder), []
    try:
        number = committed = int(layout.read_info(folder)["total_episodes"])
        for held, path in _files(folder).items():
            if held < committed:  # it is in the data set, only its writer died before removing it
                continue
            try:
                read(folder, held)
            except WaitingDamagedError:
                aside = _free(path.with_name(f"{path.name}.damaged"))
                damaged.append(path.rename(aside))
                continue
            path.rename(path_of(folder, number))  # `flush` says in it which one it is
            number += 1
    finally:
        lock.release()
    return damaged


def _files(folder: Path) -> dict[int, Path]:
    """Return the files of waiting episodes by their numbers, in order."""
    found = (folder / layout.PENDING).glob("episode-*.zip")
    numbered = {int(path.stem.rpartition("-")[2]): path for path in found}
    return dict(sorted(numbered.items()))


def _free(path: Path) -> Path:
    """Return a name like this one that no file has."""
    names = (path.with_name(f"{path.name}{i or ''}") for i in range(10**6))
    return next(name for name in names if not name.exists())


def tidy(folder: Path) -> None:
    """Remove the folder of waiting episodes where none waits."""
    place = folder / layout.PENDING
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def rows(episode: Pending) -> Any:
    """Return the rows of a waiting episode as an Arrow table."""
    pa = arrow()
    return pa.parquet.read_table(io.BytesIO(episode.table))
