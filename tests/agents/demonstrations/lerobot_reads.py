"""Reads a data set with LeRobot; test_lerobot.py runs this in a Python that has it.

    python lerobot_reads.py FOLDER BACKEND

It writes what LeRobot made of the data set into FOLDER.npz: every column of every frame, a batch
with delta_timestamps, and the statistics that LeRobot joins from those of the episodes.
"""

import sys

import numpy as np
import torch
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import load_nested_dataset, unflatten_dict

CAMERA = "observation.images.top"


def main(folder: str, backend: str) -> None:
    """Read everything once."""
    dataset = LeRobotDataset("engram/test", root=folder, video_backend=backend)
    frames = [dataset[i] for i in range(len(dataset))]
    found = {"task": np.array([frame.pop("task") for frame in frames])}
    for key in frames[0]:
        column = torch.stack([frame[key] for frame in frames])
        if key.startswith("observation.images"):
            column = (column * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        found[key] = column.numpy()

    window = {CAMERA: [-0.2, 0.0], "action": [0.0, 0.1, 0.2]}
    windows = LeRobotDataset(
        "engram/test", root=folder, video_backend=backend, delta_timestamps=window
    )
    batch = next(iter(torch.utils.data.DataLoader(windows, batch_size=6, num_workers=0)))
    for key in (CAMERA, "action", f"{CAMERA}_is_pad", "action_is_pad"):
        found[f"batch/{key}"] = batch[key].numpy()

    rows = load_nested_dataset(dataset.root / "meta/episodes")
    parts = []
    for row in rows:
        flat = {k.removeprefix("stats/"): np.array(v) for k, v in row.items() if k[:6] == "stats/"}
        parts.append(unflatten_dict(flat))
    joined = aggregate_stats(parts)
    for key, column in joined.items():
        for name, value in column.items():
            np.testing.assert_allclose(dataset.meta.stats[key][name], value, rtol=1e-9, atol=1e-12)
    found["stats/action/mean"] = dataset.meta.stats["action"]["mean"]
    np.savez(f"{folder}.npz", **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
