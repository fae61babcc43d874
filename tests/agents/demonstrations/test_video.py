"""Videos lose no colour, and frames are found by their time."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from engram.agents.demonstrations import video
from engram.agents.demonstrations.frames import FILES_OPEN, OpenFiles
from engram.kernels.errors import DataError

CUBES = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 230, 230)]


def cubes(length: int, size: int = 64) -> np.ndarray:
    """Small saturated cubes that move over a grey table."""
    frames = np.full((length, size, size, 3), 128, np.uint8)
    for t in range(length):
        for n, colour in enumerate(CUBES):
            x, y = (9 * n + t) % (size - 6), 8 + 8 * n
            frames[t, y : y + 6, x : x + 6] = colour
    return frames


def test_coloured_cubes_come_back_exactly():
    frames = cubes(20)
    np.testing.assert_array_equal(video.decode(video.encode(frames, 10)), frames)


def test_noise_comes_back_exactly():
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 17, 3), np.uint8)
    np.testing.assert_array_equal(video.decode(video.encode(frames, 30)), frames)


def test_cubes_take_a_twentieth_of_their_bytes():
    frames = cubes(45)
    assert len(video.encode(frames, 10)) < frames.nbytes / 20


@pytest.mark.parametrize("fps", [7, 10, 30])
def test_joined_parts_play_one_after_another(tmp_path, fps):
    parts = [cubes(n)[:, :, :, ::-1] if n % 2 else cubes(n) for n in (20, 1, 33)]
    path = tmp_path / "joined.mp4"
    video.join([video.encode(part, fps) for part in parts], fps, path)
    joined = np.concatenate(parts)
    times = np.arange(len(joined)) / fps
    opened = video.Video(path)
    np.testing.assert_array_equal(opened.read(times, (64, 64)), joined)
    # Near key frames and far from them, forwards and backwards, twice the same.
    some = [53, 52, 0, 19, 20, 21, 21, 40, 7]
    np.testing.assert_array_equal(opened.read(times[some], (64, 64)), joined[some])
    opened.close()


def test_a_part_of_another_encoder_is_coded_again(tmp_path):
    frames, file = cubes(6), io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264rgb", 10, options={"qp": "0", "preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    path = tmp_path / "joined.mp4"
    video.join([video.encode(frames, 10), file.getvalue()], 10, path)
    opened = video.Video(path)
    read = opened.read(np.arange(12) / 10, (64, 64))
    np.testing.assert_array_equal(read, np.concatenate([frames, frames]))
    opened.close()


@pytest.mark.parametrize("time", [-0.1, 0.05, 0.6, 7.0])
def test_a_time_without_a_frame_is_refused(tmp_path, time):
    path = tmp_path / "six.mp4"
    path.write_bytes(video.encode(cubes(6), 10))
    opened = video.Video(path)
    with pytest.raises(DataError, match=r"six.mp4 has no frame at"):
        opened.read(np.array([0.1, time]), (64, 64))
    np.testing.assert_array_equal(opened.read(np.array([0.5]), (64, 64))[0], cubes(6)[5])
    opened.close()


def test_a_damaged_packet_is_refused_not_guessed(tmp_path):
    content = bytearray(
        video.encode(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8), 10)
    )
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path = tmp_path / "holed.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"holed.mp4"):
        video.Video(path).read(np.arange(9) / 10, (64, 64))


def test_frames_stored_out_of_order_are_found(tmp_path):
    """LeRobot's own coder stores frames that refer to later ones."""
    frames = np.stack([np.full((64, 64, 3), 8 * t, np.uint8) for t in range(30)])
    path = tmp_path / "reordered.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", 10, options={"crf": "1", "bf": "4", "g": "30"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv444p"
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    opened = video.Video(path)
    for wanted in ([29], [0], [13, 14], [28, 1]):
        read = opened.read(np.array(wanted) / 10, (64, 64))
        assert np.abs(read.astype(int) - frames[wanted]).max() <= 3
    opened.close()


def test_few_files_stay_open():
    closed = []

    class File:
        def __init__(self, path):
            self.path = path

        def close(self):
            closed.append(self.path)

    files = OpenFiles()
    for number in range(FILES_OPEN + 2):
        files.get(Path(str(number)), File)
        assert files.get(Path("0"), File).path == Path("0")  # the one that is used stays
    assert closed == [Path("1"), Path("2")]
    files.close()
    assert len(set(closed)) == len(closed) == FILES_OPEN + 2
