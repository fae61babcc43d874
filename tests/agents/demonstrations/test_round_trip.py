"""What was written is read back, frame for frame and bit for bit."""

import json
import multiprocessing
import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, Episode, Feature
from engram.kernels.errors import DataError, InvalidValueError

CAMERA = "observation.images.top"


def assert_equal(read, written):
    assert read.keys() == written.keys()
    for key, column in written.items():
        assert read[key].dtype == column.dtype
        np.testing.assert_array_equal(read[key], column, err_msg=key)


def test_reading_returns_what_was_written(recorded, features, make):
    demonstrations = Demonstrations(recorded)
    assert (demonstrations.count, demonstrations.fps) == (5, 10)
    assert demonstrations.lengths.tolist() == [4, 5, 6, 4, 5]
    assert {k: f[:2] for k, f in demonstrations.features.items()} == {
        k: f[:2] for k, f in features.items()
    }
    assert demonstrations.features["action"].names == ["left", "right"]
    for number in range(5):
        episode = make(number)
        assert demonstrations.task(number) == episode.task
        assert_equal(demonstrations.read(number), episode.frames)


def test_index_columns_are_those_of_lerobot(recorded):
    read = Demonstrations(recorded).read(
        3, ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    )
    assert read["timestamp"].dtype == np.float32
    np.testing.assert_allclose(read["timestamp"][:, 0], [0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert read["frame_index"][:, 0].tolist() == [0, 1, 2, 3]
    assert read["episode_index"][:, 0].tolist() == [3] * 4
    assert read["index"][:, 0].tolist() == [15, 16, 17, 18]
    assert read["task_index"][:, 0].tolist() == [1] * 4


def test_frames_come_in_the_order_asked_and_may_repeat(recorded, make):
    frames = make(2).frames
    read = Demonstrations(recorded).read(2, [CAMERA, "action"], [5, 0, 3, 3])
    for key in (CAMERA, "action"):
        np.testing.assert_array_equal(read[key], frames[key][[5, 0, 3, 3]])


def test_no_frames_are_an_empty_column_of_the_right_shape(recorded):
    read = Demonstrations(recorded).read(0, None, [])
    assert read[CAMERA].shape == (0, 24, 24, 3) and read["action"].shape == (0, 2)


@pytest.mark.parametrize("frame", [-1, 4, -4, 2**40])
@pytest.mark.parametrize("key", [CAMERA, "action"])
def test_a_frame_outside_the_episode_is_refused(recorded, key, frame):
    with pytest.raises(InvalidValueError, match=rf"frame is {frame}; allowed: 0 to 3"):
        Demonstrations(recorded).read(3, [key], [0, frame])


@pytest.mark.parametrize("frames", [[0.5], [[0]], [True], "x"])
def test_frames_are_integers_in_one_dimension(recorded, frames):
    with pytest.raises(InvalidValueError, match="integers in one dimension"):
        Demonstrations(recorded).read(0, None, frames)


@pytest.mark.parametrize("episode", [-1, 5])
def test_an_episode_outside_the_data_set_is_refused(recorded, episode):
    with pytest.raises(InvalidValueError, match=f"episode is {episode}; allowed: 0 to 4"):
        Demonstrations(recorded).read(episode)
    with pytest.raises(InvalidValueError, match="allowed: 0 to 4"):
        Demonstrations(recorded).task(episode)


def test_an_unknown_column_is_refused(recorded):
    with pytest.raises(InvalidValueError, match="key is 'actoin'; allowed: action, "):
        Demonstrations(recorded).read(0, ["actoin"])


def test_image_columns_and_matrices_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    features = {
        "observation.images.wrist": Feature("image", (5, 9, 3)),
        "keypoints": Feature("float64", (2, 3)),
        "counts": Feature("uint16", (1,)),
        "cube": Feature("int8", (2, 2, 2)),
    }
    frames = {
        "observation.images.wrist": rng.integers(0, 256, (7, 5, 9, 3), np.uint8),
        "keypoints": rng.normal(size=(7, 2, 3)),
        "counts": rng.integers(0, 65536, (7, 1)).astype(np.uint16),
        "cube": rng.integers(-128, 128, (7, 2, 2, 2)).astype(np.int8),
    }
    with DemonstrationWriter(tmp_path, features=features, fps=30, robot_type="arm") as writer:
        writer.add(Episode(frames, "shake"))
    read = Demonstrations(tmp_path)
    assert_equal(read.read(0), frames)
    some = read.read(0, None, [6, 2])
    np.testing.assert_array_equal(some["cube"], frames["cube"][[6, 2]])
    assert read.info["robot_type"] == "arm" and read.info["video_path"] is None


@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    fps=st.sampled_from([1, 7, 10, 30, 60]),
    per_file=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_every_shape_and_length_is_kept(
    tmp_path_factory, lengths, height, width, fps, per_file, seed
):
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(seed)
    features = {"a": Feature("video", (height, width, 3)), "b": Feature("float32", (2,))}
    episodes = [
        {
            "a": rng.integers(0, 256, (length, height, width, 3), np.uint8),
            "b": rng.normal(size=(length, 2)).astype(np.float32),
        }
        for length in lengths
    ]
    with DemonstrationWriter(
        folder, features=features, fps=fps, episodes_per_file=per_file
    ) as writer:
        for frames in episodes:
            writer.add(Episode(frames, "go"))
    read = Demonstrations(folder)
    assert read.lengths.tolist() == lengths
    for number, frames in enumerate(episodes):
        assert_equal(read.read(number), frames)
        some = rng.integers(0, len(frames["a"]), 3)
        np.testing.assert_array_equal(read.read(number, ["a"], some)["a"], frames["a"][some])


def test_quantiles_are_those_of_all_frames(recorded, make):
    actions = np.concatenate([make(number).frames["action"] for number in range(5)])
    low, high = Demonstrations(recorded).quantiles("action", 0.1, 0.75)
    np.testing.assert_allclose(low, np.quantile(actions.astype(np.float64), 0.1, axis=0))
    np.testing.assert_allclose(high, np.quantile(actions.astype(np.float64), 0.75, axis=0))


@pytest.mark.parametrize("low, high", [(0.9, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_quantiles_that_make_no_interval_are_refused(recorded, low, high):
    with pytest.raises(InvalidValueError, match="low < high"):
        Demonstrations(recorded).quantiles("action", low, high)


def test_quantiles_of_pictures_are_refused(recorded):
    with pytest.raises(InvalidValueError, match=f"key is '{CAMERA}'; allowed: observation.state"):
        Demonstrations(recorded).quantiles(CAMERA)


def test_an_empty_data_set_holds_nothing(tmp_path, features):
    DemonstrationWriter(tmp_path, features=features).close()
    read = Demonstrations(tmp_path)
    assert read.count == 0 and read.lengths.tolist() == []
    with pytest.raises(DataError, match="holds no episode"):
        read.quantiles("action")


def test_a_reader_that_was_sent_elsewhere_reads_the_same(recorded, make):
    demonstrations = Demonstrations(recorded)
    demonstrations.read(0)
    assert_equal(pickle.loads(pickle.dumps(demonstrations)).read(1), make(1).frames)


def test_a_forked_reader_opens_its_own_files(recorded, make):
    # What is forked must run no thread of another test: the fork would wait for it.
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=read_in_a_fork, args=(recorded, theirs))
    process.start()
    theirs.close()
    for number in (1, 0, 1, 0):
        assert ours.poll(60)
        mine, forked = ours.recv()
        np.testing.assert_array_equal(mine, make(1).frames[CAMERA])
        np.testing.assert_array_equal(forked, make(number).frames[CAMERA])
    process.join(20)
    assert process.exitcode == 0


def read_in_a_fork(folder: Path, say: Connection) -> None:
    """Read with a reader that was read from, here and in a fork of this process by turns."""
    demonstrations = Demonstrations(folder)
    demonstrations.read(0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        for number in (1, 0, 1, 0):
            theirs.send(demonstrations.read(number, [CAMERA])[CAMERA])

    process = context.Process(target=child, daemon=True)
    process.start()
    for _ in range(4):
        mine = demonstrations.read(1)[CAMERA]
        assert ours.poll(20)
        say.send((mine, ours.recv()))
    process.join(20)


def test_files_closed_are_opened_again(recorded, make):
    demonstrations = Demonstrations(recorded)
    demonstrations.read(0)
    demonstrations.close()
    assert_equal(demonstrations.read(0), make(0).frames)


def test_statistics_of_the_data_set_cover_all_frames(recorded, make):
    stats = json.loads((recorded / "meta/stats.json").read_text())
    actions = np.concatenate([make(n).frames["action"] for n in range(5)]).astype(np.float64)
    assert stats["action"]["count"] == [24]
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0))
    np.testing.assert_allclose(stats["action"]["max"], actions.max(0))
    images = np.concatenate([make(n).frames[CAMERA] for n in range(5)]) / 255
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), images.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), images.std((0, 1, 2)))
