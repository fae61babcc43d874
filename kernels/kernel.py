"""What computes on a map's arrays: the contract that every implementation keeps to the bit."""

import abc
from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor

from engram.kernels.grid import Evidence
from engram.kernels.scan import Asked, Bundle, Images, Inserted, Scan, Worlds
from engram.kernels.storage import Storage


class Kernel(abc.ABC):
    """Operations on a `Storage`; arguments are checked, and lie where it does.

    An insertion takes two calls, since the map needs room in between: `mark` and `apply`. Between
    them the marks of the scan are held here.
    """

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of scratch memory that is kept."""

    @abc.abstractmethod
    def parts(self, scan: Scan) -> Iterable[Scan]:
        """Cut a scan of many worlds into those that can be marked together."""

    @abc.abstractmethod
    def mark(self, storage: Storage, scan: Scan) -> Inserted:
        """Find the voxels that a scan hits and passes through, and count the blocks it brings."""

    @abc.abstractmethod
    def touched(self) -> Int[Tensor, " k"]:
        """Keys of the blocks that the scan touched."""

    @abc.abstractmethod
    def apply(self, storage: Storage, by: Evidence) -> None:
        """Update the map, which has room for every block, and forget the scan."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Forget the scan."""

    @abc.abstractmethod
    def rehash(self, storage: Storage) -> None:
        """Fill the table anew, after blocks were appended, moved or dropped."""

    @abc.abstractmethod
    def unproject(self, images: Images) -> Float[Tensor, "B n 3"]:
        """Points of depth images [m], float32; NaN where the depth is no number above 0."""

    @abc.abstractmethod
    def locate(
        self, storage: Storage, codes: Int[Tensor, " n"], worlds: Worlds
    ) -> Int[Tensor, " n"]:
        """Places 512 · slot + cell of voxels, given by Morton codes; −1 where there is no block."""

    @abc.abstractmethod
    def log_odds(self, storage: Storage, asked: Asked) -> Int[Tensor, " n"]:
        """Read the voxels that hold points [m]; `UNKNOWN` off the grid."""

    @abc.abstractmethod
    def cast(
        self, storage: Storage, bundle: Bundle
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Find the first voxel that stops each ray.

        Returns:
            The distance [m] at which it is entered, infinite where there is none; and its code,
            −1 where there is none and −2 where the ray is none.
        """

    @abc.abstractmethod
    def nearest(
        self, storage: Storage, asked: Asked, k: int, limit: float
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k 3"]]:
        """Find the k nearest occupied voxels within `limit` voxels, nearest first, ties by code.

        Returns:
            Distances [m], infinite, and coordinates, the grid's least, where there are fewer.
        """

    @abc.abstractmethod
    def count_within(self, storage: Storage, asked: Asked, radius: float) -> Int[Tensor, " n"]:
        """Count the occupied voxels within `radius` voxels."""

    @abc.abstractmethod
    def list_within(
        self, storage: Storage, asked: Asked, radius: float
    ) -> tuple[Int[Tensor, " n_plus_1"], Float[Tensor, " m"], Int[Tensor, "m 3"]]:
        """List the occupied voxels within `radius` voxels, in Morton order.

        Returns:
            Where the list of each point begins, and the last one ends; distances [m];
            coordinates.
        """


def each_world(scan: Scan) -> Iterable[Scan]:
    """Cut a scan into those of single worlds."""
    if len(scan.worlds) == 1:
        yield scan
        return
    for b in range(len(scan.worlds)):
        one = slice(b, b + 1)
        images = scan.images
        if images is not None:
            images = images._replace(
                depth=images.depth[one], poses_camera_to_world=images.poses_camera_to_world[one]
            )
        yield scan._replace(
            points=scan.points[one],
            origins=scan.origins[one],
            worlds=scan.worlds[one],
            images=images,
        )
