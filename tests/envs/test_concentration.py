"""Concentration on cards laid by hand."""

import pytest
import torch

from engram.envs import Concentration

DOWN = 2
MATCH, FAIL = 2 / 52, -1 / 104
"""Reward of a pair; cost of a turned card."""


def table() -> Concentration:
    env = Concentration(1)
    env.worlds = env.worlds._replace(value=(torch.arange(52) % 2)[None])  # 0 1 0 1 …
    return env


def turn(env: Concentration, *places: int) -> tuple[list[int], list[float]]:
    """Return the four leftmost cards as seen at the end, and the rewards."""
    rewards = []
    for place in places:
        observation, reward, *_ = env.step(torch.tensor([place]))
        rewards.append(reward.item())
    return observation[0, :4].tolist(), rewards


def test_a_pair_stays_up_and_earns():
    env = table()
    assert env.observe().tolist() == [[DOWN] * 52]
    seen, rewards = turn(env, 0, 2)
    assert seen == [0, DOWN, 0, DOWN] and rewards == pytest.approx([0, MATCH])
    seen, rewards = turn(env, 1)
    assert seen == [0, 1, 0, DOWN] and rewards == [0]


def test_cards_that_differ_turn_back_at_the_next_action():
    env = table()
    seen, rewards = turn(env, 0, 1)
    assert seen == [0, 1, DOWN, DOWN] and rewards == pytest.approx([0, 2 * FAIL])
    assert turn(env, 3)[0] == [DOWN, DOWN, DOWN, 1]


def test_one_card_turned_twice_is_no_pair():
    seen, rewards = turn(table(), 1, 1)
    assert seen == [DOWN, 1, DOWN, DOWN] and rewards == pytest.approx([0, 2 * FAIL])


def test_a_found_card_costs_every_card_in_play_and_ends_the_turn():
    env = table()
    turn(env, 0, 2)
    assert turn(env, 0)[1] == pytest.approx([FAIL])
    assert turn(env, 1, 2)[1] == pytest.approx([0, 2 * FAIL])
    assert turn(env, 1, 3)[1] == pytest.approx([0, MATCH])  # both begin a new turn


def test_finding_every_pair_earns_one_and_terminates():
    env, total = table(), 0.0
    order = torch.arange(52).view(13, 2, 2).mT.reshape(-1)  # 0 2 1 3 4 6 5 7 …
    for place in order:
        assert total < 0.999
        _, reward, terminated, truncated, info = env.step(place[None])
        total += reward.item()
    assert terminated.all() and not truncated.any() and total == pytest.approx(1)
    assert info["success"].item() == info["found"].item() == 1


def test_the_step_limit_truncates():
    env = table()
    for step in range(104):
        _, _, terminated, truncated, info = env.step(torch.tensor([0]))
        assert bool(truncated) == (step == 103) and not terminated.any()
    assert info["success"].item() == info["found"].item() == 0
