"""Free space by projection: voxels that depth images look through."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import BIAS, CELLS, morton, unmorton
from engram.kernels.scan import Images

BLOCKS_AT_ONCE = 1 << 12
"""Blocks that are looked at together; bounds memory, not the result."""


def seen_through(images: Images, voxel_size: float, max_range: float) -> Int[Tensor, " f"]:
    """Codes of the voxels that one depth image looks through, sorted.

    Those whose centre is within range of the camera, projects to a pixel of a depth above 0, and
    lies half a voxel or more before what it shows.

    Args:
        images: One depth image.
        voxel_size: [m]
        max_range: [m], finite.
    """
    depth, camera, pose = images.depth[0], images.camera, images.poses_camera_to_world[0]
    found = [torch.zeros(0, dtype=torch.int64, device=depth.device)]
    cells = unmorton(torch.arange(CELLS, device=depth.device))
    for blocks in _near(pose[:3, 3], voxel_size, max_range).split(BLOCKS_AT_ONCE):
        voxel = (8 * blocks[:, None] + cells).view(-1, 3)
        apart = ((voxel - BIAS).double() + 0.5) * voxel_size - pose[:3, 3]
        x, y, z = apart.unbind(1)
        within = x * x + y * y + z * z <= max_range * max_range
        right, down, forward = (
            pose[0, j] * x + pose[1, j] * y + pose[2, j] * z for j in range(3)
        )  # fmt: skip
        u = (right / forward * camera.fx + camera.cx + 0.5).floor()
        v = (down / forward * camera.fy + camera.cy + 0.5).floor()
        inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height) & (forward > 0)
        u, v = (torch.where(inside, part, 0.0).long() for part in (u, v))
        shown = depth[v, u].double()
        free = within & inside & (forward + voxel_size / 2 <= shown) & shown.isfinite()
        found.append(morton(voxel[free]))
    return torch.cat(found).sort().values


def _near(centre: Float[Tensor, " 3"], voxel_size: float, radius: float) -> Int[Tensor, "b 3"]:
    """Coordinates of the blocks on the grid in a cube around a ball."""
    voxels = torch.stack([centre - radius, centre + radius]) * (1 / voxel_size)
    low, high = (voxels.floor().clamp(-BIAS, BIAS - 1).long() + BIAS >> 3).tolist()
    axes = [torch.arange(a, b + 1, device=centre.device) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes)
