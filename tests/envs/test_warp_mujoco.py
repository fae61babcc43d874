"""MuJoCo-Warp's worlds against Gymnasium's, step by step.

What compiles kernels is slow: on a cold cache 20 s for the pendulum, 5 s for each other task.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from engram.envs import MaskedMujoco, Stream, WarpMujoco
from engram.envs.warp_mujoco import WarpWorlds
from engram.envs.warp_physics import Room, most_room
from engram.envs.warp_tasks import TASKS
from engram.kernels.errors import InvalidValueError, MissingPackageError

needs_warp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "mujoco_warp", "imageio")),
    reason="needs engram[warp] and engram[mujoco]",
)
simulated = [needs_warp, pytest.mark.slow]
STEPS = 100
# Position, velocity and reward after one step: ten times what was measured over 800 states.
TOLERANCE = {
    "InvertedPendulum": (3e-7, 5e-6, 0.0),
    "Hopper": (3e-6, 3e-5, 6e-5),
    "Ant": (6e-6, 2e-4, 5e-5),
}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT where it runs."""
    monkeypatch.chdir(tmp_path)


class Trajectory(NamedTuple):
    """What Gymnasium did, [T, ...]: before a step, the action, after it."""

    before: WarpWorlds
    action: Tensor
    qpos: Tensor
    qvel: Tensor
    reward: Tensor
    terminated: Tensor
    info: dict[str, Tensor]
    observation: Tensor


def original(task: str) -> Any:
    return gymnasium.make(f"{task}-v5", disable_env_checker=True).unwrapped


def state(env: Any, task: str) -> tuple[np.ndarray, ...]:
    data = env.data
    place = data.xpos[1, :2] if task == "Ant" else data.qpos[:1]
    return tuple(part.copy() for part in (data.qpos, data.qvel, data.qacc_warmstart, place))


def trajectory(task: str) -> Trajectory:
    """Play Gymnasium with random actions, some beyond the limits of the motors."""
    env, rng = original(task), np.random.default_rng(0)
    env.reset(seed=0)
    low, high = env.action_space.low, env.action_space.high
    rows: list[tuple[Any, ...]] = []
    for _ in range(STEPS):
        before, action = state(env, task), 1.3 * rng.uniform(low, high).astype(np.float32)
        observation, reward, terminated, _, info = env.step(action)
        rows.append((before, action, *state(env, task)[:2], reward, terminated, info, observation))
        if terminated:
            env.reset()

    def column(pick: Callable[[tuple[Any, ...]], Any]) -> Tensor:
        return torch.as_tensor(np.stack([pick(row) for row in rows]), dtype=torch.float32)

    elapsed = torch.zeros(STEPS, dtype=torch.int64)
    before = WarpWorlds(*(column(lambda row, i=i: row[0][i]) for i in range(4)), elapsed)
    info = {name: column(lambda row, name=name: row[6][name]) for name in rows[0][6]}
    parts = [column(lambda row, i=i: row[i]) for i in (1, 2, 3, 4, 5, 7)]
    return Trajectory(before, *parts[:4], parts[4].bool(), info, parts[5])


def noise(env: WarpMujoco, seed: int = 0) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = env.action_space.shape
    assert shape is not None
    return lambda: 2 * torch.rand(shape, generator=generator) - 1


