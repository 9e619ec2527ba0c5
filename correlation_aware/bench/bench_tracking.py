"""Benchmark of a tracker on a generated clip: time of each stage, and cost of more targets.

The trackers have `redetect` off: a lost target costs several search crops per frame, and how many targets
are lost depends on the weights, which may be random.
"""

import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from correlation_aware.bench.bench_models import load
from correlation_aware.bench.contenders import REFERENCE, Skipped, contender_names, first_line, split_backend
from correlation_aware.bench.machine import dtype_name
from correlation_aware.demo_clip import draw_clip
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import get_backend, set_backend
from correlation_aware.runtime import Runtime
from correlation_aware.tracking.tracker import (
    Timings,
    Tracker,
    TrackerConfig,
    check_tracker_name,
    create_tracker,
)

__all__ = ["TrackRow", "bench_tracker", "check_runtimes"]

LENGTH = 12  # frames per pass; the first initializes the tracker
PASSES = 4  # passes over the clip; the first is a warm-up


@dataclass(frozen=True)
class TrackRow:
    """Result of one runtime at one number of targets.

    Attributes:
        runtime: Runtime, with `-triton` for the kernels, see `contender_names`.
        dtype: Dtype of the computation.
        targets: Number of targets tracked at once.
        crop: Median milliseconds per frame of cropping, resizing and normalizing.
        model: Median milliseconds per frame of network and head.
        post: Median milliseconds per frame of selecting the boxes.
        frames_per_second: Frame rate of the three stages together.
        targets_per_second: Frame rate times number of targets.
    """

    runtime: str
    dtype: str
    targets: int
    crop: float
    model: float
    post: float
    frames_per_second: float
    targets_per_second: float


def bench_tracker(
    name: str,
    targets: Sequence[int],
    device: torch.device,
    runtimes: Sequence[tuple[str, torch.dtype]],
    weights: str | None = None,
    size: tuple[int, int] = (720, 1280),
) -> Iterator[list[TrackRow] | Skipped]:
    """Tracks targets in a generated clip; at each number of targets, passes of the runtimes alternate.

    Lost targets are not searched for (`TrackerConfig.redetect`), so that each target has one search crop.

    Args:
        name: Name of a `_track` model.
        targets: Numbers of targets.
        device: Device of the trackers.
        runtimes: Names of `contender_names` without the references, with their dtypes; those that cannot run
            are yielded with the reason.
        weights: Weights of the model, see `load`.
        size: Height and width of the frames in pixels.

    Raises:
        ValueError: A model without a prediction head, or an unknown runtime.
    """
    check_tracker_name(name)
    check_runtimes([runtime for runtime, _ in runtimes])
    model, _ = load(name, weights)
    if not isinstance(model, TrackModel):
        raise ValueError(f"{name} has no prediction head; a tracker needs a `_track` model.")
    frames = list(draw_clip(LENGTH, size))
    trackers: dict[tuple[str, torch.dtype], Tracker] = {}
    with set_backend(get_backend()):  # restores the backend, which contenders change
        for runtime, dtype in runtimes:
            try:
                session_runtime, backend = split_backend(runtime)
                set_backend(backend)
                trackers[runtime, dtype] = create_tracker(
                    copy.deepcopy(model),
                    device=device,
                    dtype=dtype,
                    runtime=cast(Runtime, session_runtime),
                    config=TrackerConfig(redetect=False),
                )
                _time_frames(trackers[runtime, dtype], frames[:2], 1)
            except Exception as error:  # compilers and runtimes raise errors of any type
                trackers.pop((runtime, dtype), None)
                yield Skipped(runtime, dtype, first_line(error))
        for count in targets:
            timings: dict[tuple[str, torch.dtype], list[Timings]] = {key: [] for key in trackers}
            for number in range(PASSES):
                for key, tracker in trackers.items():
                    set_backend(split_backend(key[0])[1])
                    of_pass = _time_frames(tracker, frames, count)
                    timings[key] += of_pass if number else []
            yield [_row(runtime, dtype, count, times) for (runtime, dtype), times in timings.items()]


def check_runtimes(names: Sequence[str]) -> None:
    """Checks names of runtimes.

    Raises:
        ValueError: Not a name of `contender_names`, or a reference, which is no runtime.
    """
    known = ["auto", *(name for name in contender_names() if not name.startswith(REFERENCE))]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--runtimes {', '.join(unknown)} is not among {', '.join(known)}.")


def _time_frames(
    tracker: Tracker, frames: Sequence[tuple[np.ndarray, tuple[float, ...]]], count: int
) -> list[Timings]:
    """Tracks `count` targets near the true one and returns the seconds of each frame after the first."""
    first, (x, y, w, h) = frames[0]
    shifts = np.random.default_rng(0).uniform(-0.25, 0.25, (count, 2)) * (w, h)
    tracker.init(first, np.array([(x + dx, y + dy, w, h) for dx, dy in shifts]))
    timings = []
    for frame, _ in frames[1:]:
        before = replace(tracker.timings)
        tracker.update(frame)
        after = tracker.timings
        timings.append(
            Timings(after.crop - before.crop, after.model - before.model, after.post - before.post, 1)
        )
    return timings


def _row(runtime: str, dtype: torch.dtype, count: int, timings: Sequence[Timings]) -> TrackRow:
    crop, model, post = (
        1e3 * statistics.median(getattr(t, stage) for t in timings) for stage in ("crop", "model", "post")
    )
    rate = 1 / statistics.median(t.crop + t.model + t.post for t in timings)
    return TrackRow(runtime, dtype_name(dtype), count, crop, model, post, rate, count * rate)
