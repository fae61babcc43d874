"""Episodes on their way into files: prepared one by one, written as a group."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engram.agents.demonstrations import layout, statistics, video
from engram.agents.demonstrations.columns import arrow, to_arrow
from engram.agents.demonstrations.feature import INDEX, Episode, Feature
from engram.agents.demonstrations.pending import Pending, rows


def prepare(
    episode: Episode, features: Mapping[str, Feature], fps: int, index: int, first: int, task: int
) -> Pending:
    """Encode an episode and describe it.

    Args:
        episode: What to encode; it fits the features.
        features: The user's columns.
        fps: Frames per second.
        index: Number of the episode in the data set.
        first: Number of its first frame in the data set.
        task: Number of its instruction.
    """
    length = len(next(iter(episode.frames.values())))
    steps = np.arange(length)
    counted = {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, index),
        "index": first + steps,
        "task_index": np.full(length, task),
    }
    columns = {**episode.frames, **{key: column[:, None] for key, column in counted.items()}}
    every = {**features, **INDEX}
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    pa = arrow()
    table = pa.table(
        {key: to_arrow(columns[key], every[key]) for key in every if key not in videos}
    )
    file = io.BytesIO()
    pa.parquet.write_table(table, file)
    return Pending(
        index,
        episode.task,
        length,
        {key: statistics.of_column(columns[key], feature) for key, feature in every.items()},
        file.getvalue(),
        {key: video.encode(episode.frames[key], fps) for key in videos},
    )


def placed(episode: Pending, first: int, task: int) -> Pending:
    """Say in an episode where it is in the data set, which it may have reached by moving up.

    Args:
        episode: Which; its number is right.
        first: Number of its first frame in the data set.
        task: Number of its instruction.
    """
    told = {"episode_index": episode.number, "index": first, "task_index": task}
    if all(episode.statistics[key]["min"].tolist() == [at] for key, at in told.items()):
        return episode  # it waited where it goes, as nearly all do
    length, table = episode.length, rows(episode)
    columns = {
        "episode_index": np.full((length, 1), episode.number),
        "index": (first + np.arange(length))[:, None],
        "task_index": np.full((length, 1), task),
    }
    described = {key: statistics.of_column(column, INDEX[key]) for key, column in columns.items()}
    for key, column in columns.items():
        place = table.schema.get_field_index(key)
        table = table.set_column(place, table.schema.field(place), to_arrow(column, INDEX[key]))
    file = io.BytesIO()
    arrow().parquet.write_table(table, file)
    return episode._replace(table=file.getvalue(), statistics=episode.statistics | described)


def write(
    folder: Path, info: dict[str, Any], episodes: list[Pending], number: int, first: int
) -> list[dict[str, Any]]:
    """Write the frames and videos of some episodes; return what the index says of each.

    Args:
        folder: The data set.
        info: Its `meta/info.json`; it learns how the videos are coded.
        episodes: Which, in order.
        number: Number of the files they go to, chunks counted through.
        first: Number of their first frame in the data set.
    """
    chunk, number = divmod(number, info["chunks_size"])
    where = {"chunk_index": chunk, "file_index": number}
    pa = arrow()
    with layout.whole_file(layout.place(folder, info["data_path"], chunk, number)) as file:
        tables = [rows(episode) for episode in episodes]
        with pa.parquet.ParquetWriter(file, tables[0].schema) as writer:
            for table in tables:  # a row group each: an episode is read without the others
                writer.write_table(table)
    for camera in episodes[0].videos:
        path = layout.place(folder, info["video_path"], chunk, number, camera)
        with layout.whole_file(path) as file:
            video.join([e.videos[camera] for e in episodes], info["fps"], Path(file.name))
        declared = info["features"][camera]
        if not declared.get("info"):
            declared["info"] = video.information(episodes[0].videos[camera], info["fps"])
    described, frame = [], 0
    for episode in episodes:
        ends = frame + episode.length
        row: dict[str, Any] = {
            "episode_index": episode.number,
            "tasks": [episode.task],
            "length": episode.length,
            "dataset_from_index": first + frame,
            "dataset_to_index": first + ends,
        }
        for kind in ("data", "meta/episodes", *(f"videos/{camera}" for camera in episode.videos)):
            row |= {f"{kind}/{name}": value for name, value in where.items()}
        for camera in episode.videos:
            row[f"videos/{camera}/from_timestamp"] = frame / info["fps"]
            row[f"videos/{camera}/to_timestamp"] = ends / info["fps"]
        for key, column in episode.statistics.items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in column.items()}
        described.append(row)
        frame = ends
    return described
