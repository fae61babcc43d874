"""What a cluster can lose: a node with a worker on it, room in the object store."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from engram.agents.cluster import ClusterError, RaySettings
from engram.agents.ppo import PPOSettings
from engram.agents.training import Training, build_policy
from engram.agents.workers import Workers
from engram.envs.tmaze import TMaze
from engram.envs.vector import BatchedEnv, Step, Stream
from engram.memory.sequence import GRU
from engram.policies import ActorCritic

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SETTINGS = PPOSettings(rollout=20, chunk=10, epochs=1, minibatches=2)


@pytest.fixture
def ray_apart() -> Iterator[Any]:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


def acting(world: Any) -> tuple[Stream, ActorCritic]:
    observed, acted = world.single_observation_space, world.single_action_space
    return Stream(world), build_policy(5, lambda: ActorCritic(observed, acted, GRU, width=8))


def maze(number: int) -> tuple[Stream, ActorCritic]:
    return acting(TMaze(4, length=3, time_limit=5))


def scores(training: Training, iterations: int) -> list[float]:
    return [training.iterate()["policy_loss"] for _ in range(iterations)]


def test_the_worker_of_a_lost_node_goes_on_elsewhere(ray_apart: Any) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20},
    )
    more = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    doomed = cluster.add_node(**more)
    ray_apart.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        settings = RaySettings(workers=2, timeout=90.0)
        policy = maze(0)[1]
        workers = Workers(maze, policy, settings, seed=5)
        training = Training(workers, policy, SETTINGS, seed=5, budget=1000)
        seen = scores(training, 2)
        cluster.add_node(**more)
        cluster.remove_node(doomed, allow_graceful=False)
        seen += scores(training, 2)
        assert workers.replaced == 1 and training.steps == 4 * 20 * 8
        workers.close()
        policy = maze(0)[1]
        workers = Workers(maze, policy, settings, seed=5)
        assert scores(Training(workers, policy, SETTINGS, seed=5, budget=1000), 4) == seen
        workers.close()
    finally:
        ray_apart.shutdown()
        cluster.shutdown()


class Panorama(BatchedEnv[Any]):
    """Shows a megabyte at every step: a rollout of eight takes twice the object store."""

    def __init__(self, num_envs: int):
        view = spaces.Box(0, 255, (600, 600, 3), np.uint8)
        super().__init__(num_envs, view, spaces.Discrete(2))

    def draw(self, count: int) -> Any:
        return (torch.zeros(count),)

    def observe(self) -> torch.Tensor:
        return torch.zeros(self.num_envs, 600, 600, 3, dtype=torch.uint8)

    def advance(self, action: torch.Tensor) -> Step:
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return Step(self.observe(), torch.zeros(self.num_envs), never, never, {})


def panorama(number: int) -> tuple[Stream, ActorCritic]:
    return acting(Panorama(8))


def test_a_full_object_store_is_named_with_the_setting(ray_apart: Any) -> None:
    ray_apart.init(
        address="local",  # whatever else runs on this machine
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config={
            # The disk counts as full, too: until then Ray moves what has no room there.
            "local_fs_capacity_threshold": 1e-6,
            "object_store_full_delay_ms": 10,
        },
    )
    settings = RaySettings(workers=1, object_store_memory=80 * 2**20)
    workers = Workers(panorama, acting(Panorama(1))[1], settings, seed=0)
    with pytest.raises(ClusterError, match=r"the object store is full .*allowed: more bytes"):
        workers.collect(20, chunk=20)
