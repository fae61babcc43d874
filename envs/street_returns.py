"""Exact mean returns of simple policies in the street task, by dynamic programming."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from engram.envs.street_neighbourhoods import EXITS, Neighbourhoods

TURNS = {
    "random_walk": (1.0, 1.0, 1.0, 1.0),
    "onward_walk": (1.0, 1.0, 1.0, 1e-9),
    "right_hand": (1.0, 1e-9, 1e-18, 1e-27),
}
"""Policies that remember nothing: weights of a right turn, straight on, a left turn and back."""


def return_of_shortest_paths(pool: Neighbourhoods, steps: int) -> float:
    """Mean goals reached in `steps` steps by always taking a shortest path.

    No policy does better: to arrive earlier at a goal costs nothing later, as the goals do not
    depend on the way.
    """
    behind = np.take_along_axis(pool.neighbour, pool.exit, axis=2)  # [K, here, goal]
    return _mean_goals(pool, steps, lambda worth: np.take_along_axis(worth, behind, axis=1))


def return_of_turns(
    pool: Neighbourhoods,
    steps: int,
    weights: tuple[float, float, float, float],
    *,
    returning: bool = False,
) -> float:
    """Mean goals reached in `steps` steps by choosing among turns, relative to the last exit.

    Args:
        pool: Where the policy walks.
        steps: Steps in a trial.
        weights: Of right, straight on, left and back; an existing exit is taken with a probability
            in proportion to the weight of its turn. At the start the last exit is north.
        returning: Whether the policy turns back where the goal lies behind it, as one can that
            sees the code of the place it left. Where streets bend so that the way back is another
            exit, this is slightly more than one can.
    """
    count, places, _ = pool.neighbour.shape
    last, exit_ = np.arange(EXITS)[:, None], np.arange(EXITS)
    turn = np.array([1, 0, 3, 2])[(exit_ - last) % EXITS]  # [last exit, exit]
    exists = pool.neighbour[:, :, None, :] >= 0
    share = np.where(exists, np.array(weights)[turn], 0)  # [K, P, last exit, exit]
    share /= share.sum(axis=3, keepdims=True)
    # States are (place, last exit); the exit taken next is the last exit of the state after.
    walk = np.zeros((count, places, EXITS, places + 1, EXITS))
    rows = np.arange(count)[:, None, None, None]
    here = np.arange(places)[:, None, None]
    walk[rows, here, last, pool.neighbour[:, :, None, :], exit_] = share  # -1: the spare last one
    states = places * EXITS
    walk = walk[:, :, :, :places].reshape(count, states, states)

    back = (np.arange(EXITS) + EXITS // 2) % EXITS
    behind = pool.neighbour[:, :, back].reshape(count, states)  # of (place, last exit)
    there = np.where(behind >= 0, behind * EXITS + np.tile(back, places), 0)
    goal_behind = behind[..., None] == np.arange(places)  # [K, S, goal]

    def walk_or_return(worth: Float[np.ndarray, "K S P"]) -> Float[np.ndarray, "K S P"]:
        returned = np.take_along_axis(worth, there[..., None], axis=1)
        return np.where(goal_behind, returned, walk @ worth)

    return _mean_goals(
        pool,
        steps,
        walk_or_return if returning else lambda worth: walk @ worth,
        headings=EXITS,
        first=lambda worth: walk @ worth,  # nothing lies behind the start
    )


def _mean_goals(
    pool: Neighbourhoods,
    steps: int,
    move: Callable[[Float[np.ndarray, "K S P"]], Float[np.ndarray, "K S P"]],
    headings: int = 1,
    first: Callable[[Float[np.ndarray, "K S P"]], Float[np.ndarray, "K S P"]] | None = None,
) -> float:
    """Value of a policy, averaged over neighbourhoods, starts and goals.

    With t steps left in state s and bound for g, V_t(s, g) = E[W_{t-1}(s', g)] over the next state
    s', where W(s', g) = V(s', g) if s' is not at g; else 1 plus the mean of V(s', g') over the
    next goals g', the other places.

    Args:
        pool: Where the policy walks.
        steps: Steps in a trial.
        move: Takes W[s', g] to its expectation [s, g], for each neighbourhood.
        headings: States per place; state `place * headings` is the one at the start.
        first: The same for the first step, if it is another.
    """
    count, places, _ = pool.neighbour.shape
    elsewhere = np.repeat(~np.eye(places, dtype=bool), headings, axis=0)  # [S, P]
    value = np.zeros((count, *elsewhere.shape))
    for left in range(steps):
        renewed = 1 + value.mean(axis=2, where=elsewhere)
        step = first if first is not None and left == steps - 1 else move
        value = step(np.where(elsewhere, value, renewed[:, :, None]))
    return float(value[:, ::headings].mean(where=elsewhere[::headings]))
