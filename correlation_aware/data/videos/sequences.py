"""Annotated videos as files: one small protocol for every dataset, and the plain layout of one's own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import list_images

__all__ = ["Folder", "SequenceSet", "Video", "read_boxes", "read_flags"]


@dataclass(frozen=True)
class Video:
    """One target in the frames of one video; a still image is a video of one frame.

    Attributes:
        name: For messages.
        frames: T files.
        boxes: (T, 4) xywh in pixels.
        visible: (T,) bool, the target can be seen and its box can be trained on.

    Raises:
        ValueError: Different numbers of frames, boxes and flags.
    """

    name: str
    frames: Sequence[Path]
    boxes: NDArray[np.float64]
    visible: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.boxes) == len(self.visible):
            raise ValueError(
                f"{self.name} has {len(self.frames)} frames, {len(self.boxes)} boxes and {len(self.visible)} "
                "flags of visibility; there must be one of each per frame."
            )


class SequenceSet(Protocol):
    """A dataset: a list of videos that reads its annotations when it is asked for one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Video: ...


class Folder:
    """Folders of frames with a `groundtruth.txt`, one x, y, w, h a line.

    Frames lie beside the file or in `img/`, in natural order. Commas, tabs or spaces separate
    what is on a line; eight numbers are the corners of a polygon. `nan` or a box without area means that the
    target cannot be seen.

    Args:
        root: One such folder, or a folder of them at any depth.

    Raises:
        FileNotFoundError: There is none.
    """

    def __init__(self, root: str | Path) -> None:
        self.folders = sorted(path.parent for path in Path(root).rglob("groundtruth.txt"))
        if not self.folders:
            raise FileNotFoundError(f"There is no groundtruth.txt in {root} or below.")

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        inner = folder / "img"
        return Video(str(folder), list_images(inner if inner.is_dir() else folder), boxes, visible)


def read_boxes(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes (T, 4) xywh of a text file, and which of them are boxes at all.

    Raises:
        OSError: No such file.
        ValueError: It does not hold four or eight numbers a line.
    """
    lines = [
        re.split(r"[\s,;]+", line.strip(" \t\r,;")) for line in path.read_text().splitlines() if line.strip()
    ]
    try:
        table = np.array([[float(word) for word in line] for line in lines])
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}.") from error
    if table.ndim != 2 or table.shape[1] not in (4, 8):
        raise ValueError(f"{path} must hold 4 numbers (x, y, w, h) a line, or 8 (corners).")
    if table.shape[1] == 8:
        x, y = table[:, ::2], table[:, 1::2]
        low, high = np.stack([x.min(1), y.min(1)], axis=1), np.stack([x.max(1), y.max(1)], axis=1)
        table = np.concatenate([low, high - low], axis=1)
    visible = np.isfinite(table).all(axis=1) & (np.nan_to_num(table[:, 2:]) > 0).all(axis=1)
    return np.nan_to_num(table), visible


def read_flags(path: Path, count: int) -> NDArray[np.int64]:
    """`count` whole numbers of a text file, on one line or one a line; zeros if there is no file.

    Raises:
        ValueError: Others, or another number of them.
    """
    if not path.is_file():
        return np.zeros(count, np.int64)
    words = re.split(r"[\s,]+", path.read_text().strip(" \r\n\t,"))
    if len(words) != count or not all(word.lstrip("-").isdigit() for word in words):
        raise ValueError(
            f"{path} must hold {count} whole numbers, one for each frame; it has {len(words)} words."
        )
    return np.array([int(word) for word in words])
