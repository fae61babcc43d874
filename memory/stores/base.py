"""The contract of every external store, and `Recall`, the one seam to neural memories."""

from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

Record = TypeVar("Record", contravariant=True)
Query = TypeVar("Query", contravariant=True)


class Recall(NamedTuple):
    """The K best records for each of N queries: a fixed-shape tensor view of a store.

    While acting, it becomes part of the observation and is recorded in the rollout; learners
    replay it exactly, and gradients reach the query by attending over the recorded keys again.
    """

    key: Float[Tensor, "N K D"]
    """What each record is found by."""
    value: Float[Tensor, "N K E"]
    """What each record says."""
    valid: Bool[Tensor, "N K"]
    """Whether the row holds a record; the rest of an invalid row means nothing."""


class Store(Protocol[Record, Query]):
    """A mutable memory of many worlds that outlives episodes and sees no gradient.

    A Protocol, not a base class: an octree, a graph and a log share this behaviour and no code.
    """

    capacity: int
    """Records per world; writing past it evicts by the rule that the store states."""

    def write(self, world: Int[Tensor, " N"], record: Record) -> None:
        """Add one record to each named world."""
        ...

    def read(self, world: Int[Tensor, " N"], query: Query, k: int) -> Recall:
        """Return the k best records of each named world."""
        ...

    def clear(self, worlds: Bool[Tensor, " W"]) -> None:
        """Empty the worlds in the mask and leave the others as they are."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, records and index together."""
        ...

    def save(self, path: Path) -> None:
        """Write to a temporary name, then rename; the file carries a format version."""
        ...

    def load(self, path: Path) -> None:
        """Replace the content by a file's; a damaged one is refused and changes nothing."""
        ...
