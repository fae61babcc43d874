"""What the agent of Ballet sees, symbols or pixels, as tables from which a frame is painted."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from engram.kernels.errors import InvalidValueError

BOARD = 11
"""Side of the board, and of the crop centred on the agent [cells]."""
CELLS = BOARD * BOARD
CELL = 9
"""Side of a cell [pixels]."""
OUTSIDE, FLOOR, WALL, AGENT, DANCER = range(5)

SHAPES = (
    "triangle empty_square plus inverse_plus ex inverse_ex circle empty_circle tee upside_down_tee "
    "h u upside_down_u vertical_stripes horizontal_stripes"
).split()
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "brown": (128, 64, 0),
    "pink": (255, 64, 255),
    "cyan": (0, 255, 255),
    "dark_green": (0, 100, 0),
    "dark_red": (100, 0, 0),
    "dark_blue": (0, 0, 100),
    "olive": (100, 100, 0),
    "teal": (0, 100, 100),
    "lavender": (215, 200, 255),
    "peach": (255, 210, 170),
    "rose": (255, 205, 230),
    "light_green": (200, 255, 200),
    "light_yellow": (255, 255, 200),
}
"""Names and RGB. Green, blue, peach and light_yellow do not occur in the recorded images; they
have the values published for the original."""
GREY = {OUTSIDE: 0, FLOOR: 0, WALL: 40, AGENT: 255}
UNSEEN = 2**40
"""Corner of a cell that lies outside the crop: beyond the end of any batch of frames."""


class Canvas(NamedTuple):
    """Tables to paint a batch of views: copy a background, then a tile for every dancer."""

    shape: tuple[int, int, int]
    """Shape of one view."""
    backgrounds: UInt8[Tensor, "cells size"]
    """View without dancers, for each cell of the agent, flat."""
    corners: Int64[Tensor, " pairs"]
    """Where in a flat view a cell begins, at agent * CELLS + cell; `UNSEEN` if out of the crop."""
    patch: Int64[Tensor, " P"]
    """Where the P elements of a tile lie, from its cell's corner."""
    tiles: UInt8[Tensor, "looks P"]
    """Elements of a dancer, at shape * len(COLORS) + colour."""

    def paint(
        self,
        agent: Int64[Tensor, " N"],
        dancers: Int64[Tensor, "N D"],
        looks: Int64[Tensor, "N D"],
    ) -> UInt8[Tensor, "N height width channel"]:
        """Return views with the agent and the dancers at the given cells, dancers on top."""
        size = self.backgrounds.shape[1]
        end = len(agent) * size
        frames = torch.empty(end + 1, dtype=torch.uint8, device=agent.device)
        torch.index_select(self.backgrounds, 0, agent, out=frames[:end].unflatten(0, (-1, size)))
        row = torch.arange(0, end, size, device=agent.device)
        corner = self.corners.take((agent * CELLS)[:, None] + dancers) + row[:, None]
        # Tiles out of the crop all land on the one spare element, whatever its value.
        at = (corner[..., None] + self.patch).clamp_(max=end)
        tile = self.tiles.index_select(0, looks.flatten())
        frames.scatter_(0, at.flatten(), tile.flatten())
        return frames[:end].unflatten(0, (-1, *self.shape))


def symbols(device: torch.device | str = "cpu") -> Canvas:
    """Canvas of `[3, 11, 11]` views: kind, shape + 1 and colour + 1 of each cell."""
    kinds, cells = _crops()
    backgrounds = torch.zeros(CELLS, 3, CELLS, dtype=torch.uint8)
    backgrounds[:, 0] = kinds
    shape, color = torch.arange(len(SHAPES)), torch.arange(len(COLORS))
    looks = torch.cartesian_prod(torch.tensor([DANCER]), shape + 1, color + 1)
    return Canvas(
        (3, BOARD, BOARD),
        backgrounds.flatten(1).to(device),
        cells.flatten().to(device),
        (torch.arange(3) * CELLS).to(device),
        looks.to(device, torch.uint8),
    )


