"""One writer to a folder, however it ends."""

import fcntl
import os
import weakref
from pathlib import Path

from engram.kernels.errors import DataError


class FolderLock:
    """Takes a folder, made where it is missing; the system gives it back when the process dies.

    Args:
        folder: What to take.

    Raises:
        DataError: If another process, or another writer of this one, has it.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._opened: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._abandon()
            raise DataError(f"another writer has {folder} open; allowed: one at a time") from None
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: (lock := reference()) and lock._abandon())

    @property
    def held(self) -> bool:
        """Whether this process still has the folder."""
        return self._opened is not None

    def release(self) -> None:
        """Give the folder back; no effect the second time."""
        if self._opened is not None:
            fcntl.flock(self._opened, fcntl.LOCK_UN)
            self._abandon()

    def _abandon(self) -> None:
        """Let go in this process, but not in the parent that it was forked from.

        A child that outlives a killed writer, a simulator say, must not keep the folder.
        """
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None
