"""Semi-supervised video object segmentation on DAVIS: its layout, its masks, and its measures.

`ROOT/ImageSets/2017/val.txt`, `ROOT/JPEGImages/480p/NAME/00000.jpg`, `ROOT/Annotations/480p/NAME/00000.png`.
The first mask is given. All annotated frames but the first and the last are measured, each object of the
first mask by itself, as in https://github.com/davisvideochallenge/davis2017-evaluation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from correlation_aware._extras import require
from correlation_aware._files import list_frames
from correlation_aware._images import image_size
from correlation_aware.data.videos.sequences import read_names
from correlation_aware.evaluation.benchmarks import select_names
from correlation_aware.evaluation.masks import boundary_accuracy, region_similarity

__all__ = [
    "METRICS",
    "VOID",
    "Davis",
    "Labels",
    "MaskResult",
    "MaskVideo",
    "Metric",
    "check_labels",
    "decode_labels",
    "read_labels",
    "score_masks",
]

Labels = NDArray[np.uint8]
Metric = Literal["own", "vos-benchmark"]
METRICS: tuple[Metric, ...] = get_args(Metric)

VOID = 255  # label of pixels that are not measured, unless the first mask has no other label


@dataclass(frozen=True)
class MaskVideo:
    """A sequence with its annotation.

    Attributes:
        name: Name of the sequence.
        frames: Image files.
        annotations: Files of masks by the stems of their frames, in the order of the frames.
        first: (H, W) mask of the first frame, without void pixels.
        objects: Labels of the objects in it.
        is_binary: Whether the files have 0 and 255 for the background and the one object, which has the
            label 1 here.
    """

    name: str
    frames: Sequence[Path]
    annotations: Mapping[str, Path]
    first: Labels
    objects: tuple[int, ...]
    is_binary: bool

    @property
    def measured(self) -> list[str]:
        """Stems of the annotated frames without the first and the last one."""
        return list(self.annotations)[1:-1]


@dataclass(frozen=True)
class MaskResult:
    """How well the masks of a sequence fit.

    Attributes:
        name: Name of the sequence.
        objects: Labels of the objects.
        j: (frames, objects) region similarity.
        f: (frames, objects) boundary accuracy.
        late: Labels of the annotation that are not in the first mask and are not measured.
        seconds: (N - 1,) duration of each `update` without reading images; empty if unknown.
    """

    name: str
    objects: tuple[int, ...]
    j: NDArray[np.float64]
    f: NDArray[np.float64]
    late: tuple[int, ...] = ()
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


class Davis:
    """DAVIS, or sequences of one's own in its layout.

    Args:
        root: Folder of `ImageSets`, `JPEGImages` and `Annotations`.
        subset: Path of the list of names in `ImageSets`, without its suffix.
        resolution: Folder in `JPEGImages` and `Annotations`.

    Raises:
        FileNotFoundError: No such folder or list.
        ValueError: A list without names.
    """

    title = "DAVIS"

    def __init__(self, root: str | Path, subset: str = "2017/val", resolution: str = "480p") -> None:
        self.root, self.subset = Path(root), subset
        self.frames, self.masks = (self.root / kind / resolution for kind in ("JPEGImages", "Annotations"))
        lists = self.root / "ImageSets"
        for folder in (self.root, lists, self.frames, self.masks):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"There is no folder {folder}; expected DAVIS' layout: ImageSets/{subset}.txt, "
                    f"JPEGImages/{resolution}/NAME and Annotations/{resolution}/NAME in {root}."
                )
        file = lists / f"{subset}.txt"
        if not file.is_file():
            known = sorted(str(path.relative_to(lists).with_suffix("")) for path in lists.rglob("*.txt"))
            raise FileNotFoundError(f"There is no list {file}; subsets here: {', '.join(known) or 'none'}.")
        # lines are names, or in DAVIS-2016 pairs of paths of a frame and its mask
        names = (Path(line.split()[0]).parent.name if "/" in line else line for line in read_names(file))
        self.names = list(dict.fromkeys(names))
        if not self.names:
            raise ValueError(f"{file} has no names of sequences.")

    def select(self, names: Sequence[str] | None) -> list[str]:
        """The names of sequences to evaluate, all for None.

        Raises:
            ValueError: An unknown name.
        """
        return select_names(names, self.names)

    def __getitem__(self, name: str) -> MaskVideo:
        """The frames and the annotation of a sequence.

        Raises:
            ValueError: No frames, a mask of no frame, a first mask that is missing, has no object or another
                size than its frame, or is no mask.
            OSError: Missing files.
        """
        frames = list_frames(self.frames / name)
        if not frames:
            raise ValueError(f"{self.frames / name} has no frames")
        masks = {path.stem: path for path in list_frames(self.masks / name)}
        stems = [path.stem for path in frames]
        unknown = sorted(set(masks) - set(stems))
        if unknown:
            raise ValueError(f"{masks[unknown[0]]} is a mask of no frame in {self.frames / name}")
        if stems[0] not in masks:
            raise ValueError(f"{self.masks / name} has no mask of the first frame, {frames[0].name}")
        first = read_labels(masks[stems[0]])
        width, height = image_size(frames[0])
        if first.shape != (height, width):
            raise ValueError(
                f"{masks[stems[0]]} is {first.shape[1]} x {first.shape[0]} px, its frame {width} x {height}"
            )
        is_binary = set(np.unique(first).tolist()) in ({0, VOID}, {VOID})
        first = np.where(first == VOID, int(is_binary), first).astype(np.uint8)
        objects = tuple(int(label) for label in np.unique(first) if label)
        if not objects:
            raise ValueError(f"{masks[stems[0]]} has no object: all labels are 0")
        annotations = {stem: masks[stem] for stem in stems if stem in masks}
        return MaskVideo(name, frames, annotations, first, objects, is_binary)


def read_labels(path: str | Path) -> Labels:
    """Reads a mask file: the indices of a palette, or gray values, which are labels; uint8 (H, W).

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, a damaged one, or one of colors, with alpha or with more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                raise ValueError(f"{path} is a JPEG, which changes labels; a mask is a PNG")
            if image.mode not in ("1", "L", "P"):
                raise ValueError(
                    f"{path} has the mode {image.mode}; a mask has a palette or gray values, whose numbers "
                    "are the labels of the objects (8 bits, no alpha)"
                )
            return np.array(image).astype(np.uint8)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} is not an image, or a damaged one: {error}") from error


