"""Long-term evaluation: the target goes out of sight and returns elsewhere; look-alikes stay in the frame.

Precision, recall and their F-score are those of VOT's long-term challenge, `Now you see me: evaluating
performance in long-term visual tracking` (Lukezic et al., 2018) - https://arxiv.org/abs/1804.07056.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from correlation_aware.data.stills.synthetic_clips import Clip, ClipConfig
from correlation_aware.evaluation.one_pass import Array, Frame, OnePassTracker, overlap, run_sequence
from correlation_aware.evaluation.synthetic import VISIBLE

__all__ = ["LONG_TERM_CLIPS", "LongTermResult", "LongTermScores", "long_term_scores", "track_clip"]

LONG_TERM_CLIPS = ClipConfig(length=150, natural=0, absences=2)
RETURN_FRAMES = 25  # frames after a return in which the target has to be found again
ABSENT = 0.01  # visible fraction of the target below which it is out of sight
HIT = 0.5  # IoU of a box on the target
ELSEWHERE = 0.1  # IoU below which a box is on something else
THRESHOLDS = 100  # of the score, at quantiles of all scores


@dataclass(frozen=True)
class LongTermResult:
    """Result of a tracker for one clip of N frames.

    Attributes:
        overlaps: (N,) IoU with the target, 0 where it is out of sight.
        scores: (N,) scores of the tracker in 0..1.
        present: (N,) where the target is in sight.
        absent: (N,) where nothing of the target is in sight; frames that are neither are not evaluated.
        seconds: (N,) duration of `init` and of each `update`.
        lost: (N,) where the tracker reports the target as lost.
    """

    overlaps: Array
    scores: Array
    present: NDArray[np.bool_]
    absent: NDArray[np.bool_]
    seconds: Array
    lost: NDArray[np.bool_]

    @property
    def returns(self) -> list[int]:
        """The frames in which the target is in sight again."""
        known = np.flatnonzero(self.present | self.absent)
        return [int(b) for a, b in pairwise(known) if self.absent[a] and self.present[b]]

    @property
    def redetected(self) -> int:
        """Number of returns with a box on the target, not lost, in one of the next `RETURN_FRAMES` frames."""
        hit = self.present & ~self.lost & (self.overlaps > HIT)
        return sum(bool(hit[i : i + RETURN_FRAMES].any()) for i in self.returns)

    @property
    def ends_elsewhere(self) -> bool:
        """Whether the last box where the target is in sight is on something else, and not lost."""
        last = np.flatnonzero(self.present)[-1]
        return bool(self.overlaps[last] < ELSEWHERE and not self.lost[last])


@dataclass(frozen=True)
class LongTermScores:
    """Metrics of several clips; precision and recall are averages over clips.

    Attributes:
        f1: Largest F-score over all thresholds of the score: 2 * precision * recall / (precision + recall).
        precision: Mean overlap of the frames whose score reaches the threshold of `f1`; 0 where the target is
            out of sight.
        recall: Mean overlap of the frames with the target in sight, 0 where the score is below the threshold.
        threshold: Threshold of `f1`.
        redetected: Share of returns after which the target was found within `RETURN_FRAMES` frames.
        ends_elsewhere: Share of clips that end on something else than the target, without being lost.
        returns: Number of returns.
        clips: Number of clips.
        milliseconds: Mean duration of an update.
        milliseconds_lost: Mean duration of an update while the target is lost; NaN if it never is.
    """

    f1: float
    precision: float
    recall: float
    threshold: float
    redetected: float
    ends_elsewhere: float
    returns: int
    clips: int
    milliseconds: float
    milliseconds_lost: float


class _Recorder:
    """A tracker that records which of its results are lost."""

    def __init__(self, tracker: OnePassTracker) -> None:
        self.tracker, self.lost = tracker, [False]

    def init(self, frame: Frame, box: Array) -> None:
        self.tracker.init(frame, box)

    def update(self, frame: Frame) -> object:
        result = self.tracker.update(frame)
        self.lost.append(bool(getattr(result, "lost", False)))
        return result


def track_clip(tracker: OnePassTracker, clip: Clip) -> LongTermResult:
    """Tracks through a clip once, from the target's box in its first frame.

    Args:
        tracker: Tracker with scores.
        clip: Clip, such as those of `make_clips` with `LONG_TERM_CLIPS`.

    Raises:
        ValueError: A tracker without scores.
    """
    recorder = _Recorder(tracker)
    boxes, scores, seconds = run_sequence(recorder, clip.frames, clip.boxes[0].astype(float))
    if not np.isfinite(scores).all():
        raise ValueError("The tracker has no scores: a long-term evaluation needs a score in 0..1 per frame.")
    present, absent = clip.visible >= VISIBLE, clip.visible < ABSENT
    overlaps = np.where(absent, 0.0, overlap(boxes, clip.boxes))
    return LongTermResult(overlaps, scores, present, absent, seconds, np.array(recorder.lost))


def long_term_scores(results: Sequence[LongTermResult]) -> LongTermScores:
    """Metrics over clips.

    Args:
        results: Results of one clip or more, each with the target in sight in two frames or more.

    Raises:
        ValueError: No results.
    """
    if not results:
        raise ValueError("There are no results to score: track one clip or more.")
    scores = np.concatenate([result.scores for result in results])
    thresholds = np.unique(np.quantile(scores, np.linspace(0, 1, THRESHOLDS), method="nearest"))
    curves = np.array([_precision_recall(result, thresholds) for result in results])  # clips, thresholds, 2
    precision, recall = curves.mean(axis=0).T
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    best = int(f1.argmax())
    returns = sum(len(result.returns) for result in results)
    seconds = np.concatenate([result.seconds[1:] for result in results])
    before = np.concatenate([result.lost[:-1] for result in results])  # the search starts in the next frame
    return LongTermScores(
        f1=float(f1[best]),
        precision=float(precision[best]),
        recall=float(recall[best]),
        threshold=float(thresholds[best]),
        redetected=sum(result.redetected for result in results) / max(1, returns),
        ends_elsewhere=float(np.mean([result.ends_elsewhere for result in results])),
        returns=returns,
        clips=len(results),
        milliseconds=1e3 * float(seconds.mean()),
        milliseconds_lost=1e3 * float(seconds[before].mean()) if before.any() else float("nan"),
    )


def _precision_recall(result: LongTermResult, thresholds: Array) -> list[tuple[float, float]]:
    """Precision and recall of a clip without its first frame, as VOT's toolkit has them.

    Without any frame that reaches the threshold the precision is 1.
    """
    known = np.flatnonzero(result.present | result.absent)[1:]
    overlaps, scores, present = result.overlaps[known], result.scores[known], result.present[known]
    values = []
    for threshold in thresholds:
        chosen = scores >= threshold
        precision = float(overlaps[chosen].mean()) if chosen.any() else 1.0
        values.append((precision, float(overlaps[chosen].sum() / max(1, present.sum()))))
    return values
