"""MuJoCo with hidden velocities."""

import importlib.util
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from engram.envs import MaskedMujoco, Stream
from engram.envs.masked_mujoco import TASKS
from engram.kernels.errors import InvalidValueError, MissingPackageError

needs_mujoco = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "imageio")),
    reason="needs engram[mujoco]",
)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT where it runs."""
    monkeypatch.chdir(tmp_path)


@needs_mujoco
@pytest.mark.parametrize("task", TASKS)
def test_velocities_are_hidden_and_positions_are_not(task: str):
    env = MaskedMujoco(2, task=task)
    observation, _ = env.reset(seed=0)
    for body in env.vector.envs:  # type: ignore
        data = body.unwrapped.data
        data.qvel[:] += 0.5
    masked = [body.observation(body.unwrapped._get_obs()) for body in env.vector.envs]  # type: ignore
    assert np.array_equal(np.stack(masked), observation.numpy())
    data.qpos[-1] += 0.5
    assert not np.array_equal(body.observation(body.unwrapped._get_obs()), masked[1])

    full = gymnasium.make(f"{task}-v5").observation_space.shape
    positions = {"InvertedPendulum": 2, "Hopper": 5, "HalfCheetah": 8, "Walker2d": 8}[task]
    assert observation.shape == (2, positions) and observation.dtype == torch.float32
    assert full is not None and full[0] > positions


@needs_mujoco
@pytest.mark.parametrize("task", TASKS)
def test_episodes_end_and_restart_in_the_same_step(task: str):
    env = MaskedMujoco(2, task=task, settings={"max_episode_steps": 5})
    assert isinstance(env.single_action_space, gymnasium.spaces.Box)
    stream = Stream(env)
    stream.reset(seed=1)
    action = torch.zeros(2, *env.single_action_space.shape)
    for time in range(1, 6):
        step = stream.step(action)
        assert step.start.tolist() == [time == 5] * 2
        assert env.observation_space.contains(step.observation.numpy())
        assert step.reward.isfinite().all()
    assert step.truncated.all()
    assert not step.final_observation.equal(step.observation)


@needs_mujoco
def test_the_registered_id_makes_it():
    env = gymnasium.make_vec(
        "engram.envs:engram/MaskedMujoco-v0", num_envs=2, task="InvertedPendulum"
    )
    assert env.reset(seed=0)[0].shape == (2, 2)
    env.close()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingPackageError, match=r"'mujoco' is missing.*engram\[mujoco\]"):
        MaskedMujoco(1)


def test_an_unknown_task_is_refused():
    with pytest.raises(InvalidValueError, match="task is 'Ant'; allowed: InvertedPendulum"):
        MaskedMujoco(1, task="Ant")
