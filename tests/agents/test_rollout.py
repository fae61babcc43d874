"""Rollouts: what is recorded is what happened, and the memory can be replayed from it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import pytest
import torch
from torch import Tensor

from engram.agents.rollout import Collector
from engram.envs.repeat import RepeatFirst
from engram.envs.tmaze import TMaze
from engram.envs.vector import BatchedEnv, Step, Stream
from engram.memory import state as states
from engram.memory.sequence import GRU, HCAM, GTrXL, Memo, SequenceMemory, Window, stack
from engram.policies import ActorCritic, Inputs

MEMORIES: dict[str, Callable[[int], SequenceMemory[Any]]] = {
    "gru": GRU,
    "window": lambda width: Window(width, window=4, heads=2),
    "gtrxl": lambda width: GTrXL(width, layers=1, memory=5, heads=2),
    "hcam": lambda width: stack(
        width, layer=lambda d: HCAM(d, chunk=3, capacity=4, top_k=2, heads=2), layers=1
    ),
    "memo": lambda width: Memo(width, heads=2, segment=5, summary=2, capacity=3, jitter=0.5),
}
everywhere = pytest.mark.parametrize("memory", MEMORIES)


class Clock(NamedTuple):
    time: Tensor
    """Steps in the running episode."""
    length: Tensor
    """Steps after which it ends."""
    noise: Tensor
    """What no other step shows: HCAM cannot tell chunks of equal inputs apart."""


class Counter(BatchedEnv[Clock]):
    """Shows the time, pays 1 + time; episodes of 3 to 6 steps are truncated or terminate."""

    truncates = True

    def __init__(self, num_envs: int, *, trial: int = 1):
        self.trial = trial
        space = gymnasium.spaces.Box(-99, 99, (2,))
        super().__init__(num_envs, space, gymnasium.spaces.Discrete(3))
        self.episodes = torch.zeros(num_envs, dtype=torch.int64)

    def draw(self, count: int) -> Clock:
        time = torch.zeros(count, dtype=torch.int64)
        return Clock(time, 3 + self.random_integers(4, count), self.random(count))

    def random(self, count: int) -> Tensor:
        return torch.randn(count, generator=self.generator)

    def observe(self) -> Tensor:
        return torch.stack([self.worlds.time.float(), self.worlds.noise], 1)

    def advance(self, action: Tensor) -> Step:
        time, length, _ = self.worlds
        self.worlds = Clock(time + 1, length, self.random(len(time)))
        over = time + 1 == length
        limit = over & (length % 2 == 0)
        reward = 1.0 + time.float()
        self.episodes = self.episodes + over
        info = {"length": length.float(), "start": over & (self.episodes % self.trial == 0)}
        return Step(self.observe(), reward, over & ~limit, limit, info)


def build(env: BatchedEnv[Any], memory: str, dtype: torch.dtype = torch.float32) -> Collector:
    policy = ActorCritic(
        env.single_observation_space, env.single_action_space, MEMORIES[memory], width=8
    ).to(dtype)
    for parameter in policy.parameters():  # a fresh head is close to indifferent
        torch.nn.init.normal_(parameter, std=0.4)
    return Collector(Stream(env), policy, seed=3)


def at(inputs: Inputs, *place: Any) -> Inputs:
    return states.tree_map(lambda part: part[place], inputs)


@everywhere
@torch.no_grad()
def test_the_state_kept_for_a_chunk_is_the_one_before_its_first_step(memory: str) -> None:
    collector = build(Counter(4), memory, torch.float64)
    for _ in range(3):
        rollout = collector.collect(40, chunk=10)
        assert len(rollout.states) == 4
        for n, state in enumerate(rollout.states):
            chunk = slice(10 * n, 10 * n + 10)
            inputs = at(rollout.inputs, chunk)
            output, _ = collector.policy(inputs, states.snapshot(state))
            torch.testing.assert_close(output.value, rollout.value[chunk])
            log_prob = output.policy.log_prob(rollout.action[chunk])
            torch.testing.assert_close(log_prob, rollout.log_prob[chunk])


@everywhere
@torch.no_grad()
def test_one_rollout_goes_on_where_the_last_one_ended(memory: str) -> None:
    """Stepping through two rollouts from the very first state reproduces both."""
    collector = build(Counter(3), memory, torch.float64)
    first, second = (collector.collect(32, chunk=16) for _ in range(2))
    state = states.snapshot(first.states[0])
    for rollout in (first, second):
        for t in range(32):
            output, state = collector.policy.step(at(rollout.inputs, t), state)
            torch.testing.assert_close(output.value, rollout.value[t])
    torch.testing.assert_close(first.last_value, second.value[0])


@everywhere
def test_acting_changes_no_state_that_was_kept(memory: str) -> None:
    """HCAM writes in place: a state that shared its memory would hold later chunks."""
    collector = build(Counter(3), memory)
    rollout = collector.collect(16, chunk=4)
    copies = [states.snapshot(state) for state in rollout.states]
    collector.collect(16, chunk=4)
    for kept, copy in zip(rollout.states, copies, strict=True):
        for (_, a), (_, b) in zip(states.leaves(kept), states.leaves(copy), strict=True):
            assert torch.equal(a, b)


def test_kept_states_carry_no_gradient_and_no_history() -> None:
    rollout = build(Counter(3), "gru").collect(8, chunk=4)
    for state in rollout.states:
        assert not any(leaf.requires_grad for _, leaf in states.leaves(state))


def test_inputs_are_what_followed_the_action_before() -> None:
    collector = build(Counter(5), "gru")
    first, second = (collector.collect(12, chunk=6) for _ in range(2))
    rollout = first
    inputs = rollout.inputs
    assert inputs.start[0].all()
    assert torch.equal(inputs.action[1:], rollout.action[:-1])
    assert torch.equal(inputs.reward[1:], rollout.reward[:-1])
    assert torch.equal(inputs.start[1:], (rollout.terminated | rollout.truncated)[:-1])
    assert torch.equal(second.inputs.action[0], first.action[-1])
    assert torch.equal(second.inputs.reward[0], first.reward[-1])
    assert torch.equal(second.inputs.start[0], (first.terminated | first.truncated)[-1])


def test_rewards_belong_to_the_observation_that_was_acted_on() -> None:
    rollout = build(Counter(5), "gru").collect(12, chunk=6)
    assert torch.equal(rollout.reward, 1 + rollout.inputs.observation[..., 0])
    assert torch.equal(rollout.inputs.observation[..., 0] == 0, rollout.inputs.start)


def test_scores_are_the_returns_of_the_episodes_that_ended() -> None:
    collector = build(Counter(4), "gru")
    parts = [collector.collect(6, chunk=3) for _ in range(4)]  # episodes cross the rollouts
    done = torch.cat([part.terminated | part.truncated for part in parts])
    scores = torch.cat([part.scores for part in parts])
    length = torch.cat([part.measurements["length"] for part in parts])
    assert done.any()
    assert torch.equal(~scores.isnan(), done)
    assert torch.equal(scores[done], (length * (length + 1) / 2)[done])


def test_measurements_hold_what_the_environment_reports_and_no_flags() -> None:
    rollout = build(Counter(4), "gru").collect(6, chunk=3)
    assert list(rollout.measurements) == ["length"]


@everywhere
@pytest.mark.parametrize("env", [Counter, partial(TMaze, length=2, time_limit=3)], ids=["", "maze"])
@torch.no_grad()
def test_a_final_value_is_read_with_the_memory_before_the_reset(
    env: Callable[[int], BatchedEnv[Any]], memory: str
) -> None:
    world = env(5)
    collector = build(world, memory, torch.float64)
    seen: list[Tensor] = []
    advance = world.advance

    def watched(action: Tensor) -> Step:
        step = advance(action)
        seen.append(step.observation)
        return step

    world.advance = watched  # type: ignore[method-assign]
    rollout = collector.collect(20, chunk=10)
    assert rollout.truncated.any()
    state = states.snapshot(rollout.states[0])
    on = torch.zeros_like(rollout.terminated[0])
    for t in range(20):
        _, state = collector.policy.step(at(rollout.inputs, t), state)
        last = Inputs(seen[t], rollout.action[t], rollout.reward[t], on)
        expected = collector.policy.step(last, states.snapshot(state))[0].value
        ended = rollout.truncated[t]
        torch.testing.assert_close(rollout.final_value[t][ended], expected[ended])


def test_the_last_value_is_of_the_observation_after_the_rollout() -> None:
    collector = build(Counter(5), "hcam", torch.float64)
    first = collector.collect(10, chunk=5)
    second = collector.collect(5, chunk=5)
    torch.testing.assert_close(first.last_value, second.value[0])


def test_memory_outlives_the_episodes_of_a_trial() -> None:
    collector = build(Counter(4, trial=2), "gru")
    rollout = collector.collect(30, chunk=10)
    done = (rollout.terminated | rollout.truncated)[:-1]
    start = rollout.inputs.start[1:]
    assert (done & ~start).any()
    assert not (start & ~done).any()
    assert torch.equal(~rollout.scores.isnan(), rollout.terminated | rollout.truncated)


def test_the_same_seed_acts_the_same_and_another_does_not() -> None:
    def act(seed: int) -> Tensor:
        torch.manual_seed(0)
        env = RepeatFirst(4)
        policy = ActorCritic(
            env.single_observation_space, env.single_action_space, MEMORIES["memo"], width=8
        )
        return Collector(Stream(env), policy, seed=seed).collect(16, chunk=8).action

    assert torch.equal(act(1), act(1))
    assert not torch.equal(act(1), act(2))


def test_actions_and_worlds_draw_from_different_numbers() -> None:
    """Else the noise of an action would repeat that of the world, for a policy to exploit."""
    collector = build(RepeatFirst(4), "gru")
    env = collector.stream.env
    assert isinstance(env, BatchedEnv)
    assert collector.generator.initial_seed() != env.generator.initial_seed()


def test_environments_draw_segments_of_their_own() -> None:
    collector = build(Counter(8), "memo")
    seeds = collector.cursor.state.seed
    assert len(seeds.unique()) == 8
