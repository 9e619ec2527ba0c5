"""Evaluation on synthetic clips, to tune settings and to calibrate scores without using a benchmark."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.stills.pool import read_pool
from correlation_aware.data.stills.synthetic_clips import Clip, ClipConfig, synthetic_clip
from correlation_aware.evaluation.one_pass import (
    OnePassTracker,
    SequenceResult,
    average,
    overlap,
    run_sequence,
)
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import Tracker, TrackerConfig

__all__ = ["ClipValidation", "evaluate_clip", "make_clips"]

VISIBLE = 0.25  # frames with a smaller visible fraction of the target are not evaluated


def make_clips(
    sources: Mapping[str, float],
    count: int,
    seed: int = 0,
    config: ClipConfig | None = None,
    max_side: int = 320,
) -> Iterator[Clip]:
    """Generates synthetic clips, see `synthetic_clip`.

    Args:
        sources: Folders or tar shards of photographs with their weights, preferably ones that are not in the
            training data.
        count: Number of clips.
        seed: Seed of the list of clips.
        config: Content of the clips.
        max_side: Longest side of a photograph in pixels; larger ones are downscaled.

    Yields:
        Clips 0 to `count` - 1 of the list.

    Raises:
        FileNotFoundError, RuntimeError: The photographs cannot be read.
    """
    pool = read_pool(sources, max_side, "cpu", ErrorBudget())
    return (synthetic_clip(pool, number, seed, config) for number in range(count))


def evaluate_clip(tracker: OnePassTracker, clip: Clip, name: str = "clip") -> SequenceResult:
    """Tracks through a clip once.

    Args:
        tracker: Tracker, initialized on the first frame.
        clip: Clip of two frames or more.
        name: Name in the result.
    """
    boxes, scores, seconds = run_sequence(tracker, clip.frames, clip.boxes[0].astype(float))
    overlaps = np.where(clip.visible >= VISIBLE, overlap(boxes, clip.boxes), np.nan)
    return SequenceResult(name, boxes, scores, seconds, overlaps)


class ClipValidation:
    """Validation in training: evaluates a tracker on synthetic clips, generated at the first call.

    Lost targets are not searched for: the score decides what is lost, and it is not calibrated in training.

    Args:
        sources: Folders or tar shards of photographs with their weights, see `make_clips`.
        count: Number of clips.
        seed: Seed of the list of clips.
    """

    def __init__(self, sources: Mapping[str, float], count: int, seed: int = 0) -> None:
        self.sources, self.count, self.seed = sources, count, seed
        self._clips: list[Clip] = []
        for source in sources:  # a source that cannot be read ends a run before its first step
            next(read_stills(source, 64, ErrorBudget()))

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Average overlap and success rates of a `_track` model."""
        self._clips = self._clips or list(make_clips(self.sources, self.count, self.seed))
        session = InferenceSession(model)  # type: ignore[arg-type]
        tracker = Tracker(session, TrackerConfig(redetect=False))
        scores = average([evaluate_clip(tracker, clip) for clip in self._clips])
        return {"ao": scores.ao, "sr50": scores.sr50, "sr75": scores.sr75}
