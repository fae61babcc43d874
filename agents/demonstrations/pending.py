"""Episodes that are complete but not yet part of the data set: one file each.

A Parquet or MP4 file can be read only after its end is written, so an episode added to a growing
one would be lost with its writer. Each waits in a file of its own until enough of them are there.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram.agents.demonstrations import layout
from engram.agents.demonstrations.columns import arrow
from engram.agents.demonstrations.layout import whole_file
from engram.agents.demonstrations.statistics import Statistics
from engram.kernels.errors import DataError, one_line


class Pending(NamedTuple):
    """A complete episode, ready to be copied into the files of the data set."""

    number: int
    """Its number in the data set."""
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
        DataError: If the file is damaged.
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
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}; remove it") from error


def waiting(folder: Path, committed: int) -> list[int]:
    """Return the numbers of waiting episodes in order; remove what is in the data set already.

    Raises:
        DataError: If one is missing between others.
    """
    found = sorted((folder / layout.PENDING).glob("episode-*.zip"))
    numbers = [int(path.stem.rpartition("-")[2]) for path in found]
    kept = []
    for path, number in zip(found, numbers, strict=True):
        if number < committed:
            path.unlink()
        else:
            kept.append(number)
    if kept != list(range(committed, committed + len(kept))):
        raise DataError(f"{folder / layout.PENDING} lacks episode {committed}; it holds {kept}")
    return kept


def tidy(folder: Path) -> None:
    """Remove the folder of waiting episodes where none waits."""
    place = folder / layout.PENDING
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def rows(episode: Pending) -> Any:
    """Return the rows of a waiting episode as an Arrow table."""
    pa = arrow()
    return pa.parquet.read_table(io.BytesIO(episode.table))
