"""Overlap of boxes, the vote of overlapping predictions, and their choice without repetition."""

import torch
from torch import Tensor

__all__ = ["distinct", "overlap", "vote"]

EPS = 1e-7


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Elementwise IoU and GIoU of boxes.

    Equal to `torchvision.ops.generalized_box_iou_loss`, without its boolean masks, which synchronize a GPU.

    Args:
        a: (B, 4, ...) cxcywh.
        b: (B, 4, ...) cxcywh; the dimensions broadcast with those of `a`.

    Returns:
        IoU and GIoU, (B, ...) each.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.unbind(1), b.unbind(1)
    intersection_w, hull_w = _span(ax, aw, bx, bw)
    intersection_h, hull_h = _span(ay, ah, by, bh)
    intersection = intersection_w.clamp(min=0) * intersection_h.clamp(min=0)
    union = aw * ah + bw * bh - intersection
    hull = hull_w * hull_h
    iou = intersection / (union + EPS)
    return iou, iou - (hull - union) / (hull + EPS)


def vote(boxes: Tensor, scores: Tensor, best: Tensor, exponent: float) -> Tensor:
    """Mean of the boxes of all locations, weighted by score * (IoU with the best box) ** exponent.

    Neighboring locations predict the same target with errors of their own, which the mean reduces; boxes of
    other objects have a weight near 0. Box voting of detectors: https://arxiv.org/abs/1505.01749.

    Args:
        boxes: (N, 4, H, W) boxes of all locations, cxcywh.
        scores: (N, H, W) scores of the locations, at least 0.
        best: (N, 4) box of the best location.
        exponent: Exponent of the IoU; the higher, the closer the result is to `best`.

    Returns:
        (N, 4) boxes, cxcywh; `best` where all weights are 0.
    """
    weights = scores * overlap(boxes, best[..., None, None])[0] ** exponent  # N, H, W
    total = weights.sum(dim=(1, 2))[:, None]  # N, 1
    mean = (boxes * weights[:, None]).sum(dim=(2, 3)) / total
    return torch.where(total > 0, mean, best)


def distinct(boxes: Tensor, scores: Tensor, count: int, max_overlap: float = 0.5) -> list[int]:
    """Indices of the boxes with the best scores that do not overlap better ones (non-maximum suppression).

    Args:
        boxes: (4, L) cxcywh.
        scores: (L,) scores; boxes whose score is 0 or no number are left out.
        count: Largest number of boxes.
        max_overlap: Largest IoU of two boxes.

    Returns:
        At most `count` indices, best first.
    """
    scores = scores.nan_to_num(0.0).clone()
    chosen: list[int] = []
    while len(chosen) < count and scores.max() > 0:
        best = int(scores.argmax())
        chosen.append(best)
        scores[overlap(boxes[None], boxes[None, :, best, None])[0][0] > max_overlap] = 0
        scores[best] = 0  # also where its box has no area
    return chosen


def _span(a: Tensor, a_length: Tensor, b: Tensor, b_length: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the intersection (negative for a gap) and of the hull of intervals (center, length)."""
    a1, a2, b1, b2 = a - a_length / 2, a + a_length / 2, b - b_length / 2, b + b_length / 2
    return torch.minimum(a2, b2) - torch.maximum(a1, b1), torch.maximum(a2, b2) - torch.minimum(a1, b1)
