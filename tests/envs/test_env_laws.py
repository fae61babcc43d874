"""The laws that every batched environment obeys; a new one joins by one line in ENVIRONMENTS."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

import engram.envs
from engram.envs import BatchedEnv, Stream
from engram.envs.registration import ENVIRONMENTS as REGISTERED
from engram.kernels.errors import InvalidValueError

N = 5
ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ballet": ("Ballet", {"dances": 2, "delay": 2, "max_steps": 50}),
    "ballet_pixels": ("Ballet", {"dances": 1, "delay": 1, "max_steps": 30, "pixels": True}),
    "chain_bit": ("ChainBit", {"length": 4}),
    "concentration_easy": ("Concentration", {}),
    "concentration_medium": ("Concentration", {"decks": 2}),
    "concentration_hard": ("Concentration", {"match": "ranks"}),
    "repeat_first": ("RepeatFirst", {}),
    "repeat_previous": ("RepeatPrevious", {"k": 3}),
    "street": ("Street", {"places": 4, "trial_steps": 20, "pool": 16}),
    "tmaze": ("TMaze", {"length": 3}),
    "warp_mujoco": ("WarpMujoco", {"task": "Hopper", "settings": {"max_episode_steps": 30}}),
}
REFUSED = [
    ("Ballet", {"dances": 0}),
    ("ChainBit", {"length": 0}),
    ("Concentration", {"decks": 0}),
    ("Concentration", {"match": "suits"}),
    ("RepeatFirst", {"decks": 0}),
    ("RepeatPrevious", {"k": 0}),
    ("RepeatPrevious", {"k": 52}),
    ("RepeatPrevious", {"decks": 0}),
    ("Street", {"split": "test"}),
    ("Street", {"trial_steps": 0}),
    ("TMaze", {"length": 0}),
    ("TMaze", {"length": 5, "time_limit": 5}),
    ("WarpMujoco", {"contacts": 0}),
]
# Its first use compiles kernels.
COMPILED = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mujoco_warp") is None, reason="needs engram[warp]"
    ),
]
everywhere = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=COMPILED if kind == "WarpMujoco" else [])
        for name, (kind, _) in ENVIRONMENTS.items()
    ],
)


def build(name: str, count: int = N, **more: Any) -> BatchedEnv[Any]:
    kind, settings = ENVIRONMENTS[name]
    return getattr(engram.envs, kind)(count, **settings, **more)


def parts(observation: Any) -> dict[str, Tensor]:
    return observation if isinstance(observation, dict) else {"": observation}


def arrays(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: part.numpy() for name, part in observation.items()}
    return observation.numpy()


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN."""
    return np.array_equal(left.numpy(), right.numpy(), equal_nan=True)


def equal(left: Any, right: Any) -> bool:
    left, right = parts(left), parts(right)
    return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)


def copied(observation: Any) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in parts(observation).items()}


def actions(env: BatchedEnv[Any], seed: int = 0) -> Iterator[Tensor]:
    env.action_space.seed(seed)
    while True:
        yield torch.as_tensor(env.action_space.sample())


