"""A data set that LeRobot 0.4.4 recorded (golden/make.py) is read and continued."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, Episode, check
from engram.kernels.errors import InvalidValueError

GOLDEN = Path(__file__).parent / "golden"
BOUNDS = [0, 5, 8, 14]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """Every column of every frame as LeRobot itself reads it."""
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


def test_numbers_and_images_are_what_lerobot_reads(expected):
    demonstrations = Demonstrations(GOLDEN / "recorded")
    assert demonstrations.lengths.tolist() == [5, 3, 6]
    assert demonstrations.info["robot_type"] == "arm"
    keys = [key for key in expected if key not in ("task", "observation.images.top")]
    for episode, (begins, ends) in enumerate(itertools.pairwise(BOUNDS)):
        read = demonstrations.read(episode, keys)
        for key in keys:
            theirs = expected[key][begins:ends]
            assert read[key].dtype == theirs.dtype
            np.testing.assert_array_equal(read[key].reshape(theirs.shape), theirs, err_msg=key)
        assert demonstrations.task(episode) == expected["task"][begins]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_video_frames_are_what_lerobot_decodes(expected, order):
    demonstrations = Demonstrations(GOLDEN / "recorded")
    for episode, (begins, ends) in enumerate(itertools.pairwise(BOUNDS)):
        frames = np.arange(ends - begins)[order]
        read = demonstrations.read(episode, ["observation.images.top"], frames)
        theirs = expected["observation.images.top"][begins:ends][order]
        # Its decoder rounds from YUV in another way; frames differ by far more from each other.
        apart = np.abs(read["observation.images.top"].astype(int) - theirs)
        assert apart.max() <= 3
        assert np.abs(theirs[0].astype(int) - theirs[1]).max() > 100


def test_nothing_in_it_is_damaged():
    assert check(GOLDEN / "recorded") == {}


def test_it_is_continued(tmp_path, expected):
    folder = tmp_path / "continued"
    shutil.copytree(GOLDEN / "recorded", folder)
    old = Demonstrations(folder)
    added = Episode(old.read(1), "put the block back")
    added.frames["action"] += 1
    with DemonstrationWriter(folder, features=old.features, robot_type="arm") as writer:
        assert writer.episodes == 3
        writer.add(added)
        writer.add(added._replace(task="a new one"))
    new = Demonstrations(folder)
    assert new.lengths.tolist() == [5, 3, 6, 3, 3]
    assert [new.task(i) for i in (3, 4)] == ["put the block back", "a new one"]
    number = dict(zip(expected["task"].tolist(), expected["task_index"].tolist(), strict=True))
    assert new.read(3, ["task_index"])["task_index"][0] == number["put the block back"]
    assert new.read(4, ["task_index"])["task_index"][0] == 2
    assert new.read(4, ["index"])["index"][:, 0].tolist() == [17, 18, 19]
    for key, column in added.frames.items():
        np.testing.assert_array_equal(new.read(3)[key], column, err_msg=key)
    for key, column in old.read(2).items():
        np.testing.assert_array_equal(new.read(2)[key], column, err_msg=key)
    assert check(folder) == {}


def test_it_is_not_continued_as_another_robot(tmp_path):
    folder = tmp_path / "continued"
    shutil.copytree(GOLDEN / "recorded", folder)
    with pytest.raises(InvalidValueError, match=r"robot_type is 'dog'; allowed: that of .*'arm'"):
        DemonstrationWriter(folder, features=Demonstrations(folder).features, robot_type="dog")
