"""A rollout as it travels between processes: nothing twice, arrays that need no copy on arrival."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram.agents.rollout import Rollout
from engram.memory import state as states
from engram.policies.actor_critic import Inputs

TERMINATED, TRUNCATED, RESTARTED = 1, 2, 4


class Parcel(NamedTuple):
    """R steps of B environments in numpy arrays, which Ray maps into the reader's memory.

    What the rollout says twice (the action and reward before each step, the start of a scope) or
    says of few steps (scores, measurements, values of last observations) is left out and found
    again by `unpack`. Memory states are those after the first chunk: the first one is the `after`
    of the parcel before.
    """

    observation: Any
    """`[R, B, ...]`"""
    action: np.ndarray
    """`[R, B, ...]`; integers in the fewest bytes that hold them."""
    log_prob: np.ndarray
    value: np.ndarray
    reward: np.ndarray
    ends: np.ndarray
    """`[R, B]` uint8: terminated 1, truncated 2, restarted 4."""
    last_value: np.ndarray
    final_value: np.ndarray
    """Where an episode was truncated and its scope ended, in row order."""
    scores: np.ndarray
    """Where an episode ended, in row order."""
    measurements: dict[str, np.ndarray]
    """Likewise."""
    states: list[Any]
    """Memory state before every chunk but the first."""
    before: Inputs
    """Action, reward and start that the first observation came with; no observation."""
    after: dict[str, np.ndarray]
    """What decides how acting goes on after the rollout."""
    memory: Any
    """Memory state before the first chunk, where no parcel came before; else nothing."""
    seconds: dict[str, float]
    """Where the time went."""


def pack(
    rollout: Rollout, after: dict[str, Tensor], seconds: dict[str, float], *, with_memory: bool
) -> Parcel:
    """Make a parcel of a rollout on the host."""
    inputs = rollout.inputs
    done = rollout.terminated | rollout.truncated
    ends = (
        rollout.terminated * TERMINATED
        | rollout.truncated * TRUNCATED
        | rollout.restarted * RESTARTED
    )
    return Parcel(
        observation=_arrays(inputs.observation),
        action=_narrow(rollout.action),
        log_prob=rollout.log_prob.numpy(),
        value=rollout.value.numpy(),
        reward=rollout.reward.numpy(),
        ends=ends.to(torch.uint8).numpy(),
        last_value=rollout.last_value.numpy(),
        final_value=rollout.final_value[rollout.truncated & rollout.restarted].numpy(),
        scores=rollout.scores[done].numpy(),
        measurements={name: v[done].numpy() for name, v in rollout.measurements.items()},
        states=[_arrays(state) for state in rollout.states[1:]],
        before=_arrays(inputs._replace(observation=()), first=True),
        after=_arrays(after),
        memory=_arrays(rollout.states[0]) if with_memory else (),
        seconds=seconds,
    )


def unpack(parcel: Parcel, memory: Any, device: torch.device) -> Rollout:
    """Make the rollout of a parcel; what it does not have to compute shares the parcel's memory.

    Args:
        parcel: As `pack` made it.
        memory: State before the first step.
        device: Where the rollout is wanted.
    """
    kept: Any = as_tensors(parcel._replace(after={}, memory=(), seconds={}), device)
    action = kept.action if kept.action.is_floating_point() else kept.action.long()
    ends = kept.ends
    terminated, truncated, restarted = (
        (ends & bit).bool() for bit in (TERMINATED, TRUNCATED, RESTARTED)
    )
    done = terminated | truncated
    inputs = Inputs(
        observation=kept.observation,
        action=_shifted(kept.before.action, action),
        reward=_shifted(kept.before.reward, kept.reward),
        start=_shifted(kept.before.start, restarted),
    )
    return Rollout(
        inputs=inputs,
        action=action,
        log_prob=kept.log_prob,
        value=kept.value,
        reward=kept.reward,
        terminated=terminated,
        truncated=truncated,
        restarted=restarted,
        final_value=_spread(kept.final_value, truncated & restarted, 0.0),
        last_value=kept.last_value,
        states=[memory, *kept.states],
        measurements={n: _spread(v, done, torch.nan) for n, v in kept.measurements.items()},
        scores=_spread(kept.scores, done, torch.nan),
    )


def together(rollouts: list[Rollout]) -> Rollout:
    """Put rollouts of equal length side by side."""
    if len(rollouts) == 1:
        return rollouts[0]
    last = torch.cat([rollout.last_value for rollout in rollouts])
    chunks = zip(*(rollout.states for rollout in rollouts), strict=True)
    kept = [states.concatenate(list(chunk)) for chunk in chunks]
    # Everything else has time first, then environments.
    plain: list[Any] = [
        r._replace(inputs=tuple(r.inputs), last_value=(), states=()) for r in rollouts
    ]
    joined: Any = states.tree_map(lambda *parts: torch.cat(parts, 1), *plain)
    return joined._replace(inputs=Inputs(*joined.inputs), last_value=last, states=kept)


def nbytes(parcel: Parcel) -> dict[str, int]:
    """Bytes of a parcel's arrays: of observations, of memory states, of everything else."""

    def size(tree: Any) -> int:
        if isinstance(tree, np.ndarray):
            return tree.nbytes
        parts = tree.values() if isinstance(tree, dict) else tree
        return sum(size(part) for part in parts) if isinstance(tree, dict | list | tuple) else 0

    memory = {name: part for name, part in parcel.after.items() if name.startswith("memory.")}
    found = {
        "observation": size(parcel.observation),
        "memory": size(parcel.states) + size(parcel.memory) + size(memory),
    }
    return {**found, "rest": size(parcel._replace(seconds={})) - sum(found.values())}


def tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """View an array as a tensor, on the host without a copy; nobody may write into it."""
    with warnings.catch_warnings():
        # What Ray maps is read-only, which torch cannot say of a tensor.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def _arrays(tree: Any, *, first: bool = False) -> Any:
    """Replace the tensors of a tree by arrays, or by their first rows."""
    if isinstance(tree, Tensor):
        return (tree[0] if first else tree).detach().numpy()
    if isinstance(tree, dict):
        return {name: _arrays(part, first=first) for name, part in tree.items()}
    parts = [_arrays(part, first=first) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def as_tensors(tree: Any, device: torch.device) -> Any:
    """Replace the arrays of a tree by tensors, as `tensor` does."""
    if isinstance(tree, np.ndarray):
        return tensor(tree, device)
    if isinstance(tree, dict):
        return {name: as_tensors(part, device) for name, part in tree.items()}
    parts = [as_tensors(part, device) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _narrow(action: Tensor) -> np.ndarray:
    """Store integers in the fewest bytes."""
    if action.is_floating_point():
        return action.numpy()
    low, high = int(action.min()), int(action.max())
    narrow = next(
        d for d in (np.uint8, np.int16, np.int32, np.int64)
        if np.iinfo(d).min <= low and high <= np.iinfo(d).max
    )  # fmt: skip
    return action.numpy().astype(narrow)


def _shifted(first: Any, rest: Any) -> Tensor:
    """Return what was known before each step: `first`, then all but the last of `rest`."""
    return torch.cat([first[None].to(rest.dtype), rest[:-1]])


def _spread(values: Any, where: Tensor, elsewhere: float) -> Tensor:
    """Put values where they belong, row by row."""
    full = torch.full((*where.shape, *values.shape[1:]), elsewhere, device=where.device)
    full[where] = values
    return full
