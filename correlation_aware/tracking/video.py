"""Reads frames from video files, folders and cameras; writes video files. Every frame is uint8 RGB."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import IMAGE_SUFFIXES, atomic_path, check_output_file, list_frames
from correlation_aware._images import read_image

__all__ = ["Frame", "FrameSource", "VideoWriter", "open_frames", "write_image"]

Frame = NDArray[np.uint8]  # H, W, 3 in RGB order

DEFAULT_FPS = 30.0  # frame rate of folders, and of videos and cameras without a frame rate
MIN_FPS, MAX_FPS = 0.01, 1000.0  # limits of .mp4 files written by OpenCV, with a margin
ALLOWED = f"a video file, a folder of frames ({', '.join(IMAGE_SUFFIXES)}) or the index of a camera"


class FrameSource(ABC):
    """An iterator over frames, read once like a file. Close it, or use it in a `with` block.

    Args:
        name: Name of the source in messages.
        fps: Frames per second.
        length: Number of frames of the source, `None` if unknown.
        limit: Largest number of frames to read, `None` for all.

    Attributes:
        name: Name of the source in messages.
        fps: Frames per second; 30 if the source has no valid frame rate.
        length: Number of frames that will be read, `None` if unknown. For a video file it is the number in
            the header, which can be wrong.
        limit: Largest number of frames to read, `None` for all.
    """

    def __init__(self, name: str, fps: float, length: int | None, limit: int | None) -> None:
        self.name = name
        self.fps = fps if MIN_FPS <= fps <= MAX_FPS else DEFAULT_FPS
        self.length = min((n for n in (length, limit) if n is not None), default=None)
        self.limit = limit
        self._count = 0

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = None if self._count == self.limit else self._read()
        if frame is None:
            raise StopIteration
        self._count += 1
        return frame

    @abstractmethod
    def _read(self) -> Frame | None:
        """The next frame, `None` at the end."""

    def close(self) -> None:  # noqa: B027 (a folder has nothing to close)
        """Releases the file or camera."""

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Folder(FrameSource):
    def __init__(self, folder: Path, limit: int | None, depth_range: tuple[float, float] | None) -> None:
        self._files, self._depth_range = list_frames(folder), depth_range
        if not self._files:
            raise ValueError(f"the folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
        super().__init__(str(folder), DEFAULT_FPS, len(self._files), limit)

    def _read(self) -> Frame | None:
        if self._count == len(self._files):
            return None
        return read_image(self._files[self._count], self._depth_range)


class _Capture(FrameSource):
    def __init__(self, source: str | int, limit: int | None) -> None:
        self._capture = cv2.VideoCapture(source)
        # the first frame is decoded at once, to know that the source can be read
        self._first = self._decode() if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            if isinstance(source, int):
                raise RuntimeError(f"camera {source} cannot be opened; is it connected, free, and allowed?")
            raise ValueError(f"{source} cannot be decoded as video; expected {ALLOWED}")
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        name = f"camera {source}" if isinstance(source, int) else source
        super().__init__(name, self._capture.get(cv2.CAP_PROP_FPS), count if count > 0 else None, limit)

    def _decode(self) -> Frame | None:
        ok, image = self._capture.read()
        return _bgr_to_rgb(image) if ok else None

    def _read(self) -> Frame | None:
        frame, self._first = self._first, None
        return self._decode() if frame is None else frame

    def close(self) -> None:
        self._capture.release()


def open_frames(
    source: str | Path | int, limit: int | None = None, depth_range: tuple[float, float] | None = None
) -> FrameSource:
    """Opens a video file, a folder of frames or a camera.

    Args:
        source: Path of a video file; path of a folder of images, read in natural order (2 before 10); or the
            index of a camera, as a number or as digits. Write `./0` for a folder that is named 0.
        limit: Largest number of frames to read.
        depth_range: Values of 16-bit or float images that become 0 and 255, see `decode_image`; for folders.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: A folder without images or with names that leave doubt about their order, see
            `list_frames`; a file that is no video, a negative index, a limit below 1, or a depth range for
            anything but a folder.
        RuntimeError: The camera returns no frame.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if isinstance(source, int) or (isinstance(source, str) and re.fullmatch("-?[0-9]+", source)):
        if int(source) < 0:  # OpenCV crashes on some negative numbers
            raise ValueError(f"{source} is not the index of a camera; indices start at 0")
        _check_no_depth_range(source, depth_range)
        return _Capture(int(source), limit)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}; expected {ALLOWED}")
    if path.is_dir():
        return _Folder(path, limit, depth_range)
    _check_no_depth_range(source, depth_range)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path} is a single image; pass the folder of the frames, {path.parent}")
    return _Capture(str(path), limit)


