"""ManiSkill's tasks, by the simulator itself where it is installed and finds a Vulkan device."""

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from engram.envs import ManiSkill, Stream
from engram.envs.maniskill_observation import flat, flat_space
from engram.kernels.errors import InvalidValueError, MissingPackageError

real = [
    pytest.mark.skipif(
        importlib.util.find_spec("mani_skill") is None, reason="needs engram[maniskill]"
    ),
    pytest.mark.filterwarnings("ignore"),  # of what the simulator imports
]
LIMIT = 6


@pytest.fixture(scope="module", params=["state", "rgb"])
def env(request: pytest.FixtureRequest) -> Iterator[ManiSkill]:
    try:
        made = ManiSkill(1, observation=request.param, settings={"max_episode_steps": LIMIT})
    except RuntimeError as error:
        if "rendering device" not in str(error):
            raise
        pytest.skip("ManiSkill finds no Vulkan device")
    yield made
    made.close()


def parts(observation: Any) -> dict[str, Tensor]:
    return observation if isinstance(observation, dict) else {"": observation}


def actions(env: ManiSkill, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = env.action_space.shape
    assert shape is not None
    return [2 * torch.rand(shape, generator=generator) - 1 for _ in range(count)]


def play(env: ManiSkill, seed: int, steps: int) -> list[tuple[Any, ...]]:
    first, _ = env.reset(seed=seed)
    return [(first,), *(env.step(action) for action in actions(env, steps))]


class TestSimulator:
    pytestmark = real

    def test_shapes_and_dtypes_match_the_spaces(self, env: ManiSkill):
        observation, _ = env.reset(seed=1)
        for step in [(observation,), *(env.step(action) for action in actions(env, LIMIT + 1))]:
            arrays = {name: part.numpy() for name, part in parts(step[0]).items()}
            assert env.observation_space.contains(arrays.get("", arrays))
            if len(step) > 1:
                _, reward, terminated, truncated, info = step
                assert reward.shape == (1,) and reward.dtype == torch.float32
                assert terminated.dtype == truncated.dtype == torch.bool
                assert parts(info["final_obs"]).keys() == parts(observation).keys()

    def test_an_episode_is_cut_at_its_limit_and_restarts_in_the_same_step(self, env: ManiSkill):
        for time, (shown, _, terminated, truncated, info) in enumerate(play(env, 2, 8)[1:], 1):
            assert not terminated.any() and truncated.item() == (time == LIMIT)
            same = [parts(shown)[k].equal(last) for k, last in parts(info["final_obs"]).items()]
            assert all(same) == (time != LIMIT)

    def test_measurements_are_the_same_keys_at_every_step(self, env: ManiSkill):
        for *_, info in play(env, 3, LIMIT + 2)[1:]:
            measured = info.keys() - {"final_obs"}
            assert measured == {
                *("success", "is_grasped", "is_obj_placed", "is_robot_static", "success_once")
            }
            for name in measured:
                assert info[name].shape == (1,) and info[name].dtype == torch.float32

    def test_the_same_seed_gives_the_same_stream(self, env: ManiSkill):
        for left, right in zip(play(env, 4, 9), play(env, 4, 9), strict=True):
            for name, part in parts(left[0]).items():
                assert part.equal(parts(right[0])[name]), name
        other = play(env, 5, 1)[0][0]
        assert any(not part.equal(parts(left[0])[name]) for name, part in parts(other).items())

    def test_restarts_follow_the_seed_and_leave_torch_alone(self, env: ManiSkill):
        torch.manual_seed(1)
        left = play(env, 4, LIMIT)[-1][0]  # the first of the second episode
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
        right = play(env, 4, 2 * LIMIT)
        assert all(part.equal(parts(right[LIMIT][0])[k]) for k, part in parts(left).items())
        third = parts(right[-1][0])
        assert any(not part.equal(third[k]) for k, part in parts(left).items())

    def test_nothing_handed_out_changes_later(self, env: ManiSkill):
        handed = [parts(step[0]) for step in play(env, 6, LIMIT + 2)]
        kept = [{name: part.clone() for name, part in given.items()} for given in handed]
        play(env, 7, LIMIT)
        for given, before in zip(handed, kept, strict=True):
            assert all(part.equal(before[name]) for name, part in given.items())

    def test_a_masked_reset_restarts_what_it_names(self, env: ManiSkill):
        last = play(env, 8, 3)[-1][0]
        kept, _ = env.reset(options={"reset_mask": np.array([False])})
        assert all(part.equal(parts(last)[name]) for name, part in parts(kept).items())
        fresh, _ = env.reset(options={"reset_mask": np.array([True])})
        assert any(not part.equal(parts(last)[name]) for name, part in parts(fresh).items())

    def test_success_ends_an_episode_and_is_measured(
        self, env: ManiSkill, monkeypatch: pytest.MonkeyPatch
    ):
        base = env.vector.base_env
        honest = base.evaluate
        monkeypatch.setattr(
            base, "evaluate", lambda: {**honest(), "success": base.elapsed_steps == 2}
        )
        for ignores in (False, True):
            monkeypatch.setattr(env.vector, "ignore_terminations", ignores)
            for time, (shown, _, terminated, truncated, info) in enumerate(play(env, 2, 3)[1:], 1):
                assert terminated.item() == (time == 2 and not ignores) and not truncated.any()
                assert info["success"].item() == (time == 2)
                assert info["success_once"].item() == (time == 2 or (ignores and time > 2))
                last = parts(info["final_obs"])
                kept = all(part.equal(last[name]) for name, part in parts(shown).items())
                assert kept != terminated.item()

    def test_a_stream_takes_it_without_numpy(self, env: ManiSkill):
        stream = Stream(env)
        assert stream.takes_tensors and stream.truncates
        stream.reset(seed=0)
        for time, action in enumerate(actions(env, LIMIT), 1):
            step = stream.step(action)
            assert step.start.item() == (time == LIMIT) and "final_obs" not in step.info

    def test_an_unknown_task_is_refused(self):
        with pytest.raises(
            InvalidValueError, match=r"task is 'PickKube-v1'; allowed:.*PickCube-v1"
        ):
            ManiSkill(1, task="PickKube-v1")


def test_observations_are_flattened_by_path():
    image = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    nested = {
        "agent": {"qpos": torch.ones(2, 9, dtype=torch.float64)},
        "extra": {"grasped": torch.tensor([True, False])},
        "sensor_param": {"camera": {"intrinsic": torch.eye(3).expand(2, 3, 3)}},
        "sensor_data": {"camera": {"rgb": image}},
    }
    shown = flat(nested)
    assert list(shown) == ["agent/qpos", "extra/grasped", "sensor_data/camera/rgb"]
    assert shown["agent/qpos"].dtype == torch.float32
    assert shown["extra/grasped"].tolist() == [[1.0], [0.0]]
    image.fill_(9)
    assert not shown["sensor_data/camera/rgb"].any() and image.all()

    bounds = {
        "agent": spaces.Dict({"qpos": spaces.Box(-1, 2, (9,), np.float64)}),
        "extra": spaces.Dict({"grasped": spaces.Box(0, 1, (), np.bool_)}),
        "sensor_param": spaces.Dict({"camera": spaces.Box(-1, 1, (3, 3))}),
        "sensor_data": spaces.Dict(
            {"camera": spaces.Dict({"rgb": spaces.Box(0, 255, (4, 4, 3), np.uint8)})}
        ),
    }
    space = flat_space(spaces.Dict(bounds))
    assert isinstance(space, spaces.Dict) and space.keys() == shown.keys()
    for name, part in shown.items():
        assert space[name].contains(part[0].numpy())


@pytest.mark.parametrize("count", [0, 2])
def test_the_cpu_has_one_world(count: int):
    with pytest.raises(InvalidValueError, match=f"num_envs is {count}; allowed: 1, or more with"):
        ManiSkill(count)


def test_an_unknown_observation_is_refused():
    with pytest.raises(InvalidValueError, match="observation is 'lidar'; allowed: state, "):
        ManiSkill(1, observation="lidar")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mani_skill", None)
    with pytest.raises(MissingPackageError, match=r"'mani_skill' is missing.*engram\[maniskill\]"):
        ManiSkill(1)
