"""Writing demonstrations: LeRobot data sets that survive the death of their writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram.agents.demonstrations import group, layout, pending, statistics, video
from engram.agents.demonstrations.columns import arrow
from engram.agents.demonstrations.episodes import EpisodeTable
from engram.agents.demonstrations.feature import (
    INDEX,
    Episode,
    Feature,
    check_episode,
    check_features,
    from_json,
    to_json,
)
from engram.agents.demonstrations.lock import FolderLock
from engram.kernels.errors import InvalidValueError

BYTES_IN_FILE = 100 * 2**20


class DemonstrationWriter:
    """Adds episodes to a folder in LeRobot's format, version 3.0; creates it where there is none.

    An episode is on disk when `add` returns. Readers see it once its file is complete: after
    `episodes_per_file` of them, or at `flush` or `close`. A writer that was killed loses the
    episode it was adding and no other: open the folder again, and `episodes` says where to go on.
    Readers see a consistent data set at any moment, as the index is replaced last. An episode that
    was damaged before it became part of a file is refused; `set_aside` keeps the others.

    Videos are coded without loss. Nothing that was written before is ever changed, so a folder
    recorded by LeRobot itself can be continued.

    Args:
        folder: Where; empty, missing, or a data set with the same features.
        features: The columns, without LeRobot's own (timestamp, frame_index, …).
        fps: Frames per second.
        robot_type: What the robot is called.
        episodes_per_file: Episodes that share one Parquet file and one MP4 per camera.

    Raises:
        InvalidValueError: If a setting is not allowed or differs from that of the data set.
        DataError: If the data set is damaged, or another writer has it open.
        MissingPackageError: If `pyarrow` or `av` is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        features: Mapping[str, Feature],
        fps: int = 10,
        robot_type: str | None = None,
        episodes_per_file: int = 100,
    ):
        check_features(features)
        for name, value in (("fps", fps), ("episodes_per_file", episodes_per_file)):
            if value < 1:
                raise InvalidValueError(name, value, "1 or more")
        arrow()
        video.pyav()
        self.folder = Path(folder)
        self.features, self.fps, self.robot_type = dict(features), fps, robot_type
        self.episodes_per_file = episodes_per_file
        self._lock = FolderLock(self.folder)
        try:
            self._resume()
        except BaseException:
            self._lock.release()
            raise

    def _resume(self) -> None:
        """Open or create the data set and count what is there."""
        begun = layout.partials(self.folder)
        if (self.folder / layout.INFO).exists():
            self._info = layout.read_info(self.folder)
            self._check_same()
        else:
            # An empty `meta` is what a writer killed at its very beginning leaves.
            files = (path for path in self.folder.rglob("*") if path.is_file())
            if any(path not in begun for path in files):
                raise InvalidValueError("folder", str(self.folder), "an empty one, or a data set")
            self._info = self._new_info()
            layout.write_json(self.folder / layout.INFO, self._info)
        for path in begun:
            path.unlink(missing_ok=True)
        table = EpisodeTable(self.folder, self._info)
        table.raise_damage()
        self._committed, self._frames = table.count, self._info["total_frames"]
        self._next_file = table.next_file
        self._statistics = statistics.aggregate(table.statistics()) if table.count else {}
        self._tasks = layout.read_tasks(self.folder / layout.TASKS) if table.count else []
        waiting = pending.waiting(self.folder, self._committed)
        self._waiting = len(waiting)
        self._waiting_bytes = self._waiting_frames = 0
        for index in waiting:
            episode = pending.read(self.folder, index)
            self._waiting_bytes += pending.path_of(self.folder, index).stat().st_size
            self._waiting_frames += episode.length
            self._number_of(episode.task)

    def _new_info(self) -> dict[str, Any]:
        has_video = any(feature.dtype == "video" for feature in self.features.values())
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self.robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": layout.FILES_IN_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {},
            "data_path": layout.DATA,
            "video_path": layout.VIDEO if has_video else None,
            "features": to_json({**self.features, **INDEX}),
        }

    def _check_same(self) -> None:
        seen = from_json(self._info["features"], self.folder / layout.INFO)
        theirs = {key: feature[:2] for key, feature in seen.items() if key not in INDEX}
        ours = {key: feature[:2] for key, feature in self.features.items()}
        differing = sorted(
            key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)
        )
        if differing:
            mine, there = ({key: own.get(key) for key in differing} for own in (ours, theirs))
            raise InvalidValueError("features", mine, f"those of {self.folder}: {there}")
        for name, value in (("fps", self.fps), ("robot_type", self.robot_type)):
            if value != self._info.get(name):
                allowed = f"that of {self.folder}: {self._info.get(name)!r}"
                raise InvalidValueError(name, value, allowed)

    @property
    def episodes(self) -> int:
        """Complete episodes on disk, those that wait for their file included."""
        return self._committed + self._waiting

    def add(self, episode: Episode) -> None:
        """Append an episode; it is on disk when this returns.

        Raises:
            InvalidValueError: If it does not fit the features or holds NaN or infinity, or if the
                writer is closed.
        """
        if not self._lock.held:
            raise InvalidValueError("the writer", "closed", "one that is open")
        length = check_episode(episode, self.features)
        first = self._frames + self._waiting_frames
        task = self._number_of(episode.task)
        complete = group.prepare(episode, self.features, self.fps, self.episodes, first, task)
        self._waiting_bytes += pending.write(self.folder, complete)
        self._waiting += 1
        self._waiting_frames += length
        if self._waiting >= self.episodes_per_file or self._waiting_bytes >= BYTES_IN_FILE:
            self.flush()

    def flush(self) -> None:
        """Make every complete episode part of the data set; the next one begins new files."""
        if not self._waiting:
            return
        episodes, first = [], self._frames
        for number in range(self._committed, self.episodes):
            episode = pending.read(self.folder, number)
            episodes.append(group.placed(episode, first, self._number_of(episode.task)))
            first += episode.length
        rows = group.write(self.folder, self._info, episodes, self._next_file, self._frames)
        layout.write_tasks(self.folder / layout.TASKS, self._tasks)
        parts = [episode.statistics for episode in episodes]
        joined = statistics.aggregate([self._statistics, *parts] if self._statistics else parts)
        chunk, number = divmod(self._next_file, self._info["chunks_size"])
        index = layout.place(self.folder, layout.EPISODES, chunk, number)
        EpisodeTable.write(index, rows)
        plain = {
            key: {name: value.tolist() for name, value in column.items()}
            for key, column in joined.items()
        }
        layout.write_json(self.folder / layout.STATS, plain)
        frames = self._frames + self._waiting_frames
        self._info |= {
            "total_episodes": self.episodes,
            "total_frames": frames,
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{self.episodes}"},
        }
        # Until this line readers see the data set as it was, after it as it is.
        layout.write_json(self.folder / layout.INFO, self._info)
        self._committed, self._frames, self._statistics = self.episodes, frames, joined
        self._next_file += 1
        self._waiting = self._waiting_bytes = self._waiting_frames = 0
        pending.waiting(self.folder, self._committed)

    def _number_of(self, task: str) -> int:
        if task not in self._tasks:
            self._tasks.append(task)
        return self._tasks.index(task)

    def close(self) -> None:
        """Flush, and let another writer have the folder."""
        if self._lock.held:
            try:
                self.flush()
                pending.tidy(self.folder)
            finally:
                self._lock.release()

    def __enter__(self) -> "DemonstrationWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
