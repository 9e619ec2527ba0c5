"""Runs over DAVIS, or sequences in its layout, and the folders of masks that they write."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from correlation_aware._images import read_image
from correlation_aware.evaluation.benchmarks import SequenceFailure
from correlation_aware.evaluation.davis import (
    VOID,
    Davis,
    Labels,
    MaskResult,
    MaskVideo,
    Metric,
    check_labels,
    decode_labels,
    read_labels,
    score_masks,
)
from correlation_aware.evaluation.one_pass import Frame
from correlation_aware.evaluation.results import OTHER_FOLDER
from correlation_aware.evaluation.shared_run import start_run

__all__ = ["MaskFolder", "Segmenter", "evaluate", "read_results"]


class Segmenter(Protocol):
    """Interface of what is evaluated.

    Frames are uint8 RGB (H, W, 3), masks uint8 (H, W) labels of the objects, 0 for the background.
    """

    def init(self, frame: Frame, mask: Labels, /) -> object: ...

    def update(self, frame: Frame, /) -> Any: ...


class MaskFolder:
    """Masks of one run in `FOLDER/DAVIS/NAME/SEQUENCE/00000.png`, with the manifest `FOLDER/DAVIS/NAME.json`.

    The folder of a sequence appears when it is complete.

    Args:
        path: Folder of the sequences.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def start(cls, folder: str | Path, name: str, run: Mapping[str, Any]) -> "MaskFolder":
        """The folder of a run: a new one, or one that the same run was stopped in.

        Args:
            folder: Folder of all results.
            name: Name of the tracker.
            run: Manifest of `describe_run`.

        Raises:
            ValueError: Results of another run.
        """
        masks = cls(Path(folder) / Davis.title / name)
        start_run(masks.path, masks.path.with_name(f"{name}.json"), run, OTHER_FOLDER)
        return masks

    def is_finished(self, name: str) -> bool:
        """Whether the masks of a sequence are there."""
        return (self.path / name).is_dir()

    def write(self, video: MaskVideo, masks: Iterable[Labels]) -> None:
        """Writes the masks of all frames: with DAVIS' palette, or 0 and 255 as the annotation."""
        temporary = self.path / f".{video.name}.partial"
        if temporary.exists():  # of a killed process
            shutil.rmtree(temporary)
        temporary.mkdir()
        for frame, mask in zip(video.frames, masks, strict=True):
            image = Image.fromarray(mask * np.uint8(VOID if video.is_binary else 1))
            if not video.is_binary:
                image.putpalette(PALETTE)
            image.save(temporary / f"{frame.stem}.png")
        temporary.rename(self.path / video.name)

    def read(self, video: MaskVideo) -> Iterator[Labels]:
        """Yields the masks of the measured frames.

        Raises:
            FileNotFoundError: A missing file.
            ValueError: A file that is no mask.
        """
        for stem in video.measured:
            path = self.path / video.name / f"{stem}.png"
            yield decode_labels(read_labels(path), video, path)


def evaluate(
    segmenter: Segmenter,
    davis: Davis,
    names: Sequence[str],
    metric: Metric = "own",
    folder: MaskFolder | None = None,
) -> Iterator[MaskResult | SequenceFailure]:
    """Segments every sequence once, from its first mask on, or reads what is finished, and measures it.

    Args:
        segmenter: What is evaluated.
        davis: Sequences.
        names: Names of the sequences.
        metric: See `score_masks`.
        folder: Folder to write the masks to.

    Yields:
        The result of each sequence, or why it has none.
    """
    for name in names:
        try:
            video = davis[name]
            if folder is not None and folder.is_finished(name):
                yield score_masks(video, folder.read(video), metric)
                continue
            masks, seconds = _segment(segmenter, video)
            if folder is not None:
                folder.write(video, masks)
            by_stem = {frame.stem: mask for frame, mask in zip(video.frames, masks)}
            yield score_masks(video, [by_stem[stem] for stem in video.measured], metric, seconds)
        except Exception as error:  # of the files, or of somebody's segmenter: the other sequences go on
            yield SequenceFailure.of(name, error)


def read_results(
    folder: MaskFolder, davis: Davis, names: Sequence[str], metric: Metric = "own"
) -> Iterator[MaskResult | SequenceFailure]:
    """Measures the masks of a folder; arguments as of `evaluate`.

    Yields:
        The result of each sequence, or why it has none.
    """
    for name in names:
        try:
            video = davis[name]
            yield score_masks(video, folder.read(video), metric)
        except (OSError, ValueError) as error:
            yield SequenceFailure.of(name, error)


def _segment(segmenter: Segmenter, video: MaskVideo) -> tuple[list[Labels], list[float]]:
    """Masks of all frames, and the seconds of all but the first."""
    masks, seconds = [video.first], []
    segmenter.init(read_image(video.frames[0]), video.first.copy())
    for path in video.frames[1:]:
        frame = read_image(path)
        start = time.perf_counter()
        mask = np.asarray(segmenter.update(frame))
        seconds.append(time.perf_counter() - start)
        check_labels(mask, video, f"the mask of frame {path.stem}")
        masks.append(mask.astype(np.uint8))
    return masks, seconds


def _palette() -> list[int]:
    """The colors of 256 labels in the files of DAVIS, which are those of PASCAL VOC: R, G, B, R, ..."""
    labels = np.arange(256)[:, None]
    bits = (labels[..., None] >> (3 * np.arange(8) + np.arange(3)[:, None])) & 1  # label, channel, bit
    return [int(value) for value in (bits << (7 - np.arange(8))).sum(axis=2).ravel()]


PALETTE = _palette()
