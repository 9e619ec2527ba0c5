"""How well masks fit: region similarity J and boundary accuracy F, as DAVIS measures them.

J is the intersection over union (Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation, CVPR 2016). F compares the boundaries: a boundary pixel is right if one of the other mask
is at most 0.8 % of the image's diagonal away. The numbers are those of
https://github.com/hkchengrex/vos-benchmark and https://github.com/davisvideochallenge/davis2017-evaluation.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Mask", "boundary", "boundary_accuracy", "region_similarity"]

Mask = NDArray[np.bool_]

TOLERANCE = 0.008  # of the image's diagonal


def region_similarity(mask: Mask, truth: Mask) -> float:
    """J, the intersection over union of two masks (H, W); 1 if both are empty."""
    _check(mask, truth)
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def boundary_accuracy(mask: Mask, truth: Mask) -> float:
    """F, the harmonic mean of precision and recall of the boundary of a mask (H, W).

    1 if neither mask has a boundary, 0 if one has none: an empty mask, or one of the whole image.
    """
    _check(mask, truth)
    own, true = boundary(mask), boundary(truth)
    if not own.any() or not true.any():
        return float(own.any() == true.any())
    radius = math.ceil(TOLERANCE * math.hypot(*mask.shape))
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets**2 + offsets[:, None] ** 2 <= radius**2).astype(np.uint8)
    near_own, near_true = (cv2.dilate(pixels.astype(np.uint8), disk) > 0 for pixels in (own, true))
    precision = np.count_nonzero(own & near_true) / np.count_nonzero(own)
    recall = np.count_nonzero(true & near_own) / np.count_nonzero(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """Pixels of a mask (H, W) that differ from the right, lower or lower right neighbor, bool (H, W)."""
    right, below, diagonal = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edges[-1], edges[:, -1] = (mask ^ right)[-1], (mask ^ below)[:, -1]
    edges[-1, -1] = False
    return np.asarray(edges, np.bool_)


def _check(mask: Mask, truth: Mask) -> None:
    for name, array in (("mask", mask), ("truth", truth)):
        if array.dtype != np.bool_ or array.ndim != 2:
            raise ValueError(f"{name} is {array.dtype} {array.shape}; expected bool (H, W)")
    if mask.shape != truth.shape:
        raise ValueError(f"mask {mask.shape} and truth {truth.shape} have different sizes")
