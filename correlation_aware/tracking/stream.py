"""`track`: tracks targets through a source of frames, one result per frame."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from correlation_aware.models.tracker import TrackModel
from correlation_aware.runtime import Runtime
from correlation_aware.tracking.frame_source import Frame, FrameSource
from correlation_aware.tracking.tracker import Tracker, TrackerConfig, TrackResult, create_tracker
from correlation_aware.tracking.video import open_frames

__all__ = ["FrameResults", "Tracking", "track"]


@dataclass(frozen=True)
class FrameResults:
    """Results of all targets in one frame.

    Attributes:
        index: Number of the frame in its source, from 0.
        time: Seconds from the beginning of the source.
        frame: uint8 RGB (H, W, 3).
        targets: One result per target. In the first frame of a target it is the given box, with score 1.
    """

    index: int
    time: float
    frame: Frame
    targets: tuple[TrackResult, ...]

    def rows(self) -> list[dict[str, float]]:
        """One row per target, for `pandas.DataFrame` and the like, with the columns of `ResultWriter`."""
        return [
            {
                "frame": self.index,
                "target": result.target,
                **dict(zip("xywh", result.box)),
                "score": result.score,
                "lost": int(result.lost),
                "time": self.time,
            }
            for result in self.targets
        ]

    def to_supervision(self) -> Any:
        """The results as `supervision.Detections`, with scores and tracker ids.

        `data["lost"]` says which targets are lost.

        Raises:
            ModuleNotFoundError: The package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("supervision is not installed: pip install supervision") from error
        boxes = np.array([result.box for result in self.targets], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return supervision.Detections(
            xyxy=boxes,
            confidence=np.array([result.score for result in self.targets], np.float32),
            class_id=np.zeros(len(boxes), int),
            tracker_id=np.array([result.target for result in self.targets], int),
            data={"lost": np.array([result.lost for result in self.targets], bool)},
        )


class Tracking(Iterator[FrameResults]):
    """An iterator over the results of a source of frames. Close it, or use it in a `with` block.

    Args:
        source: Frames.
        tracker: Tracker; if it has targets and `boxes` is None, they are tracked on.
        boxes: x, y, w, h in pixels of the first frame, or (N, 4) for N targets; None for no target yet.

    Attributes:
        source: Frames.
        tracker: Tracker.
        decode_seconds: Seconds spent waiting for frames so far.
    """

    def __init__(self, source: FrameSource, tracker: Tracker, boxes: ArrayLike | None = None) -> None:
        self.source = source
        self.tracker = tracker
        self.decode_seconds = 0.0
        self._boxes = boxes
        self._frame: Frame | None = None
        self._has_targets = boxes is None and bool(tracker.targets)
        self._ended = False

    def __next__(self) -> FrameResults:
        before = time.perf_counter()
        try:
            frame = next(self.source)
        except StopIteration:
            self._ended = True
            raise
        self.decode_seconds += time.perf_counter() - before
        first, self._frame = self._frame is None, frame
        results: list[TrackResult] = []
        if first and self._boxes is not None:
            results = self._start(frame, self._boxes)
        elif self._has_targets:
            update = self.tracker.update(frame)
            results = update if isinstance(update, list) else [update]
        return FrameResults(self.source.index, self.source.time, frame, tuple(results))

    def _start(self, frame: Frame, boxes: ArrayLike) -> list[TrackResult]:
        self.tracker.init(frame, boxes)  # checks them
        many = np.reshape(boxes, (-1, 4))
        self._has_targets = True
        return [TrackResult((x, y, w, h), 1.0, False, i) for i, (x, y, w, h) in enumerate(many.tolist())]

    def add(self, box: ArrayLike) -> tuple[int, ...]:
        """Adds targets in the latest frame; their results come from the next frame on, if there is one.

        Args:
            box: x, y, w, h in pixels of the latest frame, or (N, 4) for N targets.

        Returns:
            Numbers of the new targets.

        Raises:
            RuntimeError: There is no frame yet, or the source has ended.
            ValueError: An invalid box.
        """
        if self._frame is None:
            raise RuntimeError(
                "There is no frame yet: take one with next(...), or give the boxes to track()."
            )
        if self._ended:
            raise RuntimeError(
                f"The source, {self.source.name}, has ended: no frame follows in which a new target could be "
                "tracked. For frames of another source call add(frame, box) of the tracker."
            )
        numbers = self.tracker.add(self._frame, box)
        self._has_targets = True
        return numbers

    def remove(self, target: int) -> None:
        """Stops tracking a target.

        Raises:
            ValueError: No such target.
        """
        self.tracker.remove(target)

    def close(self) -> None:
        """Releases the file, camera or stream."""
        self.source.close()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(
    source: str | Path | int | Iterable[Frame],
    boxes: ArrayLike | None = None,
    *,
    model: str | Path | TrackModel | None = None,
    device: str | None = None,
    runtime: Runtime = "auto",
    config: TrackerConfig | None = None,
    decode: str | None = None,
    tracker: Tracker | None = None,
    start: int | str = 0,
    every: int = 1,
    limit: int | None = None,
    depth_range: tuple[float, float] | None = None,
) -> Tracking:
    """Tracks targets through a video, frames in a folder, a camera, a stream or an iterable of frames.

    Args:
        source: Source of frames, see `open_frames`.
        boxes: x, y, w, h in pixels of the first frame, or (N, 4) for N targets; by default none, until `add`
            of the returned iterator is called.
        model: Model, see `create_tracker`.
        device: Device, see `create_tracker`.
        runtime: Runtime, see `create_tracker`.
        config: Settings of the tracker, see `create_tracker`.
        decode: Name of such settings, see `create_tracker`.
        tracker: Tracker, instead of the five arguments before. Without `boxes` its targets are tracked on.
        start: First frame: its number from 0, or a time such as `12.5s` or `1:20`.
        every: Step from each frame to the next one that is read.
        limit: Largest number of frames.
        depth_range: Values of 16-bit or float images that become 0 and 255.

    Returns:
        An iterator over the results, whose first frame has the given boxes with score 1.

    Raises:
        ValueError: `tracker` together with arguments that describe another one.
        TypeError: A `tracker` that is no tracker, such as a name, or a source of another type.
        FileNotFoundError, RuntimeError, ValueError: As of `open_frames` and `create_tracker`.

    Examples:
        >>> for result in ca.track("video.mp4", (120, 80, 64, 48)):
        ...     print(result.index, result.time, result.targets[0].box, result.targets[0].lost)
    """
    options = {"model": model, "device": device, "config": config, "decode": decode}
    unused = [name for name, value in options.items() if value is not None]
    unused += ["runtime"] * (runtime != "auto")
    if tracker is not None and not hasattr(tracker, "init"):
        raise TypeError(
            f"tracker={tracker!r} must be a Tracker of create_tracker; give the name of a model as model=."
        )
    if tracker is not None and unused:
        names = ", ".join(unused)
        raise ValueError(f"{names} has no effect on a tracker that exists: leave out {names}, or tracker.")
    frames = open_frames(source, limit, depth_range, start=start, every=every)
    try:
        tracker = tracker or create_tracker(
            model, device=device, runtime=runtime, config=config, decode=decode
        )
    except BaseException:
        frames.close()
        raise
    return Tracking(frames, tracker, boxes)