def _check_no_depth_range(source: str | Path | int, depth_range: tuple[float, float] | None) -> None:
    if depth_range is not None:
        raise ValueError(f"a depth range has no effect on {source}, which is not a folder of images")


class VideoWriter:
    """Writes frames to an .mp4 file, which exists under its name only when it is complete.

    Use it in a `with` block: the file is removed when the block fails. The first frame sets the size (odd
    sizes are padded by a black row or column); later frames of another size are resized to fit it. Without a
    frame no file is written.

    Args:
        path: Path of the file, with the suffix .mp4. Its folder must exist and be writable.
        fps: Frames per second.

    Attributes:
        path: Path of the file.
        frames: Number of frames written.

    Raises:
        ValueError: Another suffix than .mp4, a rate outside 0.01 to 1000, or a path that is no regular file.
        OSError: The folder does not exist or is not writable.
    """

    def __init__(self, path: str | Path, fps: float = DEFAULT_FPS) -> None:
        self.path = Path(path)
        self.frames = 0
        self._fps = fps
        self._video: cv2.VideoWriter | None = None
        self._size = (0, 0)  # width, height
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"the name of a video must end in .mp4: {path}")
        if not MIN_FPS <= fps <= MAX_FPS:
            raise ValueError(f"fps={fps} of {path} must be in {MIN_FPS:g}..{MAX_FPS:g} frames per second")
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_path(self.path))

    def write(self, frame: Frame) -> None:
        """Appends one uint8 RGB frame of shape (H, W, 3).

        Raises:
            ValueError: A frame of another type or shape.
            RuntimeError: OpenCV cannot write the video.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
        if self._video is None:
            height, width = frame.shape[:2]
            self._size = (width + width % 2, height + height % 2)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(self._temporary), code, round(self._fps, 3), self._size)
            if not self._video.isOpened():
                raise RuntimeError(f"OpenCV cannot write {self.path} ({width} x {height}, {self._fps:g} fps)")
        self._video.write(cv2.cvtColor(_fit(frame, *self._size), cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Completes the file and moves it to its path."""
        self.__exit__(None, None, None)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._video is not None:
            self._video.release()
        if not self.frames:
            self._temporary.unlink(missing_ok=True)
        self._stack.__exit__(kind, error, trace)


def write_image(path: str | Path, frame: Frame) -> None:
    """Writes one frame to an image file.

    Args:
        path: Path of the file; its suffix, one of `IMAGE_SUFFIXES`, sets the format.
        frame: uint8 RGB (H, W, 3).

    Raises:
        ValueError: Another suffix.
        RuntimeError: OpenCV cannot encode the image, such as a .webp file of more than 16383 pixels a side.
        OSError: The folder does not exist or is not writable.
    """
    path = Path(path)
    check_output_file(path, IMAGE_SUFFIXES)
    with atomic_path(path) as temporary:
        try:
            ok, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise RuntimeError(f"OpenCV cannot write {path}: {error}") from error
        if not ok:
            raise RuntimeError(f"OpenCV cannot write {path} ({frame.shape[1]} x {frame.shape[0]})")
        temporary.write_bytes(data.tobytes())


def _bgr_to_rgb(image: Any) -> Frame:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _fit(frame: Frame, width: int, height: int) -> Frame:
    """Pads at the right and bottom, by up to one pixel; a frame of another size is resized first."""
    if not (0 <= width - frame.shape[1] <= 1 and 0 <= height - frame.shape[0] <= 1):
        scale = min(width / frame.shape[1], height / frame.shape[0])
        size = max(1, int(frame.shape[1] * scale)), max(1, int(frame.shape[0] * scale))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)))
