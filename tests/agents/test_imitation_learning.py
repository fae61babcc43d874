"""Cloning learns what only a memory can know; without one it stays at chance."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from engram.agents.imitation_batches import Streaming
from engram.agents.imitation_frames import Demonstration
from engram.memory import state as states
from engram.memory.sequence import Bank, PresentOnly
from engram.policies.vla import VLA

Make = Callable[..., Any]


def right(policy: VLA, episodes: list[Demonstration]) -> float:
    """Share of episodes whose first action that depends on the cue has the sign of it."""
    count = 0
    for episode in episodes:
        state, generator = policy.initial_state(1), torch.Generator().manual_seed(0)
        for t in range(len(episode.action)):
            sight = states.tree_map(lambda part, t=t: part[t : t + 1], episode.sight)
            with torch.no_grad():
                action, state = policy.act(sight, state, torch.tensor([t == 0]), generator)
            if episode.decision[t]:
                count += int(action[0, 0] * episode.action[t, 0] > 0)
                break
    return count / len(episodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "bank", "none", "told"])
def test_only_a_memory_bridges_the_gap(name: str, cued: Make, cloning: Make) -> None:
    episodes = [cued(i) for i in range(200)]
    fresh = [cued(10_000 + i) for i in range(100)]
    if name == "told":
        for group in (episodes, fresh):
            for i, episode in enumerate(group):
                sign = episode.action[-1:, :1].expand(len(episode.action), 1)
                group[i] = episode._replace(sight=episode.sight._replace(oracle=sign))
    memory = {
        "gru": None,
        "bank": partial(Bank, capacity=6, layers=2, gradient_writes=None),
        "none": PresentOnly,
        "told": PresentOnly,
    }[name]
    batches = Streaming(episodes, rows=16, steps=12, chunk=2, seed=0)
    settings = {"updates": 150, "learning_rate": 5e-3, "moments": 64, "ema": 0.95, "warmup": 20}
    run = cloning(batches, memory=memory, **settings)
    while not run.finished:
        run.iterate()
    found = right(run.actor, fresh)
    if name == "none":
        assert 0.3 < found < 0.7
    else:
        assert found > 0.9
