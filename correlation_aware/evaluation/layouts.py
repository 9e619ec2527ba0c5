"""Layouts of test sets, as they are published and as the got10k toolkit and pytracking read them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import list_frames, natural_order, read_text
from correlation_aware.data.videos.published import lasot_test_names
from correlation_aware.data.videos.readers import LaSOT
from correlation_aware.data.videos.sequences import (
    AnnotationError,
    SequenceSet,
    Video,
    first_box_video,
    match_lines,
    read_boxes,
)

__all__ = ["lasot", "lasot_ext", "nfs", "otb", "tnl2k", "trackingnet", "uav123"]

# OTB: frames of sequences whose annotation does not cover all images, from 1
OTB_FRAMES = {
    "david": (300, 770),
    "diving": (1, 215),
    "football1": (1, 74),
    "freeman3": (1, 460),
    "freeman4": (1, 283),
}
# UAV123: first frames of the sequences FOLDER_1, FOLDER_2, ... that share a folder, from 1
UAV123_STARTS = {
    "bird1": (1, 775, 1573),
    "car1": (1, 751, 1627),
    "car16": (1, 415),
    "car6": (1, 487, 1807, 2953, 3925),
    "car8": (1, 1357),
    "group1": (1, 1333, 2515, 3925),
    "group2": (1, 907, 1771),
    "group3": (1, 1567, 2827, 4369),
    "person12": (1, 601),
    "person14": (1, 847, 1813),
    "person17": (1, 1501),
    "person19": (1, 1243, 2791),
    "person2": (1, 1189),
    "person4": (1, 1501),
    "person5": (1, 877),
    "person7": (1, 1249),
    "person8": (1, 1075),
    "truck4": (1, 577),
    "uav1": (1, 1555, 2473),
}


@dataclass(frozen=True)
class _Entry:
    """A sequence: its annotation, the folder of its frames, and the frames that the annotation covers."""

    name: str
    annotation: Path
    frames: Path
    start: int = 1
    end: int | None = None  # of the frames, inclusive; all by default
    count_lines: bool = False  # the annotation has as many lines as the sequence has frames


class _Entries:
    """Sequences of one layout."""

    def __init__(self, entries: list[_Entry], root: Path, expected: str) -> None:
        if not entries:
            raise FileNotFoundError(f"{root} has no {expected}.")
        self.entries = entries
        self.names = [entry.name for entry in entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Video:
        entry = self.entries[index]
        boxes, visible = self.read(entry.annotation)
        frames = list_frames(entry.frames)[entry.start - 1 : entry.end]
        if entry.count_lines:
            frames = frames[: len(boxes)]
        return self.match(entry.name, frames, boxes, visible)

    def read(self, path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return read_boxes(path)

    def match(
        self, name: str, frames: list[Path], boxes: NDArray[np.float64], visible: NDArray[np.bool_]
    ) -> Video:
        return match_lines(name, frames, boxes, visible)


class _FirstBoxes(_Entries):
    """Sequences whose first boxes alone are public."""

    def match(
        self, name: str, frames: list[Path], boxes: NDArray[np.float64], visible: NDArray[np.bool_]
    ) -> Video:
        return first_box_video(name, frames, boxes, visible)


class _Nfs(_Entries):
    """NFS: lines `id left top right bottom ...`, at 240 frames per second for the frames at 30 too."""

    def read(self, path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        rows = [line.split()[1:5] for line in read_text(path).splitlines() if line.strip()]
        try:
            corners = np.array([[float(word) for word in row] for row in rows]).reshape(len(rows), 4)
        except ValueError as error:
            raise AnnotationError(
                f"{path} must have lines `id left top right bottom ...`: {error}."
            ) from error
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        visible = np.isfinite(boxes).all(axis=1)
        boxes = np.nan_to_num(boxes)
        return boxes, visible & (boxes[:, 2:] > 0).all(axis=1)

    def match(
        self, name: str, frames: list[Path], boxes: NDArray[np.float64], visible: NDArray[np.bool_]
    ) -> Video:
        if frames and abs(len(boxes) / len(frames) - 8) < 1:
            boxes, visible = boxes[::8], visible[::8]
        if abs(len(frames) - len(boxes)) == 1:  # as the published lists often are
            count = min(len(frames), len(boxes))
            frames, boxes, visible = frames[:count], boxes[:count], visible[:count]
        return match_lines(name, frames, boxes, visible)


def otb(root: Path, subset: str) -> SequenceSet:
    """OTB: `ROOT/Basketball/img/0001.jpg` and `groundtruth_rect.txt`; `Jogging` has two targets."""

    def entries() -> Iterator[_Entry]:
        for folder in _folders(root):
            files = [path for path in _sorted(folder.glob("groundtruth*.txt")) if path.read_bytes().strip()]
            start, end = OTB_FRAMES.get(folder.name.lower(), (1, None))
            for number, file in enumerate(files, 1):
                name = folder.name if len(files) == 1 else f"{folder.name}.{number}"
                yield _Entry(name, file, folder / "img", start, end)

    return _Entries(list(entries()), root, "NAME/groundtruth_rect.txt")


def lasot(root: Path, subset: str) -> SequenceSet:
    """LaSOT: `ROOT/airplane/airplane-1`; subsets are those of `ROOT/testing_set.txt`, or the published ones.

    A sequence of the subset that is not on disk stays in the list, so that its evaluation fails by name.
    """
    names = root / ("testing_set.txt" if subset == "test" else "training_set.txt")
    if subset != "all" and names.is_file():
        return LaSOT(root, names)
    dataset = LaSOT(root, subset=subset)
    if subset == "test":
        missing = [name for name in lasot_test_names() if name not in dataset.names]
        dataset.names += missing
        dataset.folders += [root / name.rpartition("-")[0] / name for name in missing]
    return dataset


def lasot_ext(root: Path, subset: str) -> SequenceSet:
    """LaSOT's extension: `ROOT/atv/atv-1`, all of it for tests."""
    return LaSOT(root, subset="all")