class TestAgainstGymnasium:
    pytestmark = simulated

    @pytest.mark.parametrize("task", TOLERANCE)
    def test_one_step_from_every_state_of_a_trajectory_agrees(self, task: str):
        told = trajectory(task)
        env = WarpMujoco(STEPS, task=task)
        env.worlds = told.before
        step = env.advance(told.action)
        position, velocity, reward = TOLERANCE[task]
        assert (env.worlds.qpos - told.qpos).abs().max() <= position
        assert (env.worlds.qvel - told.qvel).abs().max() <= velocity
        assert (step.reward - told.reward).abs().max() <= reward
        assert step.terminated.equal(told.terminated) and told.terminated.any()
        assert step.info.keys() == {*told.info, "diverged"}
        for name, value in told.info.items():
            assert (step.info[name] - value).abs().max() <= 1e-4, name
        shown = step.observation.shape[1]
        assert (step.observation - told.observation[:, :shown]).abs().max() <= position

    @pytest.mark.parametrize(("task", "steps", "bound"), [("Hopper", 100, 1e-4), ("Ant", 20, 1e-3)])
    def test_left_alone_it_stays_as_near_as_float32_lets_it(
        self, task: str, steps: int, bound: float
    ):
        theirs, env, rng = original(task), WarpMujoco(1, task=task), np.random.default_rng(0)
        theirs.reset(seed=0)
        start = [torch.as_tensor(part, dtype=torch.float32)[None] for part in state(theirs, task)]
        env.worlds = WarpWorlds(*start, torch.zeros(1, dtype=torch.int64))
        for _ in range(steps):
            action = rng.uniform(-1, 1, env.single_action_space.shape).astype(np.float32)
            theirs.step(action)
            env.advance(torch.as_tensor(action)[None])
            assert np.abs(env.worlds.qpos[0].numpy() - theirs.data.qpos).max() < bound

    def test_contact_frames_follow_steep_capsules(self):
        """Without the contact filter, one step of Ant errs by 1 rad/s."""
        told = trajectory("Ant")
        env = WarpMujoco(STEPS, task="Ant")
        env.worlds = told.before
        env.advance(told.action)
        count = int(env.physics.data.nacon.numpy()[0])
        frames = torch.as_tensor(env.physics.data.contact.frame.numpy()[:count])
        worlds = env.physics.data.contact.worldid.numpy()[:count]
        geoms = env.physics.data.contact.geom.numpy()[:count, 1]
        axes = torch.as_tensor(env.physics.data.geom_xmat.numpy()[worlds, geoms][:, :, 2])
        steep = axes[:, 2].abs() > 0.87
        assert steep.sum() > 5
        flat = torch.nn.functional.normalize(axes[:, :2], dim=1)
        assert torch.allclose(frames[steep, 1, :2], flat[steep], atol=1e-5)
        assert torch.allclose(frames @ frames.mT, torch.eye(3).expand(count, 3, 3), atol=1e-5)

    def test_spaces_are_those_of_masked_mujoco(self):
        for task in ("InvertedPendulum", "Hopper"):
            ours, theirs = WarpMujoco(2, task=task), MaskedMujoco(2, task=task)
            assert ours.observation_space == theirs.observation_space
            assert ours.action_space == theirs.action_space

    @pytest.mark.parametrize("task", ["InvertedPendulum", "Ant"])
    def test_first_states_are_distributed_as_gymnasiums(self, task: str):
        theirs, env = original(task), WarpMujoco(1, task=task)
        ours = env.draw(4000)
        rows = [theirs.reset(seed=seed) and state(theirs, task) for seed in range(1000)]
        for mine, sample in ((ours.qpos, 0), (ours.qvel, 1)):
            other = torch.as_tensor(np.stack([row[sample] for row in rows]))
            spread = other.std(0).mean()
            assert (mine.mean(0) - other.mean(0)).abs().max() < 0.15 * spread
            assert (mine.std(0) - other.std(0)).abs().max() < 0.1 * spread
            largest = mine.abs().max(0).values - other.abs().max(0).values
            assert largest.abs().max() < 1.5 * spread
        assert not ours.warmstart.any() and ours.place.equal(ours.qpos[:, : ours.place.shape[1]])


class TestWorlds:
    pytestmark = simulated

    @pytest.mark.parametrize("task", ["InvertedPendulum", "Hopper", "Ant"])
    def test_load_goes_on_where_save_was_called_bit_for_bit(self, task: str):
        env = WarpMujoco(6, task=task, settings={"max_episode_steps": 40})
        env.reset(seed=1)
        act = noise(env)
        for _ in range(30):
            env.step(act())
        saved, chosen = env.save(), [act() for _ in range(40)]
        first = [env.step(action) for action in chosen]
        other = WarpMujoco(6, task=task, settings={"max_episode_steps": 40}, seed=9)
        for again in (env, other):
            again.load(saved)
            for action, then in zip(chosen, first, strict=True):
                now = again.step(action)
                assert all(now[i].equal(then[i]) for i in range(4))
                for name, value in then[4].items():
                    assert now[4][name].equal(value), name
        assert any((step[2] | step[3]).any() for step in first)

    def test_worlds_stay_views_of_warps_memory(self):
        env = WarpMujoco(3, task="Hopper", settings={"max_episode_steps": 4})
        warps = env.physics.data
        act = noise(env)
        for happening in (
            lambda: env.reset(seed=2),
            lambda: [env.step(act()) for _ in range(5)],
            lambda: env.reset(options={"reset_mask": np.array([True, False, True])}),
            lambda: env.load(env.save()),
        ):
            happening()
            assert np.array_equal(env.worlds.qpos.numpy(), warps.qpos.numpy())
            env.worlds.qvel.add_(1.0)
            assert np.array_equal(env.worlds.qvel.numpy(), warps.qvel.numpy())
            env.worlds.warmstart.add_(1.0)
            assert np.array_equal(env.worlds.warmstart.numpy(), warps.qacc_warmstart.numpy())

    def test_a_world_that_diverges_ends_alone(self):
        env, twin = WarpMujoco(3, task="Hopper"), WarpMujoco(3, task="Hopper")
        for each in (env, twin):
            each.reset(seed=3)
        env.worlds.qvel[1, 2] = torch.nan
        act = noise(env)
        for time in range(10):
            action = act()
            step, other = env.step(action), twin.step(action)
            assert step[1].isfinite().all() and step[0].isfinite().all()
            assert step[2].tolist() == [False, time == 0, False]
            assert step[4]["diverged"].tolist() == [0.0, float(time == 0), 0.0]
            for world in (0, 2):
                assert step[0][world].equal(other[0][world]) and step[1][world] == other[1][world]
        assert step[1][1] != 0

    def test_episodes_are_cut_at_the_limit(self):
        stream = Stream(WarpMujoco(2, task="Hopper", settings={"max_episode_steps": 5}))
        stream.reset(seed=0)
        for time in range(1, 11):
            step = stream.step(torch.zeros(2, 3))
            assert step.truncated.tolist() == [time % 5 == 0] * 2 and not step.terminated.any()
            assert step.start.equal(step.truncated)

    def test_settings_change_rewards_and_ends(self):
        settings = {"healthy_z_range": [2.0, 3.0], "healthy_reward": 7.0, "ctrl_cost_weight": 1.0}
        for stops in (True, False):
            settings["terminate_when_unhealthy"] = stops
            env = WarpMujoco(2, task="Hopper", settings=settings)
            _, reward, terminated, _, info = env.step(torch.ones(2, 3))
            assert terminated.tolist() == [stops] * 2
            assert info["reward_survive"].tolist() == [0.0, 0.0]
            assert torch.allclose(info["reward_ctrl"], torch.tensor(-3.0))
            assert torch.allclose(reward, info["reward_forward"] - 3.0)

    @pytest.mark.parametrize("short", ["contacts", "constraints"])
    def test_too_little_room_is_an_error_not_wrong_physics(self, short: str):
        env = WarpMujoco(4, task="Ant", **{short: 1})
        act = noise(env)
        with pytest.raises(InvalidValueError, match=f"{short} is 1; allowed: more per world"):
            for _ in range(100):
                env.step(act())
        with pytest.raises(InvalidValueError, match=short):
            env.save()

    def test_determinism_can_be_asked_for(self):
        env, plain = WarpMujoco(2, task="Hopper", deterministic=True), WarpMujoco(2, task="Hopper")
        act = noise(env)
        for _ in range(20):
            action = act()
            assert env.step(action)[0].equal(plain.step(action)[0])


