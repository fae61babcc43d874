"""Video of episodes: encoded without loss, joined without encoding again, read frame by frame.

H.264 codes RGB itself here, so that every colour comes back as it was: at 64 pixels the usual
halved chroma turns the edge of a coloured cube into another colour. Players of browsers do not show
this profile; LeRobot, FFmpeg, mpv and VLC do.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from engram.kernels.errors import DataError, MissingPackageError, one_line

CODEC = "libx264rgb"
# A key frame in fifteen: half the bytes of one in five, and a single frame is at most fifteen away.
OPTIONS = {"qp": "0", "preset": "veryfast", "g": "15", "bf": "0"}
TOLERANCE = 1e-3
"""How far [s] a frame may be from the time asked for."""


def pyav() -> ModuleType:
    """Return the package `av`.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingPackageError("av", "demonstrations") from None
    return av


def encode(frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> bytes:
    """Return an MP4 that decodes to exactly these frames.

    Raises:
        MissingPackageError: If this build of PyAV lacks x264.
    """
    av = pyav()
    if CODEC not in av.codecs_available:
        raise MissingPackageError("av with libx264", "demonstrations")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream(CODEC, fps, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        # More threads than one cost more than they save on images this small.
        stream.codec_context.thread_count = 1
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def join(parts: Sequence[bytes], fps: int, path: Path) -> None:
    """Write one MP4 that shows the parts one after another; packets are copied, not encoded.

    Its index stands first: of a file cut short, the frames before the cut can be read.
    """
    av = pyav()
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as output:
        stream, header, offset = None, None, 0
        for part in parts:
            data, count = part, 0
            if header not in (None, _header(av, part)):
                # Another version of the encoder wrote this part: one file has one header.
                data = encode(decode(part), fps)
            with av.open(io.BytesIO(data)) as source:
                template = source.streams.video[0]
                if stream is None:
                    header = template.codec_context.extradata
                    stream = output.add_stream_from_template(template)
                    stream.time_base = template.time_base
                step = round(1 / (fps * template.time_base))
                for packet in source.demux(template):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = stream
                        output.mux(packet)
                        count += 1
                offset += count * step


def _header(av: ModuleType, part: bytes) -> bytes | None:
    with av.open(io.BytesIO(part)) as source:
        return source.streams.video[0].codec_context.extradata


def decode(data: bytes) -> UInt8[np.ndarray, "T H W 3"]:
    """Return every frame of an MP4."""
    with pyav().open(io.BytesIO(data)) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def information(data: bytes, fps: int) -> dict[str, Any]:
    """Return what LeRobot's `info.json` says about a video."""
    with pyav().open(io.BytesIO(data)) as source:
        stream = source.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec_context.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }


class Video:
    """An open MP4.

    Args:
        path: Where it is.

    Raises:
        DataError: If it is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        av = pyav()
        self._broken = av.error.FFmpegError
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except FileNotFoundError:
            raise DataError(f"video {path} does not exist") from None
        except (self._broken, IndexError) as error:
            raise DataError(f"video {path} is damaged: {one_line(error)}") from error
        self._stream.thread_type = "NONE"
        # Otherwise the decoder guesses what a damaged packet showed.
        self._stream.codec_context.options = {"err_detect": "explode"}
        # A reformatter keeps what it prepared for one size and colour format.
        self._reformatter = av.video.reformatter.VideoReformatter()

    def read(
        self, times: Float[np.ndarray, " T"], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """Return the frames at these times [s], in the order asked.

        Args:
            times: When, from the beginning of the file.
            size: (height, width) that they have to have.

        Raises:
            DataError: If the file has no frame there, a frame of another size, or is damaged.
        """
        frames = np.empty((len(times), *size, 3), np.uint8)
        order = np.argsort(times, kind="stable")
        try:
            self._fill(frames, times, order)
        except self._broken as error:
            raise DataError(f"video {self.path} is damaged: {one_line(error)}") from error
        except OverflowError as error:  # no container counts so far
            raise DataError(f"video {self.path} has no frame at {times.max():g} s") from error
        return frames

    def _fill(self, frames: np.ndarray, times: np.ndarray, order: np.ndarray) -> None:
        base = float(self._stream.time_base)
        decoded, pixels, now = iter(()), None, -np.inf
        for place in order:
            wanted = float(times[place])
            if now < wanted - TOLERANCE:
                if wanted - now > 2.0:
                    decoded, now = self._seek(wanted, base)
                for frame in decoded:
                    now = frame.pts * base
                    if now >= wanted - TOLERANCE:
                        pixels = self._pixels(frame, frames.shape[1:3])
                        break
            if abs(now - wanted) > TOLERANCE or pixels is None:
                raise DataError(f"video {self.path} has no frame at {wanted:.4f} s")
            frames[place] = pixels

    def _seek(self, wanted: float, base: float) -> Any:
        """Start decoding at the last key frame before a time."""
        for start in (wanted, 0.0):
            self._container.seek(round(start / base), stream=self._stream)
            decoded = self._container.decode(self._stream)
            first = next(decoded, None)
            # Where frames are stored out of order a seek may land behind the time.
            if first is not None and first.pts * base <= wanted + TOLERANCE:
                break
        else:
            return iter(()), np.inf
        return _chain(first, decoded), -np.inf

    def _pixels(self, frame: Any, size: tuple[int, ...]) -> np.ndarray:
        if (frame.height, frame.width) != tuple(size):
            seen = f"{frame.height} x {frame.width}"
            raise DataError(f"video {self.path} is {seen} pixels; allowed: {size[0]} x {size[1]}")
        return self._reformatter.reformat(frame, format="rgb24").to_ndarray()

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def _chain(first: Any, rest: Any) -> Any:
    yield first
    yield from rest
