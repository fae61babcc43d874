"""What holds for every manipulation task."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from engram.envs.manipulation import (
    TASKS,
    EndEffectorControl,
    JointControl,
    Manipulation,
    ManipulationEnv,
    Oracle,
    make_task,
)
from engram.kernels.errors import InvalidValueError

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "mink")),
    reason="needs engram[manipulation]",
)

# Here what has to be remembered comes about by acting: laws by hand in the tasks' own tests.
BY_ACTING = {"put_back", "search_boxes", "friction_probe"}
SHOWN = [name for name in TASKS if name not in BY_ACTING]
WIDEST: dict[str, dict[str, Any]] = {
    "remember_color": {"colors": 9},
    "shell_game": {"cups": 4, "swaps": 5},
    "put_back": {"marks": 6},
    "match_after_delay": {"gap": 60},
    "buttons_in_order": {"buttons": 6, "length": 6},
    "count_presses": {"most": 8},
    "search_boxes": {"boxes": 4},
    "friction_probe": {"pushes": 1},
}


def quick(task: str, **settings: Any) -> ManipulationEnv:
    """A world without pictures."""
    return ManipulationEnv(task, cameras=(), objects=True, **settings)


def episode(env: ManipulationEnv, oracle: Oracle, seed: int, **options: Any) -> dict[str, Any]:
    """The info at the end of an episode, and its length."""
    env.reset(seed=seed, options=options)
    while True:
        action = oracle.disturb(oracle.act(env))
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            assert terminated or not info["success"]
            assert reward == info["success"]
            return {**info, "steps": env.steps}


def idle(env: ManipulationEnv, *, until: str, seed: int = 0, **options: Any) -> None:
    """Do nothing until a phase begins."""
    env.reset(seed=seed, options=options)
    while env.task.phase != until:
        _, _, terminated, truncated, _ = env.step(np.zeros(env.control.size))
        assert not (terminated or truncated), env.task.phase


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", [EndEffectorControl, JointControl])
def test_the_oracle_solves_it_without_hesitation(task: str, control: Any):
    env, oracle = quick(task, control=control), Oracle()
    for seed in range(3):
        done = episode(env, oracle, seed)
        assert done["success"] == done["first_choice_correct"] == 1, (seed, done)
        assert done["steps"] < 0.95 * env.task.limit


@pytest.mark.slow
@pytest.mark.parametrize("seeds, wide", [(100, False), (25, True)])
@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_solves_98_of_100(task: str, seeds: int, wide: bool):
    env, oracle = quick(task, **(WIDEST[task] if wide else {})), Oracle()
    results = [episode(env, oracle, seed)["success"] for seed in range(1000, 1000 + seeds)]
    assert np.mean(results) >= 0.98 - (0.02 if wide else 0)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_recovers_from_noise(task: str):
    # Noise on the speed of a push moves the puck, and nothing can be mended afterwards.
    floor = 0.6 if task == "friction_probe" else 0.9
    env, oracle = quick(task), Oracle(noise=0.1)
    results = [episode(env, oracle, seed)["success"] for seed in range(20)]
    assert np.mean(results) >= floor


@pytest.mark.parametrize("task", [name for name in TASKS if name != "search_boxes"])
def test_as_many_guesses_are_right_as_chance_says(task: str):
    env = quick(task, gap=0) if task in SHOWN else quick(task)
    right = 0.0
    for guess in range(env.task.facts):
        env.reset(seed=5)
        for goal in env.task.script(env.world, guess):
            _, _, terminated, truncated, info = env.step(env.control.toward(*goal))
            if terminated or truncated or not math.isnan(info["first_choice_correct"]):
                break
        while math.isnan(info["first_choice_correct"]):  # the script is done, the puck is not
            info = env.step(env.control.toward(*goal))[-1]
        right += info["first_choice_correct"]
    assert right == pytest.approx(env.task.chance * env.task.facts)


def test_a_blind_oracle_guesses():
    env, oracle = quick("remember_color", gap=0), Oracle(blind=True)
    results = [episode(env, oracle, seed)["first_choice_correct"] for seed in range(12)]
    assert 0 < sum(results) < 12


@pytest.mark.parametrize("task", TASKS)
def test_everything_follows_from_the_seed(task: str):
    histories = []
    for seed in (3, 3, 4):
        env = ManipulationEnv(task, cameras=("top", "wrist"), objects=True, oracle=True)
        random = np.random.default_rng(1)
        history = [env.reset(seed=seed)[0]]
        for _ in range(14):
            history.append(env.step(random.uniform(-1, 1, 4))[0])
        histories.append(history)
    first, again, other = histories
    assert all(map(same, first, again))
    assert not all(map(same, first, other))


@pytest.mark.parametrize("task", TASKS)
def test_observations_and_actions_are_in_their_spaces(task: str):
    env = ManipulationEnv(task, size=32, objects=True, oracle=True, instruction=True)
    observation, _ = env.reset(seed=0)
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(observation) == [
        "top",
        "proprioception",
        "objects",
        "oracle",
        "instruction",
    ]
    for _ in range(5):
        assert env.observation_space.contains(observation)
        observation = env.step(env.action_space.sample())[0]
    assert observation["top"].std() > 10, "an empty picture"
    assert bytes(observation["instruction"]).rstrip(b"\0").decode() == env.instruction
    hidden = ~observation["objects"][:, -1].astype(bool)
    assert not observation["objects"][hidden].any()


@pytest.mark.parametrize("task", SHOWN)
def test_nothing_tells_the_hidden_fact_while_deciding(task: str):
    last = make_task(task).facts - 1
    pair = [
        ManipulationEnv(task, cameras=("top", "wrist"), size=48, objects=True, gap=1, onset=1)
        for _ in range(2)
    ]
    random = np.random.default_rng(0)
    shown = different = 0
    seen = [
        env.reset(seed=2, options={"fact": k})[0] for env, k in zip(pair, (0, last), strict=True)
    ]
    for time in range(pair[0].task.limit):
        action = random.uniform(-0.3, 0.3, 4)
        if not pair[0].task.deciding:
            different += not same(*seen)
        else:
            assert same(*seen), time
            shown += 1
        seen = [env.step(action)[0] for env in pair]
        if shown == 6:
            break
    assert shown == 6 and different > 0, "the fact is never shown, or the decision never comes"


@pytest.mark.parametrize("task", SHOWN)
def test_the_gap_is_drawn_from_its_range(task: str):
    for settings, allowed in (({"gap": (2, 4)}, {2, 3, 4}), ({"gap": 3}, {3})):
        env, lengths = quick(task, **settings), []
        for seed in range(12):
            idle(env, until="gap", seed=seed)
            begin = env.steps
            while not env.task.deciding:
                env.step(np.zeros(4))
            lengths.append(env.steps - begin)
        assert set(lengths) == allowed


@pytest.mark.parametrize("task", TASKS)
def test_doing_nothing_or_anything_is_no_success(task: str):
    env = quick(task)
    for amplitude in (0, 1):
        info: dict[str, Any] = {}
        random = np.random.default_rng(1)
        env.reset(seed=1)
        truncated = terminated = False
        while not (terminated or truncated):
            action = amplitude * random.uniform(-1, 1, 4)
            _, reward, terminated, truncated, info = env.step(action)
            assert reward == 0
        assert info["success"] == 0
        assert amplitude or (truncated and env.steps == env.task.limit)
        assert amplitude or math.isnan(info["first_choice_correct"])


def test_a_step_before_the_first_reset_is_refused():
    env = quick("remember_color")
    with pytest.raises(ResetNeeded, match="step came before reset"):
        env.step(np.zeros(4))
    env.reset(seed=0)
    env.step(np.zeros(4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": "64"}, "size is '64'; allowed: 16 to 512, a whole number of pixels"),
        ({"size": 64.5}, r"size is 64\.5; allowed: 16 to 512"),
        ({"size": 8}, "size is 8; allowed: 16 to 512"),
        ({"cameras": "top"}, "cameras is 'top'; allowed: a sequence of names"),
        ({"cameras": None}, "cameras is None; allowed: a sequence of names"),
        ({"cameras": ["left"]}, "cameras is 'left'; allowed: top, wrist"),
        ({"cameras": [["top"]]}, r"cameras is \['top'\]; allowed: top, wrist"),
        ({"cameras": ("top", "top")}, r"cameras is \('top', 'top'\); allowed: different names"),
    ],
    ids=str,
)
def test_bad_senses_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        ManipulationEnv(**settings)
    with pytest.raises(InvalidValueError, match=message):
        Manipulation(2, **settings)


@pytest.mark.parametrize(
    "action, message",
    [
        ([0, 0, 0], r"action is \[0, 0, 0\]; allowed: 4 numbers"),
        ([0, 1.5, 0, 0], r"action\[1\] is 1.5; allowed: -1 to 1"),
        ([0, 0, math.nan, 0], r"action\[2\] is nan; allowed: -1 to 1"),
        ([0, 0, 0, -math.inf], r"action\[3\] is -inf; allowed"),
        (["a", 0, 0, 0], "action is .*allowed: 4 numbers"),
    ],
)
def test_a_bad_action_is_refused_and_nothing_happens(action: Any, message: str):
    env = quick("remember_color")
    env.reset(seed=0)
    before = env.world.data.qpos.copy()
    with pytest.raises(InvalidValueError, match=message):
        env.step(action)
    assert env.steps == 0 and np.array_equal(before, env.world.data.qpos)
