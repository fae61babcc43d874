"""Demonstrations on disk: 300 episodes of 45 frames from two cameras of 64 pixels."""

import io
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
from measure import Limit, Row, compared, once

from engram.agents.demonstrations import (
    Demonstrations,
    DemonstrationWriter,
    Episode,
    Feature,
    video,
)

EPISODES, LENGTH, SIZE = 300, 45, 64
CAMERAS = ("observation.images.top", "observation.images.wrist")
CUBES = np.array(
    [(255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 230, 230)], np.uint8
)


def scene(seed: int) -> np.ndarray:
    """A shaded table with six coloured cubes, two of them pushed about by a pale arm."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    table = 110 + 40 * x + 25 * y
    frames = np.empty((LENGTH, SIZE, SIZE, 3), np.uint8)
    places = rng.uniform(4, SIZE - 12, (len(CUBES), 2))
    moves = np.where(np.arange(len(CUBES))[:, None] < 2, rng.uniform(-1, 1, (len(CUBES), 2)), 0)
    for t in range(LENGTH):
        frames[t] = table[:, :, None]
        for (left, top), colour in zip((places + t * moves).clip(0, 57), CUBES, strict=True):
            cube = frames[t, int(top) : int(top) + 7, int(left) : int(left) + 7]
            cube[:] = colour
            cube[:, :2] = colour * 0.6
        arm = SIZE // 2 + int(SIZE / 3 * np.sin(t / 8))
        frames[t, : SIZE // 2, max(0, arm - 3) : arm + 3] = (225, 225, 230)
    return frames


def usual(frames: np.ndarray) -> bytes:
    """Encode as LeRobot records by default: AV1, halved chroma."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        options = {"crf": "30", "g": "2", "svtav1-params": "lp=1"}
        stream = output.add_stream("libsvtav1", 10, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def error(frames: np.ndarray, content: bytes) -> int:
    """The worst difference of a channel, of 255."""
    return int(np.abs(video.decode(content).astype(int) - frames).max())


def rows(rounds: int) -> list[Row]:
    """Time writing and reading; compare the video with what LeRobot records."""
    del rounds  # 300 episodes are rounds enough
    scenes = [scene(seed) for seed in range(20)]
    ours, theirs = [video.encode(s, 10) for s in scenes], [usual(s) for s in scenes]
    coding = [
        once(lambda f=f: [f(s) for s in scenes]) for f in (lambda s: video.encode(s, 10), usual)
    ]
    per_frame = [sum(map(len, files)) / len(files) / LENGTH for files in (ours, theirs)]
    worst = [max(map(error, scenes, files)) for files in (ours, theirs)]
    table = [
        compared(
            "encode 64 px [frames/s]",
            f"{20 * LENGTH / coding[0].wall:,.0f}",
            f"AV1 as LeRobot: {20 * LENGTH / coding[1].wall:,.0f}",
            (coding[1].wall / coding[0].wall, coding[1].cpu / coding[0].cpu),
            Limit("≥", 1),
        ),
        compared(
            "bytes of a frame",
            f"{per_frame[0]:.0f}",
            f"{per_frame[1]:.0f}",
            (per_frame[0] / per_frame[1], None),
            Limit("≤", 3),
        ),
        compared(
            "worst colour error, of 255",
            str(worst[0]),
            str(worst[1]),
            (worst[0], None),
            Limit("≤", 0),
        ),
    ]
    features = {
        **{camera: Feature("video", (SIZE, SIZE, 3)) for camera in CAMERAS},
        "observation.state": Feature("float32", (7,)),
        "action": Feature("float32", (4,)),
    }
    rng = np.random.default_rng(0)

    def episode(number: int) -> Episode:
        frames = {camera: scenes[(number + i) % 20] for i, camera in enumerate(CAMERAS)}
        frames["observation.state"] = rng.normal(size=(LENGTH, 7)).astype(np.float32)
        frames["action"] = rng.normal(size=(LENGTH, 4)).astype(np.float32)
        return Episode(frames, f"put block {number % 5} back")

    folder = Path(tempfile.mkdtemp())
    try:

        def write() -> None:
            with DemonstrationWriter(folder / "data", features=features) as writer:
                for number in range(EPISODES):
                    writer.add(episode(number))

        cost = once(write)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        detail = f"{cost.wall:.1f} s, CPU {cost.cpu:.1f} s, {size / 1e6:.1f} MB"
        table.append(
            compared("write 300 episodes [s]", detail, "", (cost.cpu, cost.cpu), Limit("≤", 20))
        )
        read = Demonstrations(folder / "data")
        orders = {
            "an episode, two cameras": (lambda n: read.read(n), 25),
            "an episode, one camera": (lambda n: read.read(n, [CAMERAS[0]]), 12),
            "an episode, no camera": (lambda n: read.read(n, ["action"]), 5),
            "one frame, one camera": (lambda n: read.read(n, [CAMERAS[0]], [n % LENGTH]), 5),
        }
        for name, (function, limit) in orders.items():
            cost = once(lambda f=function: [f(int(n)) for n in rng.permutation(EPISODES)])
            each = cost.wall / EPISODES * 1e3
            cpu = cost.cpu / EPISODES * 1e3
            measured = f"{each:.1f} ms, CPU {cpu:.1f} ms"
            table.append(
                compared(f"read {name} [ms]", measured, "", (each, cpu), Limit("≤", limit))
            )
        read.close()
    finally:
        shutil.rmtree(folder)
    return table
