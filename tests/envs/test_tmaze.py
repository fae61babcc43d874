"""The T-maze, move by move."""

import torch

from engram.envs import TMaze
from engram.envs.tmaze import BACK, FORWARD, LEFT, RIGHT


def walk(env: TMaze, *moves: int) -> tuple[list[list[int]], list[float], list[str]]:
    """Return the observations, rewards and ends of one world along a way."""
    seen, rewards, ends = [], [], []
    for move in moves:
        _, reward, terminated, truncated, info = env.step(torch.tensor([move]))
        seen.append(info["final_obs"][0].tolist())
        rewards.append(reward.item())
        ends.append("T" * bool(terminated) + "t" * bool(truncated))
    return seen, rewards, ends


def maze(goal: int, **settings: int) -> TMaze:
    env = TMaze(1, length=2, **settings)
    env.worlds = env.worlds._replace(goal=torch.tensor([goal]))
    return env


def test_the_named_arm_pays():
    env = maze(goal=1)
    assert env.observe().tolist() == [[1, 0]]
    seen, rewards, ends = walk(env, FORWARD, FORWARD, RIGHT)
    assert seen == [[2, 1], [2, 2], [2, 3]]
    assert rewards == [0, 0, 1] and ends == ["", "", "T"]


def test_the_other_arm_pays_nothing_and_ends():
    _, rewards, ends = walk(maze(goal=1), FORWARD, FORWARD, LEFT)
    assert rewards == [0, 0, 0] and ends == ["", "", "T"]


def test_walls_stop_a_move_and_the_cue_never_returns():
    seen, _, ends = walk(maze(goal=0, time_limit=20), BACK, LEFT, RIGHT, FORWARD, LEFT, BACK)
    assert seen == [[2, 0], [2, 0], [2, 0], [2, 1], [2, 1], [2, 0]]
    seen, rewards, _ = walk(maze(goal=0, time_limit=20), FORWARD, FORWARD, FORWARD, LEFT)
    assert seen == [[2, 1], [2, 2], [2, 2], [2, 3]] and rewards[-1] == 1
    assert not any(ends)


def test_the_time_limit_truncates_unless_an_arm_is_reached_with_it():
    _, rewards, ends = walk(maze(goal=0, time_limit=3), FORWARD, FORWARD, BACK)
    assert ends == ["", "", "t"] and not any(rewards)
    _, rewards, ends = walk(maze(goal=0, time_limit=3), FORWARD, FORWARD, LEFT)
    assert ends == ["", "", "T"] and rewards[-1] == 1
    assert TMaze(1, length=10).time_limit == 22