def score_masks(
    video: MaskVideo, masks: Iterable[Labels], metric: Metric = "own", seconds: Sequence[float] = ()
) -> MaskResult:
    """Compares masks with the annotation.

    Void pixels (255) of the annotation count as background of both. An object that is absent in a frame has J
    and F of 1 if its mask is empty, else 0.

    Args:
        video: Sequence.
        masks: (H, W) labels for each of `video.measured`.
        metric: `own`, or `vos-benchmark` for the package of this name.
        seconds: Durations.

    Raises:
        ValueError: Nothing to measure, masks of another size, with labels that the first mask does not have,
            or an annotation that is no mask.
        ModuleNotFoundError: vos-benchmark is not installed.
    """
    if metric not in METRICS:
        raise ValueError(f"Unknown metric {metric!r}; known: {', '.join(METRICS)}.")
    if not video.measured:
        raise ValueError(
            f"{video.name} has {len(video.annotations)} annotated frames, and the first and the last are not "
            "measured: nothing is left"
        )
    late: set[int] = set()
    pairs = []
    for stem, mask in zip(video.measured, masks, strict=True):
        truth = decode_labels(read_labels(video.annotations[stem]), video, video.annotations[stem])
        where = f"the mask of frame {stem}"
        check_labels(mask, video, where)
        if truth.shape != mask.shape:
            raise ValueError(f"{where} is {mask.shape} and its annotation {truth.shape}")
        void = np.zeros(truth.shape, bool) if video.is_binary else truth == VOID
        late |= set(np.unique(truth[~void]).tolist()) - {0, *video.objects}
        others = ~np.isin(truth, video.objects)
        pairs.append((np.where(void, 0, mask), np.where(others, 0, truth)))
    j, f = (_toolkit if metric == "vos-benchmark" else _measure)(pairs, video.objects)
    return MaskResult(video.name, video.objects, j, f, tuple(sorted(late)), np.array(seconds, float))


def _measure(pairs: Sequence[tuple[Any, Any]], objects: Sequence[int]) -> tuple[Any, Any]:
    """J and F, each (frames, objects)."""
    of_both = [[(mask == label, truth == label) for label in objects] for mask, truth in pairs]
    return tuple(
        np.array([[measure(mask, truth) for mask, truth in row] for row in of_both], float)
        for measure in (region_similarity, boundary_accuracy)
    )  # type: ignore[return-value]


def _toolkit(pairs: Sequence[tuple[Any, Any]], objects: Sequence[int]) -> tuple[Any, Any]:
    """`_measure` by vos-benchmark."""
    (module,) = require("vos_benchmark.evaluator")
    evaluator = module.Evaluator()
    evaluator.objects_in_gt.update(objects)  # also those that are absent for some time
    for mask, truth in pairs:
        evaluator.feed_frame(mask, truth)
    return tuple(
        np.array([values[label] for label in objects], float).T
        for values in (evaluator.object_iou, evaluator.boundary_f)
    )


def check_labels(mask: NDArray[Any], video: MaskVideo, where: str) -> None:
    """Checks a mask of a result.

    Args:
        mask: Mask.
        video: Its sequence.
        where: What it is, for messages.

    Raises:
        ValueError: Another shape or type, or a label that is no object.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or mask.shape != video.first.shape:
        raise ValueError(
            f"{where} is {mask.dtype} {mask.shape}; expected integer labels {video.first.shape}, the size of "
            "the first mask"
        )
    unknown = set(np.unique(mask).tolist()) - {0, *video.objects}
    if unknown:
        raise ValueError(
            f"{where} has the label {min(unknown)}, which is no object of the first mask: "
            f"{', '.join(map(str, video.objects))}"
        )


def decode_labels(labels: Labels, video: MaskVideo, path: Path) -> Labels:
    """Labels of a file of a sequence; 255 is the object of a binary one, whose files may also have 0 and 1.

    Args:
        labels: (H, W) values of the file.
        video: The sequence.
        path: The file, for messages.

    Raises:
        ValueError: Other values in a file of a binary sequence.
    """
    if not video.is_binary:
        return labels
    values = set(np.unique(labels).tolist())
    if not (values <= {0, VOID} or values <= {0, 1}):
        raise ValueError(
            f"{path} has the labels {', '.join(map(str, sorted(values)))}; expected 0 and 255, or 0 and 1: "
            f"the first mask of {video.name} has 0 and 255"
        )
    return (labels > 0).astype(np.uint8)