def play(env: BatchedEnv[Any], steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    chosen = actions(env, seed)
    return [env.step(next(chosen)) for _ in range(steps)]


def steps_until_done(env: BatchedEnv[Any]) -> tuple[Any, ...]:
    """Play until a world ends, and return that step."""
    chosen = actions(env)
    for _ in range(2000):
        step = env.step(next(chosen))
        if (step[2] | step[3]).any():
            return step
    raise AssertionError("no episode ended")


def test_every_batched_environment_is_listed():
    elsewhere = {"MaskedMujoco", "ManiSkill", "Manipulation"}  # adapters have their own tests
    assert {kind for kind, _ in ENVIRONMENTS.values()} == set(REGISTERED) - elsewhere


@everywhere
@pytest.mark.parametrize("count", [1, N])
def test_shapes_and_dtypes_match_the_spaces(name: str, count: int):
    env = build(name, count)
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(arrays(observation))
    space = env.single_observation_space
    whole = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {"": space}
    for step in play(env, 60):
        observation, reward, terminated, truncated, info = step
        for shown in (observation, info["final_obs"]):
            assert env.observation_space.contains(arrays(shown))
            for key, part in parts(shown).items():
                assert part.numpy().dtype == whole[key].dtype
                assert part.shape == (count, *whole[key].shape)
        assert reward.shape == terminated.shape == truncated.shape == (count,)
        assert reward.dtype == torch.float32 and reward.isfinite().all()
        assert terminated.dtype == truncated.dtype == torch.bool
        assert env.truncates or not truncated.any()


@everywhere
def test_measurements_are_the_same_keys_at_every_step(name: str):
    steps = play(build(name), 40)
    for *_, info in steps:
        measured = {key for key in info if key not in ("final_obs", "start")}
        assert measured == {key for key in steps[0][-1] if key not in ("final_obs", "start")}
        for key in measured:
            assert info[key].dtype == torch.float32 and info[key].shape[0] == N
            assert info[key].ndim <= 2


@everywhere
def test_the_same_seed_gives_the_same_stream(name: str):
    one, other = build(name, seed=3), build(name, seed=8)
    first, again = one.reset(seed=5)[0], other.reset(seed=5)[0]
    assert equal(first, again)
    for left, right in zip(play(one, 60), play(other, 60), strict=True):
        assert equal(left[0], right[0])
        assert all(left[i].equal(right[i]) for i in (1, 2, 3))


@everywhere
def test_another_seed_gives_another_stream(name: str):
    def stream(seed: int) -> list[Tensor]:
        env = build(name, count=32, seed=seed)
        shown = [env.reset()[0], *(step[0] for step in play(env, 20))]
        return [part.flatten().double() for seen in shown for part in parts(seen).values()]

    assert not torch.equal(torch.cat(stream(0)), torch.cat(stream(1)))


@everywhere
def test_worlds_are_drawn_independently(name: str):
    env = build(name, count=64)
    fields = [field for field in env.worlds if field.unique(dim=0).shape[0] > 1]
    assert fields, "all worlds are alike"


@everywhere
def test_a_world_ignores_what_the_others_do(name: str):
    one, other = build(name, seed=2), build(name, seed=2)
    chosen = actions(one)
    for _ in range(60):
        action = next(chosen)
        mixed = action.clone()
        mixed[1:] = mixed[1:].roll(1, 0)
        left, right = one.step(action), other.step(mixed)
        for key, part in parts(left[4]["final_obs"]).items():
            assert part[0].equal(parts(right[4]["final_obs"])[key][0])
        assert left[1][0] == right[1][0]
        if (left[2] | left[3] | right[2] | right[3]).any():
            return  # from here on they draw different worlds


@everywhere
def test_a_world_that_ends_restarts_in_the_same_step(name: str):
    env = build(name)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.reset(seed=4)
    observation, _, terminated, truncated, info = steps_until_done(env)
    done = terminated | truncated
    # A first observation depends on the world alone: what a fresh look at it gives.
    assert equal(observation, env.observe())
    for key, part in parts(observation).items():
        assert part[~done].equal(parts(info["final_obs"])[key][~done])
    fresh = env.draw(N)
    for name_, field, new in zip(env.worlds._fields, env.worlds, fresh, strict=True):
        if new.unique().numel() == 1:  # what every world begins with, such as time 0
            assert (field[done] == new.unique()).all(), name_


@everywhere
def test_reset_restarts_the_masked_worlds_alone(name: str):
    env = build(name)
    env.reset(seed=6)
    play(env, 2)
    before = copied(env.observe())
    old = [field.clone() for field in env.worlds]
    mask = np.array([True, False, True, False, False])
    observation, _ = env.reset(options={"reset_mask": mask})
    keep = torch.as_tensor(~mask)
    assert all(same(field[keep], was[keep]) for field, was in zip(env.worlds, old, strict=True))
    assert any(not same(field, was) for field, was in zip(env.worlds, old, strict=True))
    for key, part in parts(observation).items():
        assert part[keep].equal(before[key][keep])


@everywhere
def test_nothing_handed_out_changes_later(name: str):
    env = build(name)
    handed = [(given := parts(env.reset(seed=7)[0]), copied(given))]
    chosen = actions(env)
    for _ in range(70):
        observation, reward, terminated, truncated, info = env.step(next(chosen))
        final = {f"final/{key}": part for key, part in parts(info.pop("final_obs")).items()}
        flags = {"/reward": reward, "/terminated": terminated, "/truncated": truncated}
        given = {**parts(observation), **final, **flags, **info}
        handed.append((given, copied(given)))
    for given, kept in handed:
        for key, part in given.items():
            assert same(part, kept[key]), key


@everywhere
def test_a_changed_observation_leaves_the_world_alone(name: str):
    env = build(name)
    observation, _ = env.reset(seed=7)
    before = [field.clone() for field in env.worlds]
    for part in parts(observation).values():
        part.zero_()
    assert all(same(field, was) for field, was in zip(env.worlds, before, strict=True))


@everywhere
def test_the_registered_id_makes_it(name: str):
    kind, settings = ENVIRONMENTS[name]
    env = gymnasium.make_vec(f"engram.envs:engram/{kind}-v0", num_envs=3, **settings)
    assert type(env) is getattr(engram.envs, kind) and env.num_envs == 3
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(arrays(observation))
    env.close()


@everywhere
def test_a_stream_marks_the_first_observations(name: str):
    env = build(name)
    stream = Stream(env)
    _, start = stream.reset(seed=0)
    assert start.all()
    for action, _ in zip(actions(env), range(60), strict=False):
        step = stream.step(action)
        # A trial may hold several episodes, never a part of one.
        assert not (step.start & ~(step.terminated | step.truncated)).any()
        assert not {"final_obs", "start"} & step.info.keys()


@pytest.mark.parametrize(("kind", "settings"), REFUSED, ids=str)
def test_a_bad_setting_is_refused_by_name(kind: str, settings: dict[str, Any]):
    with pytest.raises(InvalidValueError, match=list(settings)[-1]):
        getattr(engram.envs, kind)(2, **settings)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in ENVIRONMENTS.values()}))
def test_no_worlds_are_refused(kind: str):
    with pytest.raises(InvalidValueError, match="num_envs is 0; allowed: 1 or more"):
        getattr(engram.envs, kind)(0)


@pytest.mark.gpu
@everywhere
def test_a_gpu_keeps_everything_on_it(name: str):
    env = build(name, device="cuda")
    observation, _ = env.reset(seed=0)
    chosen = actions(env)
    for _ in range(60):
        observation, reward, terminated, truncated, info = env.step(next(chosen).cuda())
        given = {**parts(observation), **parts(info.pop("final_obs")), **info}
        for part in (reward, terminated, truncated, *given.values()):
            assert part.device.type == "cuda"
        on_host = {key: part.cpu() for key, part in parts(observation).items()}
        assert env.observation_space.contains(arrays(on_host.get("", on_host)))
