"""The sections about networks: attention of every block, and search features by depth."""

import math
import re

import numpy as np
import torch
from numpy.typing import NDArray

from correlation_aware.models.attention_maps import AttentionMap, ImageName
from correlation_aware.models.sbt import SBT
from correlation_aware.study.explain.draw import (
    Row,
    Tile,
    draw_features,
    draw_tiles,
    mark_location,
)
from correlation_aware.study.explain.features import arrange, sample_locations, search_features
from correlation_aware.study.explain.measures import (
    DISTRACTOR,
    TARGET,
    label_locations,
    locations_inside,
    neighbor_purity,
)
from correlation_aware.study.explain.page import Figure, Section
from correlation_aware.study.explain.scene import Scene, file_stem
from correlation_aware.study.explain.trace import Trace
from correlation_aware.tracking.draw import heat_over_image
from correlation_aware.tracking.video import Frame

__all__ = ["attention", "features"]

Array = NDArray[np.float64]
DEPTHS = 6  # depths of a network that t-SNE shows
DISTRACTOR_SCORE = 0.1  # smallest score of a location of a distractor


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
                _attention_tile(m, images[onto], onto, (fx, fy), f"{_short(m.block)} {m.kind}")
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
    slug = f"frame_{frame:05d}_{file_stem(trace.name)}"
    alt = f"Attention of {len({m.block for m in maps})} blocks of {trace.name} in frame {frame}, from " + (
        ", ".join(name for name, _, _ in queries)
    )
    figures = [Figure(f"{slug}_attention", draw_tiles(rows, 112), f"{alt}.")]
    crossing = [m for m in maps if m.queries.image == "template" and m.kind != "self"]
    if crossing:
        head_rows = [
            Row(
                f"{_short(m.block)}, {m.kind}",
                [
                    _attention_tile(m, x_image, "search", (0.5, 0.5), f"head {h + 1}", h)
                    for h in range(m.weights.shape[1])
                ],
            )
            for m in crossing
        ]
        caption = "From the center of the template to the search image, a tile for each head."
        alt = f"Attention from the template's center to the search image, by head, in {len(crossing)} blocks."
        figures.append(Figure(f"{slug}_heads", draw_tiles(head_rows, 112), alt, caption))
    return Section(title, text, figures)


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
    attention_map: AttentionMap,
    image: Frame,
    onto: ImageName,
    place: tuple[float, float],
    caption: str,
    head: int | None = None,
) -> Tile:
    """Attention from a place of the queries' image to an image: of one head, or the mean of all."""
    index = [grid.image for grid in attention_map.keys].index(onto)
    by_head = _from_place(attention_map, onto, place)
    weights = by_head.mean(axis=0) if head is None else by_head[head]
    tile = heat_over_image(
        image, weights / max(float(weights.max()), 1e-12), attention_map.keys[index].extent
    )
    if attention_map.queries.image == onto:
        tile = mark_location(tile, *place)
    share = f"{weights.sum():.0%}  " if attention_map.kind == "joint" else ""
    return Tile(tile, caption, share + _peak(attention_map, weights))


def _from_place(attention_map: AttentionMap, onto: ImageName, place: tuple[float, float]) -> Array:
    """Weights of every head on the keys of an image from one query: (heads, Hk, Wk)."""
    rows, columns = attention_map.queries.size
    i, j = min(int(place[1] * rows), rows - 1), min(int(place[0] * columns), columns - 1)
    return np.asarray(attention_map.onto(onto)[0, :, i, j].double().cpu().numpy())


def _peak(attention_map: AttentionMap, weights: Array) -> str:
    times = float(weights.max()) * sum(len(grid) for grid in attention_map.keys)
    return "eliminated" if times == 0 else f"x{times:.1f}" if times < 10 else f"x{times:.0f}"


def _short(block: str) -> str:
    """Name of a block for people: S3B6, or B4 where there are no stages."""
    stage, number = re.search(r"stages\.(\d+)", block), re.search(r"blocks\.(\d+)$", block)
    neck = re.search(r"necks\.(\d+)", block)
    start = f"S{int(stage[1]) + 1}" if stage else f"N{int(neck[1]) + 1}" if neck else ""
    return f"{start}B{int(number[1]) + 1}" if number else block


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
