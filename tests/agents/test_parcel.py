"""Rollouts as they travel: what comes out is what went in, in few bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from engram.agents import parcel
from engram.agents.rollout import Collector, Rollout
from engram.envs.ballet import Ballet
from engram.envs.street import Street
from engram.envs.tmaze import TMaze
from engram.envs.vector import Stream
from engram.memory import state as states
from engram.memory.sequence import GRU, HCAM, NoMemory
from engram.policies import ActorCritic

CPU = torch.device("cpu")


def collected(env: Any, memory: Callable[[int], Any] = GRU, *, steps: int = 20) -> list[Any]:
    torch.manual_seed(1)
    policy = ActorCritic(env.single_observation_space, env.single_action_space, memory, width=8)
    collector = Collector(Stream(env), policy, seed=3)
    found = []
    for _ in range(2):
        before = collector.tensors()
        rollout = collector.collect(steps, chunk=steps // 2)
        found.append((rollout, before, collector.tensors(), collector.seconds, policy))
    return found


def assert_same(a: Rollout, b: Rollout) -> None:
    done = a.terminated | a.truncated
    measured = zip(a.measurements.items(), b.measurements.items(), strict=True)
    for (name, seen), (other, given) in measured:
        assert name == other
        torch.testing.assert_close(seen[done], given[done], rtol=0, atol=0, equal_nan=True)
    plain = [(*r._replace(measurements={}, inputs=(), states=()),) for r in (a, b)]  # type: ignore
    for seen, given in zip(*plain, strict=True):
        if isinstance(seen, torch.Tensor):
            assert seen.dtype == given.dtype
            torch.testing.assert_close(seen, given, rtol=0, atol=0, equal_nan=True)
    trees = [(r.inputs, tuple(r.states)) for r in (a, b)]
    for (path, seen), (_, given) in zip(*(states.leaves(tree) for tree in trees), strict=True):
        assert seen.dtype == given.dtype and torch.equal(seen, given), path


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    ("env", "memory"),
    [
        (lambda: TMaze(3, length=3, time_limit=5), GRU),
        (lambda: TMaze(1, length=3, time_limit=5), NoMemory),
        (lambda: Street(3, trial_steps=15, pool=4), GRU),
        (lambda: Ballet(2, dances=2, delay=16), lambda w: HCAM(w, chunk=3, capacity=3, heads=2)),
    ],
    ids=["tmaze", "no memory", "street", "ballet"],
)
def test_a_rollout_survives_the_journey(env: Any, memory: Any, second: bool) -> None:
    rollout, before, after, seconds, policy = collected(env(), memory)[int(second)]
    sent = parcel.pack(rollout, after, seconds, with_memory=False)
    like = policy.initial_state(rollout.last_value.shape[0])
    kept = {k[7:]: v for k, v in before.items() if k.startswith("memory.")}
    assert_same(parcel.unpack(sent, states.unflatten(kept, like), CPU), rollout)


def test_integers_travel_in_the_fewest_bytes_and_come_back_as_they_were() -> None:
    for values, width in (([0, 255], 1), ([-1, 3], 2), ([0, 40_000], 4), ([0, 2**40], 8)):
        narrow = parcel._narrow(torch.tensor(values))
        assert narrow.itemsize == width
        assert narrow.astype(np.int64).tolist() == values


def test_side_by_side_rollouts_are_those_of_one_wide_batch() -> None:
    env = TMaze(4, length=3, time_limit=5)
    (rollout, *_), _ = collected(env)

    def share(rows: slice) -> Rollout:
        cut = states.tree_map(
            lambda x: x[:, rows], tuple(rollout._replace(states=(), last_value=()))
        )  # type: ignore
        kept = [states.tree_map(lambda x: x[rows], state) for state in rollout.states]
        return Rollout(*cut)._replace(states=kept, last_value=rollout.last_value[rows])

    halves = [share(slice(0, 1)), share(slice(1, 4))]
    assert_same(parcel.together(halves), rollout)


def test_nothing_is_copied_on_arrival() -> None:
    (rollout, _, after, seconds, _policy), _ = collected(TMaze(3, length=3))
    sent = parcel.pack(rollout, after, seconds, with_memory=False)
    back = parcel.unpack(sent, rollout.states[0], CPU)
    assert back.inputs.observation.data_ptr() == sent.observation.ctypes.data
    assert back.value.data_ptr() == sent.value.ctypes.data


def test_what_travels_is_observations_and_little_else() -> None:
    envs, steps = 32, 128
    (rollout, _, after, seconds, _), _ = collected(Ballet(envs, dances=2, delay=16), steps=steps)
    sizes = parcel.nbytes(parcel.pack(rollout, after, seconds, with_memory=False))
    observed = rollout.inputs.observation
    raw = sum(part.numel() * part.element_size() for _, part in states.leaves(observed))
    assert sizes["observation"] == raw
    # Two states per rollout, of 8 float32 each.
    assert sizes["memory"] == envs * 8 * 4 * 2
    assert sum(sizes.values()) <= 1.2 * raw


def test_discrete_actions_take_a_byte() -> None:
    env = TMaze(3, length=3)
    assert isinstance(env.single_action_space, spaces.Discrete)
    (rollout, _, after, seconds, _), _ = collected(env)
    assert parcel.pack(rollout, after, seconds, with_memory=False).action.dtype == np.uint8
