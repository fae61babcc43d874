"""Cloning: every random choice flows from the seed, those of memories and of dropout too."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engram.agents.imitation_batches import Streaming
from engram.agents.imitation_frames import EveryFrame
from engram.agents.imitation_windows import Windows
from engram.kernels.errors import DataError, InvalidValueError
from engram.memory.sequence import Bank, Memo, OverStreams

Make = Callable[..., Any]
memo = partial(
    OverStreams,
    memory=lambda width: Memo(width, layers=1, heads=2, segment=4, summary=1),
    width=16,
)


def streaming(cued: Make, **settings: Any) -> Streaming:
    settings = {"rows": 4, "steps": 6, "chunk": 2, "seed": 0} | settings
    return Streaming([cued(i) for i in range(9)], **settings)


def test_a_memory_that_draws_gets_seeds_of_its_own_in_a_stream(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued), memory=memo)
    seeds = run.memory.seed
    assert len(set(seeds.tolist())) == 4 and (seeds != 0).all()
    again, other = (cloning(streaming(cued), memory=memo) for _ in range(2))
    other.generator.manual_seed(99)
    assert torch.equal(again.memory.seed, seeds)
    assert not torch.equal(other._empty(4).seed, again._empty(4).seed)


def test_a_memory_that_draws_gets_seeds_of_its_own_in_every_window(
    cued: Make, cloning: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows([cued(i) for i in range(9)], rows=4, frames=EveryFrame(), chunk=2, seed=0)
    run = cloning(windows, memory=memo)
    given = []
    whole = run.policy.forward

    def forward(sight: Any, state: Any, start: Any) -> Any:
        given.append(state.seed)
        return whole(sight, state, start)

    monkeypatch.setattr(run.policy, "forward", forward)
    run.iterate()
    run.iterate()
    assert len(set(torch.cat(given).tolist())) == 8


def test_dropout_follows_from_the_seed_and_goes_on_where_it_was(
    cued: Make, cloning: Make, tmp_path: Path
) -> None:
    bank = partial(Bank, capacity=3, layers=1, dropout=0.5)
    path = tmp_path / "checkpoint.safetensors"
    run = cloning(streaming(cued), memory=bank)
    first = run.iterate()["action"]
    run.save(path, {})
    wanted = [run.iterate()["action"] for _ in range(3)]
    torch.manual_seed(99)  # whatever else drew numbers in between
    again = cloning(streaming(cued), memory=bank)
    torch.rand(7)
    assert again.iterate()["action"] == first
    other = cloning(streaming(cued), memory=bank)
    other.load(path)
    assert [other.iterate()["action"] for _ in range(3)] == wanted


def test_learning_leaves_the_numbers_of_others_alone(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued), memory=partial(Bank, capacity=3, layers=1, dropout=0.5))
    before = torch.get_rng_state()
    run.iterate()
    assert torch.equal(torch.get_rng_state(), before)


def test_demonstrations_of_the_same_lengths_are_not_the_same(
    cued: Make, cloning: Make, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    run = cloning(streaming(cued))
    run.save(path, {})
    others = [cued(i) for i in range(9)]
    others[4] = others[4]._replace(action=-others[4].action)
    other = cloning(Streaming(others, rows=4, steps=6, chunk=2, seed=0))
    with pytest.raises(DataError, match=r"demonstrations have the digest \[\d+\]; allowed"):
        other.load(path)


def test_batches_of_another_chunk_are_refused(cued: Make, cloning: Make) -> None:
    run = cloning(streaming(cued))
    with pytest.raises(InvalidValueError, match="chunk of the batches is 3; allowed: 2"):
        type(run)(
            run.policy,
            run.recollection,
            run.foresight,
            streaming(cued, chunk=3),
            run.settings,
            seed=0,
        )
