"""A map from above, as a picture."""

import io

import numpy as np
from jaxtyping import Float

LIGHT = np.array([-0.5, -0.5, 0.7])
"""Where the light comes from in the picture: above left."""


def draw_top_view(
    centres: Float[np.ndarray, "n 3"],
    *,
    up: Float[np.ndarray, " 3"],
    voxel_size: float,
    path: Float[np.ndarray, "m 3"],
    title: str,
) -> bytes:
    """Draw the highest occupied voxel of every column, coloured by its height, and shaded.

    Args:
        centres: Of the occupied voxels [m].
        up: Unit vector along one of the axes.
        voxel_size: [m]
        path: Where the sensor was [m].
        title: Above the picture.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axis = int(np.abs(up).argmax())
    # Right and forward, so that the picture is not mirrored.
    forward = np.eye(3)[2 if axis == 1 else 1]
    right = np.cross(forward, up)
    x, y, height = centres @ right, centres @ forward, centres @ up
    column = np.floor((x - x.min()) / voxel_size + 0.5).astype(int)
    row = np.floor((y - y.min()) / voxel_size + 0.5).astype(int)
    top = np.full((row.max() + 1, column.max() + 1), np.nan)
    order = height.argsort()  # the highest is written last
    top[row[order], column[order]] = height[order]

    half = voxel_size / 2
    extent = (x.min() - half, x.max() + half, y.min() - half, y.max() + half)
    share = (extent[1] - extent[0]) / (extent[3] - extent[2])
    figure = Figure(figsize=(float(np.clip(6 * share, 4, 12)) + 1.5, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(title=title, xlabel="[m]", ylabel="[m]", aspect="equal", facecolor="0.1")
    low, high = np.percentile(height, [1, 99])
    colours = axes.imshow(
        top, origin="lower", extent=extent, cmap="viridis", vmin=low, vmax=high,
        interpolation="nearest",
    )  # fmt: skip
    axes.imshow(
        _shade(top, voxel_size), origin="lower", extent=extent, cmap="gray", alpha=0.35,
        interpolation="nearest",
    )  # fmt: skip
    figure.colorbar(colours, ax=axes, label="height [m]", shrink=0.8)
    axes.plot(path @ right, path @ forward, color="tab:red", linewidth=1.5, label="sensor")
    axes.plot(path[:1] @ right, path[:1] @ forward, "o", color="tab:red")
    axes.legend(loc="upper right")
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png", metadata={"Software": None})
    return png.getvalue()


def _shade(top: Float[np.ndarray, "H W"], voxel_size: float) -> Float[np.ndarray, "H W"]:
    """Light that falls on a surface, 0 … 1; NaN where there is none."""
    filled = np.where(np.isnan(top), np.nanmin(top), top)
    # A picture may be one voxel wide, which has no gradient.
    down, along = (part[1:-1, 1:-1] for part in np.gradient(np.pad(filled, 1, "edge"), voxel_size))
    normal = np.stack([-along, -down, np.ones_like(top)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = normal @ (LIGHT / np.linalg.norm(LIGHT))
    return np.where(np.isnan(top), np.nan, light.clip(0, 1))
