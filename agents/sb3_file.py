"""The file of a `MemoryPPO`: a zip, as SB3 names its own, without pickle.

Two entries, stored uncompressed: `facts.json` and `tensors.safetensors`. The zip's checksums cover
both.
"""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from engram.kernels.errors import DataError

FORMAT = 1
FACTS, TENSORS = "facts.json", "tensors.safetensors"
Target = str | Path | io.BufferedIOBase


def write(target: Target, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts; at a path, a reader sees the old file or the new one.

    Args:
        target: A path, which gets `.zip` unless it has a suffix, or an open binary file.
        tensors: By name; none may share memory with another.
        facts: JSON's types.
    """
    contents = {
        FACTS: json.dumps({**facts, "format": FORMAT}, allow_nan=False).encode(),
        TENSORS: safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        ),
    }
    if not isinstance(target, str | Path):
        _write(target, contents)
        return
    path = named(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _write(file, contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(source: Target) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a file.

    Raises:
        DataError: If it is missing, damaged, another program's or of an unknown version.
    """
    name = f"model {title(source)}"
    file: Any = source
    if isinstance(source, str | Path):
        file = named(source)
        if not file.exists() and Path(source).exists():
            file = Path(source)
    try:
        with zipfile.ZipFile(file) as opened:
            entries = {entry.filename: entry for entry in opened.infolist()}
            if FACTS not in entries or TENSORS not in entries:
                raise DataError(f"{name} is of another program; allowed: what MemoryPPO.save wrote")
            for entry in (entries[FACTS], entries[TENSORS]):
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise DataError(f"{name} is damaged: {entry.filename} is compressed")
            facts = json.loads(opened.read(FACTS))
            if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
                raise DataError(f"{name} is of another version; allowed: {FORMAT}")
            return safetensors.torch.load(opened.read(TENSORS)), facts
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except DataError:
        raise
    except (
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        SafetensorError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"{name} is damaged: {error}") from error


def named(path: str | Path) -> Path:
    """Return the path of the file: SB3 leaves `.zip` to be added."""
    path = Path(path)
    return path if path.suffix else path.with_name(f"{path.name}.zip")


def title(source: Target) -> Path:
    """Return what errors call a file."""
    return Path(source) if isinstance(source, str | Path) else Path("(an open file)")


def _write(file: Any, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as opened:
        for name, content in contents.items():
            opened.writestr(zipfile.ZipInfo(name), content)
