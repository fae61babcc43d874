"""PPO's settings: schedules, limits, refusals; and that it learns in every action space."""

import dataclasses
import subprocess
import sys
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from engram.agents.ppo import PPO, Batch, PPOSettings, chunked
from engram.agents.rollout import Collector
from engram.envs.chain import ChainBit
from engram.envs.vector import BatchedEnv, Step, Stream
from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import GRU, HCAM, Block, Memo, NoMemory
from engram.policies import ActorCritic


class Target(NamedTuple):
    """The action that pays."""

    target: Tensor


class Bandit(BatchedEnv[Target]):
    """Shows a target in −1 … 1, or its symbol, and pays for hitting it; episodes of one step."""

    def __init__(self, num_envs: int, action_space: gymnasium.Space[Any]):
        self.real = isinstance(action_space, spaces.Box)
        observation = spaces.Box(-1, 1, (2,)) if self.real else spaces.MultiDiscrete([3, 2])
        super().__init__(num_envs, observation, action_space)

    def draw(self, count: int) -> Target:
        if self.real:
            return Target(torch.rand(count, 2, generator=self.generator) * 2 - 1)
        parts = [self.random_integers(3, count), self.random_integers(2, count)]
        return Target(torch.stack(parts, 1))

    def observe(self) -> Tensor:
        return self.worlds.target.clone()

    def advance(self, action: Tensor) -> Step:
        target = self.worlds.target
        if self.real:  # actions lie in 0 … 4 and −1 … 0
            given = torch.stack([action[:, 0] / 2 - 1, action[:, 1] * 2 + 1], 1)
            reward = 1 - (given - target).square().sum(1)
        else:
            reward = (action == target).float().mean(1)
        done = torch.ones(len(target), dtype=torch.bool)
        return Step(self.observe(), reward, done, torch.zeros_like(done), {})


def build(
    settings: PPOSettings, env: BatchedEnv[Any] | None = None, **policy: Any
) -> tuple[PPO, Collector]:
    env = env or ChainBit(8, length=4)
    actor = ActorCritic(env.single_observation_space, env.single_action_space, **policy)
    return PPO(actor, settings, seed=0), Collector(Stream(env), actor, seed=0)


SETTINGS = PPOSettings(rollout=10, chunk=5)


@pytest.mark.parametrize(
    ("space", "goal"),
    [
        (spaces.MultiDiscrete([3, 2]), 0.8),  # some seeds settle for the second best, 0.83
        (spaces.Box(np.array([0, -1], np.float32), np.array([4, 0], np.float32)), 0.75),
    ],
    ids=["multi_discrete", "box"],
)
def test_a_bandit_is_learnt(space: gymnasium.Space[Any], goal: float) -> None:
    settings = PPOSettings(
        rollout=4, chunk=4, entropy=0.0, learning_rate=1e-2, discount=0.0, epochs=2
    )
    env = Bandit(128, space)
    learner, collector = build(settings, env, memory=lambda width: Block(NoMemory(width)), width=32)
    scores = []
    for _ in range(60):
        rollout = collector.collect(4, chunk=4)
        learner.update(rollout, progress=0.0)
        scores.append(float(rollout.scores.nanmean()))
    assert scores[0] < 0.55
    assert scores[-1] > goal


def test_the_entropy_bonus_keeps_a_policy_undecided() -> None:
    entropies = []
    for weight in (0.0, 10.0):
        settings = PPOSettings(rollout=4, chunk=4, entropy=weight, learning_rate=1e-2, epochs=2)
        env = Bandit(64, spaces.MultiDiscrete([3, 2]))
        learner, collector = build(
            settings, env, memory=lambda width: Block(NoMemory(width)), width=32
        )
        for _ in range(30):
            told = learner.update(collector.collect(4, chunk=4), progress=0.0)
        entropies.append(told["entropy"])
    assert entropies[0] < 1.2
    assert entropies[1] > 0.98 * np.log(6)


@pytest.mark.parametrize(
    ("final", "progress", "rate"),
    [(None, 0.7, 4e-3), (1e-3, 0.0, 4e-3), (1e-3, 0.5, 2.5e-3), (1e-3, 1.0, 1e-3), (0.0, 9.0, 0.0)],
)
def test_the_learning_rate_follows_its_schedule(
    final: float | None, progress: float, rate: float
) -> None:
    settings = dataclasses.replace(SETTINGS, learning_rate=4e-3, final_learning_rate=final)
    learner, collector = build(settings, memory=GRU, width=8)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    learner.update(collector.collect(10, chunk=5), progress=progress)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [pytest.approx(rate)]
    moved = any(
        not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True)
    )
    assert moved == (rate > 0)


@pytest.mark.parametrize(
    ("final", "progress", "weight"), [(None, 0.7, 0.04), (0.0, 0.5, 0.02), (0.08, 2.0, 0.08)]
)
def test_the_entropy_bonus_follows_its_schedule(
    final: float | None, progress: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, entropy=0.04, final_entropy=final)
    learner, collector = build(settings, memory=GRU, width=8)
    seen: list[float] = []
    loss = learner.loss

    def listen(batch: Batch, entropy_weight: float) -> Any:
        seen.append(entropy_weight)
        return loss(batch, entropy_weight)

    monkeypatch.setattr(learner, "loss", listen)
    learner.update(collector.collect(10, chunk=5), progress=progress)
    assert seen == pytest.approx([weight] * len(seen))
    assert seen