def pixels(device: torch.device | str = "cpu") -> Canvas:
    """Canvas of `[99, 99, 3]` RGB views: black floor, grey walls, a white agent."""
    kinds, cells = _crops()
    side = BOARD * CELL
    grey = torch.tensor([GREY[kind] for kind in range(DANCER)], dtype=torch.uint8)
    coarse = grey[kinds].unflatten(1, (BOARD, BOARD))  # [agent, 11, 11]
    fine = coarse.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # [agent, 99, 99]
    corner = (cells // BOARD * side + cells % BOARD) * CELL * 3
    y, x, channel = torch.meshgrid(
        torch.arange(CELL), torch.arange(CELL), torch.arange(3), indexing="ij"
    )
    masks = torch.stack([template(name) for name in SHAPES])
    rgb = torch.tensor(list(COLORS.values()), dtype=torch.uint8)
    tiles = masks[:, None, :, :, None] * rgb[:, None, None, :]  # [shape, colour, 9, 9, 3]
    return Canvas(
        (side, side, 3),
        fine[..., None].repeat(1, 1, 1, 3).flatten(1).to(device),
        torch.where(cells == UNSEEN, UNSEEN, corner).flatten().to(device),
        ((y * side + x) * 3 + channel).flatten().to(device),
        tiles.flatten(0, 1).flatten(1).to(device),
    )


def template(shape: str) -> Bool[Tensor, "9 9"]:
    """Pixels that a dancer's shape fills in its cell.

    Twelve shapes equal the original's recorded images. `inverse_plus`, `inverse_ex` and
    `upside_down_u` do not occur there and are drawn as their names say.
    """
    half = CELL // 2
    y, x = torch.meshgrid(*2 * [torch.arange(-half, half + 1)], indexing="ij")
    radius = x**2 + y**2
    posts, stem, top, bottom = x.abs() >= 2, x.abs() <= 1, y <= -2, y >= 2
    plus, ex = stem | (y.abs() <= 1), (x.abs() - y.abs()).abs() <= 1
    masks = {
        "triangle": 2 * x.abs() <= y + half,
        "empty_square": torch.maximum(x.abs(), y.abs()) >= 3,
        "plus": plus,
        "inverse_plus": ~plus,
        "ex": ex,
        "inverse_ex": ~ex,
        "circle": radius <= 16,
        "empty_circle": (radius > 10) & (radius < 25),
        "tee": top | stem,
        "upside_down_tee": bottom | stem,
        "h": posts | (y.abs() <= 1),
        "u": posts | bottom,
        "upside_down_u": posts | top,
        "vertical_stripes": x % 2 == 0,
        "horizontal_stripes": y % 2 == 0,
    }
    if shape not in masks:
        raise InvalidValueError("shape", shape, SHAPES)
    return masks[shape]


def _crops() -> tuple[Int64[Tensor, "agent cell"], Int64[Tensor, "agent cell"]]:
    """Kind at each cell of the crop, and the crop's cell for each of the board, by agent."""
    row, column = torch.arange(CELLS) // BOARD, torch.arange(CELLS) % BOARD
    reach = BOARD // 2
    board_row = row[:, None] - reach + row  # [agent, cell of the crop]
    board_column = column[:, None] - reach + column
    last = BOARD - 1
    outside = (board_row < 0) | (board_row > last) | (board_column < 0) | (board_column > last)
    ring = (board_row % last == 0) | (board_column % last == 0)
    kinds = torch.where(outside, OUTSIDE, torch.where(ring, WALL, FLOOR))
    kinds[:, CELLS // 2] = AGENT
    crop_row = row - row[:, None] + reach  # [agent, cell of the board]
    crop_column = column - column[:, None] + reach
    seen = (crop_row >= 0) & (crop_row <= last) & (crop_column >= 0) & (crop_column <= last)
    return kinds, torch.where(seen, crop_row * BOARD + crop_column, UNSEEN)
