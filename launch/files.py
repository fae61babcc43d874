"""Files that hold a user's results: written to a temporary name, then renamed."""

import json
from pathlib import Path
from typing import Any

from engram.kernels.errors import DataError
from engram.kernels.files.whole import whole_file


def write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; allowed: the folder of a run") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
