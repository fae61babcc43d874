"""Where a Rerun scene goes: to a viewer's window, or to a file that appears whole."""

import os
import shutil
import socket
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import Any

from engram.kernels.errors import DataError, MissingPackageError
from engram.launch.config import UsageError

SUFFIX = ".rrd"
END = b"FOOT"
"""Within the last 64 bytes of a file that was written to its end."""
PORT = 9876
"""Where Rerun's viewer listens."""
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET")
"""One of these is set where a window can open on Linux."""
PATIENCE = 10.0
"""How long a viewer may take to open [s]."""
LAST_PATIENCE = 60.0
"""How long it may take to receive what is left at the end [s]."""


class RerunStream:
    """A recording of its own, none of Rerun's global ones.

    Args:
        path: The file to record; without one a viewer opens, or one that is open is joined.
        title: Names the recording in the viewer.

    Raises:
        UsageError: If the file cannot lie there, or no viewer opens.
        MissingPackageError: Without rerun-sdk.
    """

    def __init__(self, path: Path | None, *, title: str):
        if path is None:
            _check_window()
        elif path.suffix != SUFFIX or path.is_dir() or not path.parent.is_dir():
            allowed = f"a file that ends in {SUFFIX}, in a folder that exists"
            raise UsageError(f"view is {str(path)!r}; allowed: {allowed}")
        try:
            import rerun  # type: ignore[import-not-found]
            from rerun import RecordingStream  # type: ignore[import-not-found]
        except ImportError:
            raise MissingPackageError("rerun-sdk", "rerun") from None
        self.path = path
        self.rerun: Any = rerun
        """The package, which knows what can be logged."""
        self._recording: Any = RecordingStream("engram map", recording_id=uuid.uuid4())
        if not self._recording.is_enabled():
            raise UsageError("Rerun is switched off; allowed: the environment without RERUN=off")
        self._recording.set_log_time_enabled(False)
        if path is None:
            self._open_viewer(title)
        else:
            self._open_file(path, title)

    def set_scan(self, number: int) -> None:
        """Say to which scan belongs what is logged next."""
        self._recording.set_time("scan", sequence=number)

    def log(self, path: str, what: Any, *, static: bool = False) -> None:
        """Write something.

        Args:
            path: Of the entity.
            what: What `rerun` makes.
            static: Whether it holds for all scans.
        """
        self._recording.log(path, what, static=static, strict=True)

    def close(self) -> str:
        """Wait until everything is written; let the file appear.

        Returns:
            What became of the scene, in one line.

        Raises:
            DataError: If the file could not be written to its end; then there is none.
        """
        failure: Exception | str | None = None
        try:
            self._recording.flush(timeout_sec=LAST_PATIENCE)
        except (RuntimeError, TimeoutError) as error:
            failure = error
        self._recording.disconnect()
        if self.path is None:
            if failure is not None:
                return f"Scene: the Rerun viewer did not get all of it ({failure})"
            return "Scene: in the Rerun viewer"
        # Rerun does not say when the disk is full just as it writes the end.
        if failure is None and END not in _tail(self._temporary):
            failure = "it has no end; is the disk full?"
        if failure is not None:
            self._temporary.unlink(missing_ok=True)
            raise DataError(f"{self.path} cannot be written: {failure}")
        self._temporary.replace(self.path)
        return f"Scene: {self.path}, {self.path.stat().st_size / 1e6:.1f} MB"

    def discard(self) -> None:
        """Stop after an error; a file does not appear."""
        self._recording.disconnect()
        if self.path is not None:
            self._temporary.unlink(missing_ok=True)

    def _open_file(self, path: Path, title: str) -> None:
        self._temporary = path.with_name(f".{path.name}.tmp")
        try:
            self._recording.save(self._temporary)
        except RuntimeError as error:
            raise DataError(f"{path} cannot be written: {error}") from None
        self._recording.send_recording_name(title)

    def _open_viewer(self, title: str) -> None:
        """Spawn a viewer and wait until it has answered: Rerun itself would go on without one."""
        beside = shutil.which("rerun", path=sysconfig.get_path("scripts"))
        try:
            self.rerun.spawn(recording=self._recording, port=PORT, executable_path=beside)
            self._recording.send_recording_name(title)
            self._recording.flush(timeout_sec=PATIENCE)
        except (RuntimeError, TimeoutError) as error:
            self._recording.disconnect()
            raise _no_viewer(str(error).strip().partition("\n")[0]) from None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), os.SEEK_END)
        return file.read()


def _check_window() -> None:
    """Refuse at once where no window can open; Rerun needs ten seconds to give up."""
    if not sys.platform.startswith("linux") or any(map(os.environ.get, DISPLAYS)):
        return
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
    except OSError:
        raise _no_viewer("there is no display") from None


def _no_viewer(why: str) -> UsageError:
    return UsageError(f"no Rerun viewer opens: {why}; record a file instead: view=<file{SUFFIX}>")
