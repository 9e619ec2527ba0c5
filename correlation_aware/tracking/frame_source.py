"""What all sources of frames have in common: which frames are read, their numbers and times."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_FPS", "MAX_FPS", "MIN_FPS", "Frame", "FrameSource", "Selection", "bgr_to_rgb"]

Frame = NDArray[np.uint8]  # H, W, 3 in RGB order

DEFAULT_FPS = 30.0  # frame rate of folders, and of videos and cameras without a frame rate
MIN_FPS, MAX_FPS = 0.01, 1000.0  # limits of .mp4 files written by OpenCV, with a margin


@dataclass(frozen=True)
class Selection:
    """The frames of a source that are read.

    Attributes:
        start: First frame: its number from 0, or a time such as `12.5s` or `1:20`.
        every: Step from each frame to the next one.
        limit: Largest number of frames, `None` for all.

    Raises:
        ValueError: A start that is no integer and no time, or a step or limit that is no integer or below 1.
    """

    start: int | str = 0
    every: int = 1
    limit: int | None = None
    _seconds: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for name in ("start", "every", "limit"):
            value = getattr(self, name)
            if (name == "limit" and value is None) or (name == "start" and isinstance(value, str)):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                hint = "; a time is text, such as '12.5s'" if name == "start" else ""
                raise ValueError(f"{name}={value!r} is not an integer, a number of frames{hint}")
            if name != "start" and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if isinstance(self.start, str) and self.start.isdecimal() and len(self.start) < 19:
            object.__setattr__(self, "start", int(self.start))
        if isinstance(self.start, str):
            object.__setattr__(self, "_seconds", _parse_time(self.start))
        elif self.start < 0:
            raise ValueError(f"start={self.start} must be at least 0, the first frame")

    def is_start(self, index: int, time: float) -> bool:
        """Whether reading starts at a frame, or before it."""
        if self._seconds is not None:
            return time >= self._seconds - 1e-6  # of the rounding of time stamps
        return index >= int(self.start)

    def count(self, total: int | None) -> int | None:
        """Number of selected frames of a source of `total` frames; None if it is unknown."""
        if total is None or self._seconds is not None:
            return self.limit if total is None else None
        count = max(0, -(-(total - int(self.start)) // self.every))
        return count if self.limit is None else min(count, self.limit)


def _parse_time(text: str) -> float:
    """Seconds of `12.5s`, `1:20`, `0:01:20.5`."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?s", text):
        return float(text[:-1])
    if re.fullmatch(r"([0-9]+:)?[0-9]+:[0-9]+(\.[0-9]*)?", text):
        seconds = 0.0
        for part in text.split(":"):
            seconds = 60 * seconds + float(part)
        return seconds
    raise ValueError(f"start={text!r} is no frame number and no time, such as 300, 12.5s, 1:20 or 0:01:20.5")


class FrameSource(ABC):
    """An iterator over frames, read once like a file. Close it, or use it in a `with` block.

    Args:
        name: Name of the source in messages.
        fps: Frames per second.
        total: Number of frames of the source, `None` if unknown.
        selection: Frames to read.

    Attributes:
        name: Name of the source in messages.
        fps: Frames per second; 30 if the source has no valid frame rate.
        length: Number of frames that will be read, `None` if unknown. For a video file it comes from the
            number in the header, which can be wrong.
        index: Number of the latest frame in the source, from 0; -1 before the first one.
        time: Seconds from the beginning of the source to the latest frame.
        dropped: Number of frames that a camera or stream sent while nobody took them.
    """

    def __init__(self, name: str, fps: float, total: int | None, selection: Selection) -> None:
        self.name = name
        self.fps = fps if MIN_FPS <= fps <= MAX_FPS else DEFAULT_FPS
        self.length = selection.count(total)
        self.index = -1
        self.time = 0.0
        self.dropped = 0
        self._selection = selection
        self._count = 0
        self._position, self._seconds = -1, 0.0  # of the frame that `_advance` went to, read or not

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = self._decode() if self._count != self._selection.limit and self._seek() else None
        if frame is None:
            raise StopIteration
        self._count += 1
        self.index, self.time = self._position, self._seconds
        return frame

    def _seek(self) -> bool:
        """Goes to the next selected frame; False at the end."""
        selection = self._selection
        if self._count:
            goal = self.index + selection.every
            while self._position < goal:
                if not self._advance():
                    return False
            return True
        while self._advance():
            if selection.is_start(self._position, self._seconds):
                return True
        if self._position < 0:
            raise ValueError("the source has no frame; expected one or more")
        raise ValueError(
            f"start={selection.start!r} is after the end of {self.name}, whose last frame is number "
            f"{self._position}, at {self._seconds:.2f} s"
        )

    @abstractmethod
    def _advance(self) -> bool:
        """Goes to the next frame and sets `_position` and `_seconds`; False at the end."""

    @abstractmethod
    def _decode(self) -> Frame | None:
        """The current frame; None if it is damaged, which ends the source."""

    def close(self) -> None:  # noqa: B027 (a folder has nothing to close)
        """Releases the file or camera."""

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bgr_to_rgb(image: Any) -> Frame:
    """The RGB frame of an image of OpenCV."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
