"""SB3's settings, read for our PPO: what they mean, and what has no meaning."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from engram.agents import sb3_memory, sb3_schedules, sb3_spaces
from engram.agents.sb3 import MemoryPPO
from engram.agents.sb3_zoo import from_zoo, keywords
from engram.envs.adapter import UnsupportedSpaceError
from engram.kernels.errors import DataError, InvalidValueError, MissingPackageError
from engram.memory.sequence import GRU, HCAM, NoMemory, stack

Env = type[gymnasium.Env]


@pytest.fixture
def two(cue: Env) -> DummyVecEnv:
    return DummyVecEnv([cue, cue])


def test_names_mean_what_they_mean_in_sb3(two: DummyVecEnv):
    model = MemoryPPO(
        GRU,
        two,
        n_steps=20,
        batch_size=8,
        n_epochs=3,
        gamma=0.9,
        gae_lambda=0.8,
        clip_range=0.3,
        ent_coef=0.01,
        vf_coef=0.7,
        max_grad_norm=0.4,
        learning_rate=1e-2,
        normalize_advantage=False,
        policy_kwargs={"lstm_hidden_size": 12},
    )
    settings = model.learner.settings
    # 2 x 20 steps in minibatches of 8: five; sequences of 4 divide both 20 and 8.
    assert (settings.rollout, settings.minibatches, settings.chunk) == (20, 5, 4)
    assert (settings.epochs, settings.discount, settings.trace) == (3, 0.9, 0.8)
    assert (settings.clip, settings.entropy, settings.max_gradient) == (0.3, 0.01, 0.4)
    assert settings.value == 1.4  # of half the squared error
    assert settings.final_learning_rate == 1e-2 and not settings.normalize_advantage
    assert model.policy.actor_critic.memory.d_in == 12


@pytest.mark.parametrize(
    "n_steps, batch_size, chunk", [(2048, 64, 64), (1024, 2048, 128), (50, 100, 50), (6, 4, 2)]
)
def test_the_chunk_is_the_greatest_that_fits(
    two: DummyVecEnv, n_steps: int, batch_size: int, chunk: int
):
    model = MemoryPPO(NoMemory, two, n_steps=n_steps, batch_size=batch_size)
    assert model.learner.settings.chunk == chunk


def test_minibatches_have_the_size_that_was_asked_for(two: DummyVecEnv, monkeypatch: Any):
    model = MemoryPPO(GRU, two, n_steps=12, batch_size=6, n_epochs=1, chunk=3)
    sizes = []
    loss = model.learner.loss
    monkeypatch.setattr(
        model.learner, "loss", lambda b, w: (sizes.append(b.advantage.numel()), loss(b, w))[1]
    )
    model.learn(24)
    assert sizes == [6, 6, 6, 6]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"batch_size": 48}, r"batch_size is 48; allowed: divisors of .* 128 \* 2 = 256"),
        ({"chunk": 3}, r"chunk is 3; allowed: divisors of both n_steps = 128 and batch_size"),
        ({"n_steps": 0}, r"n_steps is 0; allowed: a whole number"),
        ({"n_steps": True}, r"n_steps is True; allowed: a whole number"),
        ({"n_epochs": -1}, r"n_epochs is -1; allowed"),
        ({"gamma": 1.5}, r"gamma is 1.5; allowed: 0 to 1"),
        ({"gae_lambda": -0.1}, r"gae_lambda is -0.1; allowed: 0 to 1"),
        ({"clip_range": -0.2}, r"clip_range is -0.2; allowed: finite"),
        ({"clip_range": "lin_x"}, r"clip_range is 'lin_x'; allowed: a number, \"lin_NUMBER\""),
        ({"learning_rate": float("nan")}, r"learning_rate is nan; allowed: finite"),
        ({"learning_rate": "fast"}, r"learning_rate is 'fast'; allowed: a number"),
        ({"learning_rate": None}, r"learning_rate is None; allowed: a number"),
        ({"ent_coef": -1.0}, r"ent_coef is -1.0; allowed: finite"),
        ({"vf_coef": float("inf")}, r"vf_coef is inf; allowed: finite"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm is 0.0; allowed: finite numbers above 0"),
        ({"policy_kwargs": {"net_arch": [64]}}, r"policy_kwargs\['net_arch'\] is \[64\]; allowed"),
        ({"policy_kwargs": {"width": 0}}, r"policy_kwargs\['width'\] is 0; allowed: a whole"),
        ({"policy_kwargs": {"width": 8, "lstm_hidden_size": 8}}, "allowed: without width"),
        ({"memory_kwargs": {"depth": 2}}, r"memory_kwargs is {'depth': 2}; allowed: its keywords"),
        ({"use_sde": True}, r"use_sde is True; allowed: False"),
        ({"sde_sample_freq": 4}, r"sde_sample_freq is 4; allowed: -1"),
        ({"target_kl": 0.02}, r"target_kl is 0.02; allowed: None"),
        ({"clip_range_vf": 0.2}, r"clip_range_vf is 0.2; allowed: None"),
        ({"rollout_buffer_class": dict}, r"rollout_buffer_class is .*; allowed: None"),
        ({"policy": "MlpLstmPolicy"}, r"policy is 'MlpLstmPolicy'; allowed: no policy"),
        ({"colour": 1}, r"setting is 'colour'; allowed: memory, env, memory_kwargs"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_one_line(
    two: DummyVecEnv, given: dict[str, Any], message: str
):
    with pytest.raises(InvalidValueError, match=message) as caught:
        MemoryPPO(GRU, two, **given)
    assert "\n" not in str(caught.value)


def test_settings_that_ask_for_nothing_pass(two: DummyVecEnv):
    MemoryPPO(
        GRU, two, use_sde=False, sde_sample_freq=-1, target_kl=None, rollout_buffer_kwargs=None
    )


@pytest.mark.parametrize("memory", ["MlpPolicy", None, lambda width: torch.nn.Linear(width, 2)])
def test_what_is_no_memory_is_refused(two: DummyVecEnv, memory: Any):
    with pytest.raises(InvalidValueError, match=r"memory is .*; allowed: a class of engram.memory"):
        MemoryPPO(memory, two)


def test_an_environment_is_wanted():
    with pytest.raises(InvalidValueError, match="env is None; allowed: an SB3 VecEnv, a gym"):
        MemoryPPO(GRU, None)


def test_a_missing_gpu_is_not_replaced_by_the_cpu(two: DummyVecEnv, monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidValueError, match=r"device is 'cuda:0'; allowed: auto, cpu"):
        MemoryPPO(GRU, two, device="cuda:0")


def test_without_sb3_the_extra_is_named(monkeypatch: Any):
    monkeypatch.delitem(sys.modules, "engram.agents.sb3")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingPackageError, match=r"pip install engram\[sb3\]"):
        importlib.import_module("engram.agents.sb3")


def test_unbounded_actions_are_refused(cue: Env):
    class Free(cue):  # type: ignore[misc,valid-type]
        action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    with pytest.raises(UnsupportedSpaceError, match=r"action space is Box.*; allowed: Discrete"):
        MemoryPPO(GRU, Free())


@pytest.mark.parametrize(
    "value, expected, described",
    [
        (3, [3.0, 3.0, 3.0], 3.0),
        ("1e-4", [1e-4, 1e-4, 1e-4], 1e-4),
        ("lin_0.2", [0.2, 0.1, 0.0], {"start": 0.2, "end": 0.0, "end_fraction": 1.0}),
        (LinearSchedule(1, 0, 0.5), [1, 0, 0], {"start": 1, "end": 0, "end_fraction": 0.5}),
        (FloatSchedule(ConstantSchedule(2.0)), [2, 2, 2], 2.0),
        (lambda left: left**2, [1.0, 0.25, 0.0], None),
    ],
)
def test_schedules_follow_what_remains(value: Any, expected: list[float], described: Any):
    schedule = sb3_schedules.parse("learning_rate", value)
    assert [sb3_schedules.now(schedule, left) for left in (1.0, 0.5, 0.0)] == expected
    assert sb3_schedules.now(schedule, -0.3) == expected[-1]
    assert sb3_schedules.describe(value) == described
    if described is not None:
        again = sb3_schedules.parse("learning_rate", described)
        assert [again(left) for left in (1.0, 0.5, 0.0)] == expected


class Mine(GRU):
    """A memory of somebody's own."""


