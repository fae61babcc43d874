"""Demonstrations that are given: of the recording that is asked for, damaged ones left out."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engram.agents.demonstrations import Demonstrations
from engram.envs.manipulation import EndEffectorControl
from engram.launch.clone_build import build_world
from engram.launch.clone_saved import read_tree
from engram.launch.demos import RECORDING
from engram.launch.files import read_json, write_json
from engram.launch.main import main


@pytest.fixture
def recorded(study: Path, tmp_path: Path) -> Path:
    """Three episodes, to be changed."""
    return Path(shutil.copytree(study / "demonstrations" / "remember_color", tmp_path / "d"))


def spoil(folder: Path, episode: int, value: float = np.nan) -> None:
    """Write NaN, or something else, into an action of an episode."""
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    actions = np.stack(table["action"].to_numpy())
    actions[table["episode_index"].to_numpy() == episode, 0] = value
    place, kind = table.schema.get_field_index("action"), table.schema.field("action")
    flat = pa.array(actions.reshape(-1), kind.type.value_type)
    column = pa.FixedSizeListArray.from_arrays(flat, actions.shape[1])
    pq.write_table(table.set_column(place, kind, column), path)


def outcome(
    capsys: pytest.CaptureFixture[str], tiny: list[str], folder: Path, *more: str
) -> tuple[int, str]:
    """Clone without a memory; return the status and all that was printed."""
    capsys.readouterr()
    own = ["memory=none", "seeds=1", f"demonstrations.folder={folder}", f"out={folder / 'o'}"]
    status = main(["clone", *tiny, *own, *more])
    out, err = capsys.readouterr()
    return status, out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        ("demonstrations.noise=0.7", "noise is 0.7; allowed: as the recording in"),
        ("demonstrations.stray=0.5", "stray is 0.5; allowed: as the recording in"),
        ("task.settings.gap=[3,9]", "task.settings.gap is [3, 9]; allowed: as the recording"),
    ],
)
def test_another_recording_is_refused(
    change: str, message: str, recorded: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [a for a in tiny if a.partition("=")[0] != change.partition("=")[0]]
    status, said = outcome(capsys, kept, recorded, change)
    assert status == 2 and message in said
    assert not (recorded / "o").exists()


@pytest.mark.slow
def test_how_it_was_recorded_is_noted(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = [a for a in tiny if a.partition(".")[0] in ("task", "demonstrations")]
    recording = [a for a in recording if "gaps" not in a]
    folder = tmp_path / "d"
    how = ["demonstrations.noise=0.05", "demonstrations.seed=7"]
    assert main(["demos", *recording, *how, f"out={folder}"]) == 0
    status, said = outcome(capsys, tiny, folder)
    assert status == 0, said
    config = read_json(folder / "o" / "remember_color" / "none" / "seed0" / "config.json")
    noted = config["tree"]["demonstrations"]
    assert (noted["noise"], noted["stray"], noted["seed"]) == (0.05, 0.06, 7)
    assert outcome(capsys, tiny, folder, "resume=true")[0] == 0


@pytest.mark.slow
def test_an_arm_may_be_turned_joint_by_joint(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = [a for a in tiny if a.startswith(("task.settings", "demonstrations"))]
    folder = tmp_path / "d"
    assert main(["demos", *recording, "control=joint", f"out={folder}"]) == 0
    assert Demonstrations(folder).read(0, ["action"])["action"].shape[1] == 6
    status, said = outcome(capsys, tiny, folder)
    assert status == 2 and "control is 'engram.envs.manipulation.EndEffectorControl'; al" in said
    status, said = outcome(capsys, tiny, folder, "control=joint")
    assert status == 0, said
    run = folder / "o" / "remember_color" / "none" / "seed0"
    assert main(["eval", f"out={run}", "episodes=1", "gaps=[1]"]) == 0
    assert main(["film", f"run={run}", f"out={tmp_path / 'film.gif'}"]) == 0


@pytest.mark.slow
def test_recordings_and_runs_from_before_there_was_a_choice_moved_the_gripper(
    study: Path, recorded: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    note = read_json(recorded / RECORDING)
    assert note.pop("control") == "engram.envs.manipulation.EndEffectorControl"
    write_json(recorded / RECORDING, note)
    status, said = outcome(capsys, tiny, recorded)
    assert status == 0, said
    run = Path(shutil.copytree(study / "remember_color" / "gru" / "seed0", recorded / "run"))
    config = read_json(run / "config.json")
    del config["tree"]["demonstrations"]["control"], config["tree"]["policy"]["looks"]
    write_json(run / "config.json", config)
    tree = read_tree(run)
    assert isinstance(build_world(tree).control, EndEffectorControl) and not tree["policy"]["looks"]


@pytest.mark.slow
def test_only_a_given_folder_has_episodes_left_out(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = "demonstrations.skip_damaged=true"
    assert main(["clone", *tiny, "memory=none", skip, f"out={tmp_path / 'o'}"]) == 2
    assert "skip_damaged is True; allowed: false, where" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, 50.0])
def test_a_damaged_episode_is_refused_or_left_out(
    value: float, recorded: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(recorded, 1, value)
    status, said = outcome(capsys, tiny, recorded)
    assert status == 2 and "episode 1" in said
    status, said = outcome(capsys, tiny, recorded, "demonstrations.skip_damaged=true")
    assert status == 0
    assert said.count("left out: ") == 1 and "left out: episode 1: " in said
    found = read_json(recorded / "o" / "remember_color" / "none" / "seed0" / "evaluation.json")
    assert found["episodes"] == Demonstrations(recorded).count - 1 == 2


@pytest.mark.slow
def test_nothing_whole_is_refused(
    recorded: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for episode in range(3):
        spoil(recorded, episode)
    status, said = outcome(capsys, tiny, recorded, "demonstrations.skip_damaged=true")
    assert status == 2 and "holds no demonstration that is whole" in said
