"""The sections about tracking: the whole video, score maps, response maps, and failures."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from correlation_aware.study.explain.draw import (
    TRUTH,
    Row,
    Tile,
    draw_curves,
    draw_tiles,
)
from correlation_aware.study.explain.measures import find_failures
from correlation_aware.study.explain.page import Figure, Section, Table
from correlation_aware.study.explain.scene import Scene, file_stem
from correlation_aware.study.explain.trace import Trace
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.draw import REGION, draw_box, draw_score_maps, heat_over_image, target_color
from correlation_aware.tracking.video import Frame

__all__ = ["failure_frames", "failures", "overview", "response_maps", "score_maps"]

Array = NDArray[np.float64]
MAX_FAILURES = 3  # failures of a tracker that are shown, the longest ones


def overview(scene: Scene, explained: Sequence[int]) -> Section:
    """Figures of every tracker over the whole video, and their course."""
    traces, known = scene.traces, scene.truth is not None
    columns = ["tracker", "mean overlap", "mean score", "true-positive rate", "negative objects", "failures"]
    rows = []
    curves: dict[str, dict[str, Array]] = {}
    for trace in traces:
        scores = np.array([result.score for result in trace.results])
        rates = np.array([math.nan if s is None else s.true_positive_rate for s in trace.statistics])
        objects = np.array([math.nan if s is None else s.negative_objects for s in trace.statistics])
        overlaps = np.full(len(scores), math.nan) if trace.overlaps is None else trace.overlaps
        count = len(find_failures(trace.overlaps, trace.lost))
        numbers = (_mean(overlaps[1:]), _mean(scores[1:]), _mean(rates) if known else "-", _mean(objects))
        rows.append([trace.name, *numbers, str(count)])
        if known:
            curves.setdefault("overlap with the ground truth", {})[trace.name] = overlaps
            curves.setdefault("true-positive rate of the score map", {})[trace.name] = rates
        curves.setdefault("score", {})[trace.name] = scores
        curves.setdefault("negative objects in the score map", {})[trace.name] = objects
    of = "the true box" if known else "the tracked box, since there is no ground truth"
    text = [
        f"A location of the score map is positive if its score is at least {scene.threshold:g}. The "
        "true-positive rate is the fraction of the locations inside the true box that are positive, over the "
        "frames in which the search region has one. Negative objects are connected components (8 neighbors) "
        f"of positive locations without a location inside {of}. The table has means over all frames after "
        "the first.",
        "A failure is an overlap below 0.1."
        if known
        else "A failure is a target that the tracker reports as lost. Rates and overlaps need --truth.",
    ]
    png = draw_curves(list(curves.items()), explained)
    alt = f"Curves over {len(traces[0].results)} frames of {', '.join(curves)}, a line for each of " + _names(
        traces
    )
    caption = f"Vertical lines: frames {_numbers(explained)}, which are explained below."
    return Section("The whole video", text, [Figure("curves", png, alt, caption)], Table(columns, rows))


def score_maps(scene: Scene, frame: int) -> Section:
    """Score maps of all trackers over one frame (Fig. 6)."""
    tiles, alts = [], []
    for i, trace in enumerate(scene.traces):
        scores, crop = trace.response(frame)
        image = draw_score_maps(
            _enlarged(scene.frames[frame]), [(scores, _scaled(crop, scene.frames[frame]))]
        )
        image = _draw_boxes(image, scene, trace, i, frame, _factor(scene.frames[frame]))
        text = _describe(scene, trace, frame)
        tiles.append(Tile(image, trace.name, text))
        alts.append(f"{trace.name}: {text}")
    png = draw_tiles([Row("", tiles)], 540 if len(tiles) < 3 else 400)
    alt = f"Frame {frame} with the score map in the search region. {'; '.join(alts)}."
    caption = (
        "Inside the thin blue square, the search region: gray image, scores from black (0) to yellow (1). "
        "Colored: tracked box" + ("; thin and white: true box." if scene.true_box(frame) is not None else ".")
    )
    return Section(f"Frame {frame}: score maps", [], [Figure(f"frame_{frame:05d}_scores", png, alt, caption)])


def response_maps(scene: Scene, frames: Sequence[int], chosen: bool) -> Section:
    """Score maps of all trackers through several frames (Figs. 7 and 12)."""
    rows = []
    for i, trace in enumerate(scene.traces):
        tiles = []
        for frame in frames:
            scores, crop = trace.response(frame)
            image = heat_over_image(crop.cut(scene.frames[frame], 192), scores, smooth=True)
            scale = 192 / crop.side
            boxes = [(scene.true_box(frame), TRUTH, 1), (trace.results[frame].box, target_color(i), 2)]
            for box, color, thickness in boxes:
                if box is not None:
                    x, y, w, h = (float(value) for value in box)
                    place = ((x - crop.x) * scale, (y - crop.y) * scale, w * scale, h * scale)
                    image = draw_box(image, place, color, thickness=thickness)
            tiles.append(Tile(image, f"frame {frame}", _describe(scene, trace, frame, short=True)))
        rows.append(Row(trace.name, tiles))
    by = "low overlap with the ground truth" if scene.truth is not None else "low scores"
    others = ", and those that were asked for" if chosen else ""
    text = f"Hard frames: those with {by}, apart in time{others}."
    alt = f"Score maps over the search regions of {_names(scene.traces)} in the frames {_numbers(frames)}."
    caption = (
        "Search regions of each tracker. Colored: tracked box; thin and white: true box, if it is known."
    )
    return Section(
        "Response maps side by side", [text], [Figure("response_maps", draw_tiles(rows, 150), alt, caption)]
    )


def failures(scene: Scene) -> Section:
    """The longest failures of each tracker (Fig. 13)."""
    text, figures = [], []
    for i, trace in enumerate(scene.traces):
        all_of, shown = _failures(trace)
        if not all_of:
            text.append(f"{trace.name} has none.")
            continue
        rows = []
        for start, end in shown:
            tiles = []
            for frame in _failure_frames(start, end, len(trace.results)):
                image = _enlarged(scene.frames[frame])
                if trace.crops[frame] is not None:
                    crop = _scaled(trace.response(frame)[1], scene.frames[frame])
                    image = draw_box(image, (crop.x, crop.y, crop.side, crop.side), REGION, thickness=1)
                image = _draw_boxes(image, scene, trace, i, frame, _factor(scene.frames[frame]))
                tiles.append(Tile(image, f"frame {frame}", _describe(scene, trace, frame, short=True)))
            rows.append(Row(f"frames {start} to {end - 1}", tiles))
        text.append(f"{trace.name}: {len(all_of)}, of which the longest {len(shown)} are shown.")
        alt = f"Failures of {trace.name}: frames {', '.join(f'{a} to {b - 1}' for a, b in shown)}."
        caption = (
            f"{trace.name}: the frame before the failure, its first and middle frame, and the one after it. "
            "Thin and blue: search region; colored: tracked box; thin and white: true box, if it is known."
        )
        figures.append(Figure(f"failures_{file_stem(trace.name)}", draw_tiles(rows, 270), alt, caption))
    return Section("Failures", text, figures)


def failure_frames(scene: Scene) -> set[int]:
    """Frames that the section of failures shows."""
    return {
        frame
        for trace in scene.traces
        for start, end in _failures(trace)[1]
        for frame in _failure_frames(start, end, len(trace.results))
    }


def _failures(trace: Trace) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Start and end of all failures, and of the longest ones in the order of time."""
    spans = [(failure.start, failure.end) for failure in find_failures(trace.overlaps, trace.lost)]
    longest = sorted(spans, key=lambda span: (span[0] - span[1], span[0]))[:MAX_FAILURES]
    return spans, sorted(longest)