@pytest.mark.parametrize(
    "memory, settings",
    [
        (HCAM, {"chunk": 4, "heads": 2}),
        (Mine, {}),
        (partial(GRU, d_out=6), {}),
        (stack, {"layer": HCAM, "layers": 2}),
        (partial(stack, layer=partial(HCAM, heads=2), layers=1), {"expand": 1.0}),
    ],
)
def test_what_has_a_name_is_rebuilt(memory: Any, settings: dict[str, Any]):
    described = sb3_memory.describe(memory, settings)
    assert described is not None
    again, kept = sb3_memory.rebuild(json.loads(json.dumps(described)))
    assert repr(sb3_memory.builder(again, kept)(8)) == repr(memory(8, **settings))
    assert sb3_memory.describe(again, kept) == described


def test_what_is_code_is_not_described():
    class Local(GRU):
        pass

    for memory in (lambda width: GRU(width), Local, partial(GRU, 8), partial(stack, layer=Local)):
        assert sb3_memory.describe(memory, {}) is None
    assert sb3_memory.describe(GRU, {"d_out": {1}}) is None


def test_a_file_does_not_choose_what_is_imported_or_called():
    for module, name in (
        ("engram.memory.sequence.hcam", "ChunkAttention"),
        ("engram.memory.sequence", "chain"),
        ("os", "system"),
        ("this", "s"),
    ):
        with pytest.raises(DataError, match=rf"memory is {module}\.{name}, which is not imported"):
            sb3_memory.rebuild({"module": module, "name": name, "settings": {}})
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.float32([-1, 0.1]), np.float32([np.inf, 0.3])),
        spaces.Box(-0.1, 0.1, (2, 3), np.float64),
        spaces.Box(0, 255, (36, 36, 3), np.uint8),
        spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([3, 4], start=[1, 0]),
        spaces.MultiBinary([2, 3]),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.MultiBinary(2)}),
    ],
)
def test_a_described_space_is_rebuilt(space: spaces.Space):
    assert sb3_spaces.rebuild(sb3_spaces.describe(space)) == space


