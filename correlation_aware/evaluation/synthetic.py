"""Synthetic clips as sequences: to choose settings and to calibrate scores without a look at a benchmark."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from correlation_aware.data.error_budget import ErrorBudget
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
from correlation_aware.tracking.tracker import Tracker

__all__ = ["ClipValidation", "evaluate_clip", "make_clips"]

VISIBLE = 0.25  # a frame in which less of the target can be seen does not count


def make_clips(
    sources: Mapping[str, float],
    count: int,
    seed: int = 0,
    config: ClipConfig | None = None,
    max_side: int = 320,
) -> Iterator[Clip]:
    """The first `count` clips of the list that a seed names, see `synthetic_clip`.

    Args:
        sources: Folders or tar shards of stills with their shares, best ones that are not trained on.
        count: Number of clips.
        seed: Of everything random.
        config: What happens in them.
        max_side: Larger photographs are shrunk to this many pixels.

    Raises:
        FileNotFoundError, RuntimeError: The photographs cannot be read.
    """
    pool = read_pool(sources, max_side, "cpu", ErrorBudget())
    return (synthetic_clip(pool, number, seed, config) for number in range(count))


def evaluate_clip(tracker: OnePassTracker, clip: Clip, name: str = "clip") -> SequenceResult:
    """Tracks through a clip of two frames or more, once."""
    boxes, scores, seconds = run_sequence(tracker, clip.frames, clip.boxes[0].astype(float))
    overlaps = np.where(clip.visible >= VISIBLE, overlap(boxes, clip.boxes), np.nan)
    return SequenceResult(name, boxes, scores, seconds, overlaps)


class ClipValidation:
    """Tracks with a model in training through synthetic clips; they are made at the first call and kept.

    Args:
        sources: See `make_clips`, as for the next two.
        count: Number of clips.
        seed: Of everything random.
    """

    def __init__(self, sources: Mapping[str, float], count: int, seed: int = 0) -> None:
        self.sources, self.count, self.seed = sources, count, seed
        self._clips: list[Clip] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Average overlap and success rates of a `_track` model."""
        self._clips = self._clips or list(make_clips(self.sources, self.count, self.seed))
        tracker = Tracker(InferenceSession(model))  # type: ignore[arg-type]
        scores = average([evaluate_clip(tracker, clip) for clip in self._clips])
        return {"ao": scores.ao, "sr50": scores.sr50, "sr75": scores.sr75}
