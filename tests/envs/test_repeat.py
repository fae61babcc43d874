"""Card recall on decks laid by hand."""

import torch

from engram.envs import RepeatFirst, RepeatPrevious

DECK = torch.arange(52) % 4  # suits 0 1 2 3 0 1 2 3 …


def test_repeat_first_scores_the_suit_of_the_first_card():
    env = RepeatFirst(2)
    env.worlds = env.worlds._replace(suit=torch.stack([DECK, DECK.roll(-1)]))
    assert env.observe().tolist() == [0, 1]
    observation, reward, terminated, _, info = env.step(torch.tensor([0, 0]))
    assert observation.tolist() == [1, 2]
    assert torch.allclose(reward, torch.tensor([1.0, -1.0]) / 51)
    assert torch.allclose(info["accuracy"], torch.tensor([1.0, 0.0]) / 51)
    for _ in range(50):
        assert not terminated.any()
        _, _, terminated, _, info = env.step(torch.tensor([0, 0]))
    assert terminated.all()
    assert info["accuracy"].tolist() == [1.0, 0.0]
    assert info["final_obs"].tolist() == [3, 0]  # the 52nd card


def test_repeat_previous_counts_the_card_in_sight_as_the_first():
    env = RepeatPrevious(1, k=3)
    env.worlds = env.worlds._replace(suit=DECK[None])
    rewards = []
    for answer in (0, 0, 0, 1, 2, 0):  # right from the third on, but for the last
        rewards.append(env.step(torch.tensor([answer]))[1].item() * 49)
    assert torch.allclose(torch.tensor(rewards), torch.tensor([0.0, 0, 1, 1, 1, -1]))


def test_repeat_previous_of_one_needs_no_memory():
    env = RepeatPrevious(4, k=1)
    seen, total = env.observe(), torch.zeros(4)
    for _ in range(51):
        seen, reward, *_ = env.step(seen)
        total += reward
    assert torch.allclose(total, torch.ones(4))
    assert env.chance == 1.0
    assert RepeatPrevious(1).chance == -0.5


def test_every_suit_is_dealt_equally_often():
    suit = RepeatFirst(3, decks=8).worlds.suit
    for world in suit:
        assert world.bincount().tolist() == [104] * 4
    assert not suit[0].equal(suit[1])
