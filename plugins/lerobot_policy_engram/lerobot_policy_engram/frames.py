"""Frames of a LeRobot batch: windows in time, and where episodes begin in them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from engram.kernels.errors import DataError, InvalidValueError


def window_starts(batch: dict[str, Any], keys: Iterable[str]) -> Bool[Tensor, "T B"]:
    """Where memory scopes begin in a window: at its first frame, and where padding ends.

    Frames from before the episode are copies that LeRobot marks in `<key>_is_pad`. A start at the
    first frame that is none discards whatever the memory made of them.

    Args:
        batch: What LeRobot's data loader gives: `[B, T, ...]` under each key.
        keys: The observations.

    Raises:
        DataError: If the batch holds single frames, or does not say what is padding.
    """
    pads = []
    for key in keys:
        pad = batch.get(f"{key}_is_pad")
        if pad is None or pad.ndim != 2 or batch[key].shape[:2] != pad.shape:
            seen = "missing" if pad is None else list(pad.shape)
            raise DataError(
                f"{key}_is_pad is {seen} and {key} {list(batch[key].shape)}; allowed: [B, T] and "
                "[B, T, ...], from a dataset with this policy's observation_delta_indices"
            )
        pads.append(pad)
    pad = torch.stack(pads).any(0).t()  # [T, B]
    if (pad[1:] & ~pad[:-1]).any() or pad[-1].any():
        raise DataError("padding follows a frame of the episode; allowed: padding before it")
    start = pad.new_ones(pad.shape)
    start[1:] = pad[:-1] & ~pad[1:]
    return start


def check_finite(batch: dict[str, Any], keys: Iterable[str]) -> None:
    """Refuse a frame that a memory would keep and never recover from.

    Raises:
        InvalidValueError: If an observation holds NaN or infinity.
    """
    for key in keys:
        finite = batch[key].isfinite()
        if not finite.all():
            raise InvalidValueError(key, batch[key][~finite][0].item(), "finite numbers")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout, random crops and running statistics off; then each part is as it was.

    What the memory is told of a frame draws no random number, so the policy draws those that it
    drew without a memory, and the memory sees in training what it will see acting.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
