"""`engram clone` says what is wrong before it records, trains or replaces anything."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from engram.agents.demonstrations import DemonstrationWriter, Episode, Feature
from engram.envs.manipulation import ManipulationEnv
from engram.kernels.errors import EngramError
from engram.launch.clone_build import read_lesson
from engram.launch.clone_check import check_clone, check_lesson
from engram.launch.clone_config import compose_clone
from engram.launch.main import main

OBJECTS = ("demonstrations.objects=true", "memory=gru")
Own = Callable[..., Path]


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    (found,) = compose_clone(list(OBJECTS)).trees.values()
    return found


def changed(composed: dict[str, Any], argument: str) -> dict[str, Any]:
    """As composing with the argument would; it takes half a second."""
    tree = copy.deepcopy(composed)
    key, _, value = argument.partition("=")
    *parents, last = key.split(".")
    branch = tree
    for name in parents:
        branch = branch[name]
    assert last in branch
    branch[last] = yaml.safe_load(value)
    return tree


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task.gaps=[]", r"task.gaps is \[\]; allowed: one or more different whole numbers"),
        ("task.gaps=[a]", r"task.gaps is \['a'\]; allowed"),
        ("task.gaps=[2.5]", r"task.gaps is \[2\.5\]; allowed"),
        ("task.gaps=[-1]", r"task.gaps is \[-1\]; allowed"),
        ("task.gaps=[5,5]", r"task.gaps is \[5, 5\]; allowed"),
        ("demonstrations.folder=nowhere", "demonstrations.folder: 'nowhere'; allowed: a folder"),
        ("demonstrations.folder=3", "demonstrations.folder: 3; allowed: a folder"),
        ("policy.execute=20", "execute is 20; allowed: 1 … chunk = 8"),
        ("policy.chunk=0", "execute is 2; allowed: 1 … chunk = 0"),
        ("policy.guidance=-2.0", "guidance is -2"),
        ("policy.cognitive=1", "heads is 4; allowed: divisors of cognitive = 1"),
        ("policy.expert.depth=0", "depth is 0; allowed: 1 or more"),
        ("recollection.cue=-1.0", "cue is -1"),
        ("policy.temperature=-1.0", r"temperature is -1\.0; allowed: finite, 0 or more"),
        ("foresight.weight=-1.0", r"foresight\.weight is -1\.0; allowed: finite, 0 or more"),
        ("recollection.horizon=0", "horizon is 0"),
        ("batches.rows=0", "rows is 0; allowed: 1 or more"),
        ("imitation.ema=1.0", "imitation.ema is 1"),
        ("imitation.moments=0", "imitation.moments is 0; allowed: 1 or more"),
        ("streams.width=0", "width is 0; allowed: 1 or more"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(
    argument: str, message: str, composed: dict[str, Any]
) -> None:
    with pytest.raises(EngramError, match=message):
        check_clone(changed(composed, argument))


@pytest.mark.parametrize("cameras", ["[top]", "[top,wrist]"])
def test_settings_that_work_pass(cameras: str, composed: dict[str, Any]) -> None:
    check_clone(composed)
    pictures = ["memory=bank", f"demonstrations.cameras={cameras}", "policy.told=true"]
    (found,) = compose_clone(pictures).trees.values()
    check_clone(found)


def test_nothing_is_recorded_where_one_memory_cannot_be_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["clone", *OBJECTS, "batches.steps=0", f"out={out}"]) == 2
    assert "steps is 0" in capsys.readouterr().err and not out.exists()


def test_a_table_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"task": "remember_color_5", "memory": "gru"}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    arguments = ["clone", "task=remember_color_5", *OBJECTS[:1], f"out={tmp_path}"]
    assert main([*arguments, "memory=none"]) == 2
    assert f"{tmp_path} holds results of remember_color_5 gru; allowed: to name these too" in (
        capsys.readouterr().err
    )
    # With it named, the next thing that is wrong is found.
    run = tmp_path / "remember_color_5" / "none" / "seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert main([*arguments, "memory=[none,gru]", "seeds=1"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[1]")
    assert main([*arguments, "memory=none"]) == 2
    assert "results.json is damaged" in capsys.readouterr().err


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """Records ten frames of somebody's robot: as the simulator's, but for what is changed."""

    def make(
        *,
        states: int = 12,
        actions: int = 4,
        largest: float = 1.0,
        camera: str = "top",
        side: int = 64,
        text: str | None = None,
        fps: int = 10,
    ) -> Path:
        features = {
            f"observation.images.{camera}": Feature("video", (side, side, 3)),
            "observation.state": Feature("float32", (states,)),
            "action": Feature("float32", (actions,)),
        }
        frames = {
            f"observation.images.{camera}": np.zeros((10, side, side, 3), np.uint8),
            "observation.state": np.zeros((10, states), np.float32),
            "action": np.linspace(-1, largest, 10 * actions, dtype=np.float32).reshape(10, -1),
        }
        said = ManipulationEnv("remember_color").task.instruction
        with DemonstrationWriter(tmp_path / "own", features=features, fps=fps) as writer:
            writer.add(Episode(frames, text or said))
        return tmp_path / "own"

    return make


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"states": 7}, "but proprioception is 7; allowed: 12"),
        ({"camera": "front"}, r"but cameras is \('front',\); allowed: \('top',\)"),
        ({"side": 32}, "but image is 32; allowed: 64"),
        ({"actions": 7}, "but an action has 7 numbers; allowed: 4"),
        ({"largest": 3.0}, r"episode 0: .*action at frame 5 is \[1\.0[\d., ]+\]; allowed: -1 to 1"),
        ({"fps": 50}, r"has 50 frames per second; allowed: 10"),
        ({"text": "stir the soup"}, "has unknown words: touch"),
    ],
    ids=str,
)
def test_demonstrations_of_another_robot_are_refused_before_they_are_learnt(
    different: dict[str, Any], message: str, own: Own, composed: dict[str, Any]
) -> None:
    folder = own(**different)
    found = changed(composed, f"demonstrations.folder={folder}")
    found = changed(found, "demonstrations.objects=false")
    with pytest.raises(EngramError, match=message):
        check_lesson(found, read_lesson(found, folder))


def test_demonstrations_of_the_same_robot_pass(own: Own, composed: dict[str, Any]) -> None:
    folder = own()
    found = changed(composed, f"demonstrations.folder={folder}")
    found = changed(found, "demonstrations.objects=false")
    check_clone(found)
    check_lesson(found, read_lesson(found, folder))


def test_a_cue_of_another_size_is_refused(own: Own, composed: dict[str, Any]) -> None:
    folder = own()
    found = changed(composed, f"demonstrations.folder={folder}")
    found = changed(found, "demonstrations.objects=false")
    lesson = read_lesson(found, folder)
    longer = torch.zeros(len(lesson.episodes[0].cue), 5)
    lesson = lesson._replace(episodes=[e._replace(cue=longer) for e in lesson.episodes])
    with pytest.raises(EngramError, match=r"observation\.hidden has 5 numbers; allowed: 3, or no"):
        check_lesson(found, lesson)
