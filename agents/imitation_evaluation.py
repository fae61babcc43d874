"""How a cloned policy does in the simulator, on episodes that nobody demonstrated."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from engram.agents.imitation_sights import sight_of
from engram.agents.seeds import derive
from engram.envs.manipulation import Manipulation
from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.policies.language import Language
from engram.policies.vla import VLA


class Outcome(NamedTuple):
    """What fresh episodes showed."""

    success: float
    """Share that succeeded."""
    first_choice: float
    """Share whose first choice was right; an episode without a choice counts as wrong."""
    chosen: float
    """Share in which a choice was made at all."""
    length: float
    """Mean steps of an episode."""
    episodes: int
    memory_bytes: int
    """Of the memory state of one robot."""


@torch.no_grad()
def evaluate_in_simulation(
    policy: VLA,
    worlds: Manipulation,
    instruction: str,
    language: Language,
    *,
    episodes: int,
    seed: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Run at least `episodes` episodes, as many in every world.

    Args:
        policy: Who acts.
        worlds: Where.
        instruction: What it is told to do.
        language: How that is encoded.
        episodes: How many, rounded up to a multiple of the worlds.
        seed: Of worlds and noise.
        stopping: Asked after every step; once true, nothing is returned.

    Raises:
        InvalidValueError: If the worlds lack what the policy sees, or no episode is asked for.
    """
    if episodes < 1:
        raise InvalidValueError("episodes", episodes, "1 or more")
    policy.eval()
    batch = worlds.num_envs
    wanted = -(-episodes // batch)
    device = policy.scale.low.device
    generator = torch.Generator(device).manual_seed(derive(seed, "noise of actions"))
    words = language.encode([instruction]).expand(batch, -1)
    observation, _ = worlds.reset(seed=derive(seed, "worlds"))
    state = policy.initial_state(batch)
    size = states.nbytes(state.memory) // batch
    start = torch.ones(batch, dtype=torch.bool, device=device)
    finished = np.zeros(batch, dtype=int)
    length = np.zeros(batch, dtype=int)
    found: list[tuple[float, float, int]] = []
    while finished.min() < wanted:
        if stopping():
            return None
        sight = sight_of(observation, words, policy.perception.sizes)
        sight = states.tree_map(lambda part: part.to(device), sight)
        action, state = policy.act(sight, state, start, generator)
        observation, _, terminated, truncated, info = worlds.step(action.cpu())
        start = (terminated | truncated).to(device)
        length += 1
        for world in start.nonzero()[:, 0].tolist():
            if finished[world] < wanted:
                choice = float(info["first_choice_correct"][world])
                found.append((float(info["success"][world]), choice, int(length[world])))
            finished[world] += 1
            length[world] = 0
    success, choice, steps = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    return Outcome(
        success=float(success.mean()),
        first_choice=float((choice == 1).mean()),
        chosen=float((~np.isnan(choice)).mean()),
        length=float(steps.mean()),
        episodes=len(found),
        memory_bytes=size,
    )
