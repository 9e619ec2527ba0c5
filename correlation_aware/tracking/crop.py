"""Square crops around a target, and conversion of boxes between crop and frame. Boxes are xywh in pixels.

Coordinates are continuous: pixel i covers [i, i + 1), so the center of a frame of width W is W / 2. The sides
of crops are multiples of the target's; the factors are in `Sizes` of `models/contract.py`.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Crop", "as_boxes", "as_rgb", "clip_box"]

# Side in pixels up to which a crop is copied with its border before it is resized; 50 MB of memory at most.
LARGEST_COPY = 4096


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

        Memory is bounded by the frame, whatever the side of the crop.

        Args:
            frame: (H, W, 3), uint8.
            size: Side of the output in pixels.

        Returns:
            (size, size, 3), uint8.
        """
        height, width = frame.shape[:2]
        if self.side > LARGEST_COPY:
            return self._sample(frame, size)
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

    def _sample(self, frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """As `cut`, from the pixels that bilinear interpolation needs alone; values differ by 1 at most."""
        height, width = frame.shape[:2]
        along = ((np.arange(size) + 0.5) * (self.side / size) - 0.5).clip(0, self.side - 1)
        low = along.astype(int)
        weight = along - low
        both = np.concatenate([low, np.minimum(low + 1, self.side - 1)])  # 2 * size
        rows, columns = both + self.y, both + self.x
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        pixels: Any = frame[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] * inside[..., None]
        pixels = _mix(pixels[:size], pixels[size:], weight[:, None, None])
        pixels = _mix(pixels[:, :size], pixels[:, size:], weight[:, None])
        return np.asarray(pixels.round(), np.uint8)

    def to_frame(self, box: ArrayLike) -> NDArray[np.float64]:
        """Converts a box (4,) cxcywh in 0..1 of the crop to xywh in pixels of the frame."""
        cx, cy, w, h = np.asarray(box, dtype=float) * self.side
        return np.array([self.x + cx - w / 2, self.y + cy - h / 2, w, h])

    def to_crop(self, box: ArrayLike) -> NDArray[np.float64]:
        """Converts a box (4,) xywh in pixels of the frame to cxcywh in 0..1 of the crop."""
        x, y, w, h = np.asarray(box, dtype=float)
        return np.array([x + w / 2 - self.x, y + h / 2 - self.y, w, h]) / self.side


def _mix(a: Any, b: Any, weight: Any) -> Any:
    return a * (1 - weight) + b * weight


def clip_box(
    box: ArrayLike, height: int, width: int, margin: float = 10.0, min_size: float = 1.0
) -> NDArray[np.float64]:
    """Clips a box to the frame.

    Args:
        box: (4,) xywh in pixels.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        margin: Smallest width and height in pixels that are left of a box that extends beyond the frame; a
            smaller box keeps its own size.
        min_size: Smallest width and height of any box in pixels.

    Returns:
        (4,) xywh in pixels.
    """
    x, y, w, h = np.asarray(box, dtype=float)
    (x, w), (y, h) = (
        _clip_span(start, max(length, min_size), side, margin)
        for start, length, side in ((x, w, width), (y, h, height))
    )
    return np.array([x, y, w, h])


def _clip_span(start: float, length: float, side: int, margin: float) -> tuple[float, float]:
    """Start and length of the part of an interval in 0..side, at least `margin` of it."""
    margin = min(margin, length, side)
    clipped = min(max(start, 0.0), side - margin)
    end = max(min(start + length, side), margin)
    return clipped, max(end - clipped, margin)


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
        raise ValueError(
            f"A frame is a numpy array (H, W, 3) of uint8 in RGB, not {type(frame).__name__}. "
            f"{_frame_hint(frame)}"
        )
    if frame.dtype != np.uint8:
        if np.issubdtype(frame.dtype, np.floating):
            hint = "(frame * 255).round().astype('uint8') for values in 0..1"
        elif frame.dtype == bool:
            hint = "frame.astype('uint8') * 255"
        else:  # astype alone would wrap around
            hint = "((frame - low) * (255.0 / (high - low))).clip(0, 255).astype('uint8'), with the values "
            hint += "low and high that become black and white"
        raise ValueError(f"A frame is uint8 in 0..255, this one is {frame.dtype}. Use {hint}.")
    frame = np.asarray(frame)  # a numpy.matrix keeps two dimensions
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


def _frame_hint(frame: Any) -> str:
    if frame is None:
        return "The video may have ended: OpenCV's read() gives None then."
    if isinstance(frame, (str, PurePath)):
        return "Read the file: open_frames(path) of correlation_aware.tracking.video gives its frames."
    if hasattr(frame, "permute"):
        channels_last = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[-1] in (1, 3, 4))
        return f"Use frame{'' if channels_last else '.permute(1, 2, 0)'}.cpu().numpy()."
    return "Use numpy.asarray(frame)."


def as_boxes(boxes: ArrayLike, height: int, width: int) -> NDArray[np.float64]:
    """Checks boxes against a frame.

    A box may extend beyond the frame: the tracker follows its visible part. A `UserWarning` says so where
    most of it is outside and it looks like x1, y1, x2, y2.

    Args:
        boxes: One box (4,) or several (N, 4), xywh in pixels.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        (N, 4) xywh in pixels, the parts inside the frame.

    Raises:
        ValueError: A box that is not four finite numbers, is smaller than a pixel, or is outside the frame.
    """
    if hasattr(boxes, "detach"):  # a tensor, on any device
        boxes = boxes.detach().cpu().double().numpy()
    try:
        array = np.asarray(boxes, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"A box is four numbers x, y, w, h; got {boxes!r}.") from None
    if array.ndim not in (1, 2) or array.shape[-1] != 4 or array.size == 0:
        raise ValueError(f"Boxes have shape (4,) or (N, 4), x, y, w, h in pixels; got shape {array.shape}.")
    return np.stack([_visible_part(box, height, width) for box in array.reshape(-1, 4)])


def _visible_part(box: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    x, y, w, h = (float(value) for value in box)
    text = f"({x:g}, {y:g}, {w:g}, {h:g})"
    if not np.isfinite(box).all():
        raise ValueError(f"The box {text} has values that are not finite; x, y, w, h must be numbers.")
    if w <= 0 or h <= 0:
        raise ValueError(f"The box {text} has no area: w and h must be above 0.")
    if w < 1 or h < 1:
        hint = "x, y, w, h are in pixels."
        if min(x, y) >= 0 and max(x + w, y + h) <= 1:
            pixels = (x * width, y * height, w * width, h * height)
            hint = f"For fractions of the frame pass pixels: ({', '.join(f'{v:g}' for v in pixels)})."
        raise ValueError(f"The box {text} is smaller than a pixel. {hint}")
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise ValueError(
            f"The box {text} is outside the frame, which is {width} x {height} px (width x height)."
        )
    corners = 0 <= x < w <= width and 0 <= y < h <= height
    if corners and (right - left) * (bottom - top) < 0.5 * w * h:
        warnings.warn(
            f"Most of the box {text} is outside the {width} x {height} px frame. It looks like x1, y1, x2, "
            "y2; pass x1, y1, x2 - x1, y2 - y1.",
            stacklevel=1,
        )
    return np.array([left, top, right - left, bottom - top])
