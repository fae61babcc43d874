"""Workers in processes of their own: the same run as in one process, whatever dies on the way."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from engram.agents.cluster import ClusterError, RaySettings, joined
from engram.agents.parcel import together
from engram.agents.ppo import PPOSettings
from engram.agents.rollout import Acting, Collector, Rollout
from engram.agents.seeds import derive
from engram.agents.training import Training, build_policy
from engram.agents.workers import Workers
from engram.envs.adapter import GymnasiumEnv
from engram.envs.tmaze import TMaze
from engram.envs.vector import Stream
from engram.kernels.errors import DataError
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SETTINGS = PPOSettings(rollout=20, chunk=10, epochs=2, minibatches=2)
SHARE = 0.25


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with joined(RaySettings(object_store_memory=200 * 2**20)):
        yield


def make(number: int) -> tuple[Stream, ActorCritic]:
    return policy_in(TMaze(4, length=3, time_limit=5))


def make_cartpole(number: int) -> tuple[Stream, ActorCritic]:
    return policy_in(GymnasiumEnv(3, environment="CartPole-v1"))


def policy_in(world: Any) -> tuple[Stream, ActorCritic]:
    spaces = world.single_observation_space, world.single_action_space
    return Stream(world), build_policy(
        5, lambda: ActorCritic(*spaces, GRU, width=8, normalize=True)
    )


def settings(workers: int, **more: Any) -> RaySettings:
    return RaySettings(workers=workers, cpus_per_worker=SHARE, timeout=60.0, **more)


def started(
    workers: int, *, make: Callable[[int], Any] = make, **more: Any
) -> tuple[Training, Workers]:
    _, policy = make(0)
    acting = Workers(make, policy, settings(workers, **more), seed=5)
    return Training(acting, policy, SETTINGS, seed=5, budget=2000), acting


class OneProcess:
    """Collectors with the workers' seeds, one after another; optionally with delayed weights."""

    def __init__(self, policy: ActorCritic, count: int, *, delayed: bool = False):
        self.policy, self.delayed = policy, delayed
        self.collectors = []
        for i in range(count):
            stream, copy = make(i)
            self.collectors.append(Collector(stream, copy, seed=derive(5, f"worker {i}")))
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, float] = {}
        self.weights: dict[str, Tensor] | None = None

    def collect(self, steps: int, *, chunk: int) -> Rollout:
        now = {name: value.clone() for name, value in self.policy.state_dict().items()}
        weights = self.weights if self.delayed and self.weights is not None else now
        self.weights = now
        for collector in self.collectors:
            collector.policy.load_state_dict(weights)
        return together([c.collect(steps, chunk=chunk) for c in self.collectors])

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor], *, steps: int, source: Path) -> None:
        raise NotImplementedError

    def close(self) -> None: ...


def in_one_process(workers: int, **more: Any) -> Training:
    stream, policy = make(0)
    acting: Stream | Acting = stream
    if workers > 1 or more:
        acting = OneProcess(policy, workers, **more)
    return Training(acting, policy, SETTINGS, seed=5, budget=2000)


def told(training: Training, iterations: int) -> list[dict[str, Any]]:
    """Reports without what depends on clocks and processes; NaN as a word."""
    apart = ("second", "bytes", "staleness", "replaced")
    return [
        {
            name: "nan" if value != value else value
            for name, value in training.iterate().items()
            if not any(word in name for word in apart)
        }
        for _ in range(iterations)
    ]


