"""Annotated videos on disk: the protocol of all datasets, and a plain folder layout for your own data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import frame_numbers, list_frames, read_text, walk_folders
from correlation_aware._images import decode_image

__all__ = [
    "AnnotationError",
    "File",
    "Folder",
    "SequenceSet",
    "Video",
    "find_ground_truth",
    "first_box_video",
    "match_lines",
    "read_boxes",
    "read_flags",
    "read_frame",
    "read_names",
]


class AnnotationError(ValueError):
    """An annotation that cannot be used, though its file is not damaged."""


class File(Protocol):
    """A file of a dataset: a path, or a member of a tar shard. As text it is its name in messages."""

    @property
    def stem(self) -> str: ...

    def read_bytes(self) -> bytes: ...

    def read_text(self) -> str: ...


@dataclass(frozen=True)
class Video:
    """The annotation of one target in one video; a still image is a video of one frame.

    Attributes:
        name: Name of the video in messages.
        frames: Image files of the T frames.
        boxes: (T, 4) xywh in pixels.
        visible: (T,) bool, whether the target is visible and its box valid for training.
        remark: What was left out of the annotation, and why; empty if nothing was.

    Raises:
        AnnotationError: The numbers of frames, boxes and visibility flags differ.
    """

    name: str
    frames: Sequence[File]
    boxes: NDArray[np.float64]
    visible: NDArray[np.bool_]
    remark: str = ""

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.boxes) == len(self.visible):
            raise AnnotationError(
                f"{self.name} has {len(self.frames)} frames, {len(self.boxes)} boxes and {len(self.visible)} "
                "visibility flags; there must be one of each per frame."
            )


class SequenceSet(Protocol):
    """A dataset: a list of videos whose annotations are read on access.

    Optional attributes: a list `names` of the videos' names, which needs no annotation to be read, lets a
    configuration select videos; a mapping `damaged` has the reason by name of every file that was left out.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Video: ...


class Folder:
    """Folders of frames with a `groundtruth.txt`, one box x, y, w, h per line.

    The frames are in the same folder or in `img/`, in natural order; links to folders are followed. Numbers
    are separated by commas, tabs or spaces; eight numbers are the corners of a polygon. `nan` or a box
    without area marks an invisible target.

    Args:
        root: One such folder, or a parent folder of them at any depth.

    Raises:
        FileNotFoundError: No `groundtruth.txt` in `root` or below.
    """

    def __init__(self, root: str | Path) -> None:
        self.folders = find_ground_truth(root)
        if not self.folders:
            raise FileNotFoundError(f"There is no groundtruth.txt in {root} or below.")
        self.names = [folder.relative_to(root).as_posix() for folder in self.folders]

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        inner = folder / "img"
        return match_lines(str(folder), list_frames(inner if inner.is_dir() else folder), boxes, visible)


def find_ground_truth(root: str | Path) -> list[Path]:
    """Folders with a `groundtruth.txt`, in natural order and through links to folders."""
    return [folder for folder, names in walk_folders(root) if "groundtruth.txt" in names]


def match_lines(
    name: str, frames: Sequence[File], boxes: NDArray[np.float64], visible: NDArray[np.bool_]
) -> Video:
    """The video of frames and annotation lines, of which some may be missing.

    With as many lines as the frames' numbers span, lines belong to the frames of their numbers. Otherwise, if
    no number is missing between the frames, line i belongs to frame i, and the rest of the longer list is
    left out.

    Args:
        name: Name of the video in messages.
        frames: Image files, in order.
        boxes: (L, 4) xywh in pixels.
        visible: (L,) bool.

    Raises:
        AnnotationError: It is unknown which lines belong to which frames.
    """
    if len(frames) == len(boxes):
        return Video(name, frames, boxes, visible)
    remark = f"{len(frames)} frames and {len(boxes)} lines of annotation"
    found = frame_numbers([frame.stem for frame in frames])
    if found is None:
        raise AnnotationError(
            f"{name} has {remark}, and frames without a number: which line is of which frame is unknown."
        )
    numbers = np.array(found)
    span = int(numbers[-1] - numbers[0] + 1)
    if span == len(frames):
        used = np.arange(min(len(frames), len(boxes)))
        frames, remark = frames[: len(used)], f"{remark}: {len(used)} of them are used"
    elif span == len(boxes):
        used = numbers - numbers[0]
        remark = f"{remark}: lines belong to the frames of their numbers"
    else:
        raise AnnotationError(
            f"{name} has {remark}, and numbers that span {span}: which line is of which frame is unknown."
        )
    return Video(name, frames, boxes[used], visible[used], remark)


