"""Summaries of training data, and mistakes in boxes that training would not notice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from correlation_aware._images import image_size
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.videos.sequences import AnnotationError, File, SequenceSet
from correlation_aware.data.videos.subsets import VideoSet, names_videos, open_videos, shorten

__all__ = ["Summary", "check_source", "summarize_videos"]

WRONG_SHARE = 0.1  # of the videos: more of them with the same mistake are a mistake of the dataset


@dataclass
class Summary:
    """What a source of training data has.

    Attributes:
        name: Name of the source.
        lines: Figures and remarks for a reader.
        mistakes: Mistakes in the boxes, each with what to do.
        left_out: Damaged files and annotations that are left out, with the reason.
    """

    name: str
    lines: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def text(self, full: bool = False) -> Iterator[str]:
        """Lines to print; `full` lists all that is left out."""
        yield f"{self.name}: {self.lines[0]}"
        yield from (f"  {line}" for line in self.lines[1:])
        for reason in self.left_out if full else [shorten(self.left_out)] * bool(self.left_out):
            yield f"  left out: {reason}"
        yield from (f"  WRONG: {mistake}" for mistake in self.mistakes)


def check_source(location: str, part: VideoSet | float = 1.0) -> Summary:
    """Reads all annotations of a dataset of videos, or all photographs of a source of stills.

    Args:
        location: `LAYOUT:ROOT` of videos, or a folder or tar shards of photographs.
        part: Part of a dataset of videos.

    Raises:
        ValueError, FileNotFoundError: A source that cannot be opened.
    """
    if names_videos(location):
        return summarize_videos(location, open_videos(location, part))
    if VideoSet.of(part).subset is not None:
        raise ValueError(f"{location} has no subsets: photographs are a folder or tar shards.")
    errors = ErrorBudget(limit=float("inf"), quiet=True)
    sizes, masks, labels = [], 0, set()
    for still in read_stills(location, 1 << 30, errors):
        sizes.append(max(still.image.shape[:2]))
        masks += still.mask is not None
        labels.add(still.label)
    side = int(np.median(sizes))
    line = (
        f"{len(sizes)} photographs, {masks} with a mask, {len(labels - {''})} classes, median side {side} px"
    )
    return Summary(location, [line], left_out=[f"{name} ({why})" for name, why in errors.damaged.items()])


@dataclass(frozen=True)
class _VideoFacts:
    """One video: number of frames, visible boxes (N, 4), and width and height of their frames (N, 2)."""

    name: str
    frames: int
    boxes: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @property
    def outside(self) -> NDArray[np.bool_]:
        """(N,) boxes whose center is outside the frame."""
        center = self.boxes[:, :2] + self.boxes[:, 2:] / 2
        return np.any((center <= 0) | (center >= self.sizes), axis=1)


def summarize_videos(name: str, dataset: SequenceSet, limit: int | None = None) -> Summary:
    """Counts videos and frames, measures targets, and looks for boxes in another format.

    Args:
        name: Name of the dataset.
        dataset: Dataset.
        limit: Number of videos to read, spread evenly; all by default.
    """
    count = len(dataset)
    indices = np.unique(np.linspace(0, count - 1, min(count, limit or count)).round().astype(int)).tolist()
    facts: list[_VideoFacts] = []
    damaged = getattr(dataset, "damaged", {})
    summary = Summary(name, left_out=[f"{file} ({reason})" for file, reason in damaged.items()])
    for index in indices:
        try:
            video = dataset[index]
            boxes = video.boxes[video.visible]
            sizes = _frame_sizes([frame for frame, seen in zip(video.frames, video.visible) if seen], boxes)
        except AnnotationError as error:
            summary.left_out.append(str(error).rstrip("."))
            continue
        except (OSError, ValueError) as error:
            summary.left_out.append(f"video {index} ({error})")
            continue
        if video.remark:
            summary.left_out.append(f"{video.name} ({video.remark})")
        facts.append(_VideoFacts(video.name, len(video.frames), boxes, sizes))
    _describe(summary, facts, count, len(indices))
    if facts:
        _find_mistakes(summary, facts, bool(getattr(dataset, "one_frame", False)))
    return summary


def _frame_sizes(frames: Sequence[File], boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, 2) width and height, from the headers of the first frame and of those that a box seems to leave."""
    sizes = np.zeros((len(frames), 2), np.int64)
    for i, frame in enumerate(frames):
        if i == 0 or (boxes[i, :2] + boxes[i, 2:] > sizes[0]).any():
            sizes[i] = image_size(frame)
        else:
            sizes[i] = sizes[0]
    return sizes


def _describe(summary: Summary, facts: Sequence[_VideoFacts], count: int, read: int) -> None:
    frames = sum(f.frames for f in facts)
    visible = sum(len(f.boxes) for f in facts)
    sides = np.concatenate([np.sqrt(f.boxes[:, 2:].prod(axis=1)) for f in facts]) if facts else np.empty(0)
    outside = sum(int(f.outside.sum()) for f in facts)
    sample = "" if read == count else f" (figures of {read} of them)"
    per_video = f", {frames / len(facts):.0f} frames per video" if facts else ""
    summary.lines.append(f"{count} videos{sample}, {frames} frames{per_video}")
    if visible:
        summary.lines.append(
            f"target visible in {visible / frames:.1%} of the frames, median size {np.median(sides):.1f} px, "
            f"center outside the frame in {outside / visible:.2%}"
        )


def _find_mistakes(summary: Summary, facts: Sequence[_VideoFacts], one_frame: bool) -> None:
    visible = [f for f in facts if len(f.boxes)]
    if not visible:
        summary.mistakes.append("no video has a visible target; check the annotation files and flags")
        return
    few = [f.name for f in facts if len(f.boxes) < 2]
    normalized = [f.name for f in visible if f.boxes.max() <= 1.5]
    tiny = [
        f.name
        for f in visible
        if f.name not in normalized and np.median(np.sqrt(f.boxes[:, 2:].prod(axis=1))) < 2
    ]
    remarks = (
        (normalized, "have boxes in 0..1; boxes are x, y, w, h in pixels: multiply them by the frame's size"),
        (tiny, "have targets below 2 px; boxes are x, y, w, h in pixels of the frames as stored"),
        ([] if one_frame else few, "have fewer than two frames with a visible target: no motion to learn"),
    )
    for names, text in remarks:
        if names:
            line = f"{len(names)} of {len(facts)} videos {text} ({shorten(names)})"
            (summary.mistakes if len(names) > WRONG_SHARE * len(facts) else summary.lines).append(line)
    if _are_corners(visible):
        summary.mistakes.append(
            "the boxes look like corners x1, y1, x2, y2: read as x, y, w, h many of them leave the frame; "
            "write w = x2 - x1 and h = y2 - y1"
        )


def _are_corners(facts: Sequence[_VideoFacts]) -> bool:
    """Whether all boxes fit into their frames as corners, and many do not as x, y, w, h."""
    boxes, sizes = np.concatenate([f.boxes for f in facts]), np.concatenate([f.sizes for f in facts])
    fit_as_corners = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + 1)).all(axis=1)
    leave_as_sizes = (boxes[:, :2] + boxes[:, 2:] > 1.02 * sizes + 1).any(axis=1)
    return bool(fit_as_corners.mean() > 0.98 and leave_as_sizes.mean() > 0.2)
