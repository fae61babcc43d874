"""Records the golden data set with LeRobot 0.4.4; run by hand in an environment that has it.

    python make.py

It writes the folder `recorded` (three episodes, two tasks, a camera as video and one as images)
and `expected.npz`: every column as LeRobot itself reads it back. The frames are flat colours with a
moving square, so that the files stay small. Nothing in it was recorded from a robot.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

HERE = Path(__file__).parent
SIZE = 64
NAMES = ["height", "width", "channels"]
FEATURES = {
    "observation.images.top": {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": NAMES},
    "observation.images.wrist": {"dtype": "image", "shape": (8, 12, 3), "names": NAMES},
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
    "action": {"dtype": "float32", "shape": (2,), "names": None},
    "gripper": {"dtype": "int64", "shape": (1,), "names": None},
    "keypoints": {"dtype": "float32", "shape": (2, 2), "names": None},
}
TASKS = ["press the red button", "put the block back", "press the red button"]
LENGTHS = [5, 3, 6]


def main() -> None:
    """Record, and read back."""
    folder = HERE / "recorded"
    shutil.rmtree(folder, ignore_errors=True)
    dataset = LeRobotDataset.create(
        "engram/golden", fps=10, features=FEATURES, root=folder, robot_type="arm"
    )
    rng = np.random.default_rng(0)
    for episode, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
        for t in range(length):
            top = np.full((SIZE, SIZE, 3), (200, 60 * episode, 40), np.uint8)
            top[16:32, 8 * t : 8 * t + 16] = (20, 30, 220)
            wrist = np.full((8, 12, 3), (10 * t, 90, 30 * episode), np.uint8)
            dataset.add_frame(
                {
                    "observation.images.top": top,
                    "observation.images.wrist": wrist,
                    "observation.state": rng.normal(size=3).astype(np.float32),
                    "action": rng.normal(size=2).astype(np.float32),
                    "gripper": np.array([t % 2]),
                    "keypoints": rng.normal(size=(2, 2)).astype(np.float32),
                    "task": task,
                }
            )
        dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(folder / "images", ignore_errors=True)
    np.savez_compressed(HERE / "expected.npz", **columns(folder))


def columns(folder: Path) -> dict[str, np.ndarray]:
    """Return every column of every frame, as LeRobot reads it."""
    dataset = LeRobotDataset("engram/golden", root=folder)
    frames = [dataset[i] for i in range(len(dataset))]
    found = {}
    for key in frames[0]:
        if key == "task":
            found[key] = np.array([frame[key] for frame in frames])
            continue
        column = torch.stack([frame[key] for frame in frames])
        if dataset.features[key]["dtype"] in ("image", "video"):
            column = (column * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        found[key] = column.numpy()
    return found


if __name__ == "__main__":
    main()
