"""Features of voxels on disk, beside the map that they belong to."""

from pathlib import Path

import numpy as np
import torch

from engram.kernels.errors import DataError
from engram.kernels.features import VoxelFeatures
from engram.kernels.files.arrays import read_arrays, write_arrays
from engram.kernels.grid import CELLS, KEY_BITS
from engram.kernels.queries import VoxelQueries

FORMAT = 1
"""Version of the layout; a reader refuses others."""
FIELDS = {
    "keys": (np.int64, (None,)),
    "cells": (np.int64, (None,)),
    "values": (None, (None, None)),
    "weight": (np.float32, (None,)),
}


def write_features(features: VoxelFeatures, path: str | Path) -> None:
    """Write features by block and voxel, sorted: the same features give the same bytes.

    Values of types that NumPy lacks (bfloat16) are written as float32.
    """
    place, row = features.owners()
    keys, cells = features.held.storage.keys[place // CELLS], place % CELLS
    order = cells.argsort()
    order = order[keys[order].argsort(stable=True)]
    values = features.values.detach()[row[order]]
    if values.dtype == torch.bfloat16:
        values = values.float()
    arrays = {
        "keys": keys[order],
        "cells": cells[order],
        "values": values,
        "weight": features.weight[row[order]],
    }
    numbers = {name: array.numpy(force=True) for name, array in arrays.items()}
    write_arrays(Path(path), numbers, FORMAT)


def read_features(
    path: str | Path, held: VoxelQueries, *, max_rows: int | None = None
) -> VoxelFeatures:
    """Read what `write_features` wrote, for the map that it was written for.

    Raises:
        DataError: If the file is damaged, or has features of voxels that the map lacks.
        FullError: If there are more than `max_rows`.
    """
    found = read_arrays(Path(path), FIELDS, "features of voxels", FORMAT)
    parts = [torch.from_numpy(found[name]).to(held.device) for name in FIELDS]
    keys, cells, values, weight = parts
    if len({len(part) for part in parts}) != 1:
        raise DataError(
            f"{path} has {[len(part) for part in parts]} rows; allowed: as many in each"
        )
    whole = bool(((keys >= 0) & (cells >= 0) & (cells < CELLS)).all())
    step, inner = keys.diff(), cells.diff()
    if not whole or not bool(((step > 0) | ((step == 0) & (inner > 0))).all()):
        raise DataError(f"voxels in {path} are not sorted, each once")
    if not values.is_floating_point() or not values.shape[1]:
        raise DataError(f"values in {path} are {values.dtype}{list(values.shape)}; allowed: floats")
    codes = (keys & ((1 << KEY_BITS) - 1)) * CELLS + cells
    place = held.kernel.locate(held.storage, codes, (keys >> KEY_BITS).contiguous())
    if lacking := int((place < 0).sum()):
        raise DataError(f"{path} has features of {lacking} voxels in blocks that the map lacks")
    made = VoxelFeatures(held, values.shape[1], dtype=values.dtype, max_rows=max_rows)
    made.assign(place, values, weight)
    return made
