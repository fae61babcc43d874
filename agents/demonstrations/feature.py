"""What an episode of demonstrations holds: columns of one length, each with a declared shape."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from engram.kernels.errors import DataError, InvalidValueError

NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64")
IMAGES = ("video", "image")


class Feature(NamedTuple):
    """One column of a data set, as LeRobot's `info.json` declares it."""

    dtype: str
    """"video" (frames in MP4), "image" (a PNG per frame), or the name of a NumPy number type."""
    shape: tuple[int, ...]
    """Shape of one frame; images as (height, width, 3), single numbers as (1,)."""
    names: Any = None
    """What the entries are called, or None; JSON that is kept as it is."""


# What every data set has beside the user's columns; the writer fills these in.
INDEX: dict[str, Feature] = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}


class Episode(NamedTuple):
    """One demonstration from its first to its last frame."""

    frames: dict[str, np.ndarray]
    """Columns [T, *shape] by name: "observation.images.<camera>" (uint8), "observation.state",
    "action" (float32), and whatever else the features declare."""
    task: str
    """The instruction, in words."""


def image_size(feature: Feature) -> tuple[int, int]:
    """Return (height, width) of an image column; both axis orders occur in published data."""
    names = feature.names if isinstance(feature.names, list | tuple) else ()
    first = bool(names) and "channel" in str(names[0])
    if first or feature.shape[-1] not in (1, 3, 4):
        return feature.shape[1], feature.shape[2]
    return feature.shape[0], feature.shape[1]


def check_features(features: Mapping[str, Feature]) -> None:
    """Refuse features that cannot be written.

    Raises:
        InvalidValueError: If a name, type or shape is not allowed.
    """
    if not features:
        raise InvalidValueError("features", {}, "at least one column")
    for key, feature in features.items():
        if not key or key in INDEX or "/" in key or key in ("task", ".", ".."):
            taken = ", ".join(["task", *INDEX])
            raise InvalidValueError("name of a feature", key, f"no '/', and none of {taken}")
        if feature.dtype not in (*IMAGES, *FLOATS, *NUMBERS):
            raise InvalidValueError(f"dtype of {key}", feature.dtype, (*IMAGES, *FLOATS, *NUMBERS))
        if not feature.shape or min(feature.shape) < 1 or len(feature.shape) > 5:
            raise InvalidValueError(f"shape of {key}", feature.shape, "1 to 5 positive sizes")
        if feature.dtype in IMAGES and (len(feature.shape) != 3 or feature.shape[2] != 3):
            raise InvalidValueError(f"shape of {key}", feature.shape, "(height, width, 3)")


def check_episode(episode: Episode, features: Mapping[str, Feature]) -> int:
    """Return the number of frames of an episode that fits the features.

    Raises:
        InvalidValueError: If a column is missing, superfluous, of another type, shape or length
            than the rest, or holds NaN or infinity; or if there is no frame, or no instruction
            that can be written.
    """
    frames = episode.frames
    _check_task(episode.task)
    for key in sorted(features.keys() ^ frames.keys()):
        seen = "missing" if key in features else "superfluous"
        raise InvalidValueError(f"column {key} of the episode", seen, sorted(features))
    for key, column in frames.items():
        if not isinstance(column, np.ndarray):
            raise InvalidValueError(f"column {key} of the episode", column, "a NumPy array")
    lengths = {key: len(frames[key]) if frames[key].ndim else 0 for key in features}
    length = next(iter(lengths.values()))
    if not length or len(set(lengths.values())) > 1:
        raise InvalidValueError("frames of the episode", lengths, "one length of 1 or more")
    for key, feature in features.items():
        column = frames[key]
        dtype = "uint8" if feature.dtype in IMAGES else feature.dtype
        if column.dtype != np.dtype(dtype):
            raise InvalidValueError(f"dtype of {key}", str(column.dtype), dtype)
        if column.shape[1:] != feature.shape:
            raise InvalidValueError(f"shape of a frame of {key}", column.shape[1:], [feature.shape])
        if (bad := not_finite(column)) is not None:
            raise InvalidValueError(f"{key} at frame {bad}", column[bad].tolist(), "finite numbers")
    return length


def _check_task(task: Any) -> None:
    allowed = "an instruction in words"
    if not isinstance(task, str) or not task.strip():
        raise InvalidValueError("task of the episode", task, allowed)
    try:
        task.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, as Python reads bytes that are no text
        raise InvalidValueError("task of the episode", ascii(task), allowed) from error


def not_finite(column: np.ndarray) -> int | None:
    """Return the first frame that holds NaN or infinity."""
    if column.dtype.kind != "f":
        return None
    finite = np.isfinite(column).all(axis=tuple(range(1, column.ndim)))
    return None if finite.all() else int(finite.argmin())


def beyond(column: np.ndarray, least: float, most: float) -> int | None:
    """Return the first frame of a column of numbers that holds one outside limits."""
    if column.dtype.kind not in "biuf":
        return None
    within = ((column >= least) & (column <= most)).all(axis=tuple(range(1, column.ndim)))
    return None if within.all() else int(within.argmin())


def to_json(features: Mapping[str, Feature]) -> dict[str, Any]:
    """Return the features as `info.json` holds them."""
    return {
        key: {"dtype": dtype, "shape": list(shape), "names": names}
        for key, (dtype, shape, names) in features.items()
    }


def from_json(declared: Any, source: object) -> dict[str, Feature]:
    """Read the features of an `info.json`.

    Raises:
        DataError: If they are not as LeRobot declares features.
    """
    try:
        features = {
            key: Feature(entry["dtype"], tuple(map(int, entry["shape"])), entry.get("names"))
            for key, entry in declared.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: damaged features: {error!r}") from error
    for key, feature in features.items():
        known = (*IMAGES, *FLOATS, *NUMBERS, "float16", "string")
        if feature.dtype not in known:
            raise DataError(
                f"{source}: dtype of {key} is {feature.dtype!r}; allowed: {', '.join(known)}"
            )
        if not feature.shape or (feature.dtype in IMAGES and len(feature.shape) != 3):
            raise DataError(f"{source}: shape of {key} is {list(feature.shape)}")
    return features
