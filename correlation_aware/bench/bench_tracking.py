"""Where a tracker's time goes, and what more targets cost, on a clip that the package draws."""

import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from correlation_aware.bench.bench_models import load
from correlation_aware.bench.contenders import Skipped, first_line, split_backend
from correlation_aware.demo_clip import draw_clip
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import get_backend, set_backend
from correlation_aware.runtime.session import Runtime
from correlation_aware.tracking.tracker import Timings, Tracker, create_tracker

__all__ = ["TrackRow", "bench_tracker"]

LENGTH = 12  # frames of a pass, the first starts the tracker
PASSES = 4  # the first is not timed


@dataclass(frozen=True)
class TrackRow:
    """One runtime at one number of targets; milliseconds a frame, medians.

    Attributes:
        runtime: See `contender_names`.
        dtype: It computes in.
        targets: Followed at once.
        crop: Cutting, resizing, normalising.
        model: Network and head.
        post: Choosing the box.
        frames_per_second: Of the three together.
        targets_per_second: Targets times that.
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
    """Follows targets through a drawn clip; runtimes take turns, pass after pass, at each number of targets.

    Args:
        name: Of a `_track` model.
        targets: Numbers of targets.
        device: Where the trackers run.
        runtimes: Of `contender_names` without the references, and their dtypes; those that cannot run are
            yielded with the reason.
        weights: See `load`.
        size: Height and width of the frames.

    Raises:
        ValueError: A model without a prediction head.
    """
    model, _ = load(name, weights)
    if not isinstance(model, TrackModel):
        raise ValueError(f"{name} has no prediction head; take {name.partition('.')[0]}_track.")
    frames = list(draw_clip(LENGTH, size))
    trackers: dict[tuple[str, torch.dtype], Tracker] = {}
    with set_backend(get_backend()):  # which contenders change
        for runtime, dtype in runtimes:
            try:
                plain, backend = split_backend(runtime)
                set_backend(backend)
                trackers[runtime, dtype] = create_tracker(
                    copy.deepcopy(model),
                    device=device,
                    dtype=dtype,
                    runtime=cast(Runtime, plain),
                )
                _follow(trackers[runtime, dtype], frames[:2], 1)
            except Exception as error:  # compilers and runtimes raise what they like
                trackers.pop((runtime, dtype), None)
                yield Skipped(runtime, dtype, first_line(error))
        for count in targets:
            spent: dict[tuple[str, torch.dtype], list[Timings]] = {key: [] for key in trackers}
            for number in range(PASSES):
                for key, tracker in trackers.items():
                    set_backend(split_backend(key[0])[1])
                    found = _follow(tracker, frames, count)
                    spent[key] += found if number else []
            yield [_row(runtime, dtype, count, times) for (runtime, dtype), times in spent.items()]


def _follow(
    tracker: Tracker, frames: Sequence[tuple[np.ndarray, tuple[float, ...]]], count: int
) -> list[Timings]:
    """Seconds of each frame."""
    first, (x, y, w, h) = frames[0]
    shifts = np.random.default_rng(0).uniform(-0.25, 0.25, (count, 2)) * (w, h)
    tracker.init(first, np.array([(x + dx, y + dy, w, h) for dx, dy in shifts]))
    spent = []
    for frame, _ in frames[1:]:
        before = replace(tracker.timings)
        tracker.update(frame)
        after = tracker.timings
        spent.append(
            Timings(after.crop - before.crop, after.model - before.model, after.post - before.post, 1)
        )
    return spent


def _row(runtime: str, dtype: torch.dtype, count: int, spent: Sequence[Timings]) -> TrackRow:
    crop, model, post = (
        1e3 * statistics.median(getattr(t, part) for t in spent) for part in ("crop", "model", "post")
    )
    rate = 1 / statistics.median(t.crop + t.model + t.post for t in spent)
    return TrackRow(runtime, str(dtype).removeprefix("torch."), count, crop, model, post, rate, count * rate)
