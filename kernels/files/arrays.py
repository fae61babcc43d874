"""Arrays on disk: NPZ without objects, versioned, and the same bytes for the same arrays."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engram.kernels.errors import DataError
from engram.kernels.files.whole import whole_file

UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and the standard library raise on bytes that are no NPZ, or no longer."""
Fields = Mapping[str, tuple[type[np.generic] | None, tuple[int | None, ...]]]
"""Type and shape of every array; None where any is allowed."""


def write_arrays(path: Path, arrays: Mapping[str, Any], version: int) -> None:
    """Write arrays; the file appears whole or not at all."""
    with whole_file(path) as file:
        np.savez_compressed(file, format=np.int64(version), **arrays)


def read_arrays(path: Path, fields: Fields, what: str, version: int) -> dict[str, Any]:
    """Read and check what `write_arrays` wrote.

    Raises:
        DataError: If the file is damaged, of another version, or holds other arrays.
    """
    try:
        with path.open("rb") as stream:  # np.load leaves a file open that it cannot read
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds a single array")
            found = {name: loaded[name] for name in loaded.files}
    except UNREADABLE as error:
        raise DataError(f"{path} is no readable {what}: {error}") from error
    fields = {"format": (np.int64, ()), **fields}
    if found.keys() != fields.keys():
        raise DataError(f"{path} holds {sorted(found)}; allowed: {sorted(fields)}")
    for name, (kind, shape) in fields.items():
        array = found[name]
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for have, want in zip(array.shape, shape, strict=True)
        )
        if (kind is not None and array.dtype != kind) or not fits:
            seen = f"{array.dtype}{list(array.shape)}"
            wanted = f"{np.dtype(kind) if kind else ''}{list(shape)}"
            raise DataError(f"{name} in {path} is {seen}; allowed: {wanted}")
    if found["format"] != version:
        raise DataError(f"{path} has format {found['format']}; allowed: {version}")
    return found
