"""Candidate targets in a photograph: the object of its mask, or salient rectangles."""

import threading

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from correlation_aware.data.stills.geometry import OUTLINE_POINTS

__all__ = ["clean_mask", "plain_background_mask", "salient_rectangles", "tight_outline"]

Image = NDArray[np.uint8]
Array = NDArray[np.float32]
_nms_lock = threading.Lock()  # its first calls fail at times if several threads make them at once


def clean_mask(mask: Image) -> NDArray[np.bool_] | None:
    """The largest connected component of a mask.

    Args:
        mask: uint8 (H, W), above 127 on the object.

    Returns:
        (H, W) bool, or None if the component is too small or fills the image.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8))
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    w, h, area = stats[largest, 2:]
    if min(w, h) < 8 or area < 100 or area > 0.85 * mask.size:
        return None
    return np.asarray(parts == largest)


def plain_background_mask(image: Image) -> Image | None:
    """The mask of an object on a background of one color, as in product photographs.

    The background is the pixels of about the color of the image's edge that are connected with the edge.

    Args:
        image: uint8 RGB (H, W, 3).

    Returns:
        uint8 (H, W), 255 on the object, or None if the image has no plain background.
    """
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    border = np.concatenate([border, image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)]).astype(int)
    color = np.median(border, axis=0)
    if (np.abs(border - color).max(axis=1) < 14).mean() < 0.8:
        return None
    near = (np.abs(cv2.medianBlur(image, 3).astype(int) - color).max(axis=2) < 20).astype(np.uint8)
    parts = cv2.connectedComponents(near, connectivity=4)[1]
    at_border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    background = np.isin(parts, at_border[at_border > 0])
    if not 0.2 < background.mean() < 0.95:
        return None
    return np.asarray(~background * 255, np.uint8)


def tight_outline(mask: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The box and the convex hull of a mask.

    The points of the hull are the extreme ones in evenly spaced directions: the box is exact, and the box
    after a rotation is nearly exact.

    Args:
        mask: (H, W) bool, not empty.

    Returns:
        Box (4,) xywh in pixels, and hull (OUTLINE_POINTS, 2) in coordinates that span -1..1 over the box.
    """
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    corners = np.concatenate(contours).reshape(-1, 1, 2) + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    points = corners.reshape(-1, 2).astype(np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    units = (points - (low + high) / 2) / ((high - low) / 2)
    angle = np.arange(OUTLINE_POINTS) * (2 * np.pi / OUTLINE_POINTS)
    furthest = np.argmax(units @ np.stack([np.cos(angle), np.sin(angle)]), axis=0)
    return np.concatenate([low, high - low]).astype(np.float32), units[furthest].astype(np.float32)


def salient_rectangles(image: Image, count: int, rng: np.random.Generator) -> Array:
    """The most salient of many random rectangles.

    Salient ones differ in color from their surroundings, have texture, and have image edges inside rather
    than across their border.

    Args:
        image: uint8 RGB (H, W, 3).
        count: Number of rectangles.
        rng: Random number generator.

    Returns:
        (count, 4) xywh in pixels, best first.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, 96 / max(height, width))
    small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA).astype(np.float32)
    rows, columns = small.shape[:2]
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    gradient = np.abs(cv2.Sobel(gray, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    edges = np.sqrt(gradient)
    candidates = 32 * count
    size = np.sqrt(rows * columns) * np.exp(rng.uniform(np.log(0.1), np.log(0.4), candidates))
    aspect = np.exp(rng.uniform(-0.7, 0.7, candidates))
    w = np.minimum(size * np.sqrt(aspect), 0.95 * columns)
    h = np.minimum(size / np.sqrt(aspect), 0.95 * rows)
    x, y = rng.uniform(0, columns - w), rng.uniform(0, rows - h)

    def total(values: Array, grow: float) -> tuple[Array, Array]:
        """Sums over every rectangle, enlarged on each side by `grow` times its size, and the areas."""
        table = np.asarray(cv2.integral(values)).reshape(rows + 1, columns + 1, -1)
        x1, x2 = (np.clip(np.round(v), 0, columns).astype(int) for v in (x - grow * w, x + w + grow * w))
        y1, y2 = (np.clip(np.round(v), 0, rows).astype(int) for v in (y - grow * h, y + h + grow * h))
        area = np.maximum((x2 - x1) * (y2 - y1), 1)[:, None]
        return table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1], area

    def mean(values: Array, inner: float, outer: float) -> Array:
        """Means over the ring between two enlargements of every rectangle; inner=-0.5 is an empty inside."""
        (a, area_a), (b, area_b) = total(values, inner), total(values, outer)
        return (b - a) / np.maximum(area_b - area_a, 1)

    within = mean(small, -0.5, 0)
    contrast = np.abs(within - mean(small, 0, 0.25)).mean(axis=1)
    texture = np.sqrt(np.maximum(mean(small**2, -0.5, 0) - within**2, 0)).mean(axis=1)
    closed = (mean(edges, -0.5, -0.08) - mean(edges, -0.08, 0.08))[:, 0]
    score = contrast.clip(max=40) + texture.clip(max=50) + 6 * closed
    corners = torch.from_numpy(np.stack([x, y, x + w, y + h], axis=1))
    with _nms_lock:
        kept = nms(corners, torch.from_numpy(score), iou_threshold=0.4).numpy()
    best = np.resize(kept, count)  # repeats the first ones where too few are left
    return (np.stack([x, y, w, h], axis=1)[best] / shrink).astype(np.float32)
