"""A memory's state as RLlib carries it: a dict of arrays, without the batch axis while it waits."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from engram.memory import state as states

S = TypeVar("S")
Arrays = dict[str, np.ndarray]
"""The state of one environment, every tensor by its path."""


def encode(state: Any) -> dict[str, Tensor]:
    """Name every tensor by its path, with 64 bits as two times 32.

    RLlib's connectors cut int64 to int32 on the way to the environment; seeds need all bits.
    """
    return {
        path: leaf[..., None].view(torch.int32) if leaf.itemsize == 8 else leaf
        for path, leaf in states.flatten(state).items()
    }


def decode(tensors: dict[str, Tensor], like: S) -> S:
    """Rebuild a state of the structure of `like` from what `encode` returned."""
    whole = {
        path: tensors[path].contiguous().view(leaf.dtype)[..., 0]
        if leaf.itemsize == 8
        else tensors[path]
        for path, leaf in states.flatten(like).items()
    }
    return states.unflatten(whole, like)


def unbatched(state: Any) -> Arrays:
    """Return the state of a single environment as arrays."""
    return {path: leaf[0].numpy(force=True) for path, leaf in encode(state).items()}


def copied(state: Arrays) -> Arrays:
    """Copy a state: what stands in a batch's array keeps the whole batch alive."""
    return {path: np.array(leaf) for path, leaf in state.items()}
