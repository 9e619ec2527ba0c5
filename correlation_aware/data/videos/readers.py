"""Readers of public tracking datasets, in the layouts in which they are published.

To add one: a class or function under `@register_reader("layout")`, here or in a plug-in (`docs/plugins.md`).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from correlation_aware._files import list_frames, natural_order, read_json
from correlation_aware._plugins import load_plugins
from correlation_aware.data.videos.published import (
    GOT10K_SPLITS,
    LASOT_SUBSETS,
    in_got10k_split,
    is_lasot_test,
)
from correlation_aware.data.videos.sequences import (
    Folder,
    SequenceSet,
    Video,
    find_ground_truth,
    first_box_video,
    match_lines,
    read_boxes,
    read_flags,
    read_names,
)
from correlation_aware.data.videos.tar_shards import TarShards

__all__ = ["READERS", "Coco", "Got10k", "LaSOT", "TrackingNet", "open_set", "reader_of", "register_reader"]

_log = logging.getLogger(__name__)


class Got10k:
    """GOT-10k: `ROOT/train/list.txt`, `ROOT/train/GOT-10k_Train_000001/00000001.jpg` and its labels.

    A target is visible where `absence.label` is 0 and `cover.label` above 0, if these files exist.

    Args:
        root: Folder of the subsets.
        subset: Name of the subset, `train` or `val`; `test` has the first box of every video only. Published
            splits of `train`: `train_vot` without the 1,000 videos that the VOT challenges forbid to train on
            (from VOT2019), `train_split` and `val_split` of pytracking, and `vottrain` and `votval`, the same
            without the forbidden ones.

    Raises:
        FileNotFoundError: No such subset, or no videos in it.
    """

    def __init__(self, root: str | Path, subset: str = "train") -> None:
        folder = Path(root) / ("train" if subset in GOT10K_SPLITS else subset)
        names = folder / "list.txt"
        if names.is_file():
            self.folders = [folder / name for name in read_names(names)]
        else:
            self.folders = [path.parent for path in _sorted(folder.glob("*/groundtruth.txt"))]
        if not self.folders:
            raise FileNotFoundError(
                f"{folder} has neither a list.txt nor folders with a groundtruth.txt. Subsets are train, "
                f"val, test, and {', '.join(GOT10K_SPLITS)} of train."
            )
        if subset in GOT10K_SPLITS:
            self.folders = [path for path in self.folders if in_got10k_split(path.name, subset)]
            if not self.folders:
                raise FileNotFoundError(f"None of the videos of {folder} is in the split {subset}.")
        self._first_box_only = subset == "test"
        self.names = [path.name for path in self.folders]

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        if self._first_box_only:
            return first_box_video(str(folder), list_frames(folder), boxes, visible)
        visible &= read_flags(folder / "absence.label", len(boxes)) == 0
        if (folder / "cover.label").is_file():
            visible &= read_flags(folder / "cover.label", len(boxes)) > 0
        return match_lines(str(folder), list_frames(folder), boxes, visible)


class LaSOT:
    """LaSOT: `ROOT/airplane/airplane-1/img/00000001.jpg`, `groundtruth.txt`, `full_occlusion.txt`,
    `out_of_view.txt`.

    Args:
        root: Folder of the class folders, or of the videos themselves.
        names: File with one video name such as `airplane-1` per line, such as the toolkit's
            `training_set.txt`, instead of a subset.
        subset: `train` without the videos of LaSOT's test set, of its extension, and of a `testing_set.txt`
            in `root`; `test` for these alone; or `all`. `train` by default.

    Raises:
        FileNotFoundError: No videos.
        ValueError: An unknown subset, or both `names` and `subset`.
    """

    def __init__(self, root: str | Path, names: str | Path | None = None, subset: str | None = None) -> None:
        if names is not None and subset is not None:
            raise ValueError(f"LaSOT: both names={names} and subset={subset!r} are set: remove one of them.")
        if subset not in (None, *LASOT_SUBSETS):
            raise ValueError(f"LaSOT has no subset {subset!r}; it has {', '.join(LASOT_SUBSETS)}.")
        folders = {folder.name: folder for folder in find_ground_truth(root)}
        selected = list(folders) if names is None else read_names(names)
        if names is None and subset != "all" and folders:
            listed = Path(root) / "testing_set.txt"
            own = set(read_names(listed)) if listed.is_file() else set()
            is_test = {name: name in own or is_lasot_test(name) for name in folders}
            selected = [name for name in folders if is_test[name] == (subset == "test")]
            if not selected:
                raise FileNotFoundError(
                    f"None of {len(folders)} videos in {root} is in LaSOT's subset {subset or 'train'}; "
                    "subset=all takes them all."
                )
            if subset is None and len(selected) < len(folders):
                left_out = len(folders) - len(selected)
                _log.info("lasot:%s: %d of %d videos are left out: tests.", root, left_out, len(folders))
        self.folders = [folders.get(name, Path(root) / name.rpartition("-")[0] / name) for name in selected]
        if not self.folders:
            raise FileNotFoundError(f"There is no video with a groundtruth.txt in {root}.")
        self.names = selected

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Video:
        folder = self.folders[index]
        boxes, visible = read_boxes(folder / "groundtruth.txt")
        for flags in ("full_occlusion.txt", "out_of_view.txt"):
            visible &= read_flags(folder / flags, len(boxes)) == 0
        return match_lines(str(folder), list_frames(folder / "img"), boxes, visible)


class TrackingNet:
    """TrackingNet: `ROOT/TRAIN_0/frames/NAME/0.jpg` and `ROOT/TRAIN_0/anno/NAME.txt`.

    Args:
        root: Folder of `TRAIN_0` to `TRAIN_11`.
        parts: Names of the parts to read, such as `TRAIN_0`; all by default.
        subset: The same as one text, such as `TRAIN_0,TRAIN_1,TRAIN_2,TRAIN_3`, for configurations.

    Raises:
        FileNotFoundError: No annotations, or none in one of the parts.
        ValueError: Both `parts` and `subset`.
    """

    def __init__(
        self, root: str | Path, parts: Sequence[str] | None = None, subset: str | None = None
    ) -> None:
        if parts is not None and subset is not None:
            raise ValueError(f"TrackingNet: both parts={parts} and subset={subset!r} are set: remove one.")
        if subset is not None:
            parts = [part.strip() for part in subset.split(",")]
        folders = _sorted(Path(root).glob("TRAIN_*")) if parts is None else [Path(root) / p for p in parts]
        files = {folder: _sorted(folder.glob("anno/*.txt")) for folder in folders}
        if missing := [folder.name for folder in files if parts is not None and not files[folder]]:
            raise FileNotFoundError(f"There is no anno/*.txt in {', '.join(missing)} of {root}.")
        self.annotations = [path for of_part in files.values() for path in of_part]
        if not self.annotations:
            raise FileNotFoundError(f"There is no TRAIN_*/anno/*.txt in {root}.")
        self.names = [path.stem for path in self.annotations]

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Video:
        path = self.annotations[index]
        boxes, visible = read_boxes(path)
        frames = list_frames(path.parents[1] / "frames" / path.stem)
        return match_lines(str(path), frames, boxes, visible)


class Coco:
    """COCO: `ROOT/annotations/instances_train2017.json` and `ROOT/train2017/000000000009.jpg`.

    Every object is a video of one frame, named by its image. Crowds and objects with a side below 16 pixels
    are left out.

    Args:
        root: Folder of `annotations`; the images may also be in `ROOT/images/train2017`.
        subset: Name of the subset, such as `train2017` or `val2017`.

    Raises:
        FileNotFoundError: No annotation file or no folder of images.
        ValueError: Not an annotation file of COCO instances.
    """

    def __init__(self, root: str | Path, subset: str = "train2017") -> None:
        path = Path(root) / "annotations" / f"instances_{subset}.json"
        folders = [Path(root) / subset, Path(root) / "images" / subset]
        folder = next((path for path in folders if path.is_dir()), None)
        if not path.is_file() or folder is None:
            raise FileNotFoundError(f"COCO needs {path} and images in {folders[0]} or {folders[1]}.")
        try:
            content = read_json(path)
            files = {image["id"]: str(image["file_name"]) for image in content["images"]}
            objects = [
                (files[a["image_id"]], [float(value) for value in a["bbox"]])
                for a in content["annotations"]
                if not a.get("iscrowd") and min(a["bbox"][2:]) >= 16
            ]
            self.boxes = np.array([box for _, box in objects], float).reshape(len(objects), 4)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is not an annotation file of COCO instances: {error!r}.") from error
        self.folder = folder
        self.files = [file for file, _ in objects]

    one_frame = True  # by design, see `data.videos.check`

    @property
    def names(self) -> list[str]:
        """Name of the image of every object, without suffix."""
        return [Path(file).stem for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Video:
        path = self.folder / self.files[index]
        return Video(str(path), [path], self.boxes[index : index + 1], np.ones(1, bool))


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=natural_order)


Reader = Callable[[str | Path], SequenceSet]

READERS: dict[str, Reader] = {
    "coco": Coco,
    "folder": Folder,
    "got10k": Got10k,
    "lasot": LaSOT,
    "tar": lambda root: TarShards(str(root)),
    "trackingnet": TrackingNet,
}


def register_reader(name: str) -> Callable[[Reader], Reader]:
    """Decorator that registers a reader under the name of a layout, for `data.videos={name:ROOT: share}`.

    A reader is a class or function that takes the root folder of a dataset and returns a `SequenceSet`: it
    has a length, and item i is a `Video`.

    Args:
        name: Name of the layout.

    Raises:
        ValueError: The name is registered already, or has a colon.
    """

    def add(reader: Reader) -> Reader:
        if ":" in name:
            raise ValueError(f"The name {name!r} of a reader has a colon, which separates it from the root.")
        if name in READERS:
            raise ValueError(f"The name {name!r} of a reader is taken, as are {', '.join(READERS)}.")
        READERS[name] = reader
        return reader

    return add


def reader_of(name: str) -> Reader:
    """The reader of a layout, plug-ins included.

    Raises:
        ValueError: An unknown layout.
    """
    load_plugins()
    if name not in READERS:
        raise ValueError(f"Unknown layout {name!r}; known layouts: {', '.join(READERS)}.")
    return READERS[name]


def open_set(name: str, root: str | Path) -> SequenceSet:
    """Opens the training part of a dataset.

    Args:
        name: Name of the layout, see `READERS`.
        root: Root folder of the dataset.

    Raises:
        ValueError: An unknown layout.
        FileNotFoundError: No dataset of that layout in `root`.
    """
    return reader_of(name)(root)
