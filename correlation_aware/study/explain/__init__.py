"""Looks into trackers: score maps, attention, features by depth and failures, as the paper shows them.

`explain` writes a page about a video; the functions that it uses give the same as numbers and arrays. The
attention itself is `net.attention_maps(template, search)` of the network.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from correlation_aware._extras import require
from correlation_aware._files import atomic_path, check_output_folder, write_text
from correlation_aware.study.explain import network_sections, tracking_sections
from correlation_aware.study.explain.features import Level, arrange, search_features
from correlation_aware.study.explain.measures import (
    Failure,
    MapStatistics,
    find_failures,
    label_locations,
    map_statistics,
    neighbor_purity,
    select_hard_frames,
)
from correlation_aware.study.explain.page import render_page
from correlation_aware.study.explain.scene import Box, Scene
from correlation_aware.study.explain.trace import (
    Source,
    Trace,
    Truth,
    choose_frames,
    open_source,
    read_truth,
    trace_trackers,
)
from correlation_aware.tracking.crop import as_boxes
from correlation_aware.tracking.tracker import Tracker

__all__ = [
    "Failure",
    "Level",
    "MapStatistics",
    "Trace",
    "Truth",
    "arrange",
    "explain",
    "find_failures",
    "label_locations",
    "map_statistics",
    "neighbor_purity",
    "open_source",
    "read_truth",
    "search_features",
    "select_hard_frames",
    "trace_trackers",
]

HARD_FRAMES = 6  # largest number of frames of the response maps, besides those that are chosen
DETAILED = 2  # largest number of frames of the detailed sections, where none is chosen


def explain(
    source: str | Path | Sequence[str | Path],
    box: Box,
    trackers: Sequence[Tracker],
    output: str | Path,
    *,
    frames: Sequence[int] = (),
    truth: str | Path | Truth | None = None,
    points: Sequence[tuple[float, float]] = (),
    distractors: Mapping[int, Sequence[Box]] | None = None,
    threshold: float = 0.5,
    limit: int | None = None,
    depth_range: tuple[float, float] | None = None,
    on_step: Callable[[str], object] = lambda step: None,
) -> Path:
    """Tracks a target and writes a page about what the trackers see, and its images as PNG files.

    The page has all images inside. The same arguments give the same files on one machine.

    Args:
        source: Video file, folder of frames, or two or more image files: the one of the box, then those to
            search in.
        box: x, y, w, h of the target in the first frame, in pixels.
        trackers: Trackers to compare.
        output: Folder for `index.html` and the PNG files; files of the same names are replaced.
        frames: Frames to explain, from 1; by default the two hardest, see `select_hard_frames`. The response
            maps show them and up to six hard frames.
        truth: Ground truth or its file, see `read_truth`. With it hard frames and failures are those of low
            overlap, otherwise those of low scores.
        points: Places x, y in pixels of the explained frames, from which attention is shown too.
        distractors: Boxes of distractors in explained frames, by frame; see `label_locations`.
        threshold: Smallest score of a positive location, see `map_statistics`.
        limit: Largest number of frames to track.
        depth_range: See `open_frames`.
        on_step: Function that is called with the name of each step, for progress; `track` once per frame.

    Returns:
        `index.html`.

    Raises:
        ValueError: No tracker, a wrong source, box, frame, point or ground truth; the message says what.
        FileNotFoundError: No such source or ground truth.
        ModuleNotFoundError: matplotlib or scikit-learn is not installed.
    """
    require("matplotlib.figure", "sklearn.manifold", message="explain needs {names}")
    if not trackers:
        raise ValueError("There is no tracker: give at least one, such as create_tracker().")
    if len({id(tracker) for tracker in trackers}) < len(trackers):
        raise ValueError("A tracker is there twice, but follows one target at a time: create another one.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be in 0..1.")
    output, distractors = Path(output), distractors or {}
    check_output_folder(output)
    paths = [source] if isinstance(source, (str, Path)) else list(source)
    video = open_source(paths, limit, depth_range)
    if isinstance(truth, (str, Path)):
        truth = read_truth(truth)
    _check_places(video, frames, points, distractors)
    traces = trace_trackers(trackers, video, box, truth, threshold, lambda: on_step("track"))
    count = len(traces[0].results)
    late = [frame for frame in frames if frame >= count]
    if late:
        raise ValueError(f"frame {late[0]} does not exist: the video has the frames 0 to {count - 1}.")
    hard = select_hard_frames(_difficulty(traces, truth), HARD_FRAMES)
    detailed = sorted(set(frames or hard[:DETAILED]))
    if not detailed:
        raise ValueError("The target is visible in no frame after the first: there is nothing to explain.")
    shown = sorted({*hard, *frames})
    unused = sorted(set(distractors) - set(detailed))
    if unused:
        raise ValueError(
            f"There are distractors for frame {unused[0]}, which is not explained; frames {detailed} are."
        )
    scene = Scene(box, traces, truth, threshold, points, distractors)
    scene.frames = choose_frames(video, {0, *shown, *tracking_sections.failure_frames(scene)})
    parts = [
        tracking_sections.overview(scene, detailed),
        tracking_sections.response_maps(scene, shown, bool(frames)),
    ]
    for frame in detailed:
        on_step(f"frame {frame}")
        parts.append(tracking_sections.score_maps(scene, frame))
        parts += [network_sections.attention(scene, trace, frame) for trace in traces]
        parts.append(network_sections.features(scene, frame))
    parts.append(tracking_sections.failures(scene))
    x, y, w, h = (f"{value:g}" for value in box)
    intro = [
        f"{Path(paths[0]).name}: {count} frames, from the box {x}, {y}, {w}, {h} in frame 0.",
        "Trackers: " + ", ".join(f"{t.name} with the weights {t.tracker.weights_name}" for t in traces) + ".",
    ]
    output.mkdir(parents=True, exist_ok=True)
    for figure in (figure for part in parts for figure in part.figures):
        with atomic_path(output / f"{figure.name}.png") as temporary:
            temporary.write_bytes(figure.png)
    write_text(
        render_page(f"What the trackers see: {Path(paths[0]).name}", intro, parts), output / "index.html"
    )
    return output / "index.html"


def _check_places(
    video: Source,
    frames: Sequence[int],
    points: Sequence[tuple[float, float]],
    distractors: Mapping[int, Sequence[Box]],
) -> None:
    """Checks, before anything is tracked, what needs no more than the first frame."""
    early = [frame for frame in frames if frame < 1]
    if early:
        raise ValueError(
            f"frame {early[0]} cannot be explained: frame 0 is that of the box, and the next is 1."
        )
    height, width = next(iter(video())).shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"The point ({x:g}, {y:g}) is outside the frame, which is {width} x {height} px."
            )
    for boxes in distractors.values():
        as_boxes(boxes, height, width)


def _difficulty(traces: Sequence[Trace], truth: Truth | None) -> np.ndarray:
    """(T,) 1 - overlap, or 1 - score without a ground truth, mean of the trackers; NaN where unknown."""
    if truth is None:
        good = np.array([[result.score for result in trace.results] for trace in traces])
    else:
        good = np.array([trace.overlaps for trace in traces], float)
    difficulty = 1 - good.mean(axis=0)
    difficulty[0] = np.nan
    return difficulty
