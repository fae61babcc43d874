"""Learning for real through SB3: a cue is remembered with a memory and guessed without one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from engram.agents.sb3 import MemoryPPO
from engram.memory.sequence import GRU, HCAM, NoMemory, SequenceMemory, stack

Env = type[gymnasium.Env]
MEMORIES: dict[str, Callable[..., SequenceMemory[Any]]] = {
    "none": NoMemory,
    "feed-forward": partial(stack, layer=NoMemory),
    "gru": GRU,
    "hcam": partial(stack, layer=partial(HCAM, chunk=2, capacity=4, top_k=2, heads=2)),
}


def score(cue: Env, memory: str, steps: int) -> float:
    """Mean return of 160 episodes after learning; an honest guess is worth 1/2."""
    # Without a price the previous action would pass the cue on.
    env = make_vec_env(cue, 16, env_kwargs={"price": 0.5})
    model = MemoryPPO(
        MEMORIES[memory],
        env,
        n_steps=32,
        n_epochs=4,
        learning_rate=1e-3,
        ent_coef=0.01,
        seed=1,
        device="cpu",
        policy_kwargs={"width": 32},
    )
    model.learn(steps)
    fresh = make_vec_env(cue, 16, env_kwargs={"price": 0.5}, seed=100)
    return float(evaluate_policy(model, fresh, n_eval_episodes=160)[0])


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_a_memory_answers_what_it_was_shown(cue: Env, memory: str):
    assert score(cue, memory, 8192) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["none", "feed-forward"])
def test_without_memory_the_cue_is_guessed(cue: Env, memory: str):
    assert 0.4 < score(cue, memory, 16384) < 0.6
