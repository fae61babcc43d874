"""A writer killed at any moment loses nothing that it had called safe."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from engram.agents.demonstrations import (
    Demonstrations,
    DemonstrationWriter,
    Episode,
    Feature,
    check,
)

# A fork of this process, where other tests left the threads of codecs and of Arrow, may wait for
# one of them for ever; these are forked from a process that runs nothing.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(
    ["engram.agents.demonstrations", "pytest", "pandas", "pyarrow.parquet", "av"]
)

FEATURES = {"camera": Feature("video", (16, 16, 3)), "action": Feature("float32", (2,))}


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    length = 2 + number % 3
    frames = {
        "camera": rng.integers(0, 256, (length, 16, 16, 3), np.uint8),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }
    return Episode(frames, f"task {number % 2}")


def opened(folder: Path) -> DemonstrationWriter:
    return DemonstrationWriter(folder, features=FEATURES, episodes_per_file=2)


def in_a_process_that_dies(folder: Path, fatal: str, times: int, delay: float) -> int:
    """Write five episodes; return how many were called safe before the process was killed.

    Args:
        folder: Where to.
        fatal: It dies before the file whose path contains this takes its name,
        times: when that happens for this time,
        delay: or so long [s] after it took the folder.
    """
    hear, say = CLEAN.Pipe(duplex=False)
    child = CLEAN.Process(target=write_and_die, args=(folder, fatal, times, say))
    child.start()
    say.close()
    heard = []
    if fatal == "nothing":
        heard.append(hear.recv())
        time.sleep(delay)
        child.kill()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL or (fatal == "nothing" and child.exitcode == 0)
    with contextlib.suppress(EOFError), hear:
        while True:
            heard.append(hear.recv())
    return heard[-1] if heard else 0


def write_and_die(folder: Path, fatal: str, times: int, say: Connection) -> None:
    Path.replace = deadly(Path.replace, fatal, times)
    with opened(folder) as writer:
        say.send(writer.episodes)
        while writer.episodes < 5:
            writer.add(episode(writer.episodes))
            say.send(writer.episodes)


def deadly(replace: Callable, fatal: str, times: int) -> Callable:
    passed = 0

    def dying(path: Path, target: Path) -> Path:
        nonlocal passed
        if fatal in str(target):
            passed += 1
            if passed == times:
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    return dying


def assert_holds(folder: Path, count: int) -> None:
    read = Demonstrations(folder)
    assert read.count == count
    assert check(folder) == {}
    for number in range(count):
        assert read.task(number) == episode(number).task
        for key, column in episode(number).frames.items():
            np.testing.assert_array_equal(read.read(number)[key], column)
    assert read.read(count - 1, ["index"])["index"][-1, 0] == read.lengths.sum() - 1


@pytest.mark.parametrize(
    "fatal, times, readable, safe",
    [
        ("episode-000001.zip", 1, 0, 1),  # while the second episode is added
        ("data/chunk", 1, 0, 2),  # while the first file of episodes is written
        ("videos/", 2, 2, 4),  # while the second is: the first stays readable
        ("tasks.parquet", 2, 2, 4),
        ("meta/episodes", 2, 2, 4),
        ("stats.json", 2, 2, 4),
        ("info.json", 3, 2, 4),  # the last moment before readers see the second file
        ("data/chunk", 3, 4, 5),  # while it is closed
    ],
)
def test_killed_while_a_file_is_written(tmp_path, fatal, times, readable, safe):
    called_safe = in_a_process_that_dies(tmp_path, fatal, times, 0)
    assert called_safe in (safe - 1, safe)  # an `add` that did not return may still have counted
    assert Demonstrations(tmp_path).count == readable
    assert check(tmp_path) == {}
    with opened(tmp_path) as writer:
        assert writer.episodes == safe
        while writer.episodes < 6:
            writer.add(episode(writer.episodes))
    assert_holds(tmp_path, 6)
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    numbered = {path.name for path in (tmp_path / "data").rglob("*.parquet")}
    assert numbered == {path.with_suffix(".parquet").name for path in tmp_path.rglob("*.mp4")}


def test_killed_before_the_data_set_exists(tmp_path):
    assert in_a_process_that_dies(tmp_path, "info.json", 1, 0) == 0
    with opened(tmp_path) as writer:
        assert writer.episodes == 0
        writer.add(episode(0))
    assert_holds(tmp_path, 1)


def test_killed_at_random_again_and_again(tmp_path):
    rng = np.random.default_rng(0)
    opened(tmp_path).close()
    safe = 0
    for attempt in range(10):
        delay = rng.uniform(0, 0.12 * 1.5**attempt)  # enough for an episode, in the end, anywhere
        safe = max(safe, in_a_process_that_dies(tmp_path, "nothing", 1, delay))
        assert check(tmp_path) == {}
    with opened(tmp_path) as writer:
        assert writer.episodes >= safe > 0
        while writer.episodes < 6:
            writer.add(episode(writer.episodes))
    assert_holds(tmp_path, 6)
