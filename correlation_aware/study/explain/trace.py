"""One pass of several trackers over a video, with the score map of every frame."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import IMAGE_SUFFIXES
from correlation_aware._images import read_image
from correlation_aware.data.videos.sequences import read_boxes
from correlation_aware.evaluation.one_pass import overlap
from correlation_aware.study.explain.measures import MapStatistics, map_statistics
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.live import LiveSource
from correlation_aware.tracking.tracker import Tracker, TrackResult
from correlation_aware.tracking.video import Frame, open_frames

__all__ = ["Source", "Trace", "Truth", "choose_frames", "open_source", "read_truth", "trace_trackers"]

Array = NDArray[np.float64]
Source = Callable[[], Iterator[Frame]]  # a video that can be read several times


@dataclass(frozen=True)
class Truth:
    """Ground truth of a video.

    Attributes:
        boxes: (T, 4) xywh in pixels.
        visible: (T,) whether the target is visible.
    """

    boxes: Array
    visible: NDArray[np.bool_]


@dataclass(frozen=True)
class Trace:
    """Results of one tracker in every frame of a video. Frame 0 is that of the initial box.

    Attributes:
        name: Name of the tracker, unique among those of a call.
        tracker: The tracker.
        results: Result in each of T frames; of the first one the initial box with score 1.
        maps: (H, W) score map of each frame; None in the first one.
        crops: Search region of each frame; None in the first one.
        statistics: Statistics of each score map, of the true box, or of the tracked one without a ground
            truth; None where there is no map or the target is not visible.
        overlaps: (T,) IoU with the ground truth, NaN where the target is not visible; None without one.
    """

    name: str
    tracker: Tracker
    results: list[TrackResult]
    maps: list[Array | None]
    crops: list[Crop | None]
    statistics: list[MapStatistics | None]
    overlaps: Array | None

    @property
    def lost(self) -> NDArray[np.bool_]:
        """(T,) whether the tracker reports the target as lost."""
        return np.array([result.lost for result in self.results])

    def response(self, frame: int) -> tuple[Array, Crop]:
        """Score map and search region of a frame after the first."""
        scores, crop = self.maps[frame], self.crops[frame]
        assert scores is not None and crop is not None
        return scores, crop


def open_source(
    paths: Sequence[str | Path], limit: int | None = None, depth_range: tuple[float, float] | None = None
) -> Source:
    """A video that can be read several times.

    Args:
        paths: One video file or folder of frames, or two or more image files in order.
        limit: Largest number of frames.
        depth_range: See `open_frames`.

    Raises:
        ValueError: No path, a camera, or what `open_frames` refuses.
        FileNotFoundError: No such file.
    """
    if not paths:
        raise ValueError("There is no source: give a video file, a folder of frames, or two image files.")
    if len(paths) > 1:
        folders = [path for path in paths if Path(path).is_dir()]
        if folders:
            raise ValueError(f"{folders[0]} is a folder: give one folder alone, or image files.")
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"There is no image file {missing[0]}.")
        return lambda: (read_image(Path(path), depth_range) for path in paths[:limit])
    if str(paths[0]).lstrip("-").isdigit() and not isinstance(paths[0], Path):
        raise ValueError(f"{paths[0]} is a camera, which cannot be read twice: record a video first.")
    if Path(paths[0]).is_file() and Path(paths[0]).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(
            f"{paths[0]} is a single image: give a second one, to search in, or the folder of the frames, "
            f"{Path(paths[0]).parent}."
        )
    with open_frames(paths[0], limit, depth_range) as frames:  # raises at once
        if isinstance(frames, LiveSource):
            raise ValueError(f"{paths[0]} is a stream, which cannot be read twice: record a video first.")

    def read() -> Iterator[Frame]:
        with open_frames(paths[0], limit, depth_range) as frames:
            yield from frames

    return read


def choose_frames(source: Source, numbers: Iterable[int]) -> dict[int, Frame]:
    """Frames of a video by their numbers."""
    remaining = set(numbers)
    chosen = {}
    for i, frame in enumerate(source()):
        if i in remaining:
            chosen[i] = frame
        if i >= max(remaining):
            break
    return chosen


def read_truth(path: str | Path) -> Truth:
    """Reads a ground truth: a line x, y, w, h for each frame, `nan` or a box without area if it is invisible.

    Raises:
        OSError: No such file.
        ValueError: Something else than 4 or 8 numbers per line.
    """
    return Truth(*read_boxes(Path(path)))


def trace_trackers(
    trackers: Sequence[Tracker],
    source: Source,
    box: Sequence[float],
    truth: Truth | None = None,
    threshold: float = 0.5,
    on_frame: Callable[[], object] = lambda: None,
) -> list[Trace]:
    """Tracks one target by each tracker.

    Args:
        trackers: Trackers.
        source: Video, see `open_source`.
        box: x, y, w, h of the target in the first frame, in pixels.
        truth: Ground truth, of at least as many frames as the video.
        threshold: Smallest score of a positive location, see `map_statistics`.
        on_frame: Function that is called after every frame, for progress.

    Raises:
        ValueError: A wrong box, fewer than two frames, or a ground truth of fewer frames.
    """
    names = [tracker.name for tracker in trackers]
    for i, tracker in enumerate(trackers):
        if names.count(names[i]) > 1:
            names[i] = f"{tracker.name} ({i + 1}: {tracker.weights_name})"
    start = TrackResult((float(box[0]), float(box[1]), float(box[2]), float(box[3])), 1.0, False)
    traces = [Trace(name, t, [start], [None], [None], [None], None) for name, t in zip(names, trackers)]
    count = 0
    for count, frame in enumerate(source(), start=1):
        if truth is not None and count > len(truth.boxes):
            raise ValueError(
                f"The ground truth has {len(truth.boxes)} lines, but the video has more frames: give a line "
                "for each frame, or a limit."
            )
        for trace in traces:
            if count == 1:
                trace.tracker.init(frame, box)
            else:
                _update(trace, frame, truth, count - 1, threshold)
        on_frame()
    if count < 2:
        raise ValueError(f"The video has {count} frames; two are needed: one of the box, one to search in.")
    if truth is None:
        return traces
    boxes, visible = truth.boxes[:count], truth.visible[:count]
    tracked = [np.array([result.box for result in trace.results]) for trace in traces]
    overlaps = [np.where(visible, overlap(of_one, boxes), np.nan) for of_one in tracked]
    return [replace(trace, overlaps=values) for trace, values in zip(traces, overlaps)]


def _update(trace: Trace, frame: Frame, truth: Truth | None, index: int, threshold: float) -> None:
    """Tracks in one frame and adds what is known about it to the trace."""
    result = trace.tracker.update(frame)
    response = trace.tracker.response
    assert isinstance(result, TrackResult) and response is not None
    scores, crop = response.scores[0].double().cpu().numpy(), response.crops[0]
    trace.results.append(result)
    trace.maps.append(scores)
    trace.crops.append(crop)
    statistics = None
    if truth is None:
        statistics = map_statistics(scores, crop, result.box, threshold)
    elif truth.visible[index]:
        statistics = map_statistics(scores, crop, truth.boxes[index], threshold)
    trace.statistics.append(statistics)
