"""Statistics of the columns of an episode, and of many episodes from those of each."""

from collections.abc import Iterable, Mapping

import numpy as np

from engram.agents.demonstrations.feature import IMAGES, Feature

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
IMAGES_COUNTED = 100
"""Frames of an episode that its image statistics rest on, evenly spaced."""

Statistics = dict[str, np.ndarray]
"""min, max, mean, std, count and the quantiles of one column, float64.

The count is int64 [1], and so are the extremes of integers.

A column of numbers has them per entry of its last axis; a column of images per channel, [3, 1, 1],
for values scaled to 0 … 1.
"""


def of_column(column: np.ndarray, feature: Feature) -> Statistics:
    """Return the statistics of one column [T, *shape]; the quantiles are exact."""
    if feature.dtype in IMAGES:
        return _of_images(column)
    rows = column.reshape(-1, column.shape[-1]).astype(np.float64)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    whole = column.dtype.kind in "iu"
    return {
        "min": rows.min(0).astype(np.int64) if whole else rows.min(0),
        "max": rows.max(0).astype(np.int64) if whole else rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        "count": np.array([len(column)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _of_images(images: np.ndarray) -> Statistics:
    """Bytes have 256 values, so their counts hold all that is asked."""
    counted = min(len(images), IMAGES_COUNTED)
    images = images[np.linspace(0, len(images) - 1, counted).round().astype(int)]
    levels = np.arange(256) / 255
    channels = []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        total = counts.sum()
        seen = np.flatnonzero(counts)
        mean = counts @ levels / total
        reached = counts.cumsum()
        ranks = [int(np.searchsorted(reached, q * total)) for q in QUANTILES.values()]
        std = np.sqrt(counts @ (levels - mean) ** 2 / total)
        channels.append([levels[seen[0]], levels[seen[-1]], mean, std, *levels[ranks]])
    names = ("min", "max", "mean", "std", *QUANTILES)
    values = np.array(channels)[:, :, None, None]  # [channel, statistic, 1, 1]
    return {
        **{name: values[:, i] for i, name in enumerate(names)},
        "count": np.array([counted]),
    }


def aggregate(parts: Iterable[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """Join the statistics of episodes as LeRobot does.

    min, max, mean, std and count are those of all frames together. A quantile is the mean of the
    episodes' quantiles, weighted by their counts: not the quantile of all frames, which
    `Demonstrations.quantiles` returns.
    """
    parts = list(parts)
    joined: dict[str, Statistics] = {}
    for key in parts[0] if parts else ():
        columns = [part[key] for part in parts]
        count = np.stack([column["count"] for column in columns])  # [P, 1]
        weight = count.reshape(-1, *[1] * columns[0]["mean"].ndim) / count.sum()
        mean = np.stack([column["mean"] for column in columns])
        square = np.stack([column["std"] for column in columns]) ** 2
        total = (weight * mean).sum(0)
        joined[key] = {
            "min": np.min([column["min"] for column in columns], axis=0),
            "max": np.max([column["max"] for column in columns], axis=0),
            "mean": total,
            "std": np.sqrt((weight * (square + (mean - total) ** 2)).sum(0)),
            "count": count.sum(0),
        }
        for name in QUANTILES:
            if all(name in column for column in columns):
                stacked = np.stack([column[name] for column in columns])
                joined[key][name] = (weight * stacked).sum(0)
    return joined
