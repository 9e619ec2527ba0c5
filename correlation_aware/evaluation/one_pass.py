"""One-pass evaluation: start a tracker on the first frame, let it run, compare its boxes with the truth."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from correlation_aware.tracking.tracker import TrackResult

__all__ = ["OnePassTracker", "Scores", "SequenceResult", "average", "overlap", "run_sequence", "score"]

THRESHOLDS = np.linspace(0, 1, 21)  # of the success curve, as in OTB

Array = NDArray[np.float64]
Frame = NDArray[np.uint8]


class OnePassTracker(Protocol):
    """All that the evaluation sees of a tracker."""

    def init(self, frame: Frame, box: Array, /) -> None: ...

    def update(self, frame: Frame, /) -> TrackResult | list[TrackResult]: ...


@dataclass(frozen=True)
class SequenceResult:
    """One pass over one sequence of N frames; the first frame's box is the given one, with score 1.

    Attributes:
        name: Of the sequence.
        boxes: (N, 4) xywh.
        scores: (N,) the tracker's own, in 0..1.
        seconds: (N,) of `init` and of each `update`; reading the picture is not counted.
        overlaps: (N,) IoU with the truth, NaN where the target cannot be seen; None where the truth is
            withheld.
    """

    name: str
    boxes: Array
    scores: Array
    seconds: Array
    overlaps: Array | None

    @property
    def ious(self) -> Array:
        """Overlaps that count: those of the frames after the first in which the target can be seen."""
        return np.empty(0) if self.overlaps is None else self.overlaps[self.counts]

    @property
    def counts(self) -> NDArray[np.bool_]:
        """(N,) which frames count."""
        if self.overlaps is None:
            return np.zeros(len(self.boxes), bool)
        return ~np.isnan(self.overlaps) & (np.arange(len(self.boxes)) > 0)


@dataclass(frozen=True)
class Scores:
    """What is reported.

    Attributes:
        ao: Average overlap.
        sr50: Share of frames with an overlap above 0.5.
        sr75: The same above 0.75.
        auc: Area under the success curve, 21 thresholds as in OTB.
        fps: Frames over the seconds of all `update` calls.
        frames: Number of frames that count.
    """

    ao: float
    sr50: float
    sr75: float
    auc: float
    fps: float
    frames: int


def run_sequence(
    tracker: OnePassTracker, frames: Iterable[Frame], start: Array
) -> tuple[Array, Array, Array]:
    """Tracks through frames.

    Args:
        tracker: It is started on the first frame.
        frames: uint8 RGB (H, W, 3).
        start: Box of the target in the first frame, xywh in pixels.

    Returns:
        Boxes, scores and seconds as in `SequenceResult`.
    """
    boxes, scores, seconds = [np.asarray(start, float)], [1.0], []
    for i, frame in enumerate(frames):
        begin = time.perf_counter()
        if i == 0:
            tracker.init(frame, start)
            seconds.append(time.perf_counter() - begin)
            continue
        result = tracker.update(frame)
        seconds.append(time.perf_counter() - begin)
        assert isinstance(result, TrackResult)  # one box in, one result out
        boxes.append(np.array(result.box))
        scores.append(result.score)
    return np.stack(boxes), np.array(scores), np.array(seconds)


def overlap(boxes: ArrayLike, truth: ArrayLike) -> Array:
    """IoU of xywh boxes (..., 4), one by one; 0 where both have no area."""
    a, b = np.asarray(boxes, float), np.asarray(truth, float)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def score(results: Sequence[SequenceResult]) -> Scores:
    """Scores of one sequence, or of several with every frame alike, as got10k's report has it.

    Raises:
        ValueError: There is no frame with a known truth.
    """
    ious = np.concatenate([result.ious for result in results]) if results else np.empty(0)
    if not ious.size:
        raise ValueError("There is nothing to score: no frame after the first has a visible, known target.")
    updates = np.concatenate([result.seconds[1:] for result in results])
    return Scores(
        ao=float(ious.mean()),
        sr50=float((ious > 0.5).mean()),
        sr75=float((ious > 0.75).mean()),
        auc=float((ious[:, None] > THRESHOLDS).mean()),
        fps=float(updates.size / max(updates.sum(), 1e-9)),
        frames=int(ious.size),
    )


def average(results: Sequence[SequenceResult]) -> Scores:
    """Scores with every sequence alike, long or short; sequences without a known truth are left out.

    Raises:
        ValueError: No sequence has a frame with a known truth.
    """
    known = [result for result in results if result.ious.size]
    pooled = score(known)
    each = [score([result]) for result in known]
    ao, sr50, sr75, auc = np.mean([(s.ao, s.sr50, s.sr75, s.auc) for s in each], axis=0).tolist()
    return replace(pooled, ao=ao, sr50=sr50, sr75=sr75, auc=auc)
