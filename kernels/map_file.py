"""Maps on disk: NPZ without objects, the same bytes for the same map."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engram.kernels.errors import DataError
from engram.kernels.grid import CELLS, Evidence
from engram.kernels.storage import UNKNOWN, Storage
from engram.kernels.whole_file import whole_file

FORMAT = 1
"""Version of the layout; a reader refuses others."""
FIELDS = {
    "format": (np.int64, ()),
    "voxel_size": (np.float64, ()),
    "evidence": (np.int64, (len(Evidence._fields),)),
    "keys": (np.int64, (None,)),
    "log_odds": (np.int8, (None, CELLS)),
}
"""Type and shape of every array."""


def write_map(path: Path, storage: Storage, voxel_size: float, evidence: Evidence) -> None:
    """Write a map, blocks sorted by key, so that slots and threads leave no trace.

    The file appears whole or not at all.
    """
    keys, order = storage.keys[: storage.count].sort()
    arrays = {
        "format": np.int64(FORMAT),
        "voxel_size": np.float64(voxel_size),
        "evidence": np.array(evidence, dtype=np.int64),
        "keys": keys.numpy(force=True),
        "log_odds": storage.log_odds[: storage.count][order].numpy(force=True),
    }
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_map(path: Path) -> dict[str, Any]:
    """Read and check what `write_map` wrote.

    Raises:
        DataError: If the file is no map, damaged, or of another version.
    """
    try:
        with path.open("rb") as stream:  # np.load leaves a file open that it cannot read
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds a single array")
            found = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no readable voxel map: {error}") from error
    if found.keys() != FIELDS.keys():
        raise DataError(f"{path} holds {sorted(found)}; allowed: {sorted(FIELDS)}")
    for name, (kind, shape) in FIELDS.items():
        array = found[name]
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for have, want in zip(array.shape, shape, strict=True)
        )
        if array.dtype != kind or not fits:
            seen = f"{array.dtype}{list(array.shape)}"
            raise DataError(f"{name} in {path} is {seen}; allowed: {np.dtype(kind)}{list(shape)}")
    if found["format"] != FORMAT:
        raise DataError(f"{path} has format {found['format']}; allowed: {FORMAT}")
    _check_contents(path, found)
    return found


def _check_contents(path: Path, found: dict[str, np.ndarray]) -> None:
    keys, value = found["keys"], found["log_odds"]
    evidence = Evidence(*map(int, found["evidence"]))
    if len(keys) != len(value):
        raise DataError(f"{path} has {len(keys)} keys and {len(value)} blocks")
    if len(keys) and (keys[0] < 0 or (np.diff(keys) <= 0).any()):
        raise DataError(f"keys in {path} are not sorted, each once, from 0 up")
    if not np.isfinite(found["voxel_size"]) or found["voxel_size"] <= 0:
        raise DataError(f"voxel_size in {path} is {found['voxel_size']}; allowed: above 0 [m]")
    if not -127 <= evidence.low <= 0 <= evidence.high <= 127:
        raise DataError(f"evidence in {path} is {evidence}; allowed: clamps within ±127")
    known = value[value != UNKNOWN]
    if len(known) and (known.min() < evidence.low or known.max() > evidence.high):
        seen = f"{known.min()} … {known.max()}"
        raise DataError(f"log-odds in {path} are {seen}; allowed: {evidence.low} … {evidence.high}")


def fill(storage: Storage, found: dict[str, Any], threshold: int) -> None:
    """Put what `read_map` found into an empty storage."""
    count = len(found["keys"])
    if count > storage.capacity:
        storage.grow(count)
    storage.append(torch.from_numpy(found["keys"]).to(storage.device))
    storage.log_odds[:count] = torch.from_numpy(found["log_odds"]).to(storage.device)
    storage.summarise(torch.arange(count, device=storage.device), threshold)