def uav123(root: Path, subset: str) -> SequenceSet:
    """UAV123: `ROOT/anno/UAV123/bike1.txt` and `ROOT/data_seq/UAV123/bike1/000001.jpg`."""

    def entry(file: Path) -> _Entry:
        name, start = file.stem, 1
        part = re.fullmatch(r"(.*)_(\d+)", name)
        if subset == "UAV123" and part and part[1] in UAV123_STARTS:
            name, start = part[1], UAV123_STARTS[part[1]][int(part[2]) - 1]
        folder = root / "data_seq" / "UAV123" / name
        return _Entry(file.stem, file, folder, start, count_lines=subset == "UAV123" and name != file.stem)

    files = _sorted((root / "anno" / subset).glob("*.txt"))
    return _Entries([entry(file) for file in files], root, f"anno/{subset}/NAME.txt")


def nfs(root: Path, subset: str) -> SequenceSet:
    """NFS: `ROOT/Gymnastics/30/Gymnastics.txt` and `ROOT/Gymnastics/30/Gymnastics/00001.jpg`."""
    files = _sorted(root.glob(f"*/{subset}/*.txt"))
    return _Nfs([_Entry(f.stem, f, f.with_suffix("")) for f in files], root, f"NAME/{subset}/NAME.txt")


def tnl2k(root: Path, subset: str) -> SequenceSet:
    """TNL2K: `ROOT/NAME/imgs/00001.jpg` and `ROOT/NAME/groundtruth.txt`."""
    folders = [folder for folder in _folders(root) if (folder / "groundtruth.txt").is_file()]
    entries = [_Entry(folder.name, folder / "groundtruth.txt", folder / "imgs") for folder in folders]
    return _Entries(entries, root, "NAME/groundtruth.txt")


def trackingnet(root: Path, subset: str) -> SequenceSet:
    """TrackingNet's test set: `ROOT/TEST/anno/NAME.txt` with the first box, `ROOT/TEST/frames/NAME/0.jpg`."""
    files = _sorted((root / subset / "anno").glob("*.txt"))
    entries = [_Entry(file.stem, file, root / subset / "frames" / file.stem) for file in files]
    return _FirstBoxes(entries, root, f"{subset}/anno/NAME.txt")


def _folders(root: Path) -> list[Path]:
    return _sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _sorted(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=natural_order)
