"""Learning for real: a bit is remembered with a memory and guessed without one."""

from collections.abc import Callable
from typing import Any

import pytest

from engram.agents.ppo import PPOSettings
from engram.agents.training import Training, build_policy
from engram.envs.chain import ChainBit
from engram.envs.vector import Stream
from engram.memory.sequence import GRU, HCAM, Memo, NoMemory, SequenceMemory, stack
from engram.policies import ActorCritic

MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "none": lambda width: stack(width, layer=NoMemory, layers=1),
    "gru": GRU,
    "hcam": lambda width: stack(
        width, layer=lambda d: HCAM(d, chunk=3, capacity=4, top_k=2, heads=2), layers=1
    ),
    "memo": lambda width: Memo(width, layers=1, heads=2, segment=4, summary=2, capacity=4),
}


def scores(memory: str, *, updates: int, goal: float = 2.0) -> list[float]:
    """Shares of right answers, rollout by rollout, until one reaches the goal."""
    env = ChainBit(64, length=8)
    policy = build_policy(
        1,
        lambda: ActorCritic(
            env.single_observation_space, env.single_action_space, MEMORIES[memory], width=32
        ),
    )
    settings = PPOSettings(rollout=18, chunk=18, learning_rate=3e-3, entropy=0.01)
    training = Training(Stream(env), policy, settings, seed=1, budget=updates * 18 * 64)
    shares = [0.0]
    while not training.finished and shares[-1] < goal:
        shares.append(training.iterate()["score"])
    return shares[1:]


def test_a_gru_remembers_the_bit() -> None:
    assert scores("gru", updates=150, goal=0.98)[-1] >= 0.95


def test_without_memory_the_bit_is_guessed() -> None:
    shares = scores("none", updates=20)
    assert 0.45 <= sum(shares) / 20 <= 0.55


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["hcam", "memo"])
def test_an_attention_memory_remembers_the_bit(memory: str) -> None:
    assert scores(memory, updates=400, goal=0.98)[-1] >= 0.95
