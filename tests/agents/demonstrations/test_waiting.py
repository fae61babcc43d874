"""An episode that was damaged while it waited takes no other along."""

import json
from pathlib import Path

import numpy as np
import pytest

from engram.agents.demonstrations import (
    Demonstrations,
    DemonstrationWriter,
    check,
    pending,
    set_aside,
)
from engram.agents.demonstrations.lock import FolderLock
from engram.kernels.errors import DataError

GONE = 1
KEPT = (0, 2, 3)


@pytest.fixture
def interrupted(tmp_path, features, make):
    """A data set with four waiting episodes: their writer was killed before it made a file."""
    folder = tmp_path / "interrupted"
    writer = DemonstrationWriter(folder, features=features)
    for number in range(4):
        writer.add(make(number))
    writer._lock.release()
    return folder


def cut(folder):
    path = folder / ".pending" / f"episode-{GONE:06d}.zip"
    path.write_bytes(path.read_bytes()[:-200])


def remove(folder):
    (folder / ".pending" / f"episode-{GONE:06d}.zip").unlink()


@pytest.mark.parametrize(
    "harm, message, aside",
    [
        (cut, r"episode-000001\.zip is damaged: .*`set_aside\(folder\)` keeps", 1),
        (remove, r"lacks episode 1: it holds \[0, 2, 3\]; `set_aside\(folder\)` keeps", 0),
    ],
)
def test_the_others_are_kept(interrupted, tmp_path, features, make, harm, message, aside):
    harm(interrupted)
    with pytest.raises(DataError, match=message):
        DemonstrationWriter(interrupted, features=features)
    names = [path.name for path in set_aside(interrupted)]
    assert names == ["episode-000001.zip.damaged"] * aside
    with DemonstrationWriter(interrupted, features=features) as writer:
        assert writer.episodes == len(KEPT)
        writer.add(make(4))
    with DemonstrationWriter(tmp_path / "wanted", features=features) as writer:
        for number in (*KEPT, 4):
            writer.add(make(number))
    assert check(interrupted) == {}
    found, wanted = Demonstrations(interrupted), Demonstrations(tmp_path / "wanted")
    assert found.count == wanted.count == 4
    for number in range(4):
        assert found.task(number) == wanted.task(number)
        for key in (*features, "index", "episode_index", "task_index"):
            ours, theirs = (source.read(number, [key])[key] for source in (found, wanted))
            np.testing.assert_array_equal(ours, theirs)
    stats = [json.loads((f / "meta/stats.json").read_text()) for f in (found.folder, wanted.folder)]
    assert stats[0] == stats[1]
    assert len(list(interrupted.glob(".pending/*.damaged"))) == aside


def test_what_is_whole_stays_as_it_is(interrupted, features, make):
    before = sorted(path.name for path in (interrupted / ".pending").iterdir())
    assert set_aside(interrupted) == []
    assert sorted(path.name for path in (interrupted / ".pending").iterdir()) == before
    with (
        DemonstrationWriter(interrupted, features=features),
        pytest.raises(DataError, match="another writer has"),
    ):
        set_aside(interrupted)


def test_a_second_one_does_not_overwrite_the_first(interrupted, features, make):
    cut(interrupted)
    (first,) = set_aside(interrupted)
    content = first.read_bytes()
    cut(interrupted)
    (second,) = set_aside(interrupted)
    assert first != second and first.read_bytes() == content


def test_killed_on_its_way_it_is_called_again(interrupted, features, make, monkeypatch):
    cut(interrupted)
    rename, left = Path.rename, [3]

    def dying(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            set_aside(interrupted)  # 0 stays, 1 is put aside, 2 moves up, 3 does not
    assert set_aside(interrupted) == []
    DemonstrationWriter(interrupted, features=features).close()
    found = Demonstrations(interrupted)
    assert found.count == len(KEPT)
    for place, number in enumerate(KEPT):
        np.testing.assert_array_equal(found.read(place)["action"], make(number).frames["action"])


def test_what_a_writer_did_until_it_let_go_is_not_undone(interrupted, features, make, monkeypatch):
    def last_moment(folder):
        """Another writer flushes, adds and dies before the folder is taken."""
        writer = DemonstrationWriter(folder, features=features)
        writer.flush()
        for number in (4, 5):
            writer.add(make(number))
        writer._lock.release()
        return FolderLock(folder)

    monkeypatch.setattr(pending, "FolderLock", last_moment)
    assert set_aside(interrupted) == []
    DemonstrationWriter(interrupted, features=features).close()
    found = Demonstrations(interrupted)
    assert found.count == 6
    for number in range(6):
        np.testing.assert_array_equal(found.read(number)["action"], make(number).frames["action"])


def test_any_bit_that_is_flipped_is_damage_or_nothing(tmp_path, features, make):
    writer = DemonstrationWriter(tmp_path, features=features)
    writer.add(make(0))
    writer._lock.release()
    path = tmp_path / ".pending" / "episode-000000.zip"
    content = path.read_bytes()
    start = content.index(b"PK\1\2")  # from the index of the archive on
    refused = 0
    for place in range(start, len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                pending.read(tmp_path, 0)
            except pending.WaitingDamagedError:
                refused += 1
    assert refused > 100
