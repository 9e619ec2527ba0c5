"""Published tracking sets in the layouts they are published in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from correlation_aware._files import list_images
from correlation_aware._plugins import load_plugins
from correlation_aware.data.videos.sequences import Folder, SequenceSet, Video, read_boxes, read_flags

__all__ = ["READERS", "Coco", "Got10k", "LaSOT", "TrackingNet", "open_set", "register_reader"]


class Got10k:
    """GOT-10k: `ROOT/train/list.txt`, `ROOT/train/GOT-10k_Train_000001/00000001.jpg` and its labels.

    A frame counts as visible if `absence.label` is 0 and `cover.label` above 0, where there are such files.

    Args:
        root: The folder that holds the subsets.
        subset: `train`, `val`, ...; the test set has one box a video and cannot be trained on.

    Raises:
        FileNotFoundError: No such subset, or none of its videos.
    """

    def __init__(self, root: str | Path, subset: str = "train") -> None:
        folder = Path(root) / subset
        names = folder / "list.txt"
        if names.is_file():
            self.folders = [folder / name for name in names.read_text().split()]
        else:
            self.folders = [path.parent for path in sorted(folder.glob("*/groundtruth.txt"))]
        if not self.folders:
            raise FileNotFoundError(f"{folder} has neither a list.txt nor folders with a groundtruth.txt.")

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        visible &= read_flags(folder / "absence.label", len(boxes)) == 0
        if (folder / "cover.label").is_file():
            visible &= read_flags(folder / "cover.label", len(boxes)) > 0
        return Video(str(folder), list_images(folder), boxes, visible)


class LaSOT:
    """LaSOT: `ROOT/airplane/airplane-1/img/00000001.jpg`, `groundtruth.txt`, `full_occlusion.txt`,
    `out_of_view.txt`.

    Args:
        root: The folder of the classes; the videos may also lie in it directly.
        names: A file with a name such as `airplane-1` a line, the toolkit's `training_set.txt` for example;
            all videos by default.

    Raises:
        FileNotFoundError: No videos.
    """

    def __init__(self, root: str | Path, names: str | Path | None = None) -> None:
        found = {path.parent.name: path.parent for path in sorted(Path(root).glob("**/groundtruth.txt"))}
        wanted = list(found) if names is None else Path(names).read_text().split()
        self.folders = [found.get(name, Path(root) / name.rpartition("-")[0] / name) for name in wanted]
        if not self.folders:
            raise FileNotFoundError(f"There is no video with a groundtruth.txt in {root}.")

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        for flags in ("full_occlusion.txt", "out_of_view.txt"):
            visible &= read_flags(folder / flags, len(boxes)) == 0
        return Video(str(folder), list_images(folder / "img"), boxes, visible)


class TrackingNet:
    """TrackingNet: `ROOT/TRAIN_0/frames/NAME/0.jpg` and `ROOT/TRAIN_0/anno/NAME.txt`.

    Args:
        root: The folder that holds `TRAIN_0` to `TRAIN_11`.
        parts: Some of them; all by default.

    Raises:
        FileNotFoundError: No annotations.
    """

    def __init__(self, root: str | Path, parts: list[str] | None = None) -> None:
        folders = sorted(Path(root).glob("TRAIN_*")) if parts is None else [Path(root) / p for p in parts]
        self.annotations = [path for folder in folders for path in sorted(folder.glob("anno/*.txt"))]
        if not self.annotations:
            raise FileNotFoundError(f"There is no TRAIN_*/anno/*.txt in {root}.")

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Video:
        path = self.annotations[index]
        boxes, visible = read_boxes(path)
        return Video(str(path), list_images(path.parents[1] / "frames" / path.stem), boxes, visible)


class Coco:
    """COCO: `ROOT/annotations/instances_train2017.json` and `ROOT/train2017/000000000009.jpg`.

    Every object is a video of one frame. Crowds are left out, and objects smaller than 16 pixels a side.

    Args:
        root: The folder of the annotations; pictures may also lie in `ROOT/images/train2017`.
        subset: `train2017`, `val2017`, ...

    Raises:
        FileNotFoundError: No such file or no pictures.
        ValueError: The file is not one of COCO's.
    """

    def __init__(self, root: str | Path, subset: str = "train2017") -> None:
        path = Path(root) / "annotations" / f"instances_{subset}.json"
        places = [Path(root) / subset, Path(root) / "images" / subset]
        folder = next((place for place in places if place.is_dir()), None)
        if not path.is_file() or folder is None:
            raise FileNotFoundError(f"COCO needs {path} and pictures in {places[0]} or {places[1]}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            files = {image["id"]: image["file_name"] for image in content["images"]}
            objects = [
                (files[a["image_id"]], a["bbox"])
                for a in content["annotations"]
                if not a.get("iscrowd") and min(a["bbox"][2:]) >= 16
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of COCO's instances: {error!r}.") from error
        self.folder = folder
        self.files = [file for file, _ in objects]
        self.boxes = np.array([box for _, box in objects], float).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Video:
        path = self.folder / self.files[index]
        return Video(str(path), [path], self.boxes[index : index + 1], np.ones(1, bool))


Reader = Callable[[str | Path], SequenceSet]

READERS: dict[str, Reader] = {
    "coco": Coco,
    "folder": Folder,
    "got10k": Got10k,
    "lasot": LaSOT,
    "trackingnet": TrackingNet,
}


def register_reader(name: str) -> Callable[[Reader], Reader]:
    """Decorator: makes a reader known as `data.videos={name:ROOT: share}` in training.

    A reader is a class or function that takes the root folder of a dataset and returns a `SequenceSet`: it
    has a length, and item i is a `Video`.

    Args:
        name: Name of the layout.

    Raises:
        ValueError: The name is taken, or has a colon.
    """

    def add(reader: Reader) -> Reader:
        if name in READERS or ":" in name:
            raise ValueError(
                f"A reader cannot be called {name!r}: taken are {', '.join(READERS)}; no colons."
            )
        READERS[name] = reader
        return reader

    return add


def open_set(name: str, root: str | Path) -> SequenceSet:
    """The training part of a dataset by the name of its layout.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: Nothing of that layout in `root`.
    """
    load_plugins()
    if name not in READERS:
        raise ValueError(f"{name!r} is not a known layout: {', '.join(READERS)}.")
    return READERS[name](root)
