"""What a user may pass: each function returns it in the form the kernels take, or refuses it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import BIAS, WORLDS
from engram.kernels.scan import FARTHEST_PROJECTIVE, Camera, Images, Insert, Scan, Worlds

Vector = Sequence[float] | Float[Tensor, " 3"]
"""Three numbers."""
RIGID = 1e-3
"""By how much R Rᵀ may differ from 1 in a pose: recorded ones are rounded, or drift."""


def checked_scan(
    points: Float[Tensor, "*B n 3"],
    origin: Vector | Float[Tensor, "B 3"],
    world: int | Sequence[int] | Int[Tensor, " B"] | None,
    *,
    voxel_size: float,
    mode: Insert,
    max_range: float,
    images: Images | None = None,
    wait: bool = True,
) -> Scan:
    """Return scans whose origins lie on the grid, one for each of several worlds.

    Unless `wait`, origins on a device are not looked at: then the kernels count the points of one
    off the grid as off the grid.
    """
    if not isinstance(mode, Insert):
        raise InvalidValueError("mode", mode, [str(each) for each in Insert])
    if not max_range > 0:
        raise InvalidValueError("max_range", max_range, "above 0 [m]")
    if mode is Insert.PROJECTIVE:
        farthest = FARTHEST_PROJECTIVE * voxel_size
        if images is None:
            raise InvalidValueError("mode", mode, "others: only depth images can be projected")
        if max_range > farthest:
            raise InvalidValueError("max_range", max_range, f"up to {farthest} m in {mode}")
    if points.ndim not in (2, 3) or points.shape[-1] != 3:
        raise InvalidValueError("points", tuple(points.shape), "shape [n, 3] or [B, n, 3]")
    batched = points.ndim == 3
    count = len(points) if batched else 1
    at = torch.as_tensor(origin, dtype=torch.float64).detach()
    if at.shape != ((count, 3) if batched else (3,)):
        allowed = f"shape {[count, 3] if batched else [3]}, as points are {list(points.shape)}"
        raise InvalidValueError("origin", list(at.shape), allowed)
    at = at.view(count, 3)
    border = BIAS * voxel_size
    known = wait or at.device.type == "cpu"
    if known and not all(-border <= x < border for x in at.flatten().tolist()):
        raise InvalidValueError("origin", at.tolist(), f"within {border} m of the grid's centre")
    return Scan(
        points if batched else points[None],
        on_device(at, points.device),
        worlds_once(world, count),
        voxel_size,
        float(max_range),
        mode,
        images if mode is Insert.PROJECTIVE else None,
    )


def world_numbers(given: int | Sequence[int] | Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return numbers of worlds, int64, wherever they are; refuse what is no integer."""
    numbers = torch.as_tensor(given if not isinstance(given, range) else list(given))
    if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
        raise InvalidValueError("world", numbers.tolist(), "integers")
    return numbers.to(torch.int64).reshape(-1)


def worlds_once(
    world: int | Sequence[int] | Int[Tensor, " B"] | None, count: int
) -> Int[Tensor, " B"]:
    """Return the numbers of that many worlds, each once, on the host; the first ones for none."""
    if world is None and count <= WORLDS:
        return torch.arange(count)
    if isinstance(world, int) and count == 1:
        return torch.tensor([checked_world(world)])
    worlds = world_numbers(range(count) if world is None else world).cpu()
    if len(worlds) != count or len(worlds.unique()) != count:
        allowed = f"{count}, each once, one for each scan"
        raise InvalidValueError("world", worlds.tolist(), allowed)
    for each in (int(worlds.min()), int(worlds.max())) if count else ():
        checked_world(each)
    return worlds


