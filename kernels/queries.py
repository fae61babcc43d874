"""What can be asked of a voxel map; nothing here changes it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels import regions
from engram.kernels.answers import Casts, Neighbours
from engram.kernels.checks import (
    Vector,
    checked_camera,
    checked_corner,
    checked_points,
    checked_pose,
    checked_voxels,
    checked_world,
    checked_worlds,
)
from engram.kernels.errors import InvalidValueError
from engram.kernels.grid import BIAS, Evidence, unmorton
from engram.kernels.kernel import Kernel
from engram.kernels.regions import KnownVoxels, Nodes
from engram.kernels.scan import Asked, Bundle, Camera, Worlds
from engram.kernels.storage import UNKNOWN, Storage


class VoxelQueries:
    """Queries, batched over points or rays; the map's own class inherits them."""

    storage: Storage
    kernel: Kernel
    voxel_size: float
    """Edge of a voxel [m]."""
    evidence: Evidence

    @property
    def device(self) -> torch.device:
        """Where the map lives."""
        return self.storage.device

    def log_odds(self, points: Float[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]: int8 steps of log-odds, −128 where unknown."""
        return self.kernel.log_odds(self.storage, self._asked(points, world))

    def occupancy(self, points: Float[Tensor, "n 3"], *, world: Worlds = 0) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]: int8, 1 occupied, 0 free, −1 unknown."""
        value = self.log_odds(points, world=world)
        seen = torch.where(value >= self.evidence.threshold, 1, 0)
        return torch.where(value == UNKNOWN, -1, seen).to(torch.int8)

    def cast_rays(
        self,
        origins: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        *,
        max_range: float = math.inf,
        stop_at_unknown: bool = False,
        world: Worlds = 0,
    ) -> Casts:
        """Find the first occupied voxel along rays, by exact traversal.

        Args:
            origins: Where rays begin [m], on the grid.
            directions: Where they go, of any length above 0.
            max_range: Distance [m] at which rays end; at the latest they do at the grid's border.
            stop_at_unknown: Whether voxels that no scan touched stop a ray too.
            world: Which of the map's worlds, for all rays or for each.
        """
        if not max_range > 0:
            raise InvalidValueError("max_range", max_range, "above 0 [m]")
        for name, rays in (("origins", origins), ("directions", directions)):
            if rays.ndim != 2 or rays.shape[1] != 3 or len(rays) != len(origins):
                allowed = "shape [n, 3], as many origins as directions"
                raise InvalidValueError(name, list(rays.shape), allowed)
        bundle = Bundle(
            origins.detach().to(self.device, torch.float64),
            directions.detach().to(self.device, torch.float64),
            float(max_range),
            stop_at_unknown,
            checked_worlds(world, origins, self.device),
            self.voxel_size,
        )
        distance, code = self.kernel.cast(self.storage, bundle)
        (bad,) = (code == -2).nonzero(as_tuple=True)
        if len(bad):
            at = int(bad[0])
            seen = f"{origins[at].tolist()} along {directions[at].tolist()}"
            allowed = "origins on the grid, finite directions of some length"
            raise InvalidValueError(f"ray {at}", seen, allowed)
        return Casts(distance, (unmorton(code.clamp(min=0)) - BIAS).int())

    def nearest(
        self,
        points: Float[Tensor, "n 3"],
        k: int,
        *,
        max_distance: float = math.inf,
        world: Worlds = 0,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        """Find the k occupied voxels whose centres are nearest, nearest first.

        Args:
            points: Where to look [m].
            k: How many.
            max_distance: Beyond which none counts [m].
            world: Which of the map's worlds, for all points or for each.

        Returns:
            Distances [m], infinite where there are fewer; and integer coordinates, int32, the
            grid's least there. Of equally near voxels, that with the least Morton code first.
        """
        if k < 1:
            raise InvalidValueError("k", k, "1 or more")
        limit = checked_voxels("max_distance", max_distance, self.voxel_size)
        return self.kernel.nearest(self.storage, self._asked(points, world), k, limit)

    def count_within(
        self, points: Float[Tensor, "n 3"], radius: float, *, world: Worlds = 0
    ) -> Int[Tensor, " n"]:
        """Count the occupied voxels whose centres lie within `radius` [m] of points [m]."""
        return self.kernel.count_within(
            self.storage,
            self._asked(points, world),
            checked_voxels("radius", radius, self.voxel_size),
        )

    def list_within(
        self, points: Float[Tensor, "n 3"], radius: float, *, world: Worlds = 0
    ) -> Neighbours:
        """List the occupied voxels whose centres lie within `radius` [m] of points [m]."""
        found = self.kernel.list_within(
            self.storage,
            self._asked(points, world),
            checked_voxels("radius", radius, self.voxel_size),
        )
        return Neighbours(*found)

    def occupied_centres(self, *, world: int = 0) -> Float[Tensor, "n 3"]:
        """Centres of the occupied voxels [m], float64, in Morton order."""
        found = regions.nodes(self.storage, 0, checked_world(world), self.evidence.threshold)
        return (found.node[found.occupied > 0].double() + 0.5) * self.voxel_size

    def nodes(self, level: int, *, world: int = 0) -> Nodes:
        """Return the map as an octree sees it at a level: nodes of 2^level voxels along each edge.

        Level 0 are voxels, 3 blocks, 19 the root; only nodes that hold known voxels are listed.
        """
        return regions.nodes(self.storage, level, checked_world(world), self.evidence.threshold)

    def box(self, least: Vector, most: Vector, *, world: int = 0) -> KnownVoxels:
        """Return the known voxels that a box touches.

        Args:
            least: Its least corner [m]; infinite coordinates reach to the grid's border.
            most: Its greatest corner [m].
            world: Which of the map's worlds.
        """
        low, high = (
            checked_corner(name, corner, self.voxel_size).to(self.device)
            for name, corner in (("least", least), ("most", most))
        )
        threshold = self.evidence.threshold
        return regions.box(self.storage, low, high, checked_world(world), threshold)

    def frustum(
        self,
        camera: Camera,
        pose_camera_to_world: Float[Tensor, "4 4"],
        *,
        least_depth: float = 0.0,
        most_depth: float = math.inf,
        world: int = 0,
    ) -> KnownVoxels:
        """Return the known voxels whose centres lie in a camera's view, hidden or not.

        Args:
            camera: Its intrinsics.
            pose_camera_to_world: Rigid; the camera looks along its z axis, y down.
            least_depth: Along z [m].
            most_depth: Along z [m].
            world: Which of the map's worlds.
        """
        pose = checked_pose("pose_camera_to_world", pose_camera_to_world).to(self.device)
        depth = (float(least_depth), float(most_depth))
        view = regions.View(checked_camera(camera), pose, depth)
        world = checked_world(world)
        return regions.frustum(self.storage, view, self.voxel_size, world, self.evidence.threshold)

    def _asked(self, points: Tensor, world: Worlds) -> Asked:
        worlds = checked_worlds(world, points, self.device)
        return Asked(checked_points(points, self.device), worlds, self.voxel_size)
