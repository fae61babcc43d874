"""What a user may pass: each function returns it in the form the kernels take, or refuses it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import BIAS, WORLDS
from engram.kernels.scan import Camera, Insert, Scan, Worlds

Vector = Sequence[float] | Float[Tensor, " 3"]
"""Three numbers."""
RIGID = 1e-3
"""By how much R Rᵀ may differ from 1 in a pose: recorded ones are rounded, or drift."""


def checked_scan(
    points: Float[Tensor, "n 3"],
    origin: Vector,
    *,
    voxel_size: float,
    mode: Insert,
    max_range: float,
) -> Scan:
    """Return a scan whose origin lies on the grid."""
    if not isinstance(mode, Insert):
        raise InvalidValueError("mode", mode, [str(each) for each in Insert])
    if not max_range > 0:
        raise InvalidValueError("max_range", max_range, "above 0 [m]")
    at = checked_vector("origin", origin)
    border = BIAS * voxel_size
    if not all(-border <= x < border for x in at):
        raise InvalidValueError("origin", at, f"within {border} m of the grid's centre")
    return Scan(points, at, voxel_size, float(max_range), mode)


def checked_points(points: Float[Tensor, "n 3"], device: torch.device) -> Float[Tensor, "n 3"]:
    """Return points as float32 on the device."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise InvalidValueError("points", tuple(points.shape), "shape [n, 3]")
    return points.to(device, torch.float32)


def checked_depth(depth: Float[Tensor, "H W"], camera: Camera) -> Float[Tensor, "H W"]:
    """Return a depth image in float32 that is as large as the camera's."""
    size = (camera.height, camera.width)
    if depth.shape != size or not depth.is_floating_point():
        seen = f"{depth.dtype}{list(depth.shape)}"
        raise InvalidValueError("depth", seen, f"floats {list(size)} in metres")
    if not (math.isfinite(camera.fx) and math.isfinite(camera.fy) and camera.fx * camera.fy):
        raise InvalidValueError("camera", camera, "finite focal lengths, not 0")
    return depth.float()


def checked_world(world: int) -> int:
    """Return a world's number."""
    if not 0 <= world < WORLDS:
        raise InvalidValueError("world", world, f"0 to {WORLDS - 1}")
    return world


def checked_worlds(world: Worlds, items: Tensor, device: torch.device) -> Worlds:
    """Return one world for all items, or one for each, on the device and contiguous."""
    if isinstance(world, int):
        return checked_world(world)
    if world.shape != items.shape[:1]:
        raise InvalidValueError("world", tuple(world.shape), f"one for each of {len(items)}")
    if len(world) and not (0 <= int(world.min()) and int(world.max()) < WORLDS):
        seen = f"{int(world.min())} … {int(world.max())}"
        raise InvalidValueError("world", seen, f"0 to {WORLDS - 1}")
    return world.to(device, torch.int64).contiguous()


def checked_vector(name: str, given: Vector) -> tuple[float, float, float]:
    """Return three finite numbers."""
    numbers = torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise InvalidValueError(name, numbers, "three finite numbers [m]")
    return (numbers[0], numbers[1], numbers[2])


def checked_voxels(name: str, metres: float, voxel_size: float) -> float:
    """Return a distance in voxels."""
    if not metres >= 0:
        raise InvalidValueError(name, metres, "0 or more [m]")
    return float(metres) / voxel_size


def checked_corner(name: str, given: Vector, voxel_size: float) -> Int[Tensor, " 3"]:
    """Return the coordinates of the voxel that holds a point, brought to the grid."""
    at = torch.as_tensor(given, dtype=torch.float64).flatten() * (1 / voxel_size)
    if at.shape != (3,) or bool(at.isnan().any()):
        raise InvalidValueError(name, at.tolist(), "three numbers [m]")
    return at.floor().clamp(-BIAS, BIAS - 1).to(torch.int64)


def checked_pose(name: str, given: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """Return a rigid transform in float64."""
    pose = torch.as_tensor(given, dtype=torch.float64)
    if pose.shape != (4, 4) or not bool(pose.isfinite().all()):
        raise InvalidValueError(name, pose.tolist(), "4 × 4 finite numbers")
    rotation = pose[:3, :3]
    error = float((rotation @ rotation.t() - torch.eye(3, dtype=torch.float64)).abs().max())
    last = pose[3].tolist() == [0.0, 0.0, 0.0, 1.0]
    if error > RIGID or float(torch.linalg.det(rotation)) < 0 or not last:
        seen = f"a matrix whose rotation is off by {error:.3g}" if last else f"ending in {pose[3]}"
        raise InvalidValueError(name, seen, f"rotation and translation, to {RIGID}")
    return pose
