"""RLlib's PPO learns with a memory of ours what it cannot learn without one."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

pytest.importorskip("ray.rllib", reason="needs the extra rllib", exc_type=ImportError)

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns

from engram.memory.sequence import HCAM, NoMemory, stack
from engram.policies.rllib import memory_config

# RLlib registers its environment anew for every runner.
again = pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), again]

STEPS, ITERATIONS = 12, 14
CHANCE = -0.375
"""Return of the best policy without memory: it names the card in sight, right at the first step."""


class RepeatFirst(gymnasium.Env[int, int]):
    """Name the first of 12 cards at every step; each right answer is worth 1/12, a wrong one −1/12.

    The cards are drawn one by one, not from a deck.
    """

    observation_space = action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, config: Any = None):
        del config

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.first, self.named = int(self.np_random.integers(4)), 0
        return self.first, {}

    def step(self, action: int):
        self.named += 1
        reward = (1 if action == self.first else -1) / STEPS
        return int(self.np_random.integers(4)), reward, self.named == STEPS, False, {}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    memory = 200 * 2**20
    ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=memory)
    yield
    ray.shutdown()


def config_of(memory: Any, *, runners: int = 0, **keywords: Any) -> PPOConfig:
    config = PPOConfig().environment(RepeatFirst).debugging(seed=0)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=32)
    config.training(train_batch_size_per_learner=2048, minibatch_size=512, num_epochs=4)
    config.training(lr=3e-3, entropy_coeff=0.01, gamma=0.9)
    return memory_config(config, memory, memory_kwargs=keywords, width=32, max_seq_len=16)


def final_return(algorithm: Algorithm) -> float:
    results = [algorithm.train()["env_runners"] for _ in range(ITERATIONS)]
    assert results[-1]["episode_len_mean"] == STEPS
    return float(results[-1]["episode_return_mean"])


def test_ppo_learns_to_repeat_the_first_card_and_survives_a_checkpoint(tmp_path: Path):
    algorithm = config_of(HCAM, chunk=4, capacity=8).build_algo()
    assert final_return(algorithm) > CHANCE + 0.6
    path = algorithm.save_to_path(tmp_path)
    module = algorithm.get_module()
    restored = Algorithm.from_checkpoint(path)
    twin = restored.get_module()
    state = {k: torch.as_tensor(v)[None] for k, v in module.get_initial_state().items()}
    for card in (2, 0, 1, 3, 3, 0):
        batch = {Columns.OBS: torch.tensor([card]), Columns.STATE_IN: state}
        answers = [m.forward_inference(batch) for m in (module, twin)]
        assert torch.equal(*(answer[Columns.ACTION_DIST_INPUTS] for answer in answers))
        state = answers[0][Columns.STATE_OUT]
    assert int(answers[0][Columns.ACTION_DIST_INPUTS].argmax()) == 2
    assert restored.train()["env_runners"]["episode_return_mean"] > CHANCE + 0.6
    algorithm.stop()
    restored.stop()


def test_ppo_stays_at_chance_without_memory():
    algorithm = config_of(partial(stack, layer=NoMemory)).build_algo()
    assert final_return(algorithm) < CHANCE + 0.1
    algorithm.stop()


def test_states_survive_the_way_from_a_runner_in_another_process():
    algorithm = config_of(HCAM, runners=1, chunk=4, capacity=8).build_algo()
    algorithm.train()  # the second batch continues episodes that the first one cut
    assert algorithm.train()["learners"]["default_policy"]["num_module_steps_trained"] > 4 * 2048
    algorithm.stop()