def test_gradients_are_clipped_to_their_largest_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, max_gradient=1e-3, value=100.0)
    learner, collector = build(settings, memory=GRU, width=8)
    norms: list[float] = []
    step = learner.optimizer.step

    def listen() -> None:
        grads = [p.grad for p in learner.policy.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        step()

    monkeypatch.setattr(learner.optimizer, "step", listen)
    told = learner.update(collector.collect(10, chunk=5), progress=0.0)
    assert told["gradient"] > 1, "the norm before clipping is reported"
    assert len(norms) == settings.epochs * settings.minibatches
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)


def test_advantages_are_normalised_only_where_asked_for() -> None:
    losses = []
    for normal in (True, False):
        settings = dataclasses.replace(SETTINGS, normalize_advantage=normal)
        learner, collector = build(settings, memory=GRU, width=8)
        rollout = collector.collect(10, chunk=5)
        batch = chunked(rollout, torch.full_like(rollout.value, 3.0), 5)
        losses.append(float(learner.loss(batch, 0.0)[1]["policy_loss"].detach()))
    assert losses == pytest.approx([0, -3], abs=1e-4)


def test_more_minibatches_than_chunks_are_as_many_as_chunks() -> None:
    settings = dataclasses.replace(SETTINGS, minibatches=99)
    learner, collector = build(settings, memory=GRU, width=8)
    batch = chunked(collector.collect(10, chunk=5), torch.zeros(10, 8), 5)
    assert len(list(learner._minibatches(batch))) == 16


@pytest.mark.parametrize(
    "setting",
    [
        {"rollout": 0}, {"chunk": 0}, {"epochs": 0}, {"minibatches": -1}, {"chunk": 3},
        {"chunk": 20}, {"discount": 1.1}, {"discount": -0.1}, {"trace": 2.0},
        {"learning_rate": 0.0}, {"clip": 0.0}, {"max_gradient": -1.0}, {"value": -0.5},
        {"entropy": -0.1}, {"final_entropy": -0.1}, {"final_learning_rate": -1e-3},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_name(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidValueError, match=rf"agent\.{name} is .*; allowed: "):
        dataclasses.replace(SETTINGS, **setting)


@pytest.mark.parametrize(
    "memory", [NoMemory, GRU, lambda width: HCAM(width, chunk=1, top_k=2), Memo]
)
def test_in_bfloat16_the_ratio_starts_from_1_as_acting_uses_it_too(memory: Any) -> None:
    settings = dataclasses.replace(SETTINGS, bfloat16=True, epochs=1, minibatches=1)
    policy: dict[str, Any] = {"memory": lambda width: Block(memory(width)), "width": 32}

    def error(collector: Collector, learner: PPO) -> float:
        rollout = collector.collect(10, chunk=5)
        assert rollout.log_prob.dtype == rollout.value.dtype == torch.float32
        return learner.update(rollout, progress=0.0)["ratio_error"]

    learner, collector = build(settings, **policy)
    collector.bfloat16 = True
    alike = error(collector, learner)
    learner, collector = build(settings, **policy)
    assert alike < error(collector, learner) / 3
    assert alike < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("auxiliary", [{}, {"reconstruct": 0.1, "predict": 0.1, "recall": 0.1}])
def test_bfloat16_learns_on_the_gpu(auxiliary: dict[str, float]) -> None:
    env = ChainBit(8, length=4, device="cuda")
    actor = ActorCritic(
        env.single_observation_space, env.single_action_space, GRU, width=8, auxiliary=auxiliary
    ).to("cuda")
    learner = PPO(actor, dataclasses.replace(SETTINGS, bfloat16=True), seed=0)
    told = learner.update(
        Collector(Stream(env), actor, seed=0, bfloat16=True).collect(10, chunk=5), progress=0.0
    )
    assert all(np.isfinite(value) for value in told.values())


COMPILED = """
import torch
from engram.agents.ppo import PPO, PPOSettings
from engram.agents.rollout import Collector
from engram.envs.chain import ChainBit
from engram.envs.vector import Stream
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

told = []
for compiled in (False, True):
    torch.manual_seed(0)
    env = ChainBit(8, length=4)
    actor = ActorCritic(env.single_observation_space, env.single_action_space, GRU, width=8)
    learner = PPO(actor, PPOSettings(rollout=10, chunk=5, compile=compiled), seed=0)
    rollout = Collector(Stream(env), actor, seed=0).collect(10, chunk=5)
    told.append(learner.update(rollout, progress=0.0))
assert all(abs(told[0][name] - told[1][name]) < 1e-4 for name in told[0]), told
"""


@pytest.mark.slow
def test_a_compiled_policy_learns_what_a_plain_one_learns() -> None:
    """In a process of its own: shape checks cannot be traced."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
