"""Streams of demonstrations: every frame once, in order, and none of another episode."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engram.agents.imitation_batches import Batches, Streaming
from engram.agents.imitation_frames import DecisiveFrames, Demonstration
from engram.kernels.errors import DataError, InvalidValueError

Make = Callable[..., Demonstration]
NAN = float("nan")


def number(x: torch.Tensor) -> torch.Tensor:
    """Which frame of which demonstration: 1000 times the demonstration, plus the frame."""
    return (x * 1000).round().long()


def played(batches: Batches, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the frames of every row, and where starts are, of many batches."""
    drawn = [batches.next().frames for _ in range(count)]
    frames = torch.cat([number(f.sight.proprioception[..., 0]) for f in drawn])
    return frames, torch.cat([f.start for f in drawn])


def test_every_row_plays_whole_episodes_in_order(demonstration: Make) -> None:
    lengths = [3, 11, 1, 6, 8]
    episodes = [demonstration(i, length) for i, length in enumerate(lengths)]
    streaming = Streaming(episodes, rows=3, steps=4, chunk=2, seed=0)
    frames, start = played(streaming, 40)
    for row in range(3):
        begun = start[:, row].nonzero()[:, 0].tolist()
        assert begun[0] == 0
        for a, b in itertools.pairwise(begun):
            episode = int(frames[a, row]) // 1000
            assert frames[a:b, row].tolist() == [
                1000 * episode + t for t in range(lengths[episode])
            ]


