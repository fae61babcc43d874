"""Columns between NumPy and Arrow, as LeRobot's Parquet files hold them."""

import io
from types import ModuleType
from typing import Any

import numpy as np

from engram.agents.demonstrations.feature import Feature, image_size
from engram.kernels.errors import DataError, MissingPackageError


def arrow() -> ModuleType:
    """Return the package `pyarrow`, its Parquet part loaded.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError("pyarrow", "demonstrations") from None
    return pyarrow


def to_arrow(column: np.ndarray, feature: Feature) -> Any:
    """Return a column [T, *shape] as an Arrow array of T entries.

    Single numbers are plain, vectors lists of fixed size, matrices lists of lists, images PNG.
    """
    pa = arrow()
    if feature.dtype == "image":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": _png(image), "path": None} for image in column], kind)
    values = pa.array(column.reshape(-1), pa.from_numpy_dtype(np.dtype(feature.dtype)))
    if feature.shape == (1,):
        return values
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(values, feature.shape[0])
    for size in reversed(feature.shape):
        ends = np.arange(0, len(values) + 1, size, dtype=np.int32)
        values = pa.ListArray.from_arrays(ends, values)
    return values


def from_arrow(column: Any, feature: Feature, length: int) -> np.ndarray:
    """Return `length` entries of an Arrow column as an array [T, *shape].

    Raises:
        DataError: If entries are missing, no numbers, or do not have the shape.
    """
    pa = arrow()
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if feature.dtype == "image":
        return _images(values, feature)
    while True:
        if values.null_count:
            raise DataError(f"{values.null_count} entries are missing")
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
            values = values.flatten()
        else:
            break
    if len(values) != length * int(np.prod(feature.shape)):
        raise DataError(f"{len(values)} numbers in {length} frames of shape {list(feature.shape)}")
    if feature.dtype == "string":
        return np.array(values.to_pylist(), dtype=str).reshape(length, *feature.shape)
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "biuf":
        raise DataError(f"its entries are {values.type}; allowed: numbers ({feature.dtype})")
    # A copy: what Arrow maps is read-only.
    return numbers.astype(feature.dtype).reshape(length, *feature.shape)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png", compress_level=1)
    return file.getvalue()


def _images(values: Any, feature: Feature) -> np.ndarray:
    from PIL import Image

    size = image_size(feature)
    images = np.empty((len(values), *size, 3), np.uint8)
    for place, entry in enumerate(values.to_pylist()):
        content = entry and entry["bytes"]
        if not content:
            raise DataError(f"the image of entry {place} is not in the file")
        try:
            with Image.open(io.BytesIO(content)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"the image of entry {place} is damaged: {error}") from error
        if pixels.shape[:2] != size:
            raise DataError(f"the image of entry {place} is {pixels.shape[:2]}; allowed: {size}")
        images[place] = pixels
    return images
