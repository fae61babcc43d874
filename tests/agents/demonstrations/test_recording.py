"""Recording the scripted policy: successes alone, reproducible, and labelled."""

from typing import Any

import numpy as np
import pytest

from engram.agents.demonstrations.feature import check_episode
from engram.agents.demonstrations.recording import OracleFailedError, features_of, record
from engram.envs.manipulation import TASKS, ManipulationEnv

pytest.importorskip("mink", reason="needs engram[manipulation]")

QUICK: dict[str, Any] = {"gap": 2, "onset": 2, "cue": 2}


def world(**settings: Any) -> ManipulationEnv:
    return ManipulationEnv("remember_color", cameras=(), objects=True, **QUICK | settings)


def test_a_recording_fits_its_declared_columns() -> None:
    env = world()
    episode = record(env, seed=0, number=3)
    length = check_episode(episode, features_of(env))
    assert episode.task == env.instruction and length > 6
    assert np.abs(episode.frames["action"]).max() <= 1


def test_an_episode_follows_from_seed_and_number_alone() -> None:
    env = world()
    first = record(env, seed=0, number=3, noise=0.3)
    record(env, seed=0, number=4, noise=0.3)
    again, other = record(env, seed=0, number=3, noise=0.3), record(world(), seed=1, number=3)
    for name, column in first.frames.items():
        assert np.array_equal(again.frames[name], column), name
    assert not np.array_equal(other.frames["action"][:6], first.frames["action"][:6])


def test_frames_say_what_must_be_remembered_and_when() -> None:
    frames = record(world(), seed=0, number=0).frames
    shown, decision = frames["shown"][:, 0], frames["decision"][:, 0]
    assert shown.tolist()[:6] == [0, 0, 1, 1, 0, 0]
    assert not decision[:6].any() and decision[6:].all()
    hidden = frames["observation.hidden"]
    assert (hidden == hidden[0]).all() and hidden[0].sum() == 1
    cue = frames["observation.environment_state"][:, -1]  # the prop of the cue comes last
    assert ((cue[:, -1] > 0) == (shown > 0)).all()


def test_what_is_recorded_is_right_where_what_is_done_is_disturbed() -> None:
    calm, noisy = (record(world(), seed=0, number=1, noise=noise) for noise in (0.0, 0.4))
    still = calm.frames["action"][:6, :-1]  # the last number is the gripper's
    assert np.abs(still).max() < 0.05, "the scripted policy waits"
    assert np.abs(noisy.frames["action"][1:6, :-1]).max() > 0.1, (
        "it goes back where it was pushed from"
    )
    moved = np.abs(np.diff(noisy.frames["observation.state"][:6], axis=0)).max()
    assert moved > np.abs(np.diff(calm.frames["observation.state"][:6], axis=0)).max()


def test_a_stray_leads_far_away_and_the_way_back_is_recorded() -> None:
    calm, led = (record(world(gap=40), seed=0, number=1, stray=stray) for stray in (0.0, 0.2))
    assert not calm.frames["astray"].any()
    astray = led.frames["astray"][:, 0] > 0
    assert 0.2 < astray.mean() < 0.8
    place = led.frames["observation.state"][:, 6:9]
    home = calm.frames["observation.state"][5, 6:9]
    waiting = led.frames["decision"][:, 0] == 0
    away = np.linalg.norm(place - home, axis=1)[waiting]
    assert away.max() > 0.08, "[m], where noise of 0.3 stays within 0.03"
    lead = led.frames["observation.state"][:, 9:]
    # Every label, astray or not, is the move home from where the servos steer for.
    wanted = (home - place - lead)[waiting] / 0.05
    wanted = wanted / np.maximum(1, np.abs(wanted).max(1, keepdims=True))
    assert np.allclose(led.frames["action"][waiting, :3], wanted, atol=0.06)


def test_tasks_that_cannot_be_solved_are_an_error() -> None:
    with pytest.raises(OracleFailedError, match="RememberColor: the scripted policy failed 100"):
        record(world(patience=1), seed=0, number=0)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_shown_bit_by_bit_is_known_when_all_of_it_was(task: str) -> None:
    env = ManipulationEnv(task, cameras=(), objects=True)
    frames = record(env, seed=0, number=0).frames
    shown, known = frames["shown"][:, 0] > 0, frames["known"][:, 0] > 0
    assert known.any() and (np.diff(known.astype(int)) >= 0).all(), "it stays known"
    assert known[frames["decision"][:, 0] > 0].all()
    last = len(shown) - shown[::-1].argmax()
    gradual = task in ("buttons_in_order", "count_presses", "friction_probe")
    assert known.argmax() == (last if gradual else shown.argmax())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_shows_something_before_it_asks(task: str) -> None:
    env = ManipulationEnv(task, cameras=(), objects=True)
    frames = record(env, seed=0, number=0).frames
    shown, decision = frames["shown"][:, 0] > 0, frames["decision"][:, 0] > 0
    assert shown[: decision.argmax() if decision.any() else None].any()
    if task != "search_boxes":  # where one may be lucky at once, and every look shows something
        assert decision.any() and not (shown & decision).any()
