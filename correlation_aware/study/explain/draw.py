"""Draws what `explain` shows, as PNG images. All colors are RGB."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require
from correlation_aware.study.explain.measures import BACKGROUND, DISTRACTOR, TARGET
from correlation_aware.tracking.video import Frame

__all__ = [
    "SCALE",
    "TRUTH",
    "Row",
    "Tile",
    "draw_curves",
    "draw_features",
    "draw_tiles",
    "mark_location",
]

SCALE = 1.25  # pixels of a PNG over those of its place on the page
TRUTH = (250, 250, 250)
INK, FAINT = "#1d1f24", "#60646c"
GAP, LINE = 10, 17  # between tiles, and height of a line of text
LABELS = {  # name, color, marker; the colors of the paper, and markers for color-blind readers
    BACKGROUND: ("background", "#f2a3bd", "o"),
    DISTRACTOR: ("distractors", "#1f6fc4", "^"),
    TARGET: ("target", "#1c9a45", "s"),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tile:
    """An image of a sheet.

    Attributes:
        image: uint8 RGB (H, W, 3).
        caption: Line above it.
        note: Line below it.
    """

    image: Frame
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles beside each other.

    Attributes:
        heading: Line above the row.
        tiles: Tiles.
    """

    heading: str
    tiles: Sequence[Tile]


def mark_location(image: Frame, x: float, y: float) -> Frame:
    """A copy of an image with a ring around a place, x and y in 0..1 of the image."""
    image = image.copy()
    height, width = image.shape[:2]
    center, radius = (round(x * width), round(y * height)), max(4, min(height, width) // 18)
    cv2.circle(image, center, radius, (0, 0, 0), max(3, radius // 2), cv2.LINE_AA)
    cv2.circle(image, center, radius, (60, 250, 250), max(1, radius // 4), cv2.LINE_AA)
    return image


def draw_tiles(rows: Sequence[Row], tile: int) -> bytes:
    """A sheet of images in rows, with text above and below each.

    Args:
        rows: Rows of tiles of any sizes.
        tile: Width of a tile in pixels of the page.

    Returns:
        PNG file.
    """
    columns = max(len(row.tiles) for row in rows)
    width = columns * (tile + GAP) + GAP
    texts: list[tuple[int, int, str, dict[str, Any]]] = []
    images: list[tuple[int, int, Frame]] = []
    y = GAP
    for row in rows:
        if row.heading:
            texts.append((GAP, y, row.heading, {"size": 9.5, "weight": "bold"}))
            y += LINE + 4
        captions = LINE if any(t.caption for t in row.tiles) else 0
        heights = [round(tile * t.image.shape[0] / t.image.shape[1]) for t in row.tiles]
        for i, (t, height) in enumerate(zip(row.tiles, heights)):
            x = GAP + i * (tile + GAP)
            texts.append((x, y, t.caption, {"size": 8}))
            texts.append((x, y + captions + height + 2, t.note, {"size": 8, "color": FAINT}))
            size = round(tile * SCALE), round(height * SCALE)
            shrinks = size[0] < t.image.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            images.append((x, y + captions, np.asarray(cv2.resize(t.image, size, interpolation=method))))
        y += captions + max(heights) + (LINE if any(t.note for t in row.tiles) else 0) + GAP
    sheet = np.full((round(y * SCALE), round(width * SCALE), 3), 255, np.uint8)
    for x, top, image in images:
        left, start = round(x * SCALE), round(top * SCALE)
        part = sheet[start : start + image.shape[0], left : left + image.shape[1]]
        part[:] = image[: part.shape[0], : part.shape[1]]
    figure = _figure(width, y)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, extent=(0, width, y, 0), aspect="auto", interpolation="none")
    axes.set_axis_off()
    for x, top, text, style in texts:
        if text:
            axes.text(x, top, text, va="top", ha="left", clip_on=False, **{"color": INK, **style})
    return _png(figure)


def draw_features(rows: Sequence[tuple[str, Sequence[tuple[str, Array, NDArray[np.int64]]]]]) -> bytes:
    """Scatter plots of features, a row for each network.

    Args:
        rows: Heading, and for each depth its title, (N, 2) positions and (N,) labels.

    Returns:
        PNG file.
    """
    columns, size = max(len(panels) for _, panels in rows), 175
    step = size + 3 * LINE
    width, height = columns * size + GAP, len(rows) * step + 2 * LINE
    figure = _figure(width, height)
    present = {int(label) for _, panels in rows for _, _, labels in panels for label in np.unique(labels)}
    handles = {}
    for i, (heading, panels) in enumerate(rows):
        top = i * step + LINE // 2
        figure.text(
            GAP / width, 1 - (top + 4) / height, heading, va="top", size=9.5, weight="bold", color=INK
        )
        for j, (title, positions, labels) in enumerate(panels):
            box = (GAP + j * size, top + 2 * LINE + 6, size - GAP, size - GAP)
            axes = figure.add_axes(
                (box[0] / width, 1 - (box[1] + box[3]) / height, box[2] / width, box[3] / height)
            )
            for label in (BACKGROUND, DISTRACTOR, TARGET):
                name, color, marker = LABELS[label]
                of = labels == label
                handles[label] = axes.scatter(
                    positions[of, 0], positions[of, 1], s=9, c=color, marker=marker, linewidths=0, label=name
                )
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color("#c9ccd3")
            axes.set_title(title, size=8, loc="left", pad=3, color=INK)
    shown = [handles[label] for label in (TARGET, DISTRACTOR, BACKGROUND) if label in present]
    figure.legend(shown, [h.get_label() for h in shown], loc="lower left", ncols=3, fontsize=8, frameon=False)
    return _png(figure)


def draw_curves(panels: Sequence[tuple[str, dict[str, Array]]], marks: Sequence[int]) -> bytes:
    """Curves over the frames of a video, a panel below another.

    Args:
        panels: Title of each panel, and its curves (T,) by the names of the models; NaN leaves a gap.
        marks: Frames with a vertical line: those that are explained.

    Returns:
        PNG file.
    """
    width, height = 720, 120 * len(panels) + 40
    figure = _figure(width, height, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (title, curves) in zip(grid[:, 0], panels):
        for i, (name, values) in enumerate(curves.items()):
            axes.plot(
                values, color=f"C{i}", linewidth=1.1, label=name, linestyle=("-", "--", ":", "-.")[i % 4]
            )
        for frame in marks:
            axes.axvline(frame, color="#b9bcc4", linewidth=0.8, zorder=0)
        axes.set_title(title, size=8.5, loc="left", pad=3, color=INK)
        axes.tick_params(labelsize=7.5)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("frame", size=8)
    grid[0, 0].legend(fontsize=7.5, ncols=4, frameon=False, loc="lower left")
    return _png(figure)


def _figure(width: float, height: float, **options: Any) -> Any:
    """A figure of a size in pixels of the page."""
    (figures,) = require("matplotlib.figure")
    return figures.Figure(figsize=(width / 96, height / 96), dpi=96 * SCALE, facecolor="white", **options)


def _png(figure: Any) -> bytes:
    """A figure as a PNG file, without the version of the program that wrote it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
