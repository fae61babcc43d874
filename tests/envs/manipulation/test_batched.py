"""Manipulation worlds as a batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from engram.envs import Manipulation, Stream
from engram.envs.manipulation import JointControl, ManipulationEnv, Oracle
from engram.kernels.errors import InvalidValueError, MissingPackageError

needs_mujoco = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "mink")),
    reason="needs engram[manipulation]",
)
SMALL = {"size": 16, "objects": True, "instruction": True}


@needs_mujoco
def test_a_batch_shows_what_single_worlds_show():
    env = Manipulation(2, task="shell_game", settings={"cups": 2}, **SMALL)
    seeds = np.random.SeedSequence(7).generate_state(2).tolist()
    alone = [ManipulationEnv("shell_game", cups=2, **SMALL) for _ in seeds]
    batch, _ = env.reset(seed=7)
    single = [world.reset(seed=seed)[0] for world, seed in zip(alone, seeds, strict=True)]
    random = np.random.default_rng(0)
    for _ in range(8):
        for name, part in batch.items():
            assert np.array_equal(part.numpy(), np.stack([one[name] for one in single])), name
        action = random.uniform(-1, 1, (2, 4)).astype(np.float32)
        batch = env.step(torch.from_numpy(action))[0]
        single = [world.step(row)[0] for world, row in zip(alone, action, strict=True)]
    assert batch["top"].dtype == torch.uint8 and batch["objects"].dtype == torch.float32


@needs_mujoco
@pytest.mark.parametrize("bad", [1.5, float("nan")])
def test_where_one_action_is_refused_no_world_acts(bad: float):
    env, twin = (Manipulation(2, cameras=(), objects=True) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    actions = torch.full((2, 4), 0.5)
    spoilt = actions.clone()
    spoilt[1, 2] = bad
    with pytest.raises(InvalidValueError, match=rf"action\[1, 2\] is {bad}; allowed: -1 to 1"):
        env.step(spoilt)
    seen, expected = (each.step(actions)[0] for each in (env, twin))
    assert all(torch.equal(seen[name], expected[name]) for name in expected)


@needs_mujoco
def test_measures_are_of_the_episode_that_ended():
    env = Manipulation(1, cameras=(), settings={"gap": 0, "onset": 1, "cue": 1})
    stream, oracle = Stream(env), Oracle()
    stream.reset(seed=0)
    (world,) = env.vector.envs  # type: ignore
    for time in range(40):
        step = stream.step(torch.from_numpy(oracle.act(world.unwrapped))[None])
        assert step.info["decision"].item() == (time > 0)
        if step.terminated:
            break
        assert step.info["success"].item() == 0
        assert step.info["first_choice_correct"].isnan().all()
    assert step.info["success"].item() == step.info["first_choice_correct"].item() == 1
    assert step.reward.item() == 1 and step.start.item()
    assert env.first_choice_chance == pytest.approx(1 / 3)


@needs_mujoco
def test_the_registered_id_makes_it():
    env = gymnasium.make_vec(
        "engram/Manipulation-v0", num_envs=2, task="put_back", cameras=(), control=JointControl
    )
    observation, _ = env.reset(seed=0)
    assert list(observation) == ["proprioception"]
    assert env.single_action_space.shape == (6,)
    env.close()


@needs_mujoco
@pytest.mark.slow
def test_processes_show_what_one_process_shows():
    here, apart = (
        Manipulation(2, asynchronous=asynchronous, size=16) for asynchronous in (False, True)
    )
    first, second = here.reset(seed=3)[0], apart.reset(seed=3)[0]
    for _ in range(6):
        assert all(torch.equal(first[name], second[name]) for name in first)
        action = 2 * torch.rand(2, 4) - 1
        first, second = here.step(action)[0], apart.step(action)[0]
    apart.close()


def test_unknown_names_are_refused():
    with pytest.raises(InvalidValueError, match="task is 'chess'; allowed: remember_color"):
        Manipulation(1, task="chess")
    with pytest.raises(InvalidValueError, match="a setting of put_back is 'colors'; allowed"):
        Manipulation(1, task="put_back", settings={"colors": 3})


@pytest.mark.parametrize("package", ["mujoco", "mink"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"'{package}' is missing.*\[manipulation\]"):
        Manipulation(1)
    if package == "mink" and importlib.util.find_spec("mujoco") is None:
        pytest.skip("needs mujoco")
    with pytest.raises(MissingPackageError, match=rf"'{package}' is missing.*\[manipulation\]"):
        ManipulationEnv()


def test_importing_the_tasks_loads_no_simulator():
    code = (
        "import sys, engram.envs.manipulation as m;"
        "assert m.TASKS and m.Manipulation;"
        "heavy = {'mujoco', 'mink', 'OpenGL'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@needs_mujoco
def test_nothing_is_written_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    env = ManipulationEnv("friction_probe", size=16)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    assert list(tmp_path.iterdir()) == []
