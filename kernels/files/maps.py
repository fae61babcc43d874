"""Maps on disk: NPZ without objects, the same bytes for the same map."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from engram.kernels.errors import DataError
from engram.kernels.files.arrays import read_arrays, write_arrays
from engram.kernels.grid import CELLS, Evidence
from engram.kernels.storage import UNKNOWN, Storage

FORMAT = 1
"""Version of the layout; a reader refuses others."""
FIELDS = {
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
        "voxel_size": np.float64(voxel_size),
        "evidence": np.array(evidence, dtype=np.int64),
        "keys": keys.numpy(force=True),
        "log_odds": storage.log_odds[: storage.count][order].numpy(force=True),
    }
    write_arrays(path, arrays, FORMAT)


def read_map(path: Path) -> dict[str, Any]:
    """Read and check what `write_map` wrote.

    Raises:
        DataError: If the file is no map, damaged, or of another version.
    """
    found = read_arrays(path, FIELDS, "voxel map", FORMAT)
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
    ordered = evidence.low <= 0 <= evidence.high and evidence.miss < 0 < evidence.hit
    ordered = ordered and evidence.threshold <= evidence.high
    if not ordered or any(abs(steps) > 127 for steps in evidence):
        allowed = "steps within ±127, low ≤ 0 ≤ high, threshold ≤ high, miss < 0 < hit"
        raise DataError(f"evidence in {path} is {evidence}; allowed: {allowed}")
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
