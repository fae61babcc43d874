"""The arm and its world: kinematics, contacts, cameras, controls."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from engram.envs.manipulation import EndEffectorControl, JointControl, ManipulationEnv
from engram.envs.manipulation.arm import HOME, HOME_JOINTS, LOWER, OPENING, UPPER
from engram.envs.manipulation.camera import Camera
from engram.envs.manipulation.control import REACH_HIGH, REACH_LOW, Control
from engram.envs.manipulation.props import Block, Button
from engram.envs.manipulation.world import LEASH, World
from engram.kernels.errors import InvalidValueError

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "mink")),
    reason="needs engram[manipulation]",
)


def drive(world: World, control: EndEffectorControl, place: object, opening: int, steps: int):
    for _ in range(steps):
        control.act(control.toward(np.array(place), float(opening)).astype(float))
        world.step()


def test_home_is_where_the_joints_say():
    world = World(())
    world.reset()
    assert world.tcp == pytest.approx(HOME, abs=1e-4)
    assert world.opening == OPENING
    assert EndEffectorControl(world).kinematics.position(np.array(HOME_JOINTS)) == pytest.approx(
        HOME, abs=1e-4
    )


def test_every_corner_of_the_reach_is_reached_with_the_hand_down():
    world = World(())
    world.reset()
    control = EndEffectorControl(world)
    control.reset()
    low, high = REACH_LOW, REACH_HIGH
    for x in (low[0], high[0]):
        for y in (low[1], high[1]):
            for z in (high[2], low[2]):
                drive(world, control, (x, y, z), 1, 18)
                assert world.tcp == pytest.approx((x, y, z), abs=0.005)
                down = world.data.site_xmat[world.site].reshape(3, 3) @ (0, 0, 1)
                assert down == pytest.approx((0, 0, -1), abs=0.02)


def test_the_gripper_lifts_a_block_and_drops_it():
    world = World((Block("block"),))
    world.reset()
    world.show("block", (0.3, 0, 0.02))
    control = EndEffectorControl(world)
    control.reset()
    drive(world, control, (0.3, 0, 0.02), 1, 10)
    assert world.touched == set() and world.position("block")[2] == pytest.approx(0.02, abs=1e-3)
    drive(world, control, (0.3, 0, 0.02), -1, 3)
    drive(world, control, (0.3, 0.1, 0.15), -1, 8)
    assert world.touched == {"block"}
    assert world.position("block") == pytest.approx((0.3, 0.1, 0.15), abs=0.01)
    drive(world, control, (0.3, 0.1, 0.15), 1, 6)
    assert world.touched == set() and world.position("block")[2] == pytest.approx(0.02, abs=2e-3)


def test_a_button_goes_down_under_the_gripper_and_springs_back():
    world = World((Button("button"),))
    world.reset()
    world.show("button", (0.3, 0, 0))
    control = EndEffectorControl(world)
    control.reset()
    drive(world, control, (0.3, 0, 0.08), -1, 8)
    assert world.pressed == set()
    drive(world, control, (0.3, 0, 0.02), -1, 4)
    assert world.pressed == world.touched == {"button"}
    drive(world, control, (0.3, 0, 0.08), -1, 4)
    assert world.pressed == set() and world.lift("button") == pytest.approx(0, abs=1e-3)


def test_what_is_hidden_is_neither_seen_nor_felt():
    env = ManipulationEnv("remember_color", cameras=("top", "wrist"), objects=True)
    empty, _ = env.reset(seed=0)
    env.world.show("cube0", (0.3, 0, 0.02), (1.0, 0.0, 0.0))
    env.world.settle()
    there = env.senses.observe(env.world, env.task, env.control)
    env.world.hide("cube0")
    env.world.settle()
    gone = env.senses.observe(env.world, env.task, env.control)
    assert all(np.array_equal(empty[name], gone[name]) for name in empty)
    changed = np.any(empty["top"] != there["top"], axis=2)
    assert 4 < changed.sum() < 200
    assert there["top"][changed].mean(axis=0)[0] > 120


def test_joints_turn_as_told_and_stop_at_their_limits():
    world = World(())
    world.reset()
    control = JointControl(world)
    action = np.array([0.5, 0, 0, 0, -0.25, 1.0])
    for _ in range(4):
        control.act(action)
        world.step()
    for _ in range(5):
        control.act(np.array([0, 0, 0, 0, 0, 1.0]))
        world.step()
    turned = np.array(HOME_JOINTS) + 4 * 0.3 * action[:5]
    assert world.joints == pytest.approx(turned, abs=5e-3)
    for _ in range(30):
        control.act(np.array([1, 0, 0, 0, -1, 1.0]))
        world.step()
    assert world.joints[0] == pytest.approx(UPPER[0], abs=0.02)
    assert world.joints[4] == pytest.approx(LOWER[4], abs=0.02)


def test_a_push_against_the_table_does_not_wind_up():
    world = World(())
    world.reset()
    control = JointControl(world)
    for _ in range(20):
        control.act(np.array([0, 1.0, 0, 0, 0, 0]))
        world.step()
    assert world.tcp[2] > -0.02, "the arm went through the table"
    assert np.abs(world.set_points - world.joints).max() <= LEASH + 0.31
    for _ in range(4):
        control.act(np.array([0, -1.0, 0, 0, 0, 0]))
        world.step()
    assert world.tcp[2] > 0.05


@pytest.mark.parametrize("kind", [EndEffectorControl, JointControl])
def test_the_lead_is_what_the_arm_still_has_to_go(kind: type[Control]):
    world = World(())
    world.reset()
    control = kind(world)
    control.reset()
    assert np.abs(control.lead).max() < 0.005
    action = np.zeros(kind.size)
    action[0] = 1
    for _ in range(3):
        control.act(action)
        world.step()
    place, lead = world.tcp, control.lead
    assert np.linalg.norm(lead) > 0.01, "[m]: a moving arm lags behind"
    if kind is EndEffectorControl:  # the move that stays where the arm steers for is none
        assert np.abs(control.toward(place + lead, 0.0)[:-1]).max() < 1e-6
    for _ in range(15):
        control.act(np.zeros(kind.size))
        world.step()
    assert world.tcp == pytest.approx(place + lead, abs=0.006)
    assert np.abs(control.lead).max() < 0.006


def test_a_fine_picture_is_for_people():
    env = ManipulationEnv(render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    picture = env.render()
    assert picture is not None and picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    again = env.senses.observe(env.world, env.task, env.control)
    assert np.array_equal(observation["top"], again["top"]), "the contexts mix"
    assert ManipulationEnv().render() is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cameras": ("side",)}, "cameras is 'side'; allowed: top, wrist"),
        ({"size": 8}, "size is 8; allowed: 16 to 512, a whole number of pixels"),
        ({"render_mode": "human"}, "render_mode is 'human'; allowed: None, rgb_array"),
    ],
)
def test_what_cannot_be_seen_is_refused(settings: dict, message: str):
    with pytest.raises(InvalidValueError, match=message):
        ManipulationEnv(**settings)


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(
        InvalidValueError, match="MUJOCO_GL is 'vulkan'; allowed: egl, osmesa, glfw"
    ):
        Camera(16)


@pytest.mark.slow
@pytest.mark.parametrize("backend, rc", [("egl", 0), ("vulkan", 1)])
def test_the_backend_is_the_users_choice(backend: str, rc: int):
    code = (
        "from engram.envs.manipulation import ManipulationEnv as E;"
        "print(E(size=16).reset(seed=0)[0]['top'].std() > 5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == rc, done.stderr
    if rc:
        assert "MUJOCO_GL is 'vulkan'; allowed: egl, osmesa, glfw" in done.stderr
    else:
        assert done.stdout == "True\n" and done.stderr == ""
