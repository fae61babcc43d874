"""The one-bit chain, step by step."""

import torch

from engram.envs import ChainBit


def test_the_cue_is_seen_once_and_the_last_action_alone_scores():
    env = ChainBit(2, length=3)
    env.worlds = env.worlds._replace(bit=torch.tensor([0, 1]))
    assert env.observe().tolist() == [[0, 0], [1, 0]]
    ones = torch.ones(2, dtype=torch.int64)
    for time in (1, 2, 3):
        observation, reward, terminated, _, _ = env.step(ones)
        assert observation.tolist() == [[2, time == 3]] * 2
        assert not reward.any() and not terminated.any()
    _, reward, terminated, truncated, info = env.step(ones)
    assert reward.tolist() == info["success"].tolist() == [0.0, 1.0]
    assert terminated.all() and not truncated.any()
    assert info["final_obs"].tolist() == [[2, 1]] * 2


def test_bits_are_fair():
    assert 0.4 < ChainBit(1000).worlds.bit.double().mean() < 0.6