def test_all_episodes_come_once_before_any_comes_again(demonstration: Make) -> None:
    episodes = [demonstration(i, 4) for i in range(7)]
    frames, start = played(Streaming(episodes, rows=1, steps=4, chunk=1, seed=2), 21)
    order = (frames[start] // 1000).tolist()
    assert len(order) == 21
    rounds = [order[:7], order[7:14], order[14:]]
    assert all(sorted(each) == list(range(7)) for each in rounds)
    assert rounds[0] != rounds[1]


def test_only_the_first_batch_begins_from_nothing(demonstration: Make) -> None:
    streaming = Streaming([demonstration(0, 5)], rows=2, steps=3, chunk=1, seed=0)
    assert [streaming.next().carried for _ in range(3)] == [False, True, True]


def test_chunks_end_with_their_episode(demonstration: Make) -> None:
    episodes = [demonstration(i, 5) for i in range(3)]
    streaming = Streaming(episodes, rows=2, steps=7, chunk=4, seed=1)
    for _ in range(6):
        frames = streaming.next().frames
        now = number(frames.sight.proprioception[..., 0])
        ahead = now[..., None] + torch.arange(4)
        last = now[..., None] // 1000 * 1000 + 4
        assert torch.equal(frames.real, ahead <= last)
        done = (frames.action[..., 0] * 5000).round().long()
        assert torch.equal(done, ahead.minimum(last))


def test_a_stream_plays_the_frames_that_were_chosen(demonstration: Make) -> None:
    decision = torch.zeros(30)
    decision[20:] = 1
    episodes = [demonstration(i, 30, decision=decision) for i in range(4)]
    choice = DecisiveFrames(0.3, 0.3)
    streaming = Streaming(episodes, rows=2, steps=7, frames=choice, chunk=3, seed=0)
    frames, start = played(streaming, 60)
    lengths = set()
    for row in range(2):
        begun = start[:, row].nonzero()[:, 0].tolist()
        assert begun[0] == 0 and len(begun) > 15
        for a, b in itertools.pairwise(begun):
            seen = frames[a:b, row]
            assert len({n // 1000 for n in seen.tolist()}) == 1
            places = (seen % 1000).tolist()
            assert places == sorted(set(places)) and places[-10:] == list(range(20, 30))
            lengths.add(b - a)
    assert min(lengths) >= 10 and max(lengths) < 30 and len(lengths) > 4


def test_every_frame_is_told_where_its_own_episode_ends(demonstration: Make) -> None:
    lengths = [3, 11, 1, 6]
    episodes = [demonstration(i, length) for i, length in enumerate(lengths)]
    streaming = Streaming(
        episodes, rows=2, steps=4, frames=DecisiveFrames(0.3, 0.6), chunk=2, seed=1
    )
    for _ in range(12):
        frames = streaming.next().frames
        episode = number(frames.sight.proprioception[..., 0]) // 1000
        last = 1000 * episode + torch.tensor(lengths)[episode] - 1
        assert torch.equal(number(frames.end[..., 0]), last)


def test_actions_after_the_robot_was_led_astray_are_not_real(demonstration: Make) -> None:
    astray = torch.zeros(8)
    astray[[2, 3, 6]] = 1
    streaming = Streaming([demonstration(0, 8, astray=astray)], rows=1, steps=8, chunk=4, seed=0)
    real = streaming.next().frames.real[:, 0].int().tolist()
    assert real == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],  # the first action is right; what was done instead, the next one answers
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
    ]


@pytest.mark.parametrize("frame", [-1, 5])
def test_frames_outside_an_episode_are_never_read(frame: int, demonstration: Make) -> None:
    streaming = Streaming([demonstration(0, 5)], rows=1, steps=1, chunk=1, seed=0)
    with pytest.raises(InvalidValueError, match="allowed: 0 to 4"):
        streaming._take(0, torch.tensor([2, frame]))


def test_a_stream_goes_on_where_it_was_saved(demonstration: Make) -> None:
    episodes = [demonstration(i, 3 + i) for i in range(5)]

    episodes[3].decision[2:4] = 1

    def make(seed: int) -> Streaming:
        frames = DecisiveFrames()
        return Streaming(episodes, rows=3, steps=4, frames=frames, chunk=2, seed=seed)

    for batches in range(12):  # among these are places where the order is used up
        first, second = make(0), make(9)
        played(first, batches) if batches else None
        saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
        second.check(saved, Path("run"))
        second.load(saved)
        for a, b in zip(played(first, 6), played(second, 6), strict=True):
            assert torch.equal(a, b)
        assert first.next().carried == second.next().carried


def test_a_stream_of_other_demonstrations_or_rows_is_refused(demonstration: Make) -> None:
    def make(lengths: list[int], rows: int = 3) -> Streaming:
        episodes = [demonstration(i, length) for i, length in enumerate(lengths)]
        return Streaming(episodes, rows=rows, steps=4, chunk=2, seed=0)

    saved = make([3, 4, 5]).tensors()
    with pytest.raises(DataError, match="run: demonstrations are 3 of 12 frames; allowed: those"):
        make([3, 4]).check(saved, Path("run"))
    with pytest.raises(DataError, match="demonstrations are 3 of 12 frames"):
        make([5, 4, 3]).check(saved, Path("run"))
    with pytest.raises(DataError, match=r"ahead is \[3.*allowed: \[2"):
        make([3, 4, 5], rows=2).check(saved, Path("run"))
    del saved["playing"]
    with pytest.raises(DataError, match="playing is missing"):
        make([3, 4, 5]).check(saved, Path("run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows is 0; allowed: 1 or more"),
        ({"chunk": 0}, "chunk is 0; allowed: 1 or more"),
        ({"steps": 0}, "steps is 0; allowed: 1 or more"),
        ({"episodes": []}, "episodes is 0; allowed: one or more demonstrations"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str, demonstration: Make
) -> None:
    usual = {"episodes": [demonstration(0, 4)], "rows": 1, "steps": 1, "chunk": 1, "seed": 0}
    with pytest.raises(InvalidValueError, match=message):
        Streaming(**usual | settings)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_actions_and_senses_that_are_not_finite_are_refused(
    bad: float, demonstration: Make
) -> None:
    good, wrong = demonstration(0, 6), demonstration(1, 6)
    wrong.action[4, 1] = bad
    with pytest.raises(DataError, match=rf"demonstration 1: action at frame 4 is \[.*, {bad}\]"):
        Streaming([good, wrong], rows=1, steps=1, chunk=1, seed=0)
    wrong = demonstration(1, 6)
    wrong.sight.objects[3, 0, 2] = bad
    with pytest.raises(DataError, match=r"demonstration 1: sight.objects at frame 3 is"):
        Streaming([good, wrong], rows=1, steps=1, chunk=1, seed=0)


def test_demonstrations_of_another_layout_are_refused(demonstration: Make) -> None:
    good = demonstration(0, 6)
    for wrong, message in (
        (demonstration(1, 6, action=torch.zeros(6, 3)), "demonstration 1 has columns .*as the fir"),
        (demonstration(1, 6, action=torch.zeros(5, 2)), r"demonstration 1 has columns of \[5, 6\]"),
        (demonstration(1, 0), r"demonstration 1 has columns of \[0\] frames; allowed: one length"),
    ):
        with pytest.raises(DataError, match=message):
            Streaming([good, wrong], rows=1, steps=1, chunk=1, seed=0)
