"""What Gymnasium knows of engram, and what importing engram.envs costs."""

import subprocess
import sys

import gymnasium
import pytest

import engram.envs
from engram.envs.registration import ENVIRONMENTS, register


def test_registering_twice_changes_nothing():
    before = dict(gymnasium.registry)
    register()
    assert gymnasium.registry == before


def test_every_exported_name_can_be_imported():
    for name in engram.envs.__all__:
        assert getattr(engram.envs, name).__name__ == name
    assert set(ENVIRONMENTS) < set(engram.envs.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Chess"):
        engram.envs.Chess  # noqa: B018


def test_make_vec_passes_settings_and_does_not_warn():
    env = gymnasium.make_vec("engram/RepeatFirst-v0", num_envs=4, decks=2, seed=3)
    assert env.num_envs == 4 and env.cards == 104  # type: ignore
    env.close()


def test_importing_loads_no_environment_and_no_extra():
    code = (
        "import sys, engram.envs as e;"
        "heavy = {'mujoco', 'popgym', 'imageio', 'engram.envs.street', 'engram.envs.ballet'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "e.MaskedMujoco; e.GymnasiumEnv; e.WarpMujoco; e.ManiSkill;"
        "extras = {'mujoco', 'warp', 'mujoco_warp', 'mani_skill', 'sapien'};"
        "assert not extras & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
