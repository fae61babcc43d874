"""Replays the card games against POPGym's own: same deck and actions, same everything."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from engram.envs import BatchedEnv, Concentration, RepeatFirst, RepeatPrevious

popgym_envs = pytest.importorskip("popgym.envs", reason="needs popgym (the dev extra)")

SEEDS = range(4)
GAMES: dict[str, tuple[type[BatchedEnv[Any]], dict[str, Any]]] = {
    "RepeatFirstEasy": (RepeatFirst, {"decks": 1}),
    "RepeatFirstMedium": (RepeatFirst, {"decks": 8}),
    "RepeatFirstHard": (RepeatFirst, {"decks": 16}),
    "RepeatPreviousEasy": (RepeatPrevious, {"k": 4, "decks": 1}),
    "RepeatPreviousMedium": (RepeatPrevious, {"k": 32, "decks": 2}),
    "RepeatPreviousHard": (RepeatPrevious, {"k": 64, "decks": 3}),
    "ConcentrationEasy": (Concentration, {"decks": 1, "match": "colors"}),
    "ConcentrationMedium": (Concentration, {"decks": 2, "match": "colors"}),
    "ConcentrationHard": (Concentration, {"decks": 1, "match": "ranks"}),
}


def lay(env: BatchedEnv[Any], decks: np.ndarray) -> None:
    """Put POPGym's shuffled decks `[N, cards]` on our tables."""
    order = torch.as_tensor(decks)
    if isinstance(env, Concentration):
        value = order % 2 if env.match == "colors" else order % 52 // 4
        env.worlds = env.worlds._replace(value=value)
    else:
        env.worlds = env.worlds._replace(suit=order.flip(1) % 4)  # dealt from the end


def play(env: BatchedEnv[Any], rng: np.random.Generator) -> np.ndarray:
    """Answer right often enough that every rule comes into play; find every pair in world 0."""
    acts = rng.integers(int(env.single_action_space.n), size=env.num_envs)  # type: ignore
    if isinstance(env, Concentration):
        value, found, _, first, _ = env.worlds
        partners = (value == value.gather(1, first.clamp(min=0)[:, None])) & ~found
        for world in (~found.all(1)).nonzero().flatten().tolist():
            clever = rng.random() < (1.0, 0.0, 0.8, 0.8)[world]
            if first[world] >= 0 and clever:
                partners[world, first[world]] = False
                acts[world] = rng.choice(partners[world].nonzero().flatten().numpy())
            elif clever:
                acts[world] = rng.choice((~found[world]).nonzero().flatten().numpy())
        return acts
    answer, _ = env.recall()  # type: ignore
    return np.where(rng.random(env.num_envs) < 0.5, answer.numpy(), acts)


@pytest.mark.parametrize("game", GAMES)
def test_a_replay_is_equal(game: str):
    kind, settings = GAMES[game]
    theirs: list[gymnasium.Env] = [getattr(popgym_envs, game)() for _ in SEEDS]
    shown = [env.reset(seed=seed)[0] for env, seed in zip(theirs, SEEDS, strict=True)]
    ours = kind(len(SEEDS), **settings)
    assert ours.single_observation_space == theirs[0].observation_space
    assert ours.single_action_space == theirs[0].action_space
    lay(ours, np.stack([env.unwrapped.deck.idx for env in theirs]))  # type: ignore
    assert np.array_equal(ours.observe().numpy(), np.stack(shown))

    rng = np.random.default_rng(0)
    returns = np.zeros(len(SEEDS))
    over = np.zeros(len(SEEDS), dtype=bool)
    truncations = 0
    for step in range(2000):
        act = play(ours, rng)
        got = ours.advance(torch.as_tensor(act))
        for world, env in enumerate(theirs):
            if over[world]:
                continue
            seen, reward, terminated, truncated, _ = env.step(act[world])
            assert np.array_equal(got.observation[world].numpy(), seen), (step, world)
            assert got.reward[world].item() == pytest.approx(reward), (step, world)
            assert bool(got.terminated[world]) == terminated, (step, world)
            assert bool(got.truncated[world]) == truncated, (step, world)
            returns[world] += float(reward)
            over[world] = terminated or truncated
            truncations += truncated
        if over.all():
            break
    assert over.all()
    assert (np.abs(returns) <= 1 + 1e-6).all()
    assert (0 < truncations < len(SEEDS)) if kind is Concentration else not truncations


@pytest.mark.parametrize("kind", [RepeatFirst, RepeatPrevious])
def test_the_stated_optimum_and_chance_are_reached(kind: type[RepeatFirst | RepeatPrevious]):
    def mean_return(constant: int | None) -> float:
        env = kind(16, seed=1)
        total = torch.zeros(16)
        for _ in range(51):
            answer, _ = env.recall()
            _, reward, terminated, _, _ = env.step(
                answer if constant is None else torch.full_like(answer, constant)
            )
            total += reward
        assert terminated.all()
        return total.mean().item()

    assert mean_return(None) == pytest.approx(kind.optimum)
    # Each suit is as likely as another, so the mean over the suits is that of any one.
    assert np.mean([mean_return(suit) for suit in range(4)]) == pytest.approx(kind.chance)
