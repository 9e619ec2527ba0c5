"""Encoders of .mp4 files: H.264 by PyAV if it is installed, else by OpenCV, whose packages have no H.264.

Browsers play H.264 and VP9. OpenCV's VP9 takes 0.24 s a frame of 1280x720 on one core, longer than tracking,
so the default without PyAV is its MPEG-4 Part 2 (`mp4v`, 0.007 s), which video players play, browsers not.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require

__all__ = ["CODECS", "Encoder", "count_frames", "default_codec", "open_encoder"]

CODECS = ("h264", "mp4v", "vp9")
TICKS = 90_000  # time stamps per second, about, as of most cameras and files


class Encoder(Protocol):
    """Encodes frames of one size to a file."""

    def write(self, frame: NDArray[np.uint8], time: float | None = None) -> None:
        """Appends one RGB frame, (H, W, 3), at a time in seconds; one frame after the latest by default."""

    def close(self) -> None:
        """Completes the file."""


def open_encoder(path: Path, fps: float, size: tuple[int, int], codec: str) -> Encoder:
    """Opens an encoder.

    Args:
        path: File to write.
        fps: Frames per second.
        size: Width and height in pixels, even numbers.
        codec: One of `CODECS`.

    Raises:
        ValueError: An unknown codec.
        ModuleNotFoundError: `h264` without PyAV.
        RuntimeError: The codec is not installed, or cannot encode frames of that size.
    """
    if codec not in CODECS:
        raise ValueError(f"codec={codec!r} is not one of {', '.join(CODECS)}.")
    if codec == "h264":
        return _PyAV(path, fps, size)
    return _OpenCV(path, fps, size, "vp09" if codec == "vp9" else codec)


def count_frames(path: Path) -> int:
    """Number of frames in the header of a video file; 0 if it cannot be read."""
    video = cv2.VideoCapture(str(path))
    try:
        return int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    finally:
        video.release()


def default_codec() -> str:
    """`h264` if PyAV is installed with it, else `mp4v`."""
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV's error of an unknown codec is a ValueError
        return "mp4v"
    return "h264"


class _PyAV:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        (self._av,) = require("av")
        self._file = self._av.open(str(path), "w", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(10_000)
        self._stream: Any = self._file.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "veryfast", "crf": "20"}
        factor = max(1, TICKS // rate.numerator)  # so that a frame at the usual rate takes whole ticks
        self._tick = Fraction(1, rate.numerator * factor)
        self._frame_ticks = rate.denominator * factor
        self._stream.time_base = self._stream.codec_context.time_base = self._tick
        self._next = self._earliest = 0  # time stamps of the next frame: as usual, and at least

    def write(self, frame: NDArray[np.uint8], time: float | None = None) -> None:
        image = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
        ticks = self._next if time is None else round(time / self._tick)
        image.pts, image.time_base = max(ticks, self._earliest), self._tick
        self._earliest, self._next = image.pts + 1, image.pts + self._frame_ticks
        self._file.mux(self._stream.encode(image))

    def close(self) -> None:
        try:
            self._file.mux(self._stream.encode())
        finally:
            self._file.close()


class _OpenCV:
    def __init__(self, path: Path, fps: float, size: tuple[int, int], code: str) -> None:
        fourcc = cv2.VideoWriter.fourcc(*code)
        self._video = cv2.VideoWriter(str(path), fourcc, round(fps, 3), size)
        if not self._video.isOpened():
            raise RuntimeError(f"OpenCV cannot write {code} ({size[0]} x {size[1]}, {fps:g} fps)")

    def write(self, frame: NDArray[np.uint8], time: float | None = None) -> None:
        self._video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._video.release()
