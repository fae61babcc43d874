"""A second home for a run's files: any address that fsspec knows (s3://, gs://, file://, …)."""

import os
from pathlib import Path
from typing import Any

from engram.kernels.errors import EngramError, one_line
from engram.launch.folder import CHECKPOINT

FILES = ("config.json", "metrics.jsonl", CHECKPOINT, "evaluation.json")
"""In the order in which they are sent: what belongs to a checkpoint is there before it."""


class MirrorError(EngramError):
    """The second home does not take or give a file."""


class Mirror:
    """Copies a run's files to an address whenever a checkpoint was written, and back to resume.

    A file is written under another name and then moved, so that a reader sees a whole one; on
    object stores, where moving is copying, each file is whole but two may be of different times.

    Args:
        address: Where; nothing is done without one.
        folder: Of the run, here; there it has the same name, and that of the folder it is in.
    """

    def __init__(self, address: str | None, folder: Path):
        self.address, self.folder = address, folder
        self.name = f"{folder.parent.name}/{folder.name}"

    def send(self) -> None:
        """Copy what there is.

        Raises:
            MirrorError: If the address cannot be written to.
        """
        if self.address is None:
            return
        try:
            files, root = self._open()
            files.makedirs(root, exist_ok=True)
            for name in FILES:
                here = self.folder / name
                if here.exists():
                    part = f"{root}/.{name}.{os.getpid()}"
                    files.put_file(str(here), part)
                    files.mv(part, f"{root}/{name}")
        except Exception as error:
            raise self._complaint("written to", error) from error

    def occupied(self) -> bool:
        """Return whether there is a run at the address.

        Raises:
            MirrorError: If the address cannot be read.
        """
        if self.address is None:
            return False
        try:
            files, root = self._open()
            return bool(files.exists(f"{root}/{FILES[0]}"))
        except Exception as error:
            raise self._complaint("read", error) from error

    def fetch(self) -> None:
        """Copy back what is missing here; a folder that holds a checkpoint is left alone.

        Raises:
            MirrorError: If the address cannot be read.
        """
        if self.address is None or (self.folder / CHECKPOINT).exists():
            return
        try:
            files, root = self._open()
            if not files.exists(f"{root}/{CHECKPOINT}"):
                return
            for name in FILES:
                if files.exists(f"{root}/{name}"):
                    part = self.folder / f".{name}.{os.getpid()}"
                    files.get_file(f"{root}/{name}", str(part))
                    part.replace(self.folder / name)
        except Exception as error:
            raise self._complaint("read", error) from error

    def _open(self) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(self.address)
        return files, f"{root.rstrip('/')}/{self.name}"

    def _complaint(self, what: str, error: Exception) -> MirrorError:
        told = f"{type(error).__name__}: {one_line(error)}"
        allowed = "an address that fsspec knows and that can be read and written, or null"
        return MirrorError(f"mirror {self.address!r} cannot be {what} ({told}); allowed: {allowed}")
