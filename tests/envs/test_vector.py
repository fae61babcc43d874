"""The one view that learners have of environments."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from engram.envs import ChainBit, Stream
from engram.envs.vector import stack_final
from engram.kernels.errors import InvalidValueError


def cartpoles(mode: AutoresetMode, limit: int = 3) -> SyncVectorEnv:
    make = lambda: gymnasium.make("CartPole-v1", max_episode_steps=limit)  # noqa: E731
    return SyncVectorEnv([make, make], autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_stream_refuses_other_autoreset_modes(mode: AutoresetMode):
    with pytest.raises(InvalidValueError, match=r"autoreset_mode is .*; allowed: .*SAME_STEP"):
        Stream(cartpoles(mode))


def test_a_stream_refuses_an_environment_that_does_not_say():
    class Silent(VectorEnv):
        metadata: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(InvalidValueError, match="autoreset_mode is None"):
        Stream(Silent())


def test_a_stream_over_gymnasium_hands_out_filled_final_observations():
    stream = Stream(cartpoles(AutoresetMode.SAME_STEP))
    first, start = stream.reset(seed=0)
    assert isinstance(first, torch.Tensor) and start.tolist() == [True, True]
    for time in (1, 2, 3):
        step = stream.step(torch.tensor([0, 1]))
        ended = time == 3
        assert step.start.tolist() == step.truncated.tolist() == [ended, ended]
        assert step.observation.equal(step.final_observation) != ended
    assert step.reward.dtype == torch.float32


def test_a_stream_over_a_batched_environment():
    stream = Stream(ChainBit(3, length=1))
    assert not stream.truncates
    stream.reset(seed=0)
    step = stream.step(torch.zeros(3, dtype=torch.int64))
    assert not step.start.any()
    assert step.observation.equal(step.final_observation)
    step = stream.step(torch.zeros(3, dtype=torch.int64))
    assert step.start.all()
    assert step.final_observation.tolist() == [[2, 1]] * 3
    assert (step.observation[:, 0] < 2).all()
    assert step.info.keys() == {"success"}


def test_final_observations_fill_the_gaps_of_a_dict():
    final = np.full(3, None, dtype=object)
    final[1] = {"a": np.array([9.0]), "b": 7}
    observation = {"a": np.array([[1.0], [2.0], [3.0]]), "b": np.array([4, 5, 6])}
    info = {"final_obs": final}
    filled = stack_final(observation, info)
    assert filled["a"].tolist() == [[1], [9], [3]] and filled["b"].tolist() == [4, 7, 6]
    assert observation["a"].tolist() == [[1], [2], [3]] and not info


def test_a_batched_environment_takes_one_seed():
    with pytest.raises(InvalidValueError, match="seed is"):
        ChainBit(2).reset(seed=[1, 2])
