"""Where a LeRobot data set of version 3.0 keeps what, and how its index files are written.

meta/info.json                              features, frame rate, totals
meta/stats.json                             statistics of all frames
meta/tasks.parquet                          instructions and their numbers
meta/episodes/chunk-000/file-000.parquet    one row per episode: where its frames are
data/chunk-000/file-000.parquet             one row per frame
videos/<camera>/chunk-000/file-000.mp4      many episodes, one after another
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engram.agents.demonstrations.columns import arrow
from engram.kernels.errors import DataError, one_line

VERSION = "v3.0"
FILES_IN_CHUNK = 1000
NUMBERED = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{NUMBERED}.parquet"
DATA = f"data/{NUMBERED}.parquet"
VIDEO = f"videos/{{video_key}}/{NUMBERED}.mp4"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
PENDING = ".pending"
"""Where episodes wait until a file of them is complete."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a file beside `path` that takes its name once all is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def partials(folder: Path) -> list[Path]:
    """List what killed writers had begun; files of others are none of these."""
    mine = (PENDING, "meta", "data", "videos")
    return [path for name in mine for path in (folder / name).rglob(".*.partial")]


def _sync(folder: Path) -> None:
    """Make a new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file."""
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=4, ensure_ascii=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        DataError: If the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object")
    return content


def read_info(folder: Path) -> dict[str, Any]:
    """Return `meta/info.json` of a data set of this version.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    info = read_json(folder / INFO)
    version = info.get("codebase_version")
    if version != VERSION:
        raise DataError(
            f"{folder / INFO}: version of the data set is {version!r}; allowed: {VERSION!r} "
            "(LeRobot converts v2.1)"
        )
    for name in ("total_episodes", "total_frames"):
        if not isinstance(info.get(name), int) or info[name] < 0:
            raise DataError(f"{folder / INFO} is damaged: {name} is {info.get(name)!r}")
    if not isinstance(info.get("fps"), int | float) or info["fps"] <= 0:
        raise DataError(f"{folder / INFO} is damaged: fps is {info.get('fps')!r}")
    chunks = info.setdefault("chunks_size", FILES_IN_CHUNK)
    if not isinstance(chunks, int) or chunks < 1:
        raise DataError(f"{folder / INFO} is damaged: chunks_size is {chunks!r}")
    return info


def place(folder: Path, template: Any, chunk: int, number: int, camera: str = "") -> Path:
    """Return the path that a template of `info.json` gives.

    Raises:
        DataError: If it is no template, or leads out of the folder.
    """
    try:
        path = Path(template.format(video_key=camera, chunk_index=chunk, file_index=number))
    except (AttributeError, LookupError, ValueError) as error:
        raise DataError(f"{folder / INFO} is damaged: path {template!r}") from error
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{folder / INFO}: path {template!r} leads out of the folder")
    return folder / path


def write_tasks(path: Path, tasks: list[str]) -> None:
    """Write the instructions; their place in the list is their number.

    LeRobot reads them with pandas, as the index of the table.
    """
    pa = arrow()
    columns = [("task_index", "task_index", "int64"), (None, "__index_level_0__", "unicode")]
    described = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            {
                "name": name,
                "field_name": field,
                "pandas_type": kind,
                "numpy_type": "int64" if kind == "int64" else "object",
                "metadata": None,
            }
            for name, field, kind in columns
        ],
    }
    table = pa.table(
        {
            "task_index": pa.array(range(len(tasks)), pa.int64()),
            "__index_level_0__": pa.array(tasks, pa.string()),
        }
    ).replace_schema_metadata({"pandas": json.dumps(described)})
    with whole_file(path) as file:
        pa.parquet.write_table(table, file)


def read_tasks(path: Path) -> list[str]:
    """Return the instructions by number.

    Raises:
        DataError: If the file is missing or damaged.
    """
    table = read_table(path)
    words = [name for name in ("__index_level_0__", "task") if name in table.column_names]
    if not words or "task_index" not in table.column_names:
        raise DataError(f"{path} is damaged: its columns are {table.column_names}")
    numbers = table["task_index"].to_pylist()
    named = dict(zip(numbers, table[words[0]].to_pylist(), strict=True))
    if sorted(named) != list(range(len(numbers))):
        raise DataError(f"{path} is damaged: tasks are numbered {sorted(numbers)[:5]} …")
    return [named[number] for number in range(len(named))]


def read_table(path: Path) -> Any:
    """Return a Parquet file as an Arrow table.

    Raises:
        DataError: If it is missing or damaged.
    """
    pa = arrow()
    try:
        return pa.parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
