"""LeRobot 0.4.4 itself reads what was written here.

It wants another environment than engram: `ENGRAM_LEROBOT` names the Python that has it.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engram.agents.demonstrations import Demonstrations, DemonstrationWriter, Episode, Feature

HERE = Path(__file__).parent
CAMERA = "observation.images.top"


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory):
    """Read a folder with LeRobot; return what it saw."""
    python = os.environ.get("ENGRAM_LEROBOT")
    if not python:
        pytest.skip("set ENGRAM_LEROBOT to a Python that has LeRobot")
    home = str(tmp_path_factory.mktemp("huggingface"))

    def read(folder, backend="pyav"):
        has = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({backend!r}))"
        if backend != "pyav" and subprocess.run([python, "-c", has]).returncode:
            pytest.skip(f"{python} has no {backend}; LeRobot reads with pyav there")
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            **{"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        }
        command = [python, "-W", "ignore", str(HERE / "lerobot_reads.py"), str(folder), backend]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(f"{folder}.npz") as arrays:
            return dict(arrays)

    return read


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_lerobot_reads_every_frame(tmp_path, recorded, lerobot, make, backend):
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    seen = lerobot(folder, backend)
    episodes = [make(number) for number in range(5)]
    for key in episodes[0].frames:
        ours = np.concatenate([episode.frames[key] for episode in episodes])
        np.testing.assert_array_equal(seen[key].reshape(ours.shape), ours, err_msg=key)
    lengths = [4, 5, 6, 4, 5]
    tasks = [t for e, n in zip(episodes, lengths, strict=True) for t in [e.task] * n]
    assert seen["task"].tolist() == tasks
    assert seen["index"].tolist() == list(range(24))
    frames = np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(seen["frame_index"], frames)
    np.testing.assert_allclose(seen["timestamp"], frames / 10, rtol=1e-6)


@pytest.mark.slow
def test_lerobot_cuts_windows_at_the_ends_of_episodes(tmp_path, recorded, lerobot, make):
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    seen = lerobot(folder)
    first, second = make(0).frames, make(1).frames
    assert seen["batch/action"].shape == (6, 3, 2)
    np.testing.assert_array_equal(seen["batch/action"][1], first["action"][1:4])
    assert seen["batch/action_is_pad"][3].tolist() == [False, True, True]
    assert seen[f"batch/{CAMERA}_is_pad"][4].tolist() == [True, False]
    pictures = (seen[f"batch/{CAMERA}"] * 255).round().astype(np.uint8).transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(pictures[2], first[CAMERA][[0, 2]])
    np.testing.assert_array_equal(pictures[4], second[CAMERA][[0, 0]])


@pytest.mark.slow
def test_lerobot_reads_its_own_data_set_continued_here(tmp_path, lerobot):
    folder = tmp_path / "continued"
    shutil.copytree(HERE / "golden/recorded", folder)
    old = Demonstrations(folder)
    added = old.read(1)
    with DemonstrationWriter(folder, features=old.features, robot_type="arm") as writer:
        writer.add(Episode(added, "a new one"))
    seen = lerobot(folder)
    assert seen["task"].tolist()[-3:] == ["a new one"] * 3
    for key, column in added.items():
        np.testing.assert_array_equal(seen[key][-3:].reshape(column.shape), column, err_msg=key)
    assert len(seen["index"]) == 17


@pytest.mark.slow
def test_lerobot_reads_images_and_matrices(tmp_path, lerobot):
    rng = np.random.default_rng(0)
    features = {
        CAMERA: Feature("image", (8, 12, 3)),
        "action": Feature("float32", (2,)),
        "keypoints": Feature("float32", (2, 3)),
        "count": Feature("int64", (1,)),
    }
    frames = {
        CAMERA: rng.integers(0, 256, (7, 8, 12, 3), np.uint8),
        "action": rng.normal(size=(7, 2)).astype(np.float32),
        "keypoints": rng.normal(size=(7, 2, 3)).astype(np.float32),
        "count": np.arange(7)[:, None],
    }
    folder = tmp_path / "images"
    with DemonstrationWriter(folder, features=features) as writer:
        writer.add(Episode(frames, "look"))
    seen = lerobot(folder)
    for key, column in frames.items():
        np.testing.assert_array_equal(seen[key].reshape(column.shape), column, err_msg=key)
