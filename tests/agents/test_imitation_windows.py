"""Windows of demonstrations: which frames are drawn, and what padding is."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engram.agents.imitation_frames import (
    Choice,
    CueFrames,
    DecisiveFrames,
    Demonstration,
    EveryFrame,
    JitteredFrames,
    RandomFrames,
)
from engram.agents.imitation_windows import Windows
from engram.kernels.errors import InvalidValueError

Make = Callable[..., Demonstration]


def drawn(choice: Choice, episode: Demonstration, times: int = 200) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [choice.choose(episode, generator).tolist() for _ in range(times)]


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
@pytest.mark.parametrize(
    "choice",
    [EveryFrame(), RandomFrames(16), JitteredFrames(16), CueFrames(16)],
    ids=lambda choice: type(choice).__name__,
)
def test_frames_are_distinct_in_order_and_of_the_episode(
    choice: Choice, length: int, demonstration: Make
) -> None:
    for frames in drawn(choice, demonstration(0, length), 50):
        assert frames == sorted(set(frames)) and frames[0] >= 0 and frames[-1] < length
        assert len(frames) == (length if isinstance(choice, EveryFrame) else min(16, length))


def test_random_frames_are_uniform(demonstration: Make) -> None:
    counts = Counter(
        f for frames in drawn(RandomFrames(4), demonstration(0, 8), 2000) for f in frames
    )
    assert all(counts[frame] == pytest.approx(1000, abs=100) for frame in range(8))


def test_jittered_frames_are_one_of_each_part_and_reach_all(demonstration: Make) -> None:
    found = drawn(JitteredFrames(4), demonstration(0, 10), 500)  # parts 0-1, 2-4, 5-6, 7-9
    for frames in found:
        assert [sum(f >= edge for edge in (2, 5, 7)) for f in frames] == [0, 1, 2, 3]
    assert {f for frames in found for f in frames} == set(range(10))
    assert max(b - a for frames in found for a, b in itertools.pairwise(frames)) < 6


def test_no_frame_of_the_cue_is_missed(demonstration: Make) -> None:
    shown = torch.zeros(60)
    shown[17:22] = 1
    episode = demonstration(0, 60, shown=shown)
    for frames in drawn(CueFrames(8), episode, 100):
        assert set(range(17, 22)) <= set(frames) and 8 <= len(frames) <= 13
        assert frames == sorted(set(frames))
    missed = [not set(range(17, 22)) & set(f) for f in drawn(RandomFrames(8), episode, 300)]
    assert 0.3 < sum(missed) / 300 < 0.65  # C(55, 8) / C(60, 8) = 0.476


def test_decisive_frames_are_those_that_matter_and_a_share_of_the_others(
    demonstration: Make,
) -> None:
    shown, decision = torch.zeros(100), torch.zeros(100)
    shown[20:25], decision[90:] = 1, 1
    episode = demonstration(0, 100, shown=shown, decision=decision)
    matter = {*range(20, 25), *range(90, 100)}
    found = drawn(DecisiveFrames(0.2, 0.6), episode, 400)
    others = [set(frames) - matter for frames in found]
    assert all(frames == sorted(set(frames)) and matter <= set(frames) for frames in found)
    sizes = torch.tensor([len(each) for each in others]) / 85
    assert sizes.mean() == pytest.approx(0.4, abs=0.02)
    # The share itself varies: draws of one share alone would have a deviation of 0.05.
    assert sizes.std() > 0.1 and sizes.min() < 0.2 and sizes.max() > 0.6
    assert set().union(*others) == set(range(100)) - matter
    assert drawn(DecisiveFrames(0.0, 0.0), episode, 1) == [sorted(matter)]


def test_decisive_frames_of_a_recording_that_marks_none_are_all(demonstration: Make) -> None:
    assert drawn(DecisiveFrames(0.0, 0.0), demonstration(0, 7), 1) == [list(range(7))]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((-0.1, 0.5), "least is -0.1; allowed: 0 … 1"),
        ((0.5, 0.4), "most is 0.4; allowed: least = 0.5 … 1"),
        ((0.5, float("nan")), "most is nan"),
        ((0.1, 1.1), "most is 1.1"),
    ],
)
def test_shares_that_are_none_are_refused(shares: tuple[float, float], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        DecisiveFrames(*shares)


def test_a_window_begins_empty_and_its_rows_are_different_episodes(demonstration: Make) -> None:
    episodes = [demonstration(i, 4 + i) for i in range(6)]
    windows = Windows(episodes, rows=3, frames=EveryFrame(), chunk=3, seed=0)
    batch = windows.next()
    assert not batch.carried and not windows.next().carried
    assert batch.frames.start[0].all() and not batch.frames.start[1:].any()
    first = (batch.frames.sight.proprioception[0, :, 0]).round().tolist()
    assert len(set(first)) == 3


def test_padding_is_last_and_none_of_it_is_real(demonstration: Make) -> None:
    lengths = [2, 5, 9]
    episodes = [demonstration(i, length) for i, length in enumerate(lengths)]
    windows = Windows(episodes, rows=3, frames=EveryFrame(), chunk=2, seed=0)
    frames = windows.next().frames
    assert frames.real.shape == (9, 3, 2)
    rows = frames.sight.proprioception[0, :, 0].round().long().tolist()
    for row, episode in enumerate(rows):
        length = lengths[episode]
        assert frames.real[:, row, 0].tolist() == [t < length for t in range(9)]
        assert frames.real[:, row, 1].tolist() == [t < length - 1 for t in range(9)]
        seen = (frames.sight.proprioception[:, row, 0] * 1000).round().long().tolist()
        assert seen == [1000 * episode + min(t, length - 1) for t in range(9)]


def test_actions_follow_the_frame_not_the_window(demonstration: Make) -> None:
    windows = Windows([demonstration(0, 30)], rows=1, frames=RandomFrames(5), chunk=3, seed=0)
    frames = windows.next().frames
    now = (frames.sight.proprioception[..., 0] * 1000).round().long()
    done = (frames.action[..., 0] * 5000).round().long()
    assert torch.equal(done, (now[..., None] + torch.arange(3)).clamp(max=29))


def test_windows_go_on_where_they_were_saved(demonstration: Make) -> None:
    episodes = [demonstration(i, 9) for i in range(4)]

    def make(seed: int) -> Windows:
        return Windows(episodes, rows=3, frames=JitteredFrames(4), chunk=2, seed=seed)

    first, second = make(0), make(5)
    first.next()
    second.load(first.tensors())
    for _ in range(4):
        a, b = first.next().frames, second.next().frames
        assert torch.equal(a.action, b.action)


@pytest.mark.parametrize("kind", [RandomFrames, JitteredFrames, CueFrames])
def test_windows_without_frames_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidValueError, match="count is 0; allowed: 1 or more"):
        kind(0)
