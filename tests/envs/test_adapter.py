"""Gymnasium environments as batches: spaces, ends, trials and what is refused."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from engram.envs import GymnasiumEnv, Stream
from engram.envs.adapter import UnknownEnvironmentError, UnsupportedSpaceError
from engram.kernels.errors import InvalidValueError


class Counter(gymnasium.Env):
    """Counts its steps; action 1 terminates, the limit truncates."""

    observation_space = spaces.Dict(
        {
            "count": spaces.Discrete(100),
            "place": spaces.MultiDiscrete([100, 2]),
            "noise": spaces.Box(0, 1e300, (3,), np.float64),
        }
    )
    action_space = spaces.Discrete(2)

    def __init__(self, limit: int = 3):
        self.limit = limit
        self.count = 0

    def observation(self) -> dict[str, Any]:
        noise = self.np_random.random(3)
        return {"count": self.count, "place": np.array([self.count, 1]), "noise": noise}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation(), {}

    def step(self, action: int):
        self.count += 1
        ended = bool(action == 1)
        info = {"count": float(self.count), "late": True} if self.count > 1 else {}
        return self.observation(), 0.5, ended, not ended and self.count == self.limit, info


class Odd(gymnasium.Env):
    """Has the spaces it is told."""

    def __init__(self, observation: spaces.Space, action: spaces.Space):
        self.observation_space, self.action_space = observation, action


def counters(**more: Any) -> GymnasiumEnv:
    return GymnasiumEnv(2, environment=Counter, **more)


def test_dict_observations_are_tensors_of_their_spaces():
    env = counters()
    observation, _ = env.reset(seed=0)
    assert {name: part.dtype for name, part in observation.items()} == {
        "count": torch.int64,
        "place": torch.int64,
        "noise": torch.float32,
    }
    assert env.observation_space.contains({k: part.numpy() for k, part in observation.items()})
    assert env.truncates


def test_final_observations_are_of_the_episode_that_ended():
    env = counters()
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(torch.tensor([0, 1]))
    assert terminated.tolist() == [False, True] and not truncated.any()
    assert observation["count"].tolist() == [1, 0]
    assert info["final_obs"]["count"].tolist() == [1, 1]
    assert info["final_obs"]["place"].tolist() == [[1, 1], [1, 1]]
    assert info["start"].tolist() == [False, True]
    assert reward.tolist() == [0.5, 0.5] and reward.dtype == torch.float32
    env.step(torch.tensor([0, 0]))
    observation, _, terminated, truncated, info = env.step(torch.tensor([0, 0]))
    assert truncated.tolist() == [True, False] and not terminated.any()
    assert observation["count"].tolist() == [0, 2]
    assert info["final_obs"]["count"].tolist() == [3, 2]


def test_memory_spans_the_episodes_of_a_trial():
    stream = Stream(counters(episodes_per_trial=2))
    _, start = stream.reset(seed=0)
    assert start.all()
    starts, ends = [], []
    for action in ([1, 0], [1, 0], [0, 0], [1, 1], [1, 0]):
        step = stream.step(torch.tensor(action))
        starts.append(step.start.tolist())
        ends.append((step.terminated | step.truncated).tolist())
        assert not step.info
    assert ends == [[True, False], [True, False], [False, True], [True, True], [True, False]]
    assert starts == [
        [False, False],
        [True, False],  # the second episode of world 0
        [False, False],
        [False, True],  # the second of world 1
        [True, False],
    ]


def test_a_reset_begins_a_new_trial_where_asked():
    env = counters(episodes_per_trial=2)
    env.reset(seed=0)
    env.step([1, 1])
    options = {"reset_mask": torch.tensor([True, False])}
    observation, _ = env.reset(options=options)
    assert "reset_mask" in options and observation["count"].tolist() == [0, 0]
    assert env.step([1, 1])[4]["start"].tolist() == [False, True]


def test_measures_are_read_where_the_episode_ends():
    env = counters(measures=["count", "late", "absent"], settings={"limit": 2})
    env.reset(seed=0)
    first, second = (env.step([0, 0])[4] for _ in range(2))
    assert first["count"].isnan().all()
    assert second["count"].tolist() == [2, 2] and second["late"].tolist() == [1, 1]
    assert second["absent"].isnan().all() and second["absent"].dtype == torch.float32


class Timed(Counter):
    """Reports how long an episode lasted in its reset too, as the next episode's."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return super().reset(seed=seed)[0], {"x": -7.0}

    def step(self, action: int):
        return *super().step(action)[:4], {}


def test_a_measure_is_never_read_from_the_episode_that_begins():
    env = GymnasiumEnv(2, environment=Timed, measures=["x"], settings={"limit": 1})
    env.reset(seed=0)
    assert env.step([0, 0])[4]["x"].isnan().all()


