"""Reads frames from video files, folders, cameras, streams and memory; writes video files.

Every frame is uint8 RGB.
"""

import glob
import re
from collections.abc import Iterable, Sized
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from correlation_aware._files import IMAGE_SUFFIXES, atomic_path, check_output_file, list_frames
from correlation_aware._images import read_image
from correlation_aware.tracking.crop import as_rgb
from correlation_aware.tracking.encoders import CODECS, Encoder, count_frames, default_codec, open_encoder
from correlation_aware.tracking.frame_source import (
    DEFAULT_FPS,
    MAX_FPS,
    MIN_FPS,
    Frame,
    FrameSource,
    Selection,
    bgr_to_rgb,
)
from correlation_aware.tracking.live import LiveSource

__all__ = ["Frame", "FrameSource", "VideoWriter", "open_frames", "write_image"]

ALLOWED = (
    f"a video file, a folder of frames ({', '.join(IMAGE_SUFFIXES)}), the index of a camera, or the address "
    "of a stream"
)
# codecs of .mp4 and .mov files, for the message about one that cannot be decoded
CODES = ("av01", "hvc1", "hev1", "avc1", "vp09", "dvh1", "dvhe", "vvc1", "apch", "apcn", "prores")


class _Folder(FrameSource):
    def __init__(
        self, folder: Path, pattern: str, selection: Selection, depth_range: tuple[float, float] | None
    ) -> None:
        self._files, self._depth_range = list_frames(folder, pattern), depth_range
        if not self._files:
            names = "" if pattern == "*" else f" named {pattern}"
            raise ValueError(f"the folder {folder} has no images{names} ({', '.join(IMAGE_SUFFIXES)})")
        for path in self._files:
            if not path.is_file():
                kind = (
                    "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no file"
                )
                raise ValueError(f"{path} is {kind} with the name of an image; move or remove it")
        super().__init__(str(folder), DEFAULT_FPS, len(self._files), selection)

    def _advance(self) -> bool:
        if self._position + 1 == len(self._files):
            return False
        self._position += 1
        self._seconds = self._position / self.fps
        return True

    def _decode(self) -> Frame:
        return read_image(self._files[self._position], self._depth_range)


class _Frames(FrameSource):
    def __init__(self, frames: Iterable[Frame], selection: Selection) -> None:
        try:
            self._frames = iter(frames)
        except TypeError as error:
            raise TypeError(f"source={frames!r} is not {ALLOWED}, or frames in memory") from error
        total = len(frames) if isinstance(frames, Sized) else None
        super().__init__("the frames", DEFAULT_FPS, total, selection)

    def _advance(self) -> bool:
        try:
            self._frame = next(self._frames)
        except StopIteration:
            return False
        self._position += 1
        self._seconds = self._position / self.fps
        return True

    def _decode(self) -> Frame:
        return as_rgb(self._frame)


class _VideoFile(FrameSource):
    def __init__(self, capture: cv2.VideoCapture, source: str, selection: Selection) -> None:
        self._capture = capture
        self._first: Frame | None = None
        # the first frame is decoded at once, to know that the source can be read
        opened = capture.isOpened() and capture.grab()
        self._first = self._decode() if opened else None
        if self._first is None:
            capture.release()
            codec = _codec(source)
            if codec:
                raise ValueError(
                    f"{source} has the codec {codec}, which this build of OpenCV cannot decode. Convert it: "
                    "ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
                )
            raise ValueError(f"{source} cannot be decoded as video; expected {ALLOWED}")
        self._offset = capture.get(cv2.CAP_PROP_POS_MSEC)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(source, capture.get(cv2.CAP_PROP_FPS), count if count > 0 else None, selection)

    def _advance(self) -> bool:
        if self._position < 0:
            self._position = 0
            return True
        self._first = None
        if not self._capture.grab():
            return False
        self._position += 1
        seconds = (self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._offset) / 1000
        # files without time stamps, or with some that go backwards, have their rate
        self._seconds = seconds if seconds > self._seconds else self._seconds + 1 / self.fps
        return True

    def _decode(self) -> Frame | None:
        first, self._first = self._first, None
        if first is not None:
            return first
        ok, image = self._capture.retrieve()
        return bgr_to_rgb(image) if ok else None

    def close(self) -> None:
        self._capture.release()


