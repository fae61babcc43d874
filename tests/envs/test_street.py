"""Street navigation: rules by hand, exact returns, and what a map is worth."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engram.envs.street import Street
from engram.envs.street_graph import StreetGraph
from engram.envs.street_grid import grid_city, save_streets
from engram.kernels.errors import DataError, InvalidValueError

NORTH, EAST, SOUTH, WEST = range(4)


def square(**settings) -> Street:
    """A block of 4 places, 100 m wide and 50 m high, and two places far in the north."""
    corners = [[0, 0], [100, 0], [0, 50], [100, 50], [0, 9000], [0, 9100]]
    position = np.array(corners, dtype=float)
    link = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [4, 5]])
    length = np.array([100.0, 50, 50, 100, 100])
    city = StreetGraph(position, link, length)
    return Street(settings.pop("num_envs", 16), graph=city, places=4, pool=1, **settings)


def crossing_of(env: Street) -> Tensor:
    """Which place of the city each world is at."""
    members = torch.from_numpy(env.neighbourhoods.intersection).flatten()
    return members[env.worlds.here]


def goal_of(env: Street) -> Tensor:
    members = torch.from_numpy(env.neighbourhoods.intersection).flatten()
    rows = torch.arange(env.num_envs)
    return members[env.worlds.route[rows, env.worlds.goals + 1]]


def test_a_walk_around_the_block_by_hand():
    env = square(trial_steps=60)
    observation, _ = env.reset(seed=1)
    exits_by_place = {0: [1, 1, 0, 0], 1: [1, 0, 0, 1], 2: [0, 1, 1, 0], 3: [0, 0, 1, 1]}
    behind = {
        (0, EAST): (1, 100), (0, NORTH): (2, 50), (1, WEST): (0, 100), (1, NORTH): (3, 50),
        (2, EAST): (3, 100), (2, SOUTH): (0, 50), (3, WEST): (2, 100), (3, SOUTH): (1, 50),
    }  # fmt: skip
    assert not observation["taken"].any()
    names: list[dict] = [{} for _ in range(16)]
    walked = np.zeros(16)
    for _ in range(59):
        here, goal = crossing_of(env).tolist(), goal_of(env).tolist()
        for world in range(16):
            assert observation["exits"][world].tolist() == exits_by_place[here[world]]
            for place, seen in ((here[world], "place"), (goal[world], "goal")):
                code = tuple(observation[seen][world].tolist())
                assert names[world].setdefault(place, code) == code
        action = torch.randint(4, (16,))
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated.any() and not truncated.any()
        for world, exit_ in enumerate(action.tolist()):
            there, metres = behind.get((here[world], exit_), (here[world], 0))
            walked[world] += metres
            assert crossing_of(env)[world] == there
            assert reward[world] == float(there == goal[world])
            assert (goal_of(env)[world] == goal[world]) == (there != goal[world])
            assert observation["taken"][world].tolist() == [float(k == exit_) for k in range(4)]
        assert info["metres"].tolist() == walked.tolist()
        assert (crossing_of(env) != goal_of(env)).all()
    assert all(len(set(name.values())) == len(name) == 4 for name in names)


@pytest.mark.parametrize(
    ("steps", "optimum", "random_walk"), [(1, 2 / 3, 1 / 3), (2, 13 / 9, 11 / 18)]
)
def test_returns_around_the_block_by_hand(steps: int, optimum: float, random_walk: float):
    # Goals are one step away with probability 2/3, else two. In two steps, shortest paths reach
    # 2/3 (1 + 2/3) + 1/3. A random walk reaches a goal next to it at once with 1/2 and then
    # another with 1/3; else it stands opposite. One opposite it reaches in two with 1/2.
    env = square(trial_steps=steps)
    assert env.optimum == pytest.approx(optimum)
    assert env.reactive["random_walk"] == pytest.approx(random_walk)
    assert env.chance == max(env.reactive.values())


def test_turning_right_around_the_block_by_hand():
    # From the north-west the walk is clockwise, from the other corners anticlockwise, and it never
    # turns round. So every goal is 1, 2 or 3 steps ahead with equal probability.
    assert square(trial_steps=1).reactive["right_hand"] == pytest.approx(1 / 3)
    # Three steps reach the first goal, a second one if it is (1, 1), (1, 2) or (2, 1) steps ahead
    # of the last, and a third one after (1, 1, 1).
    assert square(trial_steps=3).reactive["right_hand"] == pytest.approx(1 + 1 / 3 + 1 / 27)


def test_shortest_paths_reach_what_the_oracle_counts():
    env = Street(64, split="evaluation", pool=32, trial_steps=40, seed=3)
    env.reset(seed=3)
    returns, pace = torch.zeros(64), torch.zeros(64, 8)
    for step in range(40):
        _, reward, _, truncated, info = env.step(env.shortest_action())
        returns += reward
        pace[:, step // 5] += reward
        assert torch.equal(info["goals"], info["oracle_goals"])
    assert truncated.all()
    assert torch.equal(info["goals"], returns)
    assert torch.equal(info["goals_by_eighth"], pace)
    assert (info["oracle_share"] == 1).all()
    assert info["steps_to_goal"].shape == (64, 8)
    assert torch.equal(info["steps_to_goal"], info["shortest_to_goal"])
    assert not info["steps_to_goal"].isnan().any()


@pytest.mark.parametrize("show_left", [False, True])
@pytest.mark.parametrize("policy", ["shortest", "random_walk", "onward_walk", "right_hand"])
def test_exact_returns_agree_with_play(policy: str, show_left: bool):
    env = Street(2048, pool=64, trial_steps=30, show_left=show_left, seed=5)
    preference = {
        "random_walk": [1, 1, 1, 1],
        "onward_walk": [1, 1, 1, 1e-9],
        "right_hand": [1, 1e-9, 1e-18, 1e-27],
    }
    observation = env.observe()
    for _ in range(30):
        if policy == "shortest":
            action = env.shortest_action()
        else:
            last = observation["taken"].argmax(dim=1, keepdim=True)  # north at the start
            order = (last + torch.tensor([1, 0, 3, 2])) % 4
            weight = observation["exits"].double().gather(1, order)
            weight *= torch.tensor(preference[policy], dtype=torch.float64)
            choice = (weight / torch.empty_like(weight).exponential_()).argmax(1, keepdim=True)
            action = order.gather(1, choice).squeeze(1)
            if show_left:
                returning = (observation["left"] == observation["goal"]).all(dim=1)
                action = torch.where(returning, order[:, 3], action)
        observation, _, _, _, info = env.step(action)
    goals = info["goals"]
    name = f"{policy}_returning" if show_left else policy
    expected = env.optimum if policy == "shortest" else env.reactive[name]
    assert expected is not None
    assert goals.mean().item() == pytest.approx(expected, abs=4 * (goals.std() / 2048**0.5).item())


class Mapper:
    """Draws a map from observations alone, explores the nearest unknown exit, else plans on it."""

    def __init__(self):
        self.behind: dict[tuple, dict[int, tuple | None]] = {}
        self.last: tuple[tuple, int] | None = None

    def act(self, place: tuple, goal: tuple, exits: list[float]) -> int:
        self.behind.setdefault(place, {exit_: None for exit_ in range(4) if exits[exit_]})
        if self.last is not None:
            self.behind[self.last[0]][self.last[1]] = place
        target = goal if goal in self.behind else None
        exit_ = self.first_exit(place, target)
        if exit_ is None:  # the goal is known but no way to it
            exit_ = self.first_exit(place, None)
        assert exit_ is not None
        self.last = place, exit_
        return exit_

    def first_exit(self, place: tuple, target: tuple | None) -> int | None:
        """First exit on the way to the target, or to the nearest unknown exit."""
        queue, seen = deque([(place, -1)]), {place}
        while queue:
            at, first = queue.popleft()
            for exit_, there in self.behind[at].items():
                leaving = exit_ if first < 0 else first
                if there == target:  # None where unknown
                    return leaving
                if there is not None and there not in seen:
                    seen.add(there)
                    queue.append((there, leaving))
        return None


def test_a_map_is_worth_more_than_any_reaction():
    env = Street(64, seed=2)
    observation, _ = env.reset(seed=2)
    mappers = [Mapper() for _ in range(64)]
    for _ in range(env.trial_steps):
        seen = zip(
            mappers, *(observation[k].tolist() for k in ("place", "goal", "exits")), strict=True
        )
        action = [m.act(tuple(place), tuple(goal), exits) for m, place, goal, exits in seen]
        observation, _, _, _, info = env.step(torch.tensor(action))
    assert env.optimum is not None and env.chance is not None
    assert 2 * env.chance < info["goals"].mean() < env.optimum
    assert (info["oracle_share"] <= 1).all() and info["oracle_share"].mean() > 0.8
    excess = (info["steps_to_goal"] - info["shortest_to_goal"]).nanmean(dim=0)
    assert excess[0] > 3 and excess[10:].mean() < 0.3  # at first lost, then on the shortest path


def test_a_goal_takes_at_least_the_shortest_path():
    env = Street(32, pool=8, trial_steps=50, seed=0)
    for _ in range(50):
        *_, info = env.step(torch.randint(4, (32,)))
        spent, shortest = info["steps_to_goal"], info["shortest_to_goal"]
        assert torch.equal(spent.isnan(), shortest.isnan())
        assert not (spent < shortest).any()
        assert torch.equal((~spent.isnan()).sum(dim=1), info["goals"].clamp(max=10).long())
        assert (info["goals"] <= info["oracle_goals"]).all()
        assert torch.equal(info["oracle_share"].isnan(), info["oracle_goals"] == 0)
        assert all(value.dtype == torch.float32 for k, value in info.items() if k != "final_obs")


@pytest.mark.parametrize(("places", "code_bits"), [(8, 3), (8, 10), (5, 4), (6, 20)])
def test_codes_are_distinct_and_fresh(places: int, code_bits: int):
    env = Street(200, places=places, code_bits=code_bits, pool=4, trial_steps=1)
    before = env.worlds.code.clone()
    assert set(before.unique().tolist()) == {0.0, 1.0}
    for world in before:
        assert len(world.unique(dim=0)) == places
    env.step(torch.zeros(200, dtype=torch.int64))
    assert (env.worlds.code != before).flatten(1).any(dim=1).float().mean() > 0.95


def test_every_code_is_as_likely_for_every_place():
    env = Street(8000, places=3, code_bits=2, pool=1)
    number = (env.worlds.code * torch.tensor([1.0, 2.0])).sum(dim=2).long()
    for place in range(3):
        share = number[:, place].bincount(minlength=4) / 8000
        assert (share - 0.25).abs().max() < 0.03  # six standard deviations


def test_a_trial_is_truncated_and_final_obs_is_its_last():
    env = square(num_envs=8, trial_steps=3)
    assert env.truncates
    env.reset(seed=0)
    for step in range(3):
        code, old_info = env.worlds.code.clone(), {}
        observation, _, terminated, truncated, info = env.step(env.shortest_action())
        assert not terminated.any()
        assert truncated.tolist() == [step == 2] * 8
        old_info = {name: info[name].clone() for name in ("goals", "steps_to_goal", "metres")}
    final = info["final_obs"]
    assert final["taken"].any(dim=1).all() and not observation["taken"].any()
    matches = (final["place"][:, None] == code).all(dim=2)
    assert matches.any(dim=1).all()  # named as in the old trial
    assert not torch.equal(env.worlds.code, code)
    assert not env.worlds.time.any() and not env.worlds.goals.any()
    env.step(env.shortest_action())
    assert all(torch.equal(info[name], value) for name, value in old_info.items())


def test_a_part_of_the_worlds_restarts():
    env = square(num_envs=4, trial_steps=9)
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.shortest_action())
    code = env.worlds.code.clone()
    env.reset(options={"reset_mask": torch.tensor([True, False, False, True])})
    assert env.worlds.time.tolist() == [0, 4, 4, 0]
    assert torch.equal(env.worlds.code[1:3], code[1:3])
    *_, truncated, _ = [env.step(env.shortest_action()) for _ in range(5)][-1]
    assert truncated.tolist() == [False, True, True, False]


def test_one_seed_gives_one_run_and_another_the_same_city():
    def play(env: Street) -> Tensor:
        seen = []
        generator = torch.Generator().manual_seed(0)
        env.reset(seed=7)
        for _ in range(25):
            action = torch.randint(4, (8,), generator=generator)
            observation, reward, *_ = env.step(action)
            seen.append(torch.cat([*observation.values(), reward[:, None]], dim=1))
        return torch.stack(seen)

    one, other = (Street(8, pool=16, trial_steps=10, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.worlds.code, other.worlds.code)
    np.testing.assert_array_equal(
        one.neighbourhoods.intersection, other.neighbourhoods.intersection
    )
    assert one.optimum == other.optimum
    assert torch.equal(play(one), play(other))


def test_a_city_is_read_from_a_folder(tmp_path: Path):
    save_streets(grid_city(12, 9, 0), tmp_path, spacing=20.0)
    env = Street(4, graph=str(tmp_path), pool=8)
    assert env.single_observation_space.contains(
        {name: part[0].numpy() for name, part in env.observe().items()}
    )
    with pytest.raises(DataError, match=r"nodes.txt cannot be read"):
        Street(4, graph=tmp_path / "elsewhere")


def test_manhattan_is_walked_on_either_side(shared_data: Path):
    folder = shared_data / "manhattan"
    if not folder.is_dir():
        pytest.skip(f"no street graph: {shared_data.name} has no folder 'manhattan'")
    for split, size in (("train", 256), ("evaluation", 64)):
        env = Street(8, graph=folder, split=split)
        assert len(env.neighbourhoods.hops) == size
        assert env.optimum == pytest.approx(33.5, abs=0.3)
        assert env.reactive["random_walk"] == pytest.approx(5.3, abs=0.1)
        for _ in range(80):
            *_, truncated, info = env.step(env.shortest_action())
        assert truncated.all() and (info["oracle_share"] == 1).all()
        assert (info["metres"] > 1000).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "test"}, "split is 'test'; allowed: train, evaluation"),
        ({"trial_steps": 0}, "trial_steps is 0; allowed: 1 or more"),
        ({"code_bits": 2}, "code_bits is 2; allowed: enough for 8 places, to 30"),
        ({"code_bits": 31}, "code_bits is 31"),
        ({"places": 1}, "places is 1; allowed: 2 or more"),
        ({"pool": 0}, "pool is 0; allowed: 1 or more"),
        ({"places": 500}, "pool is 256; allowed: up to 0"),
        ({"num_envs": -1}, "num_envs is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict, message: str):
    with pytest.raises(InvalidValueError) as error:
        Street(**{"num_envs": 2, **setting})
    assert message in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_worlds_live_on_the_gpu():
    env = Street(64, pool=8, trial_steps=10, device="cuda")
    for _ in range(10):
        observation, _, _, truncated, info = env.step(env.shortest_action())
    assert truncated.all() and (info["oracle_share"] == 1).all()
    assert all(part.is_cuda for part in (*observation.values(), *info["final_obs"].values()))


def test_the_place_left_is_shown_where_asked_for():
    env = Street(16, pool=8, show_left=True, seed=5)
    before, _ = env.reset(seed=5)
    assert not before["left"].any()
    for _ in range(20):
        after, *_ = env.step(env.shortest_action())
        assert torch.equal(after["left"], before["place"])
        before = after
    blind = Street(1, pool=8, show_left=False)
    assert "left" not in blind.single_observation_space.spaces
    assert len(env.reactive) == 2 * len(blind.reactive)