def test_seeds_repeat_and_neighbouring_seeds_share_no_world():
    def noise(seed: int) -> torch.Tensor:
        return counters(seed=seed).reset()[0]["noise"]

    assert noise(0).equal(noise(0)) and noise(0).equal(counters().reset(seed=0)[0]["noise"])
    both = torch.cat([noise(0), noise(1)])
    assert len(both.unique(dim=0)) == 4
    env = counters()
    assert not env.reset()[0]["noise"].equal(env.reset()[0]["noise"])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_id_runs_in_one_process_or_in_one_each(asynchronous: bool):
    stream = Stream(
        GymnasiumEnv(
            2,
            environment="gymnasium:CartPole-v1",
            settings={"max_episode_steps": 2},
            asynchronous=asynchronous,
        )
    )
    first, _ = stream.reset(seed=3)
    assert first.shape == (2, 4) and first.dtype == torch.float32
    stream.step(torch.tensor([0, 1]))
    step = stream.step(torch.tensor([0, 1]))
    assert step.truncated.all() and step.start.all()
    assert (step.observation.abs() < 0.05).all()  # where CartPole begins
    assert not step.final_observation.equal(step.observation)
    stream.env.close()


def test_continuous_actions_and_float64_observations():
    env = GymnasiumEnv(2, environment="MountainCarContinuous-v0", settings={"goal_velocity": 0.1})
    env.reset(seed=0)
    assert env.step(torch.zeros(2, 1))[0].dtype == torch.float32


def test_an_unknown_id_names_close_ones_in_one_line():
    with pytest.raises(UnknownEnvironmentError) as caught:
        GymnasiumEnv(1, environment="cartpol-v1")
    message = str(caught.value)
    assert "'cartpol-v1' is not registered" in message and "CartPole-v1" in message
    assert "\n" not in message
    with pytest.raises(UnknownEnvironmentError, match="none is close"):
        GymnasiumEnv(1, environment="qqqqqqqqqq")
    with pytest.raises(InvalidValueError, match=r"importable .*No module named 'nomodule'"):
        GymnasiumEnv(1, environment="nomodule:CartPole-v1")


def test_a_batched_environment_is_sent_to_make_vec():
    with pytest.raises(InvalidValueError, match="make_vec"):
        GymnasiumEnv(1, environment="engram/ChainBit-v0")


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (spaces.Text(5), spaces.Discrete(2), "observation space is Text"),
        (spaces.Tuple([spaces.Discrete(2)]), spaces.Discrete(2), "observation space is Tuple"),
        (
            spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}),
            spaces.Discrete(2),
            "observation space is Dict",
        ),
        (spaces.Discrete(3, start=-1), spaces.Discrete(2), r"start=-1\); allowed: Discrete"),
        (spaces.Discrete(2), spaces.MultiBinary(3), "action space is MultiBinary.*; allowed"),
        (spaces.Discrete(2), spaces.Dict({"a": spaces.Discrete(2)}), "action space is Dict"),
    ],
    ids=["text", "tuple", "nested", "start", "binary action", "dict action"],
)
def test_other_spaces_are_refused_by_name(
    observation: spaces.Space, action: spaces.Space, named: str
):
    with pytest.raises(UnsupportedSpaceError, match=named):
        settings = {"observation": observation, "action": action}
        GymnasiumEnv(2, environment=Odd, settings=settings)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), ()])
def test_as_many_actions_as_copies_are_wanted(shape: tuple[int, ...]):
    env = GymnasiumEnv(2, environment="CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(InvalidValueError) as caught:
        env.step(torch.zeros(shape, dtype=torch.int64))
    said = "shape of the actions is {!r}; allowed: (2,): 2 actions"
    assert str(caught.value) == said.format(shape)
    env.step([0, 1])


@pytest.mark.parametrize("actions", [torch.zeros(3, 1), torch.zeros(1), [[0.0], []], [0.0, 0.0]])
def test_actions_of_another_shape_are_refused(actions: Any):
    env = GymnasiumEnv(2, environment="MountainCarContinuous-v0")
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match=r"shape of the actions is .*; allowed: \(2, 1\)"):
        env.step(actions)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("count", [2.5, True, "2", 0], ids=repr)
def test_a_number_of_copies_that_is_no_whole_number_is_refused(count: Any):
    with pytest.raises(InvalidValueError) as caught:
        GymnasiumEnv(count, environment=Counter)
    assert str(caught.value) == f"num_envs is {count!r}; allowed: 1 or more, a whole number"


@pytest.mark.parametrize("setting", ["num_envs", "episodes_per_trial"])
def test_a_bad_setting_is_refused_by_name(setting: str):
    with pytest.raises(InvalidValueError, match=f"{setting} is 0"):
        GymnasiumEnv(**{"num_envs": 1, "environment": Counter, setting: 0})
