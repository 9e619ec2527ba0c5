"""Masks from boxes, for benchmarks that measure masks: the contract of a refiner, and GrabCut.

A refiner turns the box of a tracker into a mask of the target: `refine(frame, box)` with a uint8 RGB frame
(H, W, 3) and a box xywh in pixels returns a bool mask (H, W). It may have `init(frame, box)` too, which is
called on the frame that the tracker starts on. Each target has a refiner of its own.
"""

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike

from correlation_aware.evaluation.masks import Mask
from correlation_aware.evaluation.one_pass import Array, Frame
from correlation_aware.evaluation.trackers import create_from_module

__all__ = ["GrabCut", "Mask", "Refiner", "box_mask", "create_refiner", "mask_box", "refine"]

MIN_FRACTION = 0.1  # of the box; a smaller mask is a failure of GrabCut


class Refiner(Protocol):
    """Interface of a refiner: frames are uint8 RGB (H, W, 3), boxes xywh in pixels, with a visible part.

    `init(frame, box)` is called on the first frame of a target if the refiner has it.
    """

    def refine(self, frame: Frame, box: Array, /) -> Mask: ...


class GrabCut:
    """Separates the colors in a box from those around it, with GrabCut of OpenCV.

    The mask is inside the box. It is the whole box where there is nothing to separate: no pixels around the
    box, or colors that do not differ. Equal frames and boxes have equal masks.
    Source: Rother et al., "GrabCut", SIGGRAPH 2004.

    Args:
        iterations: Number of iterations.
        context: Width of the surroundings on each side, in widths and heights of the box.
        max_side: Longest side of the crop in pixels; larger crops are scaled down, which makes edges coarser.

    Raises:
        ValueError: An argument that is not positive.
    """

    def __init__(self, iterations: int = 5, context: float = 0.5, max_side: int = 320) -> None:
        for name, value in (("iterations", iterations), ("context", context), ("max_side", max_side)):
            if not value > 0:
                raise ValueError(f"GrabCut({name}={value}): expected a positive number")
        self.iterations = iterations
        self.context = context
        self.max_side = max_side

    def refine(self, frame: Frame, box: Array) -> Mask:
        """Mask (H, W) of the target in a box xywh."""
        size = frame.shape[:2]
        inside = box_mask(size, box)
        x, y, w, h = box
        around = (x - w * self.context, y - h * self.context, *(1 + 2 * self.context) * np.array([w, h]))
        rows, columns = _pixels(size, around)
        crop: Any = frame[rows, columns]
        labels: Any = inside[rows, columns].astype(np.uint8) * cv2.GC_PR_FGD  # cv2.GC_BGD, 0, around the box
        scale = self.max_side / max(*labels.shape, 1)
        if scale < 1:
            crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(labels, crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        if not labels.any() or labels.all():
            return inside
        cv2.setRNGSeed(0)  # of the clusters of colors that it starts with
        background, target = np.zeros((1, 65)), np.zeros((1, 65))
        image, rectangle = np.ascontiguousarray(crop), (0, 0, 1, 1)  # which has no effect with labels
        cv2.grabCut(image, labels, rectangle, background, target, self.iterations, cv2.GC_INIT_WITH_MASK)
        target_pixels = cv2.resize(
            (labels & 1).astype(np.uint8),  # GC_FGD and GC_PR_FGD are odd
            (columns.stop - columns.start, rows.stop - rows.start),
            interpolation=cv2.INTER_NEAREST,
        )
        mask = np.zeros(size, bool)
        mask[rows, columns] = target_pixels
        mask &= inside
        return mask if mask.sum() >= MIN_FRACTION * inside.sum() else inside


def create_refiner(text: str) -> Refiner:
    """Creates a refiner from its description on the command line.

    Args:
        text: `grabcut`; or `module:factory`, a function or class without arguments that returns a refiner.
            The current folder is searched for the module too.

    Raises:
        ValueError: An unknown refiner, or a factory of something without a method `refine`.
        ImportError: The module cannot be imported.
    """
    if text == "grabcut":
        return GrabCut()
    refiner: Refiner = create_from_module(text, "--refiner", ["grabcut"], ["refine(frame, box)"])[0]
    return refiner


def refine(refiner: Refiner, frame: Frame, box: Array) -> Mask:
    """The mask of a target in a frame.

    Args:
        refiner: Refiner.
        frame: uint8 RGB (H, W, 3).
        box: (4,) xywh in pixels.

    Returns:
        (H, W) bool. It is empty for a box without a pixel in the frame, of which the refiner is not asked,
        and the visible part of the box where the refiner returns an empty mask.

    Raises:
        ValueError: The refiner returns something else than a bool array, or one of another shape.
    """
    inside = box_mask(frame.shape[:2], box)
    if not inside.any():
        return inside
    mask: Any = refiner.refine(frame, box)
    name = type(refiner).__name__
    if not isinstance(mask, np.ndarray) or mask.dtype != bool:
        kind = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{name}.refine returned {kind}; expected a bool array, such as mask > 0.5")
    if mask.shape != inside.shape:
        raise ValueError(f"{name}.refine returned a mask of shape {mask.shape}; expected {inside.shape}")
    return mask if mask.any() else inside


def box_mask(size: tuple[int, int], box: ArrayLike) -> Mask:
    """The pixels of a box.

    Args:
        size: Height and width of the frame.
        box: xywh in pixels; edges are rounded to whole pixels.

    Returns:
        (H, W) bool, empty of a box without a pixel in the frame or with a number that is not finite.
    """
    mask = np.zeros(size, bool)
    mask[_pixels(size, box)] = True
    return mask


def mask_box(mask: ArrayLike) -> Array:
    """The box xywh around the pixels of a mask (H, W) that are not 0.

    Raises:
        ValueError: A mask without a pixel.
    """
    rows, columns = np.nonzero(np.asarray(mask))
    if not rows.size:
        raise ValueError("The mask is empty: there is no target to start on.")
    x, y = columns.min(), rows.min()
    return np.array([x, y, columns.max() - x + 1, rows.max() - y + 1], float)


def _pixels(size: tuple[int, int], box: ArrayLike) -> tuple[slice, slice]:
    """Rows and columns of a box in a frame."""
    values = np.asarray(box, float)
    if not np.isfinite(values).all() or not (values[2:] > 0).all():
        return slice(0, 0), slice(0, 0)
    (left, top), (right, bottom) = (
        np.clip(np.floor(corner + 0.5), 0, size[::-1]).astype(int)
        for corner in (values[:2], values[:2] + values[2:])
    )
    return slice(top, bottom), slice(left, right)