def checked_points(points: Float[Tensor, "n 3"], device: torch.device) -> Float[Tensor, "n 3"]:
    """Return points as float32 on the device."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise InvalidValueError("points", tuple(points.shape), "shape [n, 3]")
    return on_device(points.detach().float(), device)


def checked_images(
    depth: Float[Tensor, "*B H W"],
    camera: Camera,
    pose_camera_to_world: Float[Tensor, "*B 4 4"],
    device: torch.device,
    wait: bool = True,
) -> Images:
    """Return depth images as large as the camera's, and a rigid pose for each.

    Unless `wait`, poses on a device are not looked at.
    """
    size = (camera.height, camera.width)
    if depth.ndim not in (2, 3) or depth.shape[-2:] != size or not depth.is_floating_point():
        seen = f"{depth.dtype}{list(depth.shape)}"
        allowed = f"floats {list(size)} in metres, or several of them"
        raise InvalidValueError("depth", seen, allowed)
    checked_camera(camera)
    poses = torch.as_tensor(pose_camera_to_world, dtype=torch.float64)
    wanted = depth.shape[:-2]
    if poses.shape != (*wanted, 4, 4):
        allowed = f"shape {[*wanted, 4, 4]}, as depth is {list(depth.shape)}"
        raise InvalidValueError("pose_camera_to_world", list(poses.shape), allowed)
    poses = poses.reshape(-1, 4, 4).contiguous()
    if wait or poses.device.type == "cpu":
        checked_poses("pose_camera_to_world", poses)
    images = on_device(depth.detach().reshape(-1, *size).float(), device)
    return Images(images, camera, on_device(poses.detach(), device))


def checked_camera(camera: Camera) -> Camera:
    """Return a camera that projects."""
    if not all(map(math.isfinite, camera)) or 0 in (camera.fx, camera.fy):
        raise InvalidValueError("camera", camera, "finite numbers, focal lengths not 0")
    return camera


def checked_world(world: int) -> int:
    """Return a world's number."""
    if not 0 <= world < WORLDS:
        raise InvalidValueError("world", world, f"0 to {WORLDS - 1}")
    return world


def checked_worlds(world: Worlds, items: Tensor, device: torch.device) -> Worlds:
    """Return one world for all items, or one for each, on the device and contiguous.

    Numbers on a CUDA device are not looked at, which would wait for it: what is the number of no
    world becomes −1, in which nothing is known.
    """
    if isinstance(world, int):
        return checked_world(world)
    world = world_numbers(world)
    if world.shape != items.shape[:1]:
        raise InvalidValueError("world", tuple(world.shape), f"one for each of {len(items)}")
    if world.is_cuda:
        there = (world >= 0) & (world < WORLDS)
        return torch.where(there, world, -1).to(device).contiguous()
    if len(world) and not (0 <= int(world.min()) and int(world.max()) < WORLDS):
        seen = f"{int(world.min())} … {int(world.max())}"
        raise InvalidValueError("world", seen, f"0 to {WORLDS - 1}")
    return on_device(world, device)


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for it: from pinned memory, which torch keeps for it."""
    if numbers.device == device:
        return numbers.contiguous()
    if device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True).contiguous()


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
    if pose.shape != (4, 4):
        raise InvalidValueError(name, list(pose.shape), "shape [4, 4]")
    return checked_poses(name, pose[None])[0]


def checked_poses(name: str, poses: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 4 4"]:
    """Return rigid transforms, float64."""
    here = poses.cpu()  # a few numbers
    if not bool(here.isfinite().all()):
        raise InvalidValueError(name, here.tolist(), "finite numbers")
    rotation = here[:, :3, :3]
    unit = torch.eye(3, dtype=torch.float64)
    error = (rotation @ rotation.mT - unit).abs().amax((1, 2))
    mirrored = torch.linalg.det(rotation) < 0
    last = (here[:, 3] != torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).any(1)
    for i in ((error > RIGID) | mirrored | last).nonzero()[:1, 0].tolist():
        seen = f"a matrix whose rotation is off by {float(error[i]):.3g}"
        if mirrored[i]:
            seen = "a matrix that mirrors"
        if last[i]:
            seen = f"a matrix ending in {here[i, 3].tolist()}"
        raise InvalidValueError(name, seen, f"rotation and translation, to {RIGID}")
    return poses
