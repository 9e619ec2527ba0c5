"""Draws boxes and score maps on frames, and contact sheets of frames."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import ArrayLike

from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.video import Frame

if TYPE_CHECKING:
    from correlation_aware.tracking.tracker import TrackResult

__all__ = [
    "COLORS",
    "REGION",
    "contact_sheet",
    "draw_box",
    "draw_result",
    "draw_results",
    "draw_score_maps",
    "heat_over_image",
    "target_color",
]

Color = tuple[int, int, int]  # RGB

COLORS: tuple[Color, ...] = (  # neighbors differ in hue and in lightness, for color-blind readers too
    (50, 230, 130),
    (255, 150, 20),
    (90, 170, 255),
    (255, 235, 60),
    (240, 80, 180),
    (100, 240, 240),
    (170, 120, 255),
    (250, 245, 240),
)
LOST: Color = (235, 55, 50)
INK: Color = (18, 18, 20)
PAPER: Color = (250, 250, 250)
REGION: Color = (110, 185, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX
SHIFT = 4  # bits of sub-pixel position in OpenCV's drawing


def target_color(index: int) -> Color:
    """RGB color of target number `index`; the colors repeat after eight targets."""
    return COLORS[index % len(COLORS)]


def draw_result(
    frame: Frame, result: "TrackResult", label: str | None = None, color: Color = COLORS[0]
) -> Frame:
    """A copy of a frame with the box of a result, its score, and a red mark where the target is lost.

    Args:
        frame: uint8 RGB of shape (H, W, 3).
        result: Result of the tracker for this frame.
        label: Text before the score, such as the target's number.
        color: RGB color of the box.
    """
    words = [word for word in (label, "LOST" if result.lost else None, f"{result.score:.2f}") if word]
    tab = LOST if result.lost else color
    return draw_box(frame, result.box, color, label=" ".join(words), tab=tab, dashed=result.lost)


def draw_results(
    frame: Frame,
    results: Sequence["TrackResult"],
    trails: Mapping[int, Iterable[tuple[float, float]]] | None = None,
) -> Frame:
    """A copy of a frame with the boxes of all targets, each in its color; numbered if there are several.

    Args:
        frame: uint8 RGB of shape (H, W, 3).
        results: Results of the tracker for this frame.
        trails: Latest centers of the targets by number, x, y in pixels, drawn as a line; by default none.
    """
    image = np.ascontiguousarray(frame).copy()
    for result in results:
        points = np.array(list((trails or {}).get(result.target, ())), float).reshape(-1, 2) - 0.5
        fixed = np.round(np.clip(points, -1e5, 1e5) * 2**SHIFT).astype(np.int32)
        width, color = _line_width(image), target_color(result.target)
        cv2.polylines(image, [fixed], False, INK, width + 2, cv2.LINE_AA, SHIFT)
        cv2.polylines(image, [fixed], False, color, width, cv2.LINE_AA, SHIFT)
    for result in results:
        label = f"#{result.target}" if len(results) > 1 else None
        image = draw_result(image, result, label, target_color(result.target))
    return image


def heat_over_image(
    image: Frame, heat: ArrayLike, extent: tuple[float, float] = (1.0, 1.0), smooth: bool = False
) -> Frame:
    """An image in gray with values over it in color: black for 0, yellow for 1.

    Args:
        image: uint8 RGB (H, W, 3).
        heat: (h, w) values in 0..1.
        extent: Fraction of the image's height and width that the values cover, from its top left corner.
        smooth: Whether values are interpolated; otherwise each is a rectangle.
    """
    height, width = image.shape[:2]
    values = np.zeros((height, width), np.float32)
    covered = round(width * extent[1]), round(height * extent[0])
    interpolation = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    values[: covered[1], : covered[0]] = cv2.resize(
        np.asarray(heat, np.float32), covered, interpolation=interpolation
    )
    bytes_ = np.clip(values * 255, 0, 255).round().astype(np.uint8)
    color = cv2.cvtColor(cv2.applyColorMap(bytes_, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    weight = 0.25 + 0.5 * np.sqrt(values.clip(0, 1))[..., None]
    return np.clip(0.75 * gray * (1 - weight) + color * weight * 1.2, 0, 255).round().astype(np.uint8)


def draw_score_maps(frame: Frame, maps: Iterable[tuple[ArrayLike, Crop]]) -> Frame:
    """A copy of a frame whose search regions are gray, with the score maps over them, from black to yellow.

    Args:
        frame: uint8 RGB of shape (H, W, 3).
        maps: (h, w) scores in 0..1 and their search region, of each target. Where regions overlap, the
            highest score is drawn; what is outside the frame is left out.
    """
    image = np.ascontiguousarray(frame).copy()
    height, width = image.shape[:2]
    highest = np.full((height, width), -1, np.float32)  # where there is no region
    crops = []
    for scores, crop in maps:
        crops.append(crop)
        top, left = max(crop.y, 0), max(crop.x, 0)
        bottom, right = min(crop.y + crop.side, height), min(crop.x + crop.side, width)
        if bottom <= top or right <= left:
            continue
        values = np.asarray(scores, np.float32)
        steps = values.shape[1] / crop.side, values.shape[0] / crop.side  # locations per pixel
        starts = (left - crop.x + 0.5) * steps[0] - 0.5, (top - crop.y + 0.5) * steps[1] - 0.5
        matrix = np.array([[steps[0], 0, starts[0]], [0, steps[1], starts[1]]])
        flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (right - left, bottom - top)
        visible = cv2.warpAffine(values, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        region = highest[top:bottom, left:right]
        np.maximum(region, visible, out=region)
    covered = highest >= 0
    image[covered] = heat_over_image(image, highest)[covered]
    for crop in crops:
        image = draw_box(image, (crop.x, crop.y, crop.side, crop.side), REGION, thickness=1)
    return image


def draw_box(
    frame: Frame,
    box: Sequence[float],
    color: Color = COLORS[0],
    *,
    label: str | None = None,
    tab: Color | None = None,
    thickness: int | None = None,
    dashed: bool = False,
) -> Frame:
    """A copy of a frame with one anti-aliased box, drawn with a precision of 1/16 pixel.

    Args:
        frame: uint8 RGB of shape (H, W, 3).
        box: x, y, w, h in pixels; it may extend beyond the frame.
        color: RGB color of the line.
        label: Text at the box, on a filled background that stays inside the frame.
        tab: RGB color of the background of the text; the color of the line by default.
        thickness: Width of the line in pixels; by default it grows with the size of the frame.
        dashed: Whether the line is dashed.
    """
    image = np.ascontiguousarray(frame).copy()
    thickness = thickness or _line_width(image)
    x, y, w, h = (float(value) for value in box)
    corners = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)]) - 0.5  # pixel 0 spans 0..1
    lines = _dashes(corners, 4.0 * thickness + 4) if dashed else [corners]
    fixed = [np.round(np.clip(line, -1e5, 1e5) * 2**SHIFT).astype(np.int32) for line in lines]
    cv2.polylines(
        image, fixed, False, INK, thickness + 2, cv2.LINE_AA, SHIFT
    )  # a dark contour, visible on any background
    cv2.polylines(image, fixed, False, color, thickness, cv2.LINE_AA, SHIFT)
    if label:
        _draw_label(image, label, x, y, y + h, tab or color, thickness)
    return image


def contact_sheet(
    frames: Sequence[Frame], columns: int = 4, width: int = 1280, captions: Sequence[str] | None = None
) -> Frame:
    """Frames in rows on one dark sheet, each resized to fit a tile with the first frame's aspect ratio.

    Args:
        frames: uint8 RGB frames of any sizes.
        columns: Number of tiles per row.
        width: Width of the sheet in pixels.
        captions: Text in the corner of each frame.

    Raises:
        ValueError: No frames, no columns, another number of captions than frames, or tiles of fewer than 16
            pixels.
    """
    gap = max(4, width // 160)
    tile = (width - gap * (columns + 1)) // columns if columns > 0 else 0
    if not frames or tile < 16:
        raise ValueError(
            f"a sheet needs frames and tiles of 16 pixels or more: {len(frames)} frames, columns={columns}, "
            f"width={width}"
        )
    if captions is not None and len(captions) != len(frames):
        raise ValueError(f"{len(frames)} frames need {len(frames)} captions, not {len(captions)}")
    tile_height = max(16, round(tile * frames[0].shape[0] / frames[0].shape[1]))
    rows = -(-len(frames) // columns)
    sheet = np.empty((rows * (tile_height + gap) + gap, width, 3), np.uint8)
    sheet[:] = INK
    left = (width - columns * tile - (columns - 1) * gap) // 2
    for i, frame in enumerate(frames):
        scale = min(tile / frame.shape[1], tile_height / frame.shape[0])
        w, h = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = np.asarray(cv2.resize(frame, (w, h), interpolation=interpolation), np.uint8)
        if captions is not None:
            _draw_label(small, captions[i], 0, h, h, INK, 1)
        top = gap + i // columns * (tile_height + gap) + (tile_height - h) // 2
        start = left + i % columns * (tile + gap) + (tile - w) // 2
        sheet[top : top + h, start : start + w] = small
    return sheet


def _line_width(frame: Frame) -> int:
    return max(1, round(min(frame.shape[:2]) / 180))


def _dashes(corners: np.ndarray, length: float) -> list[np.ndarray]:
    """Splits every side into an odd number of equal parts and keeps every other one, so corners are drawn."""
    lines = []
    for start, end in pairwise(corners):
        parts = 2 * min(200, int(np.linalg.norm(end - start) / (2 * length))) + 1
        points = [start + (end - start) * i / parts for i in range(parts + 1)]
        lines += [np.stack(points[i : i + 2]) for i in range(0, parts, 2)]
    return lines


def _draw_label(
    image: Frame, text: str, x: float, top: float, bottom: float, color: Color, thickness: int
) -> None:
    """Writes text on a filled background: above the box if there is space, else below it, else inside it."""
    height, width = image.shape[:2]
    weight = max(1, thickness // 2)
    scale = max(0.45, min(height, width) / 720)
    (w, _), _ = cv2.getTextSize(text, FONT, scale, weight)
    (_, h), _ = cv2.getTextSize("0", FONT, scale, weight)  # all backgrounds have the same height
    pad = max(3, round(0.45 * h))
    w, h = w + 2 * pad, h + 2 * pad
    half = thickness / 2
    y = next((y for y in (top - half - h, bottom + half) if 0 <= y <= height - h), top)
    left, y = round(min(max(x - half, 0), max(0, width - w))), round(min(max(y, 0), max(0, height - h)))
    cv2.rectangle(image, (left, y), (left + w - 1, y + h - 1), color, cv2.FILLED)
    ink = INK if np.dot(color, (0.299, 0.587, 0.114)) > 110 else PAPER
    cv2.putText(image, text, (left + pad, y + h - pad), FONT, scale, ink, weight, cv2.LINE_AA)
