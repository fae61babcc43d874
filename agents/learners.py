"""One learner, or a group of them that learns in step: what they have to tell each other."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Learners(Protocol):
    """The learners of a run, as one of them sees the others.

    Every learner makes the same calls in the same order; each waits for all.
    """

    count: int
    """How many learners there are."""
    rank: int
    """Which of them this one is; 0 leads: it reports and writes files."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the learners."""
        ...

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over the learners."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every learner's value, by rank, to the one that leads; to the others, nothing."""
        ...

    def spread(self, value: Any) -> Any:
        """Return the leader's value."""
        ...


class Alone:
    """A single learner, which has nobody to wait for."""

    count, rank = 1, 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Leave the gradients as they are."""

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def spread(self, value: Any) -> Any:
        """Return the value."""
        return value


class Group:
    """The learners of torch's process group, which Ray Train or torchrun has formed.

    Args:
        patience: Longest wait for another learner [s].
    """

    def __init__(self, *, patience: float = 600.0) -> None:
        self.count = torch.distributed.get_world_size()
        self.rank = torch.distributed.get_rank()
        # Objects travel from host to host, which nccl cannot do.
        self.hosts: Any = torch.distributed.new_group(
            backend="gloo", timeout=timedelta(seconds=patience)
        )

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the learners."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace gradients by their mean; they travel as one tensor."""
        parts = list(gradients)
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        sizes = [part.numel() for part in parts]
        for part, mean in zip(parts, flat.split(sizes), strict=True):
            part.copy_(mean.view_as(part))

    def gather(self, value: Any) -> list[Any]:
        """Return every learner's value to the one that leads."""
        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, found, group=self.hosts)
        return found or []

    def spread(self, value: Any) -> Any:
        """Return the leader's value."""
        held = [value]
        torch.distributed.broadcast_object_list(held, group=self.hosts)
        return held[0]
