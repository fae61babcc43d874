"""An SB3 VecEnv as our learners see it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from engram.agents.rollout import Collector, Rollout
from engram.agents.sb3_worlds import VecEnvWorlds
from engram.agents.training import build_policy
from engram.envs.adapter import UnsupportedSpaceError
from engram.envs.vector import Stream
from engram.kernels.errors import InvalidValueError
from engram.memory import state as states
from engram.memory.sequence import GRU
from engram.policies import ActorCritic, Inputs

Env = type[gymnasium.Env]


def policy_for(worlds: gymnasium.vector.VectorEnv) -> ActorCritic:
    spaces = worlds.single_observation_space, worlds.single_action_space
    return build_policy(3, lambda: ActorCritic(*spaces, GRU, width=8, previous_reward=False))


def rollouts(worlds: gymnasium.vector.VectorEnv, steps: int = 12) -> Rollout:
    return Collector(Stream(worlds), policy_for(worlds), seed=4).collect(steps, chunk=4)


def same(a: Any, b: Any) -> bool:
    pairs = zip(states.leaves(tuple(a)), states.leaves(tuple(b)), strict=True)
    return all(n == m and torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
               for (n, x), (m, y) in pairs)  # fmt: skip


def flat(rollout: Rollout) -> tuple[Any, ...]:
    return tuple(
        {str(i): s for i, s in enumerate(f)} if isinstance(f, list) else f for f in rollout
    )


@pytest.mark.parametrize("limit", [5, 2])
def test_rollouts_equal_those_of_the_same_environments_without_sb3(drift: Env, limit: int):
    makers = [lambda first=first: drift(limit=limit, first=first) for first in (0.0, -0.9, 0.5)]  # type: ignore[misc]
    theirs = rollouts(VecEnvWorlds(DummyVecEnv(makers)))
    expected = rollouts(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    assert same(flat(theirs), flat(expected))
    assert theirs.truncated.any() and theirs.terminated.any()


def test_seeds_reach_worlds_as_gymnasium_gives_them(cue: Env):
    worlds = VecEnvWorlds(DummyVecEnv([cue] * 8))
    peers = SyncVectorEnv([cue] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    for seed in (0, 1, 99):
        assert worlds.reset(seed=seed)[0].tolist() == peers.reset(seed=seed)[0].tolist()


def test_a_truncated_episode_ends_in_the_value_of_its_last_observation_before_the_reset(drift: Env):
    worlds = VecEnvWorlds(DummyVecEnv([lambda: drift(limit=2)]))  # type: ignore[call-arg]
    collector = Collector(Stream(worlds), policy := policy_for(worlds), seed=0)
    rollout = collector.collect(2, chunk=2)
    assert rollout.truncated[:, 0].tolist() == [False, True]
    pushed = policy.head.to_env(rollout.action[1, 0]).numpy()
    last = 0.9 * rollout.inputs.observation[1, 0].numpy() + np.array([0.3, 0.1]) + pushed
    # The memory after two steps, then the last observation: no start in between.
    seen = Inputs(
        torch.cat([rollout.inputs.observation, torch.tensor(last).float()[None, None]]),
        torch.cat([rollout.inputs.action, rollout.action[1:]]),
        torch.zeros(3, 1),
        torch.tensor([[True], [False], [False]]),
    )
    value = policy(seen, policy.initial_state(1))[0].value
    assert torch.allclose(rollout.final_value[1], value[2], atol=1e-6)
    assert rollout.final_value[0] == 0


class Reusing(VecEnvWrapper):
    """Hands out the same array at every step, as a VecEnv may."""

    def reset(self) -> np.ndarray:
        self.kept = self.venv.reset()
        assert isinstance(self.kept, np.ndarray)
        return self.kept

    def step_wait(self) -> Any:
        seen, *rest = self.venv.step_wait()
        self.kept[:] = seen
        return self.kept, *rest


def test_a_vec_env_may_reuse_its_arrays(drift: Env):
    plain = rollouts(VecEnvWorlds(DummyVecEnv([drift, drift])))
    reused = rollouts(VecEnvWorlds(Reusing(DummyVecEnv([drift, drift]))))
    assert same(flat(reused), flat(plain))


def test_subprocesses_give_what_one_process_gives(drift: Env):
    processes = SubprocVecEnv([drift, drift], start_method="forkserver")
    try:
        theirs = rollouts(VecEnvWorlds(processes))
    finally:
        processes.close()
    assert same(flat(theirs), flat(rollouts(VecEnvWorlds(DummyVecEnv([drift, drift])))))


def test_final_observations_are_normalised_and_stacked_as_the_others(drift: Env):
    inner = VecNormalize(DummyVecEnv([lambda: drift(limit=2)]), clip_obs=100.0)  # type: ignore[call-arg]
    worlds = VecEnvWorlds(VecFrameStack(inner, 2))
    stream = Stream(worlds)
    stream.reset(seed=0)
    action = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    first, second = stream.step(action), stream.step(action)
    assert not first.truncated.any() and second.truncated.all()
    # The newest frame stands last; the one before it is the step before.
    assert torch.allclose(second.final_observation[0, :2], first.observation[0, 2:])
    raw = 0.9 * (0.9 * np.array([0.0, 0.5]) + [0.4, 0.3]) + [0.4, 0.3]
    assert np.allclose(second.final_observation[0, 2:], inner.normalize_obs(raw), atol=1e-5)
    assert (second.observation[0, :2] == 0).all()  # a new episode has no frame before its first


class Anything(gymnasium.Env):
    """Random observations and a random end, of any spaces."""

    def __init__(self, observed: spaces.Space, acted: spaces.Space):
        self.observation_space, self.action_space = observed, acted

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(0 if seed is None else seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        late = bool(self.np_random.integers(3) == 0)
        return self.observation_space.sample(), 1.0, False, late, {}


OBSERVED: dict[str, spaces.Space] = {
    "box": spaces.Box(-1.0, 1.0, (3, 2), np.float64),
    "discrete": spaces.Discrete(5),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (40, 36, 3), np.uint8),
    "dict": spaces.Dict(
        {"eye": spaces.Box(0, 255, (36, 40, 1), np.uint8), "place": spaces.Discrete(3)}
    ),
}
ACTED: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-0.1, 0.0]), np.array([0.1, 7.0]), dtype=np.float64),
}


@pytest.mark.parametrize("observed", OBSERVED)
@pytest.mark.parametrize("acted", ACTED)
def test_every_pair_of_spaces_can_be_acted_in(observed: str, acted: str):
    make = lambda: Anything(OBSERVED[observed], ACTED[acted])  # noqa: E731
    rollout = rollouts(VecEnvWorlds(DummyVecEnv([make, make])))
    assert rollout.truncated.any() and rollout.value.isfinite().all()


def test_images_have_their_channels_last_again():
    make = lambda: Anything(OBSERVED["image"], ACTED["discrete"])  # noqa: E731
    plain = DummyVecEnv([make])
    turned = VecEnvWorlds(VecTransposeImage(DummyVecEnv([make])))
    assert turned.vec_env.observation_space.shape == (3, 40, 36)
    assert turned.single_observation_space == OBSERVED["image"]
    plain.seed(3)
    assert (turned.reset(seed=3)[0].numpy() == plain.reset()).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
        spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.MultiDiscrete([[2, 2]]),
        spaces.MultiBinary([2, 2]),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_an_action_space_without_a_head_is_refused(space: spaces.Space):
    env = DummyVecEnv([lambda: Anything(spaces.Discrete(2), spaces.Discrete(2))])
    env.action_space = space
    with pytest.raises(UnsupportedSpaceError, match=r"action space is .*; allowed: Discrete"):
        VecEnvWorlds(env)


class Forgetful(VecEnvWrapper):
    """Truncates and does not say what was seen last."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        seen, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("terminal_observation", None)
        return seen, rewards, dones, infos


def test_a_truncation_without_its_last_observation_is_refused(drift: Env):
    stream = Stream(VecEnvWorlds(Forgetful(DummyVecEnv([lambda: drift(limit=1)]))))  # type: ignore[call-arg]
    stream.reset(seed=0)
    with pytest.raises(InvalidValueError, match=r"infos\[0\]\['terminal_observation'\] is None"):
        stream.step(torch.zeros(1, 2))


def test_reset_takes_no_options(cue: Env):
    with pytest.raises(InvalidValueError, match="options is"):
        VecEnvWorlds(DummyVecEnv([cue])).reset(options={"reset_mask": [True]})
