"""PPO: it replays what acting did, cuts rollouts in order, and does what its settings say."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from engram.agents.ppo import PPO, Batch, PPOSettings, chunked
from engram.agents.returns import generalized_advantages
from engram.agents.rollout import Collector, Rollout
from engram.envs.vector import BatchedEnv, Step, Stream
from engram.memory import state as states
from engram.memory.sequence import (
    GRU,
    HCAM,
    LSTM,
    Block,
    GTrXL,
    Memo,
    NoMemory,
    SequenceMemory,
    Window,
    stack,
)
from engram.policies import ActorCritic

MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "none": lambda width: Block(NoMemory(width)),
    "gru": GRU,
    "lstm": LSTM,
    "window": lambda width: Window(width, window=4, heads=2),
    "gtrxl": lambda width: GTrXL(width, layers=2, memory=5, heads=2),
    "hcam": lambda width: stack(
        width, layer=lambda d: HCAM(d, chunk=3, capacity=4, top_k=2, heads=2), layers=2
    ),
    "memo": lambda width: Memo(width, heads=2, segment=5, summary=2, capacity=3, jitter=0.6),
}
SETTINGS = PPOSettings(rollout=24, chunk=8, epochs=1, minibatches=2)


class Worlds(NamedTuple):
    left: Tensor
    """Steps left in the episode."""
    seen: Tensor
    """What is observed, never the same twice."""


class Noise(BatchedEnv[Worlds]):
    """Shows noise in episodes of 3 to 14 steps, so that ends are staggered."""

    truncates = True

    def __init__(self, num_envs: int):
        super().__init__(num_envs, spaces.Box(-99, 99, (3,)), spaces.Discrete(3))

    def draw(self, count: int) -> Worlds:
        return Worlds(3 + self.random_integers(12, count), self.random(count))

    def random(self, count: int) -> Tensor:
        return torch.randn(count, 3, generator=self.generator)

    def observe(self) -> Tensor:
        return self.worlds.seen.clone()

    def advance(self, action: Tensor) -> Step:
        left, seen = self.worlds
        self.worlds = Worlds(left - 1, self.random(len(left)))
        over = left == 1
        limit = over & (seen[:, 0] > 0)
        return Step(self.observe(), seen[:, 1] + action, over & ~limit, limit, {})


def build(
    memory: str = "gru",
    settings: PPOSettings = SETTINGS,
    *,
    dtype: torch.dtype = torch.float64,
    envs: int = 4,
    **policy: Any,
) -> tuple[PPO, Collector]:
    env = Noise(envs)
    actor = ActorCritic(
        env.single_observation_space, env.single_action_space, MEMORIES[memory], width=8, **policy
    ).to(dtype)
    for parameter in actor.parameters():  # a fresh head is close to indifferent
        torch.nn.init.normal_(parameter, std=0.3)
    return PPO(actor, settings, seed=0), Collector(Stream(env), actor, seed=0)


def record(collector: Collector, settings: PPOSettings = SETTINGS, *, skip: int = 1) -> Rollout:
    for _ in range(skip):  # so that the first state is in the middle of its life
        collector.collect(settings.rollout, chunk=settings.chunk)
    return collector.collect(settings.rollout, chunk=settings.chunk)


def cut(rollout: Rollout, chunk: int = SETTINGS.chunk) -> Batch:
    return chunked(rollout, torch.zeros_like(rollout.value), chunk)


def ratio_error(learner: PPO, batch: Batch) -> float:
    batch = batch._replace(state=states.snapshot(batch.state))
    return float(learner.loss(batch, 0.0)[1]["ratio_error"])


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["64", "32"]
)
@pytest.mark.parametrize("chunk", [24, 8, 1])
def test_before_the_first_update_every_ratio_is_one(
    memory: str, dtype: torch.dtype, tolerance: float, chunk: int
) -> None:
    settings = dataclasses.replace(SETTINGS, chunk=chunk)
    learner, collector = build(memory, settings, dtype=dtype)
    rollout = record(collector, settings)
    assert rollout.inputs.start[1:].any(1).sum() > 3
    assert ratio_error(learner, cut(rollout, chunk)) < tolerance


def test_memo_with_segments_of_another_length_would_evaluate_another_policy() -> None:
    learner, collector = build("memo")
    batch = cut(record(collector))
    assert batch.state.seed.all()
    fixed = batch.state._replace(seed=torch.zeros_like(batch.state.seed))
    assert ratio_error(learner, batch) < 1e-9
    assert ratio_error(learner, batch._replace(state=fixed)) > 1e-3


def test_a_state_of_another_chunk_would_evaluate_another_policy() -> None:
    learner, collector = build("gru")
    batch = cut(record(collector))
    rolled = states.tree_map(lambda leaf: leaf.roll(1, 0), batch.state)
    assert ratio_error(learner, batch._replace(state=rolled)) > 1e-3


def test_learning_leaves_the_rollout_as_it_was() -> None:
    """HCAM writes into the states it is given: they must be copies."""
    learner, collector = build("hcam", dataclasses.replace(SETTINGS, epochs=2, refresh=True))
    rollout = record(collector)
    before = [states.snapshot(state) for state in rollout.states]
    learner.update(rollout, progress=0.0)
    for kept, copy in zip(rollout.states, before, strict=True):
        for (_, a), (_, b) in zip(states.leaves(kept), states.leaves(copy), strict=True):
            assert torch.equal(a, b)


def test_chunks_keep_the_order_of_time_and_environments() -> None:
    rollout = record(build("gru")[1])
    steps, batch, chunk = 24, 4, 8
    place = torch.arange(steps * batch, dtype=torch.float64).view(steps, batch)
    cuts = chunked(rollout._replace(reward=place, value=place), place, chunk)
    for n in range(steps // chunk):
        for b in range(batch):
            part, at = slice(n * chunk, (n + 1) * chunk), n * batch + b
            assert torch.equal(cuts.value[:, at], place[part, b])
            assert torch.equal(cuts.target[:, at], 2 * place[part, b])
            assert torch.equal(cuts.action[:, at], rollout.action[part, b])
            assert torch.equal(cuts.inputs.observation[:, at], rollout.inputs.observation[part, b])
            assert torch.equal(cuts.inputs.start[:, at], rollout.inputs.start[part, b])
            assert torch.equal(cuts.state.h[at], rollout.states[n].h[b])
    ended = rollout.terminated | rollout.truncated
    assert torch.equal(cuts.ended[:, :batch], ended[:chunk])


def test_every_step_is_learnt_from_once_per_epoch_and_nothing_else_is() -> None:
    learner, collector = build("gru", dataclasses.replace(SETTINGS, minibatches=5))
    batch = cut(record(collector))
    parts = list(learner._minibatches(batch))
    assert [part.log_prob.shape[1] for part in parts] == [3, 3, 2, 2, 2]
    both = torch.cat([part.log_prob for part in parts], 1)
    assert torch.equal(both.flatten().sort().values, batch.log_prob.flatten().sort().values)
    for part in parts:
        for at in range(part.log_prob.shape[1]):
            same = (batch.log_prob == part.log_prob[:, at, None]).all(0).nonzero()
            assert torch.equal(batch.state.h[same.squeeze()], part.state.h[at])


def test_minibatches_are_drawn_anew_and_follow_from_the_seed() -> None:
    batch = cut(record(build("gru")[1]))

    def order(learner: PPO) -> Tensor:
        return torch.cat([part.log_prob[0] for part in learner._minibatches(batch)])

    one, same = build("gru")[0], build("gru")[0]
    first = order(one)
    assert torch.equal(first, order(same))
    assert not torch.equal(first, order(one))


@pytest.mark.parametrize("memory", [name for name in MEMORIES if name != "none"])
def test_refreshed_states_are_those_of_stepping_with_the_new_weights(memory: str) -> None:
    learner, collector = build(memory)
    rollout = record(collector)
    stale = states.concatenate(rollout.states)
    learner.update(rollout, progress=0.0)
    fresh = learner.refreshed(rollout)
    state = states.snapshot(rollout.states[0])
    policy = learner.policy
    with torch.no_grad():
        for n in range(3):
            mine = states.take(fresh, torch.arange(4 * n, 4 * n + 4))
            old = states.take(stale, torch.arange(4 * n, 4 * n + 4))
            inputs = states.tree_map(lambda x, n=n: x[8 * n : 8 * n + 8], rollout.inputs)
            read = [policy(inputs, states.snapshot(s))[0].value for s in (state, mine, old)]
            torch.testing.assert_close(read[1], read[0])
            if n:
                assert not torch.allclose(read[2], read[0], rtol=1e-5)
            for t in range(8):
                _, state = policy.step(states.tree_map(lambda x, t=t: x[t], inputs), state)


@pytest.mark.parametrize(("refresh", "times"), [(True, 2), (False, 0)])
def test_states_are_refreshed_before_every_epoch_but_the_first(
    refresh: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, collector = build("gru", dataclasses.replace(SETTINGS, epochs=3, refresh=refresh))
    calls: list[int] = []
    original = learner.refreshed
    monkeypatch.setattr(
        learner, "refreshed", lambda rollout: (calls.append(1), original(rollout))[1]
    )
    learner.update(record(collector), progress=0.0)
    assert len(calls) == times


def by_hand(advantage: float, ratio: float, **settings: Any) -> tuple[float, float]:
    """Policy loss of a batch of one, and whether it moves the policy."""
    settings = {"clip": 0.25, "normalize_advantage": False, **settings}
    learner, collector = build("gru", dataclasses.replace(SETTINGS, **settings))
    batch = cut(record(collector))
    batch = batch._replace(
        advantage=torch.full_like(batch.advantage, advantage),
        log_prob=batch.log_prob - np.log(ratio),
    )
    _, parts = learner.loss(batch, 0.0)
    parts["policy_loss"].backward()
    weight = learner.policy.head.logits.weight  # type: ignore[union-attr]
    return float(parts["policy_loss"].detach()), float(weight.grad.abs().max())  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "moves"),
    [
        (2.0, 1.0, -2.0, True),
        (2.0, 1.2, -2.4, True),
        (2.0, 1.5, -2.5, False),  # −2 · 1.25: no reward for going further
        (2.0, 0.5, -1.0, True),
        (-2.0, 1.5, 3.0, True),
        (-2.0, 0.5, 1.5, False),  # 2 · 0.75
        (-2.0, 0.8, 1.6, True),
    ],
)
def test_the_clipped_loss_by_hand(advantage: float, ratio: float, loss: float, moves: bool) -> None:
    seen, gradient = by_hand(advantage, ratio)
    assert seen == pytest.approx(loss)
    assert (gradient > 1e-12) == moves


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    learner, collector = build(
        "gru",
        dataclasses.replace(SETTINGS, value=0.3),
        auxiliary={"reconstruct": 0.5, "predict": 0.2, "recall": 0.1},
    )
    batch = cut(record(collector))
    batch = batch._replace(target=torch.randn_like(batch.target))
    total, parts = learner.loss(batch, 0.07)
    expected = parts["policy_loss"] + 0.3 * parts["value_loss"] - 0.07 * parts["entropy"]
    expected = expected + parts["reconstruct"] + parts["predict"] + parts["recall"]
    torch.testing.assert_close(total, expected)
    half = 0.5 * (batch.value - batch.target).square().mean()
    torch.testing.assert_close(parts["value_loss"], half)


@pytest.mark.parametrize("loss", ["predict", "recall"])
def test_a_loss_over_time_has_nothing_to_say_in_chunks_of_one_step(loss: str) -> None:
    learner, collector = build("gru", dataclasses.replace(SETTINGS, chunk=1), auxiliary={loss: 1.0})
    learner.update(record(collector, learner.settings), progress=0.0)


def test_value_targets_are_advantages_plus_values_with_the_ends_respected() -> None:
    _, collector = build("gru")
    rollout = record(collector)
    advantage = generalized_advantages(
        rollout.reward, rollout.value, rollout.last_value, rollout.terminated, rollout.truncated,
        rollout.final_value, discount=0.9, trace=1.0,
    )  # fmt: skip
    target = advantage + rollout.value
    ended = rollout.terminated & ~rollout.truncated
    torch.testing.assert_close(target[ended], rollout.reward[ended].double())
    limit = rollout.truncated
    bootstrapped = rollout.reward[limit] + 0.9 * rollout.final_value[limit]
    torch.testing.assert_close(target[limit], bootstrapped)


def test_returns_end_with_a_trial_not_with_its_episodes() -> None:
    learner, collector = build("gru")
    rollout = record(collector)
    apart = learner.advantages(rollout)
    nowhere = torch.zeros_like(rollout.restarted)
    joined = learner.advantages(rollout._replace(restarted=nowhere))
    unended = rollout._replace(terminated=nowhere, truncated=nowhere)
    torch.testing.assert_close(joined, learner.advantages(unended), rtol=0, atol=0)
    assert rollout.restarted.equal(rollout.terminated | rollout.truncated)
    assert (joined != apart)[rollout.restarted].all()


def test_running_statistics_do_not_move_while_a_rollout_is_learnt_from() -> None:
    learner, collector = build("gru", normalize=True)
    rollout = record(collector)
    collector.policy.observe_statistics(rollout.inputs.observation)
    rollout = record(collector)
    assert ratio_error(learner, cut(rollout)) < 1e-9
