"""Validation in training: one-pass evaluation of a tracker on annotated videos that are not trained on."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from correlation_aware.data.videos.sequences import File, SequenceSet, Video, read_frame
from correlation_aware.evaluation.one_pass import (
    Frame,
    OnePassTracker,
    SequenceResult,
    average,
    overlap,
    run_sequence,
)
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import Tracker, TrackerConfig

__all__ = ["VideoValidation", "evaluate_video"]


def evaluate_video(tracker: OnePassTracker, video: Video) -> SequenceResult:
    """Tracks through a video once, from the first frame with a visible target on.

    Args:
        tracker: Tracker.
        video: Annotated video.

    Raises:
        ValueError: Fewer than two frames with a visible target, or a frame that cannot be read.
    """
    visible = np.flatnonzero(video.visible)
    if len(visible) < 2:
        raise ValueError(f"{video.name} has {len(visible)} frames with a visible target; tracking needs two.")
    start = int(visible[0])
    boxes, scores, seconds = run_sequence(tracker, _read(video.frames[start:]), video.boxes[start])
    overlaps = np.where(video.visible[start:], overlap(boxes, video.boxes[start:]), np.nan)
    return SequenceResult(video.name, boxes, scores, seconds, overlaps)


class VideoValidation:
    """Evaluates a `_track` model on videos; their annotations are read at once.

    Lost targets are not searched for: the score decides what is lost, and it is not calibrated in training.

    Args:
        sets: Datasets of videos.
        count: Number of videos of each dataset, spread evenly; 0 for all.

    Raises:
        ValueError, OSError: A video that cannot be used, or none.
    """

    def __init__(self, sets: Sequence[SequenceSet], count: int = 0) -> None:
        self.videos: list[Video] = []
        self.names: list[str] = []
        for dataset in sets:
            number = min(count, len(dataset)) or len(dataset)
            indices = np.linspace(0, len(dataset) - 1, number).round().astype(int)
            self.videos += [dataset[int(index)] for index in indices]
            names = getattr(dataset, "names", None) or [str(i) for i in range(len(dataset))]
            self.names += [names[int(index)] for index in indices]
        for video in self.videos:
            if video.visible.sum() < 2:
                raise ValueError(
                    f"{video.name} has fewer than two frames with a visible target; leave it out of "
                    "validation.videos with `exclude`."
                )
        if not self.videos:
            raise ValueError("VideoValidation needs videos.")

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Average overlap and success rates, each video with equal weight."""
        session = InferenceSession(model)  # type: ignore[arg-type]
        scores = average(self.results(Tracker(session, TrackerConfig(redetect=False))))
        return {"video_ao": scores.ao, "video_sr50": scores.sr50, "video_sr75": scores.sr75}

    def results(self, tracker: OnePassTracker) -> list[SequenceResult]:
        """The result of a tracker on each video."""
        return [evaluate_video(tracker, video) for video in self.videos]


def _read(frames: Sequence[File]) -> Iterator[Frame]:
    for frame in frames:
        try:
            yield read_frame(frame)
        except (ValueError, OSError) as error:
            raise ValueError(f"{frame} cannot be read: {error}.") from error
