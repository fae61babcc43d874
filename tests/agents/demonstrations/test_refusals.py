"""The writer refuses what does not fit, and what it refused leaves no trace."""

import shutil

import numpy as np
import pytest

from engram.agents.demonstrations import (
    Demonstrations,
    DemonstrationWriter,
    Episode,
    Feature,
    check,
)
from engram.kernels.errors import DataError, InvalidValueError, MissingPackageError

CAMERA = "observation.images.top"


@pytest.fixture
def writer(tmp_path, features):
    with DemonstrationWriter(tmp_path / "data", features=features) as opened:
        yield opened


def changed(episode, **columns):
    return episode._replace(frames={**episode.frames, **columns})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_no_numbers(writer, make, value):
    action = make(0).frames["action"].copy()
    action[2, 1] = value
    with pytest.raises(InvalidValueError, match=r"action at frame 2 is \[.*(nan|inf)\]"):
        writer.add(changed(make(0), action=action))
    assert writer.episodes == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.pop("action"), "column action of the episode is 'missing'"),
        (lambda f: f.update(reward=f["action"]), "column reward of the episode is 'superfluous'"),
        (lambda f: f.update(action=f["action"][:-1]), "frames of the episode"),
        (lambda f: f.update(action=f["action"][:, :1]), r"shape of a frame of action is \(1,\)"),
        (lambda f: f.update(action=f["action"].astype("f8")), "dtype of action is 'float64'"),
        (lambda f: f.update({CAMERA: f[CAMERA][:, ::2]}), r"is \(12, 24, 3\); .*24, 24, 3"),
        (lambda f: f.update({CAMERA: f[CAMERA] / np.float32(255)}), "'float32'; allowed: uint8"),
        (lambda f: f.update({k: v[:0] for k, v in f.items()}), "frames of the episode"),
        (lambda f: f.update(action=np.float32(0) * f["action"][0, 0]), "frames of the episode"),
    ],
)
def test_frames_that_do_not_fit(writer, make, change, message):
    frames = dict(make(0).frames)
    change(frames)
    with pytest.raises(InvalidValueError, match=message):
        writer.add(Episode({k: np.asarray(v) for k, v in frames.items()}, "press"))
    assert writer.episodes == 0


@pytest.mark.parametrize("task", ["", "  ", None, "press \udcff"])
def test_no_instruction(writer, make, task):
    with pytest.raises(InvalidValueError, match="task of the episode"):
        writer.add(make(0)._replace(task=task))


def test_columns_that_are_no_arrays(writer, make):
    with pytest.raises(InvalidValueError, match=r"column success of the episode is .* NumPy array"):
        writer.add(changed(make(0), success=[[False]] * 4))


def test_a_refused_episode_changes_nothing(writer, make):
    writer.add(make(0))
    with pytest.raises(InvalidValueError):
        writer.add(make(1)._replace(frames={}))
    writer.add(make(2))
    writer.close()
    read = Demonstrations(writer.folder)
    assert read.lengths.tolist() == [4, 6]
    np.testing.assert_array_equal(read.read(1)[CAMERA], make(2).frames[CAMERA])


@pytest.mark.parametrize(
    "name, feature, message",
    [
        ("a/b", Feature("float32", (1,)), "name of a feature is 'a/b'"),
        ("timestamp", Feature("float32", (1,)), "name of a feature is 'timestamp'"),
        ("task", Feature("float32", (1,)), "name of a feature is 'task'"),
        ("a", Feature("complex64", (1,)), "dtype of a is 'complex64'; allowed: video, image"),
        ("a", Feature("float32", ()), r"shape of a is \(\)"),
        ("a", Feature("float32", (2, 0)), r"shape of a is \(2, 0\)"),
        ("a", Feature("video", (3, 24, 24)), r"shape of a is .*allowed: \(height, width, 3\)"),
        ("a", Feature("image", (24, 24)), r"allowed: \(height, width, 3\)"),
    ],
)
def test_features_that_cannot_be_written(tmp_path, name, feature, message):
    with pytest.raises(InvalidValueError, match=message):
        DemonstrationWriter(tmp_path / "data", features={name: feature})
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("setting", [{"fps": 0}, {"episodes_per_file": 0}, {"features": {}}])
def test_settings_that_make_no_data_set(tmp_path, features, setting):
    with pytest.raises(InvalidValueError, match=next(iter(setting))):
        DemonstrationWriter(tmp_path, **{"features": features, **setting})


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"fps": 20}, "fps is 20; allowed: that of .*: 10"),
        ({"robot_type": "arm"}, "robot_type is 'arm'; allowed: that of .*: None"),
        ({"features": {"action": Feature("float32", (2,))}}, "features is"),
        ({"features": {"action": Feature("float32", (3,))}}, "features is"),
    ],
)
def test_a_data_set_is_continued_as_it_began(tmp_path, features, make, setting, message):
    with DemonstrationWriter(tmp_path, features=features) as writer:
        writer.add(make(0))
    with pytest.raises(InvalidValueError, match=message):
        DemonstrationWriter(tmp_path, **{"features": features, **setting})
    assert check(tmp_path) == {}


def test_two_writers_at_once(writer, features, tmp_path, make):
    with pytest.raises(DataError, match=r"another writer has .* open"):
        DemonstrationWriter(writer.folder, features=features)
    writer.add(make(0))
    writer.close()
    with DemonstrationWriter(writer.folder, features=features) as second:
        assert second.episodes == 1


def test_a_folder_of_other_things(tmp_path, features):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InvalidValueError, match=r"folder is .*; allowed: an empty one"):
        DemonstrationWriter(tmp_path, features=features)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_damaged_index_is_not_continued(tmp_path, recorded, features):
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    index = folder / "meta/episodes/chunk-000/file-001.parquet"
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"episode 2: .*file-001.parquet is damaged"):
        DemonstrationWriter(folder, features=features)


@pytest.mark.parametrize("package", ["av", "pyarrow"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, features, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"'{package}'.*engram\[demonstrations\]"):
        DemonstrationWriter(tmp_path, features=features)


def test_a_closed_writer_takes_no_more(writer, make):
    writer.close()
    with pytest.raises(InvalidValueError, match="closed"):
        writer.add(make(0))
    writer.close()


def test_files_of_others_stay(tmp_path, features):
    other = tmp_path / ".download" / ".film.partial"
    other.parent.mkdir()
    other.write_text("half a film")
    with pytest.raises(InvalidValueError, match="allowed: an empty one, or a data set"):
        DemonstrationWriter(tmp_path, features=features)
    assert other.read_text() == "half a film"
    begun = tmp_path / "data" / "meta" / ".info.json.7.partial"
    begun.parent.mkdir(parents=True)
    begun.write_text("{")
    DemonstrationWriter(tmp_path / "data", features=features).close()
    assert not begun.exists()
