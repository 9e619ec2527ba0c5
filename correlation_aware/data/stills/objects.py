"""What in a photograph can be a target: the object of its mask, or rectangles that stand out."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from correlation_aware.data.stills.geometry import OUTLINE_POINTS

__all__ = ["clean_mask", "plain_ground_mask", "salient_rectangles", "tight_outline"]

Image = NDArray[np.uint8]
Array = NDArray[np.float32]


def clean_mask(mask: Image) -> NDArray[np.bool_] | None:
    """The largest connected object of a mask, None if it is too small or fills the picture."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8))
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    w, h, area = stats[largest, 2:]
    if min(w, h) < 8 or area < 100 or area > 0.85 * mask.size:
        return None
    return np.asarray(parts == largest)


def plain_ground_mask(image: Image) -> Image | None:
    """The mask of an object before a ground of one colour, as in catalogues; None elsewhere.

    The ground is what has about the colour of the picture's rim and is connected with it.
    """
    rim = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    rim = np.concatenate([rim, image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)]).astype(int)
    colour = np.median(rim, axis=0)
    if (np.abs(rim - colour).max(axis=1) < 14).mean() < 0.8:
        return None
    near = (np.abs(cv2.medianBlur(image, 3).astype(int) - colour).max(axis=2) < 20).astype(np.uint8)
    parts = cv2.connectedComponents(near, connectivity=4)[1]
    at_rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    ground = np.isin(parts, at_rim[at_rim > 0])
    if not 0.2 < ground.mean() < 0.95:
        return None
    return np.asarray(~ground * 255, np.uint8)


def tight_outline(mask: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The box of a mask, xywh in pixels, and its hull in units of the box, (points, 2).

    The hull's points are those furthest in evenly spaced directions, so the box is exact and any turned one
    nearly so.
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
    """The rectangles, of many random ones, that stand out most: (count, 4) xywh, the best first.

    They differ from what is around them, have texture within, and edges within rather than across their rim.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, 96 / max(height, width))
    small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA).astype(np.float32)
    rows, columns = small.shape[:2]
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    steps = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    edges = np.sqrt(steps)
    tries = 32 * count
    size = np.sqrt(rows * columns) * np.exp(rng.uniform(np.log(0.1), np.log(0.4), tries))
    aspect = np.exp(rng.uniform(-0.7, 0.7, tries))
    w = np.minimum(size * np.sqrt(aspect), 0.95 * columns)
    h = np.minimum(size / np.sqrt(aspect), 0.95 * rows)
    x, y = rng.uniform(0, columns - w), rng.uniform(0, rows - h)

    def total(values: Array, grow: float) -> tuple[Array, Array]:
        """Sums over every rectangle, grown by a part of its size, and their areas."""
        table = np.asarray(cv2.integral(values)).reshape(rows + 1, columns + 1, -1)
        x1, x2 = (np.clip(np.round(v), 0, columns).astype(int) for v in (x - grow * w, x + w + grow * w))
        y1, y2 = (np.clip(np.round(v), 0, rows).astype(int) for v in (y - grow * h, y + h + grow * h))
        area = np.maximum((x2 - x1) * (y2 - y1), 1)[:, None]
        return table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1], area

    def mean(values: Array, inner: float, outer: float) -> Array:
        """Means over the ring between two sizes of every rectangle; over all of it if inner is -0.5."""
        (a, area_a), (b, area_b) = total(values, inner), total(values, outer)
        return (b - a) / np.maximum(area_b - area_a, 1)

    within = mean(small, -0.5, 0)
    contrast = np.abs(within - mean(small, 0, 0.25)).mean(axis=1)
    texture = np.sqrt(np.maximum(mean(small**2, -0.5, 0) - within**2, 0)).mean(axis=1)
    closed = (mean(edges, -0.5, -0.08) - mean(edges, -0.08, 0.08))[:, 0]
    score = contrast.clip(max=40) + texture.clip(max=50) + 6 * closed
    corners = torch.from_numpy(np.stack([x, y, x + w, y + h], axis=1))
    kept = nms(corners, torch.from_numpy(score), iou_threshold=0.4).numpy()
    best = np.resize(kept, count)  # the first ones again where too few are left
    return (np.stack([x, y, w, h], axis=1)[best] / shrink).astype(np.float32)
