"""One writer at a time, and none that stays behind."""

import os

import pytest

from engram.agents.demonstrations.lock import FolderLock
from engram.kernels.errors import DataError


def test_a_folder_is_taken_once(tmp_path):
    lock = FolderLock(tmp_path / "data")
    with pytest.raises(DataError, match="another writer has"):
        FolderLock(tmp_path / "data")
    lock.release()
    lock.release()
    assert not lock.held
    FolderLock(tmp_path / "data").release()


def test_a_child_does_not_hold_what_its_parent_took(tmp_path):
    lock = FolderLock(tmp_path)
    child = os.fork()
    if not child:
        os._exit(lock.held)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(DataError):
        FolderLock(tmp_path)
    lock.release()


def test_a_child_that_outlives_a_killed_writer_does_not_keep_its_folder(tmp_path):
    till_ready, ready = os.pipe()
    till_done, done = os.pipe()
    writer = os.fork()
    if not writer:
        lock = FolderLock(tmp_path)
        if not os.fork():
            os.close(done)
            os.write(ready, b"1")
            os.read(till_done, 1)  # lives on
            os._exit(0)
        os.read(till_ready, 1)
        os.write(ready, b"2" if lock.held else b"0")
        os.kill(os.getpid(), 9)
    assert os.waitpid(writer, 0)[1] == 9
    assert os.read(till_ready, 1) == b"2"
    FolderLock(tmp_path).release()
    for end in (till_ready, ready, till_done, done):
        os.close(end)
