"""Functions on trees of tensors: states, and the observations and inputs that travel with them.

A state is nested NamedTuples of tensors whose first axis is the environment; an observation may be
a dict of tensors.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

S = TypeVar("S")


def tree_map(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """Apply `function` to corresponding tensors of one or more trees of the same structure."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if isinstance(state, dict):
        return {k: tree_map(function, v, *(o[k] for o in others)) for k, v in state.items()}  # type: ignore
    assert isinstance(state, tuple), f"a state is tensors in tuples, not {type(state).__name__}"
    parts: Any = [tree_map(function, *leaves) for leaves in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)  # type: ignore


def leaves(state: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield `(path, tensor)` for every tensor, as `"0.keys"`, in a fixed order."""
    if isinstance(state, Tensor):
        yield "", state
        return
    if isinstance(state, dict):
        named = state.items()
    else:
        named = zip(getattr(state, "_fields", range(len(state))), state, strict=True)
    for name, part in named:
        for path, leaf in leaves(part):
            yield f"{name}.{path}".rstrip("."), leaf


def where(mask: Bool[Tensor, " B"], state: S, other: S) -> S:
    """Take `state` for the environments in `mask` and `other` for the rest."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

    return tree_map(choose, state, other)


def take(state: S, environments: Int[Tensor, " n"]) -> S:
    """Select environments by index; the result shares no memory with `state`."""
    return tree_map(lambda leaf: leaf.index_select(0, environments), state)


def concatenate(states: list[S]) -> S:
    """Join states along the environment axis."""
    return tree_map(lambda *parts: torch.cat(parts), *states)


def detach(state: S) -> S:
    """Cut the gradient; the tensors are shared, not copied."""
    return tree_map(Tensor.detach, state)


def snapshot(state: S) -> S:
    """Copy a state, detached: a state passed to a memory is consumed, this one is kept."""
    return tree_map(lambda leaf: leaf.detach().clone(), state)


def nbytes(state: Any) -> int:
    """Bytes that the tensors of a state hold."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(state))


def flatten(state: Any) -> dict[str, Tensor]:
    """Name every tensor by its path, as safetensors wants them."""
    return {path or "state": leaf.contiguous() for path, leaf in leaves(state)}


def unflatten(tensors: dict[str, Tensor], like: S) -> S:
    """Rebuild a state of the structure of `like` from `flatten`'s result.

    Raises:
        KeyError: If a tensor of the structure is missing.
        ValueError: If a tensor has another shape than `like` has, the batch excepted.
    """
    paths = iter([path or "state" for path, _ in leaves(like)])

    def fetch(leaf: Tensor) -> Tensor:
        path = next(paths)
        found = tensors[path]
        if found.shape[1:] != leaf.shape[1:]:
            raise ValueError(
                f"{path} is {list(found.shape)}; allowed: [B, *{list(leaf.shape[1:])}]"
            )
        return found.to(leaf.device)

    return tree_map(fetch, like)