def open_frames(
    source: str | Path | int | Iterable[Frame],
    limit: int | None = None,
    depth_range: tuple[float, float] | None = None,
    *,
    start: int | str = 0,
    every: int = 1,
) -> FrameSource:
    """Opens a video file, frames in a folder, a camera, a stream or an iterable of frames.

    Of a camera or stream the newest frame is read, and those that came meanwhile are dropped; if it breaks
    off, it is opened again, for 30 seconds, see `LiveSource`.

    Args:
        source: Path of a video file; path of a folder of images (JPEG, PNG, BMP, WebP, TIFF: the
            `IMAGE_SUFFIXES` of `_files.py`), read in natural order (2 before 10), or a pattern of their
            names, such as `frames/left_*.png`; the index of a camera, as a number or as digits (write `./0`
            for a folder that is named 0); address of a stream, such as `rtsp://HOST/PATH`; or frames, uint8
            RGB (H, W, 3).
        limit: Largest number of frames to read.
        depth_range: Values of 16-bit or float images that become 0 and 255, see `decode_image`; for folders.
        start: First frame to read: its number from 0, or a time such as `12.5s` or `1:20`.
        every: Step from each frame to the next one that is read.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: A folder without images or with names that leave doubt about their order, see
            `list_frames`; a file that is no video, a negative index, a limit or step below 1, a start that
            is no number or time or (at the first frame) after the end, a single frame, (at the first frame)
            an iterable without frames, or a depth range for anything but a folder.
        TypeError: A source of another type.
        RuntimeError: The camera or stream returns no frame.
    """
    selection = Selection(start, every, limit)
    if not isinstance(source, (str, Path, int)):
        _check_no_depth_range("frames in memory", depth_range)
        shape: tuple[int, ...] = tuple(getattr(source, "shape", ()))
        if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4)):
            raise ValueError(f"the source is a single frame of shape {shape}; pass a list, [frame]")
        return _Frames(source, selection)
    if isinstance(source, int) or (isinstance(source, str) and re.fullmatch("-?[0-9]{1,9}", source)):
        if not 0 <= int(source) < 2**31:  # OpenCV crashes on some negative numbers
            raise ValueError(f"{source} is not the index of a camera; indices start at 0, and have 31 bits")
        _check_no_depth_range(source, depth_range)
        return LiveSource(int(source), selection, cv2.VideoCapture(int(source)))
    if isinstance(source, str) and re.match("[a-z][a-z0-9+.-]+://", source):
        _check_no_depth_range(source, depth_range)
        capture = cv2.VideoCapture(source)
        is_file = capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0  # a video file of a server
        return _VideoFile(capture, source, selection) if is_file else LiveSource(source, selection, capture)
    path = Path(source)
    _check_text(path)
    if path.is_dir():
        return _Folder(path, "*", selection, depth_range)
    if not path.exists():
        if glob.has_magic(path.name) and path.parent.is_dir():
            return _Folder(path.parent, path.name, selection, depth_range)
        raise FileNotFoundError(f"no file or folder {path}; expected {ALLOWED}")
    _check_no_depth_range(source, depth_range)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path} is a single image; pass the folder of the frames, {path.parent}")
    return _VideoFile(cv2.VideoCapture(str(path)), str(path), selection)


def _check_text(path: Path) -> None:
    """Refuses a path with which OpenCV ends the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the path {str(path)!r} is not UTF-8, which OpenCV cannot open; rename the file"
        ) from None


def _codec(source: str) -> str:
    """Code of the video codec in the header of an .mp4 or .mov file; empty where none of `CODES` is found."""
    path = Path(source)
    if not path.is_file():
        return ""
    with path.open("rb") as file:  # the header is at the beginning or at the end
        start = file.read(1 << 20)
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        content = start + file.read()
    return next((code for code in CODES if b"stsd" in content and code.encode() in content), "")


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
        codec: `h264` (PyAV, the extra `video`); `mp4v`, which browsers do not play; or `vp9`, which they do,
            but which takes longer to encode than tracking does. By default `h264` with PyAV, else `mp4v`.

    Attributes:
        path: Path of the file.
        codec: Codec of the file.
        frames: Number of frames written.

    Raises:
        ValueError: Another suffix than .mp4, an unknown codec, a rate outside 0.01 to 1000, or a path that is
            no regular file, or that OpenCV cannot open.
        OSError: The folder does not exist or is not writable; when the file is completed also a full disk.
    """

    def __init__(self, path: str | Path, fps: float = DEFAULT_FPS, codec: str | None = None) -> None:
        self.path = Path(path)
        self.frames = 0
        self._fps = fps
        self.codec = default_codec() if codec is None else codec
        self._video: Encoder | None = None
        self._size = (0, 0)  # width, height
        self._start: float | None = None  # time of the first frame
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"the name of a video must end in .mp4: {path}")
        _check_text(self.path)
        if self.codec not in CODECS:
            raise ValueError(f"codec={codec!r} is not one of {', '.join(CODECS)}")
        if not MIN_FPS <= fps <= MAX_FPS:
            raise ValueError(f"fps={fps} of {path} must be in {MIN_FPS:g}..{MAX_FPS:g} frames per second")
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_path(self.path))

    def write(self, frame: Frame, time: float | None = None) -> None:
        """Appends one uint8 RGB frame of shape (H, W, 3).

        Args:
            frame: The frame.
            time: Time in seconds since the first frame, which `h264` keeps: a frame is shown until the next
                one. By default, and with the other codecs, frames follow at `fps`.

        Raises:
            ValueError: A frame of another type or shape.
            RuntimeError: The codec is not installed, or cannot encode frames of this size.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
        if self._video is None:
            height, width = frame.shape[:2]
            self._size = (width + width % 2, height + height % 2)
            self._video = open_encoder(self._temporary, self._fps, self._size, self.codec)
        if time is not None:
            self._start = time if self._start is None else self._start
            time -= self._start
        self._video.write(_fit(frame, *self._size), time)
        self.frames += 1

    def close(self) -> None:
        """Completes the file and moves it to its path."""
        self.__exit__(None, None, None)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        video, self._video = self._video, None
        try:
            if video is not None:
                video.close()
                if kind is None and count_frames(self._temporary) < self.frames:  # OpenCV has no error of it
                    raise OSError(f"{self.path} could not be written completely; is the disk full?")
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
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


def _fit(frame: Frame, width: int, height: int) -> Frame:
    """Pads at the right and bottom, by up to one pixel; a frame of another size is resized first."""
    if not (0 <= width - frame.shape[1] <= 1 and 0 <= height - frame.shape[0] <= 1):
        scale = min(width / frame.shape[1], height / frame.shape[0])
        size = max(1, int(frame.shape[1] * scale)), max(1, int(frame.shape[0] * scale))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)))
