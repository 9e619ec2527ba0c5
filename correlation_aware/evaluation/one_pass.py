"""One-pass evaluation: a tracker starts on the first frame and is compared with the ground truth."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from correlation_aware.tracking.tracker import TrackResult

__all__ = [
    "OnePassTracker",
    "Scores",
    "SequenceResult",
    "average",
    "box_and_score",
    "center_errors",
    "overlap",
    "run_sequence",
    "score",
]

PRECISION = 20.0  # pixels, as in OTB
NORMALIZED_PRECISION = 0.2  # widths and heights of the target, as in LaSOT
THRESHOLDS = np.linspace(0, 1, 21)  # thresholds of the success curve, as in OTB

Array = NDArray[np.float64]
Frame = NDArray[np.uint8]


class OnePassTracker(Protocol):
    """Interface of a tracker in the evaluation: frames are uint8 RGB (H, W, 3), boxes xywh in pixels.

    `update` returns a `TrackResult`, or a box alone if the tracker has no score.
    """

    def init(self, frame: Frame, box: Array, /) -> object: ...

    def update(self, frame: Frame, /) -> Any: ...


@dataclass(frozen=True)
class SequenceResult:
    """Result of one pass over a sequence of N frames. The first box is the initial one, with score 1.

    Attributes:
        name: Name of the sequence.
        boxes: (N, 4) xywh in pixels.
        scores: (N,) scores of the tracker in 0..1; NaN if it has none.
        seconds: (N,) duration of `init` and of each `update`, without reading the images.
        overlaps: (N,) IoU with the ground truth, NaN where the target is not visible; None if the ground
            truth is not public.
        truth: (N, 4) ground truth xywh, NaN where the target is not visible; None if it is not measured how
            far the centers are apart.
        counts_first: Whether the first frame is evaluated.
    """

    name: str
    boxes: Array
    scores: Array
    seconds: Array
    overlaps: Array | None
    truth: Array | None = None
    counts_first: bool = False

    @property
    def ious(self) -> Array:
        """Overlaps of the evaluated frames."""
        return np.empty(0) if self.overlaps is None else self.overlaps[self.evaluated]

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """(N,) which frames are evaluated: those with a visible target, mostly without the first one."""
        if self.overlaps is None:
            return np.zeros(len(self.boxes), bool)
        return ~np.isnan(self.overlaps) & (np.arange(len(self.boxes)) >= (0 if self.counts_first else 1))


@dataclass(frozen=True)
class Scores:
    """Metrics of one sequence or several.

    Attributes:
        ao: Average overlap.
        sr50: Success rate: fraction of frames with an overlap above 0.5.
        sr75: Success rate: fraction of frames with an overlap above 0.75.
        auc: Area under the success curve, with 21 thresholds as in OTB.
        fps: Frames per second, over all `update` calls.
        frames: Number of evaluated frames.
        precision: Fraction of frames with centers at most 20 px apart; None if unknown.
        normalized_precision: Fraction of frames with centers at most 0.2 apart, in widths and heights of the
            ground truth; None if unknown.
    """

    ao: float
    sr50: float
    sr75: float
    auc: float
    fps: float
    frames: int
    precision: float | None = None
    normalized_precision: float | None = None


def run_sequence(
    tracker: OnePassTracker, frames: Iterable[Frame], start: Array
) -> tuple[Array, Array, Array]:
    """Tracks one target through a sequence.

    Args:
        tracker: Tracker, initialized on the first frame.
        frames: uint8 RGB frames (H, W, 3).
        start: (4,) box of the target in the first frame, xywh in pixels.

    Returns:
        Boxes, scores and seconds, as in `SequenceResult`.

    Raises:
        ValueError: `update` returns something else than a box of four finite numbers.
    """
    boxes, scores, seconds = [np.asarray(start, float)], [1.0], []
    for i, frame in enumerate(frames):
        started = time.perf_counter()
        if i == 0:
            tracker.init(frame, start)
            seconds.append(time.perf_counter() - started)
            continue
        result = tracker.update(frame)
        seconds.append(time.perf_counter() - started)
        box, score = box_and_score(result, i)
        boxes.append(box)
        scores.append(score)
    return np.stack(boxes), np.array(scores), np.array(seconds)


def box_and_score(result: Any, frame: int) -> tuple[Array, float]:
    """The box xywh (4,) and the score that `update` returned; NaN if the tracker has no score.

    Args:
        result: A `TrackResult`, or a box alone.
        frame: Number of the frame for messages.

    Raises:
        ValueError: Something else than a box of four finite numbers.
    """
    box, score = (result.box, result.score) if isinstance(result, TrackResult) else (result, np.nan)
    try:
        values = np.asarray(box, float).reshape(-1)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size != 4 or not np.isfinite(values).all():
        raise ValueError(
            f"frame {frame}: the tracker returned {box!r}; expected a box of four finite numbers"
        )
    return values, score


def overlap(boxes: ArrayLike, truth: ArrayLike, size: tuple[int, int] | None = None) -> Array:
    """Elementwise IoU of boxes, as in the got10k toolkit.

    Args:
        boxes: (..., 4) xywh in pixels.
        truth: (..., 4) xywh in pixels.
        size: Width and height of the frame, to which both boxes are clipped as in the toolkit for GOT-10k: a
            corner left of or above the frame moves onto its edge, without a change of the size of the box.

    Returns:
        (...) in 0..1; 0 where both have no area, and for boxes that are not finite.
    """
    a, b = np.asarray(boxes, float), np.asarray(truth, float)
    if size is not None:
        a, b = _clip(a, size), _clip(b, size)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    return np.nan_to_num(np.clip(shared / (union + np.finfo(float).eps), 0, 1))


def _clip(boxes: Array, size: tuple[int, int]) -> Array:
    corner = np.clip(boxes[..., :2], 0, size)
    return np.concatenate([corner, np.clip(boxes[..., 2:], 0, size - corner)], axis=-1)


def center_errors(boxes: ArrayLike, truth: ArrayLike, normalized: bool = False) -> Array:
    """Distances of the centers of boxes xywh (..., 4), in pixels, or in widths and heights of the truth."""
    a, b = np.asarray(boxes, float), np.asarray(truth, float)
    offset = a[..., :2] + a[..., 2:] / 2 - b[..., :2] - b[..., 2:] / 2
    return np.asarray(np.linalg.norm(offset / b[..., 2:] if normalized else offset, axis=-1))


def score(results: Sequence[SequenceResult]) -> Scores:
    """Metrics over all frames of the sequences, as in the report of the got10k toolkit.

    Raises:
        ValueError: No frame has a known ground truth.
    """
    ious = np.concatenate([result.ious for result in results]) if results else np.empty(0)
    if not ious.size:
        raise ValueError(
            "There are no frames to score: no frame after the first has a visible target with a known box."
        )
    updates = np.concatenate([result.seconds[1:] for result in results])
    pairs = [(r.boxes[r.evaluated], r.truth[r.evaluated]) for r in results if r.truth is not None]
    near = [
        [center_errors(boxes, truth, normalized) <= limit for boxes, truth in pairs]
        for normalized, limit in ((False, PRECISION), (True, NORMALIZED_PRECISION))
    ]
    precision, normalized_precision = (
        float(np.concatenate(part).mean()) if len(pairs) == len(results) else None for part in near
    )
    return Scores(
        ao=float(ious.mean()),
        sr50=float((ious > 0.5).mean()),
        sr75=float((ious > 0.75).mean()),
        auc=float((ious[:, None] > THRESHOLDS).mean()),
        fps=float(updates.size / max(updates.sum(), 1e-9)),
        frames=int(ious.size),
        precision=precision,
        normalized_precision=normalized_precision,
    )


def average(results: Sequence[SequenceResult]) -> Scores:
    """Metrics averaged over sequences with equal weight; sequences without a ground truth are left out.

    Raises:
        ValueError: No sequence has a frame with a known ground truth.
    """
    known = [result for result in results if result.ious.size]
    pooled = score(known)
    each = [score([result]) for result in known]
    names = ["ao", "sr50", "sr75", "auc"]
    names += ["precision", "normalized_precision"] * (pooled.precision is not None)
    means: dict[str, Any] = {name: float(np.mean([getattr(s, name) for s in each])) for name in names}
    return replace(pooled, **means)