def _failure_frames(start: int, end: int, count: int) -> list[int]:
    return sorted({max(start - 1, 0), start, (start + end - 1) // 2, min(end, count - 1)})


def _describe(scene: Scene, trace: Trace, frame: int, short: bool = False) -> str:
    """What is known of a tracker in a frame, in words."""
    words = [f"score {trace.results[frame].score:.2f}"]
    if trace.overlaps is not None and not math.isnan(trace.overlaps[frame]):
        words.append(f"overlap {trace.overlaps[frame]:.2f}")
    if scene.truth is not None and not scene.truth.visible[frame]:
        words.append("target not visible")
    statistics = trace.statistics[frame]
    if not short and statistics is not None:
        if scene.truth is not None and not math.isnan(statistics.true_positive_rate):
            words.append(f"true-positive rate {statistics.true_positive_rate:.2f}")
        words.append(f"negative objects {statistics.negative_objects}")
    return ", ".join(words)


def _draw_boxes(image: Frame, scene: Scene, trace: Trace, index: int, frame: int, factor: int) -> Frame:
    box = [value * factor for value in trace.results[frame].box]
    true = scene.true_box(frame)
    if true is not None:
        image = draw_box(image, list(true * factor), TRUTH, thickness=1)
    return draw_box(image, box, target_color(index), dashed=trace.results[frame].lost)


def _factor(frame: Frame) -> int:
    """Whole factor by which a small frame is enlarged, so that lines on it are thin."""
    return max(1, round(720 / frame.shape[1]))


def _enlarged(frame: Frame) -> Frame:
    factor = _factor(frame)
    return np.repeat(np.repeat(frame, factor, axis=0), factor, axis=1)


def _scaled(crop: Crop, frame: Frame) -> Crop:
    factor = _factor(frame)
    return Crop(crop.x * factor, crop.y * factor, crop.side * factor)


def _mean(values: Array) -> str:
    return "-" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"


def _names(traces: Sequence[Trace]) -> str:
    return ", ".join(trace.name for trace in traces)


def _numbers(frames: Sequence[int]) -> str:
    return ", ".join(str(frame) for frame in frames)
