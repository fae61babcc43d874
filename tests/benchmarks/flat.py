"""A furnished flat that a depth camera walks through: the stream that voxel maps are timed on."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from engram.kernels import Camera

SIZE = (12.0, 9.0, 2.8)
"""Of the flat [m]: four rooms with doors between them."""
CAMERA = Camera(width=640, height=480, fx=525.0, fy=525.0, cx=319.5, cy=239.5)
RANGE = 5.0
"""Of the camera [m]."""
WALL = 0.1


class Scan(NamedTuple):
    """What one frame saw."""

    points: Float[Tensor, "n 3"]
    """[m], float32."""
    origin: tuple[float, float, float]
    """[m]"""


class Flat(NamedTuple):
    """Solid things."""

    boxes: Float[Tensor, "b 2 3"]
    """Least and greatest corners [m]."""
    balls: Float[Tensor, "s 4"]
    """Centres and radii [m]."""


def furnish(seed: int = 0) -> Flat:
    """Put 36 boxes and 24 balls into four rooms."""
    random = torch.Generator().manual_seed(seed)
    x, y, z = SIZE
    walls = [
        [(-WALL, -WALL, -WALL), (x + WALL, y + WALL, 0)],
        [(-WALL, -WALL, z), (x + WALL, y + WALL, z + WALL)],
        [(-WALL, -WALL, 0), (0, y + WALL, z)],
        [(x, -WALL, 0), (x + WALL, y + WALL, z)],
        [(-WALL, -WALL, 0), (x + WALL, 0, z)],
        [(-WALL, y, 0), (x + WALL, y + WALL, z)],
        # Between the rooms, with doors of one metre.
        [(x / 2, 0, 0), (x / 2 + WALL, y / 4, z)],
        [(x / 2, y / 4 + 1, 0), (x / 2 + WALL, 3 * y / 4, z)],
        [(x / 2, 3 * y / 4 + 1, 0), (x / 2 + WALL, y, z)],
        [(0, y / 2, 0), (x / 4, y / 2 + WALL, z)],
        [(x / 4 + 1, y / 2, 0), (3 * x / 4, y / 2 + WALL, z)],
        [(3 * x / 4 + 1, y / 2, 0), (x, y / 2 + WALL, z)],
    ]
    corner = torch.rand(36, 3, generator=random) * torch.tensor([x - 1, y - 1, 0.0])
    size = 0.2 + torch.rand(36, 3, generator=random) * torch.tensor([0.8, 0.8, 1.4])
    boxes = torch.stack([corner, corner + size], dim=1)
    centre = torch.rand(24, 3, generator=random) * torch.tensor([x - 1, y - 1, z - 0.8]) + 0.4
    radius = 0.1 + 0.3 * torch.rand(24, 1, generator=random)
    return Flat(torch.cat([torch.tensor(walls), boxes]), torch.cat([centre, radius], dim=1))


def walk(frames: int, seed: int = 0) -> list[Scan]:
    """Look around while walking an eight through the rooms."""
    flat, random = furnish(seed), torch.Generator().manual_seed(seed + 1)
    scans = []
    for i in range(frames):
        turn = 2 * math.pi * i / frames
        place = (6 + 4 * math.sin(turn), 4.5 + 3 * math.sin(2 * turn), 1.4)
        scans.append(look(flat, place, 3 * turn, random))
    return scans


def look(
    flat: Flat, place: tuple[float, float, float], heading: float, random: torch.Generator
) -> Scan:
    """Take one depth image, with the noise of a Kinect, and return its points."""
    v, u = torch.meshgrid(torch.arange(CAMERA.height), torch.arange(CAMERA.width), indexing="ij")
    right = torch.tensor([math.sin(heading), -math.cos(heading), 0.0])
    forward = torch.tensor([math.cos(heading), math.sin(heading), -0.15])
    down = torch.linalg.cross(forward, right)
    across = (u.flatten() - CAMERA.cx) / CAMERA.fx
    along = (v.flatten() - CAMERA.cy) / CAMERA.fy
    ray = across[:, None] * right + along[:, None] * down + forward
    origin = torch.tensor(place)
    depth = first_hit(flat, origin, ray)
    noise = torch.randn(len(depth), generator=random)
    depth = depth + noise * (0.0012 + 0.0019 * (depth - 0.4).square())
    points = origin + depth[:, None] * ray
    near = (points - origin).norm(dim=1) <= RANGE
    return Scan(points[near].contiguous(), place)


def first_hit(
    flat: Flat, origin: Float[Tensor, " 3"], ray: Float[Tensor, "n 3"]
) -> Float[Tensor, " n"]:
    """How many times its length each ray goes before it meets something; infinite if nothing."""
    best = torch.full((len(ray),), math.inf)
    inverse = 1 / torch.where(ray == 0, 1e-12, ray)
    for least, most in flat.boxes:
        low, high = (least - origin) * inverse, (most - origin) * inverse
        enter = torch.minimum(low, high).amax(1)
        leave = torch.maximum(low, high).amin(1)
        hit = (enter <= leave) & (enter > 0)
        best = torch.where(hit & (enter < best), enter, best)
    square = ray.square().sum(1)
    for ball in flat.balls:
        apart = origin - ball[:3]
        half = ray @ apart
        root = half.square() - square * (apart.square().sum() - ball[3].square())
        enter = (-half - root.clamp(min=0).sqrt()) / square
        best = torch.where((root > 0) & (enter > 0) & (enter < best), enter, best)
    return best