ENTRY: dict[str, Any] = {
    "n_envs": 2,
    "n_timesteps": 1e5,
    "policy": "MlpLstmPolicy",
    "n_steps": 16,
    "batch_size": 16,
    "learning_rate": "lin_1e-3",
    "clip_range": "lin_0.2",
    "ent_coef": 0.0,
    "gamma": 0.98,
}


def test_an_entry_of_the_zoo_is_read():
    text = "dict(lstm_hidden_size=16)"
    entry = {**ENTRY, "normalize": True, "frame_stack": 2, "policy_kwargs": text}
    model = from_zoo(GRU, "CartPole-v1", entry, seed=1, device="cpu")
    outer = model.get_env()
    assert isinstance(outer, VecFrameStack) and isinstance(outer.venv, VecNormalize)
    assert outer.venv.gamma == 0.98 and outer.num_envs == 2
    assert model.policy.actor_critic.memory.d_in == 16 and model.seed == 1
    assert model.learn(32).num_timesteps == 32
    scaling = "{'norm_obs': True, 'norm_reward': False}"
    other = from_zoo(GRU, "CartPole-v1", {**ENTRY, "normalize": scaling}, gamma=0.5)
    norm = other.get_vec_normalize_env()
    assert norm is not None and not norm.norm_reward and norm.gamma == 0.5
    assert from_zoo(GRU, "CartPole-v1", ENTRY).get_vec_normalize_env() is None


@pytest.mark.parametrize(
    "given, message",
    [
        ({"n_timesteps": "many"}, "n_timesteps is 'many'; allowed: 1 or more"),
        ({"n_envs": 0}, "n_envs is 0; allowed: a whole number"),
        ({"frame_stack": "4"}, "frame_stack is '4'; allowed: a whole number"),
        ({"policy": "MyPolicy"}, "policy is 'MyPolicy'; allowed: MlpPolicy"),
        ({"env_wrapper": "gym.Wrapper"}, "env_wrapper is 'gym.Wrapper'; allowed: nothing"),
        ({"policy_kwargs": "dict(a=nn.Tanh)"}, "policy_kwargs is .*; allowed: a dict, or text"),
        ({"normalize": "print('x')"}, "normalize is .*; allowed: a dict, or text"),
        ({"gradient_steps": 8}, "setting is 'gradient_steps'; allowed: memory, env"),
        ({"use_sde": True}, "use_sde is True; allowed: False"),
    ],
)
def test_what_an_entry_of_the_zoo_cannot_mean_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        from_zoo(GRU, "CartPole-v1", {**ENTRY, **given})


def test_keywords_in_text_are_read_and_never_run(tmp_path: Path):
    assert keywords("k", {"a": 1}) == keywords("k", "dict(a=1)") == keywords("k", " {'a': 1}")
    for text in (f"dict(a=open({str(tmp_path / 'x')!r}, 'w'))", "dict(1)", "[1]", "dict("):
        with pytest.raises(InvalidValueError, match="k is "):
            keywords("k", text)
    assert not list(tmp_path.iterdir())
