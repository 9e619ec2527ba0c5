"""The sections of the page: what each figure of the paper shows, for the trackers of a call."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.models.attention_maps import AttentionMap, ImageName
from correlation_aware.models.sbt import SBT
from correlation_aware.study.explain.features import arrange, sample_locations, search_features
from correlation_aware.study.explain.measures import (
    DISTRACTOR,
    TARGET,
    find_failures,
    label_locations,
    locations_inside,
    neighbor_purity,
)
from correlation_aware.study.explain.page import Figure, Section, Table
from correlation_aware.study.explain.pictures import (
    TRUTH,
    Row,
    Tile,
    draw_curves,
    draw_features,
    draw_tiles,
    heat_over_image,
    mark_location,
    paste_heat,
)
from correlation_aware.study.explain.trace import Trace, Truth
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.draw import draw_box, target_color
from correlation_aware.tracking.video import Frame

__all__ = [
    "Scene",
    "attention",
    "failures",
    "features",
    "overview",
    "response_maps",
    "score_maps",
    "wanted_frames",
]

Array = NDArray[np.float64]
Box = Sequence[float]
DEPTHS = 6  # depths of a network that t-SNE shows
DISTRACTOR_SCORE = 0.1  # smallest score of a location of a distractor
MAX_FAILURES = 3  # failures of a tracker that are shown, the longest ones


@dataclass
class Scene:
    """What is explained: the video, its trackers and what the caller chose.

    Attributes:
        box: Box of the target in the first frame.
        traces: Results of the trackers.
        truth: Ground truth, if there is one.
        threshold: Smallest score of a positive location.
        points: Places x, y in pixels of the frame from which attention is shown.
        distractors: Boxes of distractors by frame.
        frames: Frames of the video by number: the first one, and those that figures show.
    """

    box: Box
    traces: Sequence[Trace]
    truth: Truth | None
    threshold: float
    points: Sequence[tuple[float, float]] = ()
    distractors: Mapping[int, Sequence[Box]] = field(default_factory=dict)
    frames: Mapping[int, Frame] = field(default_factory=dict)

    def true_box(self, frame: int) -> Array | None:
        """The true box in a frame; None if it is not known or the target is not visible."""
        if self.truth is None or not self.truth.visible[frame]:
            return None
        return np.asarray(self.truth.boxes[frame])

    def target_box(self, trace: Trace, frame: int) -> Box:
        """The true box in a frame, else the tracked one."""
        true = self.true_box(frame)
        return trace.results[frame].box if true is None else [float(value) for value in true]

    def images(self, trace: Trace, frame: int) -> tuple[Frame, Frame, Tensor, Tensor]:
        """Template and search image of a frame, uint8 and as the network gets them."""
        tracker = trace.tracker
        sizes, crop = tracker.model.sizes, trace.response(frame)[1]
        template = Crop.around(self.box, sizes.template_factor)
        dtype = next(tracker.model.parameters()).dtype
        parts = (
            (self.frames[0], template, sizes.template_size),
            (self.frames[frame], crop, sizes.search_size),
        )
        z, x = (tracker.images(image, [region], size).to(dtype) for image, region, size in parts)
        z_image, x_image = (region.cut(image, size) for image, region, size in parts)
        return z_image, x_image, z, x


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
        image = paste_heat(_enlarged(scene.frames[frame]), scores, _scaled(crop, scene.frames[frame]))
        image = _draw_boxes(image, scene, trace, i, frame, _factor(scene.frames[frame]))
        text = _describe(scene, trace, frame)
        tiles.append(Tile(image, trace.name, text))
        alts.append(f"{trace.name}: {text}")
    png = draw_tiles([Row("", tiles)], 540 if len(tiles) < 3 else 400)
    alt = f"Frame {frame} with the score map in the search region. {'; '.join(alts)}."
    caption = (
        "Inside the gray square, the search region: gray image, scores from black (0) to yellow (1). "
        "Colored: tracked box" + ("; thin and white: true box." if scene.true_box(frame) is not None else ".")
    )
    return Section(f"Frame {frame}: score maps", [], [Figure(f"frame_{frame:05d}_scores", png, alt, caption)])


def attention(scene: Scene, trace: Trace, frame: int) -> Section:
    """Attention of every block from chosen locations (Fig. 11)."""
    title = f"Frame {frame}: attention of {trace.name}"
    z_image, x_image, z, x = scene.images(trace, frame)
    try:
        with torch.no_grad():
            maps = trace.tracker.model.attention_maps(z, x)
    except NotImplementedError as error:
        return Section(title, [str(error)])
    images: dict[ImageName, Frame] = {"template": z_image, "search": x_image}
    queries, remarks = _queries(scene, trace, frame)
    rows = []
    for name, place, (fx, fy) in queries:
        start = Tile(mark_location(images[place], fx, fy), f"{place} image")
        for onto in images:
            tiles = [
                _attention_tile(m, images[onto], onto, (fx, fy), place == onto)
                for m in maps
                if m.queries.image == place and any(grid.image == onto for grid in m.keys)
            ]
            if tiles:
                rows.append(Row(f"from {name} to the {onto} image", [start, *tiles]))
    text = [
        "Weights of the keys, mean over the heads, scaled to each tile's largest one; depth grows from left "
        "to right. x12 says that the largest weight is 12 times that of a uniform attention, so x1 is "
        "uniform; a percentage is the part of the attention that goes to this image, where a block attends "
        "to both. The ring marks the location that attends.",
        *remarks,
    ]
    slug = f"frame_{frame:05d}_{_slug(trace.name)}"
    alt = f"Attention of {len({m.block for m in maps})} blocks of {trace.name} in frame {frame}, from " + (
        ", ".join(name for name, _, _ in queries)
    )
    figures = [Figure(f"{slug}_attention", draw_tiles(rows, 112), f"{alt}.")]
    crossing = [m for m in maps if m.queries.image == "template" and m.kind != "self"]
    if crossing:
        head_rows = [
            Row(
                f"{_short(m.block)}, {m.kind}", [_head_tile(m, h, x_image) for h in range(m.weights.shape[1])]
            )
            for m in crossing
        ]
        caption = "From the center of the template to the search image, a tile for each head."
        alt = f"Attention from the template's center to the search image, by head, in {len(crossing)} blocks."
        figures.append(Figure(f"{slug}_heads", draw_tiles(head_rows, 112), alt, caption))
    return Section(title, text, figures)


def features(scene: Scene, frame: int) -> Section:
    """t-SNE of search features by depth (Figs. 2d, 6, 14, 15)."""
    rows, alts, labels_present = [], [], set()
    for trace in scene.traces:
        net = trace.tracker.model.backbone
        _, _, z, x = scene.images(trace, frame)
        kinds = [(trace.name, True)]
        if isinstance(net, SBT):
            kinds.append((f"{trace.name}: the same weights without the template, Siamese-like", False))
        for name, correlated in kinds:
            levels = search_features(net, z, x, correlated)
            chosen = np.unique(np.linspace(0, len(levels) - 1, DEPTHS).round().astype(int))
            points, purities = zip(*(_arranged(scene, trace, frame, levels[i].features) for i in chosen))
            titles = [f"{levels[i].name}   {purity}" for i, purity in zip(chosen, purities)]
            rows.append((name, [(title, *p) for title, p in zip(titles, points)]))
            alts.append(f"{name}: purity {purities[0]} at the first depth, {purities[-1]} at the last")
            labels_present |= {int(label) for _, labels in points for label in labels}
    source = (
        "the boxes that were given"
        if scene.distractors.get(frame)
        else f"negative objects with scores of at least {DISTRACTOR_SCORE:g} in the score map of any tracker"
    )
    text = [
        "Each point is a location of the search features at one depth, arranged by t-SNE. The number beside "
        "a depth is computed from the features themselves: the mean fraction of the 5 nearest neighbors "
        "(cosine) of the target's locations that are the target's. Neighbors in the image are similar in any "
        "network, so it is above chance from the first depth on.",
        f"Target: locations inside the {'true' if scene.true_box(frame) is not None else 'tracked'} box. "
        f"Distractors: {source}{'' if DISTRACTOR in labels_present else '; there are none in this frame'}."
        + ("" if TARGET in labels_present else " The target is not in the search region."),
    ]
    alt = f"t-SNE of search features by depth in frame {frame}. {'; '.join(alts)}."
    figure = Figure(f"frame_{frame:05d}_tsne", draw_features(rows), alt)
    return Section(f"Frame {frame}: search features by depth", text, [figure])


def _arranged(
    scene: Scene, trace: Trace, frame: int, features: Array
) -> tuple[tuple[Array, NDArray[np.int64]], str]:
    """Positions and labels of the features (C, H, W) of one depth, and their purity in words."""
    labels = label_locations(
        [t.response(frame) for t in scene.traces],
        trace.response(frame)[1],
        features.shape[1:],
        scene.target_box(trace, frame),
        scene.distractors.get(frame, ()),
        DISTRACTOR_SCORE,
    )
    chosen = sample_locations(labels)
    points, of = features.reshape(len(features), -1).T[chosen], labels.reshape(-1)[chosen]
    purity = neighbor_purity(points, of)
    return (arrange(points), of), "-" if math.isnan(purity) else f"{purity:.2f}"


def response_maps(scene: Scene, frames: Sequence[int], chosen: bool) -> Section:
    """Score maps of all trackers through several frames (Figs. 7 and 12)."""
    rows = []
    for i, trace in enumerate(scene.traces):
        tiles = []
        for frame in frames:
            scores, crop = trace.response(frame)
            image = heat_over_image(crop.cut(scene.frames[frame], 192), scores, smooth=True)
            scale = 192 / crop.side
            boxes = [(trace.results[frame].box, target_color(i), 2), (scene.true_box(frame), TRUTH, 1)]
            for box, color, thickness in boxes:
                if box is not None:
                    x, y, w, h = (float(value) for value in box)
                    place = ((x - crop.x) * scale, (y - crop.y) * scale, w * scale, h * scale)
                    image = draw_box(image, place, color, thickness=thickness)
            tiles.append(Tile(image, f"frame {frame}", _describe(scene, trace, frame, short=True)))
        rows.append(Row(trace.name, tiles))
    by = "low overlap with the ground truth" if scene.truth is not None else "low scores"
    text = "The frames that were asked for." if chosen else f"Hard frames: those with {by}, apart in time."
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
                    image = draw_box(
                        image, (crop.x, crop.y, crop.side, crop.side), (190, 190, 200), thickness=1
                    )
                image = _draw_boxes(image, scene, trace, i, frame, _factor(scene.frames[frame]))
                tiles.append(Tile(image, f"frame {frame}", _describe(scene, trace, frame, short=True)))
            rows.append(Row(f"frames {start} to {end - 1}", tiles))
        text.append(f"{trace.name}: {len(all_of)}, of which the longest {len(shown)} are shown.")
        alt = f"Failures of {trace.name}: frames {', '.join(f'{a} to {b - 1}' for a, b in shown)}."
        caption = (
            f"{trace.name}: the frame before the failure, its first and middle frame, and the one after it. "
            "Gray square: search region; colored: tracked box; thin and white: true box, if it is known."
        )
        figures.append(Figure(f"failures_{_slug(trace.name)}", draw_tiles(rows, 270), alt, caption))
    return Section("Failures", text, figures)


def wanted_frames(scene: Scene) -> set[int]:
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


def _queries(
    scene: Scene, trace: Trace, frame: int
) -> tuple[list[tuple[str, ImageName, tuple[float, float]]], list[str]]:
    """Name, image and place of every query, and remarks on those that are left out."""
    scores, crop = trace.response(frame)
    x, y, w, h = scene.target_box(trace, frame)
    places = [("the target", (x + w / 2, y + h / 2))]
    outside = np.where(locations_inside((x, y, w, h), crop, scores.shape), -1.0, scores)
    row, column = np.unravel_index(int(outside.argmax()), outside.shape)
    best = (
        crop.x + (float(column) + 0.5) / scores.shape[1] * crop.side,
        crop.y + (float(row) + 0.5) / scores.shape[0] * crop.side,
    )
    places.append(("the best location of the background", best))
    places += [(f"point {i} ({px:g}, {py:g})", (px, py)) for i, (px, py) in enumerate(scene.points, 1)]
    queries: list[tuple[str, ImageName, tuple[float, float]]] = []
    remarks = []
    for name, (px, py) in places:
        at = (px - crop.x) / crop.side, (py - crop.y) / crop.side
        if all(0 <= value < 1 for value in at):
            queries.append((name, "search", at))
        else:
            remarks.append(f"No attention from {name}: it is outside the search region of {trace.name}.")
    queries.append(("the template's center", "template", (0.5, 0.5)))
    return queries, remarks


def _attention_tile(
    found: AttentionMap, image: Frame, onto: ImageName, place: tuple[float, float], mark: bool
) -> Tile:
    index = [grid.image for grid in found.keys].index(onto)
    weights = _from_place(found, onto, place).mean(axis=0)
    tile = heat_over_image(image, weights / max(float(weights.max()), 1e-12), found.keys[index].extent)
    if mark:
        tile = mark_location(tile, *place)
    share = f"{weights.sum():.0%}  " if found.kind == "joint" else ""
    return Tile(tile, f"{_short(found.block)} {found.kind}", share + _peak(found, weights))


def _head_tile(found: AttentionMap, head: int, image: Frame) -> Tile:
    index = [grid.image for grid in found.keys].index("search")
    weights = _from_place(found, "search", (0.5, 0.5))[head]
    tile = heat_over_image(image, weights / max(float(weights.max()), 1e-12), found.keys[index].extent)
    share = f"{weights.sum():.0%}  " if found.kind == "joint" else ""
    return Tile(tile, f"head {head + 1}", share + _peak(found, weights))


def _from_place(found: AttentionMap, onto: ImageName, place: tuple[float, float]) -> Array:
    """Weights of every head on the keys of an image from one query: (heads, Hk, Wk)."""
    rows, columns = found.queries.size
    i, j = min(int(place[1] * rows), rows - 1), min(int(place[0] * columns), columns - 1)
    return np.asarray(found.onto(onto)[0, :, i, j].double().cpu().numpy())


def _peak(found: AttentionMap, weights: Array) -> str:
    times = float(weights.max()) * sum(len(grid) for grid in found.keys)
    return "eliminated" if times == 0 else f"x{times:.1f}" if times < 10 else f"x{times:.0f}"


def _short(block: str) -> str:
    """Name of a block for people: S3B6, or B4 where there are no stages."""
    stage, number = re.search(r"stages\.(\d+)", block), re.search(r"blocks\.(\d+)$", block)
    neck = re.search(r"necks\.(\d+)", block)
    start = f"S{int(stage[1]) + 1}" if stage else f"N{int(neck[1]) + 1}" if neck else ""
    return f"{start}B{int(number[1]) + 1}" if number else block


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
    image = draw_box(image, box, target_color(index), dashed=trace.results[frame].lost)
    true = scene.true_box(frame)
    return image if true is None else draw_box(image, list(true * factor), TRUTH, thickness=1)


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


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")