def same_weights(a: Training, b: Training) -> bool:
    pairs = zip(a.policy.state_dict().values(), b.policy.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def processes(acting: Workers) -> list[int]:
    import ray

    return ray.get([actor.process.remote() for actor in acting._actors])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_with_workers_equals_one_process_bit_for_bit(workers: int) -> None:
    training, acting = started(workers)
    alone = in_one_process(workers)
    assert told(training, 4) == told(alone, 4)
    assert same_weights(training, alone)
    assert acting.facts["staleness"] == 0
    acting.close()


def test_asynchronous_workers_act_with_weights_one_update_old() -> None:
    training, acting = started(2, asynchronous=True)
    delayed = in_one_process(2, delayed=True)
    first = training.iterate()
    delayed.iterate()
    assert first["staleness"] == 0
    assert told(training, 4) == told(delayed, 4)
    assert same_weights(training, delayed)
    assert acting.facts["staleness"] == 1
    acting.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_killed_worker_is_replaced_and_the_run_is_the_one_that_would_have_been(
    asynchronous: bool,
) -> None:
    untouched, quiet = started(2, asynchronous=asynchronous)
    expected = told(untouched, 5)
    quiet.close()
    training, acting = started(2, asynchronous=asynchronous)
    seen = told(training, 2)
    before = processes(acting)
    os.kill(before[1], signal.SIGKILL)
    seen += told(training, 3)
    assert acting.replaced == 1
    after = processes(acting)
    assert after[0] == before[0] and after[1] != before[1]
    assert training.steps == 5 * 20 * 8
    assert seen == expected
    assert same_weights(training, untouched)
    acting.close()


def test_a_killed_simulator_begins_new_episodes_and_no_step_counts_twice() -> None:
    training, acting = started(2, make=make_cartpole)
    told(training, 1)
    os.kill(processes(acting)[0], signal.SIGKILL)
    (report,) = told(training, 1)
    assert report["steps"] == 2 * 20 * 6
    assert acting.replaced == 1
    rollout = acting.collect(20, chunk=10)
    again = acting._after[0]
    assert not any(name.startswith("memory.") for name in again)
    assert len(rollout.states) == 2 and rollout.states[0].h.any()
    acting.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_agrees_with_an_uninterrupted_one(asynchronous: bool, tmp_path: Path) -> None:
    through, acting = started(2, asynchronous=asynchronous)
    told(through, 2)
    through.save(tmp_path / "run", {})
    expected = told(through, 2)
    acting.close()
    resumed, others = started(2, asynchronous=asynchronous)
    resumed.load(tmp_path / "run")
    assert told(resumed, 2) == expected
    assert same_weights(resumed, through)
    resumed.load(tmp_path / "run")  # with rollouts under way
    assert told(resumed, 2) == expected
    others.close()


def test_the_checkpoint_of_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    training, acting = started(2)
    training.iterate()
    training.save(tmp_path / "run", {})
    acting.close()
    other, alone = started(1)
    with pytest.raises(DataError, match=r"worker.* is .*; allowed: "):
        other.load(tmp_path / "run")
    alone.close()
    with pytest.raises(DataError, match="allowed"):
        in_one_process(1).load(tmp_path / "run")


class Moody(gymnasium.Env):
    """Does something bad at its third step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, act: Callable[[], None]):
        self.act, self.count = act, 0

    def reset(self, **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.count == 3:
            self.act()
        return np.zeros(2, np.float32), 0.0, False, False, {}


def moody(act: Callable[[], None]) -> Callable[[int], tuple[Stream, ActorCritic]]:
    return lambda number: policy_in(GymnasiumEnv(1, environment=lambda: Moody(act)))


def stumble() -> None:
    raise ArithmeticError("the arm\nfell off")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("act", "more", "message"),
    [
        (stumble, {}, r"^worker 0 raised ArithmeticError: the arm fell off$"),
        (die, {"restarts": 1}, r"^worker 0 died 2 times in a row .*allowed: 1 \(ray.restarts\)$"),
        (hang, {"patience": 1.0}, r"^worker 0 delivered no rollout within 1 s; allowed: "),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_a_worker_that_fails_ends_the_run_with_one_line(
    act: Callable[[], None], more: dict[str, Any], message: str
) -> None:
    training, _ = started(1, make=moody(act), **more)
    with pytest.raises(ClusterError, match=message) as caught:
        training.iterate()
    assert "\n" not in str(caught.value)


def test_a_worker_that_cannot_be_built_says_why() -> None:
    def broken(number: int) -> Any:
        raise OSError("no such robot")

    with pytest.raises(ClusterError, match="worker 0 raised OSError: no such robot"):
        Workers(broken, make(0)[1], settings(1), seed=0)


def test_a_worker_that_finds_no_core_is_not_waited_for_forever() -> None:
    held = started(4)[1]
    greedy = RaySettings(workers=1, cpus_per_worker=float(os.cpu_count() or 1), timeout=2.0)
    with pytest.raises(ClusterError, match="worker 0 did not start within 2 s; allowed: more time"):
        Workers(make, make(0)[1], greedy, seed=0)
    held.close()


def test_more_than_the_cluster_has_is_refused_with_what_it_has() -> None:
    with (
        pytest.raises(ClusterError, match=r"ray.workers=999 .* need 999 CPU; allowed: \d+, which"),
        joined(RaySettings(workers=999)),
    ):
        pass