def first_box_video(
    name: str, frames: Sequence[File], boxes: NDArray[np.float64], visible: NDArray[np.bool_]
) -> Video:
    """The video of a test set: the first box of the annotation is public, and no other one is used."""
    count = max(len(frames), 1)
    rest = count - 1
    return Video(
        name,
        frames,
        np.concatenate([boxes[:1], np.zeros((rest, 4))]),
        np.concatenate([visible[:1], np.zeros(rest, bool)]),
    )


def read_boxes(path: File) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reads the boxes of a text file.

    Args:
        path: File with 4 numbers (x, y, w, h) or 8 numbers (corners of a polygon) per line.

    Returns:
        Boxes (T, 4) xywh, and (T,) bool, which of them are finite and have an area.

    Raises:
        OSError: No such file.
        AnnotationError: Not 4 or 8 numbers per line.
    """
    lines = [re.split(r"[\s,;]+", line.strip(" \t\r,;")) for line in _text(path).splitlines() if line.strip()]
    try:
        table = np.array([[float(word) for word in line] for line in lines])
    except ValueError as error:
        raise AnnotationError(f"{path} is not a table of numbers: {error}.") from error
    if table.ndim != 2 or table.shape[1] not in (4, 8):
        raise AnnotationError(f"{path} must have 4 numbers (x, y, w, h) or 8 (corners) per line.")
    if table.shape[1] == 8:
        x, y = table[:, ::2], table[:, 1::2]
        low, high = np.stack([x.min(1), y.min(1)], axis=1), np.stack([x.max(1), y.max(1)], axis=1)
        table = np.concatenate([low, high - low], axis=1)
    visible = np.isfinite(table).all(axis=1) & (np.nan_to_num(table[:, 2:]) > 0).all(axis=1)
    return np.nan_to_num(table), visible


def _text(path: File) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise AnnotationError(str(error)) from error


def read_frame(frame: File) -> NDArray[np.uint8]:
    """Reads a frame as it is displayed, uint8 RGB (H, W, 3).

    Raises:
        ValueError, OSError: A damaged or missing file.
    """
    return decode_image(frame.read_bytes())


def read_names(path: str | Path) -> list[str]:
    """Reads a list of names, one per line; a name may have blanks.

    Raises:
        OSError: No such file.
        ValueError: Not UTF-8, or a null character.
    """
    names = [line.strip() for line in read_text(Path(path)).splitlines()]
    if any("\0" in name for name in names):
        raise ValueError(f"{path} is not a list of names: it has a null character.")
    return [name for name in names if name]


def read_flags(path: Path, count: int) -> NDArray[np.int64]:
    """Reads integer flags of a text file, on one line or one per line.

    Args:
        path: Text file; if it does not exist, all flags are 0.
        count: Number of frames.

    Returns:
        (count,) integers.

    Raises:
        AnnotationError: Not `count` integers.
    """
    if not path.is_file():
        return np.zeros(count, np.int64)
    words = re.split(r"[\s,;]+", _text(path).strip(" \r\n\t,;"))
    if len(words) != count or not all(word.lstrip("-").isdigit() for word in words):
        raise AnnotationError(f"{path} must have {count} integers, one per frame; it has {len(words)} words.")
    return np.array([int(word) for word in words])
