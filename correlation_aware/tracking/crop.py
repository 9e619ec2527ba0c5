"""Square crops around a target, and conversion of boxes between crop and frame. Boxes are xywh in pixels.

Coordinates are continuous: pixel i covers [i, i + 1), so the center of a frame of width W is W / 2. The sides
of crops are multiples of the target's; the factors are in `Sizes` of `models/contract.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Crop", "as_boxes", "as_rgb", "clip_box"]


@dataclass(frozen=True)
class Crop:
    """Position of a square crop in its frame.

    Attributes:
        x: Left edge in pixels of the frame, negative where the crop extends beyond the frame.
        y: Top edge in pixels of the frame.
        side: Side in pixels of the frame.
    """

    x: int
    y: int
    side: int

    @classmethod
    def around(cls, box: ArrayLike, factor: float) -> "Crop":
        """The crop around a target.

        Args:
            box: Box of the target, xywh in pixels of the frame.
            factor: Side of the crop over sqrt(w * h); the side is rounded up.
        """
        x, y, w, h = np.asarray(box, dtype=float)
        side = max(1, math.ceil(math.sqrt(w * h) * factor))
        return cls(round(x + w / 2 - side / 2), round(y + h / 2 - side / 2), side)

    def cut(self, frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Cuts the crop from a frame and resizes it, bilinear; pixels outside the frame are black.

        Args:
            frame: (H, W, 3), uint8.
            size: Side of the output in pixels.

        Returns:
            (size, size, 3), uint8.
        """
        height, width = frame.shape[:2]
        left, top, right, bottom = (  # pixels of the crop outside the frame, up to all of them
            min(max(0, outside), self.side)
            for outside in (-self.x, -self.y, self.x + self.side - width, self.y + self.side - height)
        )
        inner: Any = frame[
            self.y + top : self.y + self.side - bottom, self.x + left : self.x + self.side - right
        ]
        if left or top or right or bottom:
            inner = cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT)
        return cv2.resize(inner, (size, size), interpolation=cv2.INTER_LINEAR)

    def to_frame(self, box: ArrayLike) -> NDArray[np.float64]:
        """Converts a box (4,) cxcywh in 0..1 of the crop to xywh in pixels of the frame."""
        cx, cy, w, h = np.asarray(box, dtype=float) * self.side
        return np.array([self.x + cx - w / 2, self.y + cy - h / 2, w, h])

    def to_crop(self, box: ArrayLike) -> NDArray[np.float64]:
        """Converts a box (4,) xywh in pixels of the frame to cxcywh in 0..1 of the crop."""
        x, y, w, h = np.asarray(box, dtype=float)
        return np.array([x + w / 2 - self.x, y + h / 2 - self.y, w, h]) / self.side


def clip_box(box: ArrayLike, height: int, width: int, margin: float = 10.0) -> NDArray[np.float64]:
    """Clips a box to the frame.

    Args:
        box: (4,) xywh in pixels.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        margin: Smallest width and height of the clipped box in pixels, limited by the frame's size.

    Returns:
        (4,) xywh in pixels.
    """
    x, y, w, h = np.asarray(box, dtype=float)
    margin_x, margin_y = min(margin, width), min(margin, height)
    x1, x2 = min(max(x, 0.0), width - margin_x), max(min(x + w, width), margin_x)
    y1, y2 = min(max(y, 0.0), height - margin_y), max(min(y + h, height), margin_y)
    return np.array([x1, y1, max(x2 - x1, margin_x), max(y2 - y1, margin_y)])


def as_rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Checks a frame and converts it to RGB: gray is repeated, alpha is dropped.

    Args:
        frame: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        ValueError: Not a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    """
    if not isinstance(frame, np.ndarray):
        hint = (
            " Use frame.permute(1, 2, 0).cpu().numpy()."
            if hasattr(frame, "permute")
            else " Use numpy.asarray(frame)."
        )
        raise ValueError(
            f"A frame is a numpy array (H, W, 3) of uint8 in RGB, not {type(frame).__name__}.{hint}"
        )
    if frame.dtype != np.uint8:
        hint = "(frame * 255).round().astype('uint8') for values in 0..1, frame.astype('uint8') for 0..255"
        raise ValueError(f"A frame is uint8 in 0..255, this one is {frame.dtype}. Use {hint}.")
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or 0 in frame.shape:
        channels_first = frame.ndim == 3 and frame.shape[0] in (1, 3, 4)
        hint = " Channels come last: use frame.transpose(1, 2, 0)." if channels_first else ""
        raise ValueError(
            f"A frame has shape (H, W, 3), gray (H, W) or RGBA (H, W, 4); this one has {frame.shape}.{hint}"
        )
    if frame.shape[2] == 1:
        return np.repeat(frame, 3, axis=2)
    return np.ascontiguousarray(frame[:, :, :3])


def as_boxes(boxes: ArrayLike, height: int, width: int) -> NDArray[np.float64]:
    """Checks boxes against a frame.

    Args:
        boxes: One box (4,) or several (N, 4), xywh in pixels.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        (N, 4) xywh in pixels.

    Raises:
        ValueError: A box that is not four finite numbers, has no area, or is outside the frame.
    """
    try:
        array = np.asarray(boxes, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"A box is four numbers x, y, w, h; got {boxes!r}.") from None
    if array.ndim not in (1, 2) or array.shape[-1] != 4 or array.size == 0:
        raise ValueError(f"Boxes have shape (4,) or (N, 4), x, y, w, h in pixels; got shape {array.shape}.")
    array = array.reshape(-1, 4)
    for box in array:
        _check_box(box, height, width)
    return array


def _check_box(box: NDArray[np.float64], height: int, width: int) -> None:
    x, y, w, h = box
    text = f"({x:g}, {y:g}, {w:g}, {h:g})"
    corners = w > x and h > y and w <= width and h <= height
    hint = " It looks like x1, y1, x2, y2; pass x1, y1, x2 - x1, y2 - y1." if corners else ""
    if not np.isfinite(box).all():
        raise ValueError(f"The box {text} has values that are not finite; x, y, w, h must be numbers.")
    if w <= 0 or h <= 0:
        raise ValueError(f"The box {text} has no area: w and h must be above 0.")
    visible_w, visible_h = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    if visible_w <= 0 or visible_h <= 0:
        raise ValueError(
            f"The box {text} is outside the frame, which is {width} x {height} px (width x height).{hint}"
        )
    if corners and visible_w * visible_h < 0.75 * w * h:
        raise ValueError(
            f"More than a quarter of the box {text} is outside the {width} x {height} px frame.{hint}"
        )