@pytest.mark.gpu
@needs_warp
@pytest.mark.parametrize("task", ["Hopper", "Ant"])
def test_a_gpu_agrees_with_the_cpu_and_never_waits(task: str):
    host, env = WarpMujoco(64, task=task), WarpMujoco(64, task=task, device="cuda")
    host.reset(seed=0)
    env.load({**host.save(), "generator": env.generator.get_state()})
    act = noise(host)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            action = act()
            there = action.cuda(non_blocking=True)
            shown, reward, *_ = env.step(there)
            expected = host.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(shown.cpu(), expected[0], atol=1e-3)
    assert torch.allclose(reward.cpu(), expected[1], atol=1e-2)


@pytest.mark.gpu
@needs_warp
def test_a_gpu_reports_too_little_room_in_time():
    env = WarpMujoco(64, task="Ant", contacts=1, device="cuda")
    with pytest.raises(InvalidValueError, match="contacts is 1"):
        for _ in range(600):
            env.step(torch.zeros(env.action_space.shape, device="cuda"))  # type: ignore


@needs_warp
@pytest.mark.parametrize(
    ("task", "room"),
    [
        ("InvertedPendulum", Room(1, 2)),  # two limited joints
        ("Walker2d", Room(14, 62)),  # seven capsules, two points, four edges; six limited joints
        ("Ant", Room(25, 108)),  # twelve capsules and a sphere; eight limited joints
    ],
)
def test_there_is_room_for_the_most_that_can_happen(task: str, room: Room):
    import mujoco

    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    assert most_room(mujoco.MjModel.from_xml_path(str(assets / TASKS[task].model))) == room


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "Swimmer"}, "task is 'Swimmer'; allowed: InvertedPendulum, Hopper"),
        ({"settings": {"gravity": 0}}, "settings is 'gravity'; allowed: max_episode_steps, "),
        ({"settings": {"frame_skip": 0}}, r"settings.frame_skip is 0; allowed: 1 or more"),
        ({"settings": {"reset_noise_scale": -1}}, "reset_noise_scale is -1.0; allowed: 0 or more"),
        ({"settings": {"frame_skip": "many"}}, "settings.frame_skip is 'many'; allowed: such as 2"),
        (
            {"task": "Ant", "settings": {"healthy_z_range": 1}},
            "healthy_z_range is 1; allowed: such",
        ),
        ({"contacts": 0}, "contacts is 0; allowed: 1 or more"),
        ({"constraints": 0}, "constraints is 0; allowed: 1 or more"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        WarpMujoco(2, **settings)


@pytest.mark.parametrize("package", ["mujoco", "warp", "mujoco_warp"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"'{package}' is missing.*engram\[warp\]"):
        WarpMujoco(1)
