"""What tracking is trained on: cross-entropy for the score, L1 and GIoU for the box.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.models.heads import TrackOutput

__all__ = ["LossConfig", "TrackLoss", "best_cell_iou", "overlap", "positive_cells", "track_loss"]

EPS = 1e-7


@dataclass(frozen=True)
class LossConfig:
    """How the parts are weighed.

    Attributes:
        score: Weight of the cross-entropy.
        l1: Weight of the L1 distance of cxcywh in 0..1, summed over the four.
        giou: Weight of 1 - GIoU.
        background: Weight of a background cell in the cross-entropy, where a target's cell counts 1. With a
            search factor of 4 the target covers 1/16 of the cells, so this default balances the two.
        per_pair: In the box parts every pair counts alike; otherwise every cell does, so that large targets
            count more.
    """

    score: float = 12.0
    l1: float = 7.0
    giou: float = 5.0
    background: float = 0.0625
    per_pair: bool = False


class TrackLoss(NamedTuple):
    """Scalars; `total` is the weighed sum of the other three, which are not weighed."""

    total: Tensor
    score: Tensor
    l1: Tensor
    giou: Tensor


def track_loss(output: TrackOutput, boxes: Tensor, positive: Tensor, config: LossConfig) -> TrackLoss:
    """The loss of a batch of pairs. Free of branches on values, so that nothing waits for the device.

    Args:
        output: Predictions for every cell; half precision is computed with as float32.
        boxes: (B, 4), cxcywh in 0..1 of the search picture.
        positive: (B,) bool; where False the target is not in the search picture and `boxes` is not read.
        config: Weights.
    """
    boxes = torch.where(positive[:, None], boxes, 0.5)
    cells = positive_cells(boxes, positive, output.scores.shape[1:])  # B, H, W
    weight = torch.tensor([1.0, config.background], device=boxes.device)
    score = F.cross_entropy(output.logits.float(), (~cells).long(), weight)

    share = cells.float()
    if config.per_pair:
        share = share / share.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    share = share / share.sum().clamp(min=1)
    found, truth = output.boxes.float(), boxes[:, :, None, None]
    l1 = ((found - truth).abs().sum(dim=1) * share).sum()
    giou = ((1 - overlap(found, truth)[1]) * share).sum()

    total = config.score * score + config.l1 * l1 + config.giou * giou
    return TrackLoss(total, score, l1, giou)


def positive_cells(boxes: Tensor, positive: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Cells whose centre lies inside the target's box.

    A box narrower or lower than a cell is widened to one cell, so that small targets have a cell as well.

    Args:
        boxes: (B, 4), cxcywh in 0..1.
        positive: (B,) bool; where False there is no such cell.
        size: Height and width of the grid.

    Returns:
        (B, H, W) bool.
    """
    height, width = size
    rows = (torch.arange(height, device=boxes.device) + 0.5) / height
    columns = (torch.arange(width, device=boxes.device) + 0.5) / width
    cx, cy, w, h = boxes.unbind(dim=1)
    in_row = (rows - cy[:, None]).abs() <= (h / 2).clamp(min=0.5 / height)[:, None]  # B, H
    in_column = (columns - cx[:, None]).abs() <= (w / 2).clamp(min=0.5 / width)[:, None]  # B, W
    return in_row[:, :, None] & in_column[:, None, :] & positive[:, None, None]


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of boxes, one by one.

    The numbers of `torchvision.ops.generalized_box_iou_loss`, without its masks, for which a GPU must wait.

    Args:
        a: (B, 4, ...) cxcywh.
        b: The same; the dimensions broadcast.

    Returns:
        Two tensors (B, ...).
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.unbind(1), b.unbind(1)
    shared_w, hull_w = _span(ax, aw, bx, bw)
    shared_h, hull_h = _span(ay, ah, by, bh)
    shared = shared_w.clamp(min=0) * shared_h.clamp(min=0)
    union = aw * ah + bw * bh - shared
    hull = hull_w * hull_h
    iou = shared / (union + EPS)
    return iou, iou - (hull - union) / (hull + EPS)


def _span(a: Tensor, a_length: Tensor, b: Tensor, b_length: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of what two intervals (centre, length) share, negative for a gap, and of their hull."""
    a1, a2, b1, b2 = a - a_length / 2, a + a_length / 2, b - b_length / 2, b + b_length / 2
    return torch.minimum(a2, b2) - torch.maximum(a1, b1), torch.maximum(a2, b2) - torch.minimum(a1, b1)


@torch.no_grad()
def best_cell_iou(output: TrackOutput, boxes: Tensor, positive: Tensor) -> Tensor:
    """IoU of the highest-scoring cell's box with the truth, mean over the positive pairs; a scalar."""
    best = output.scores.flatten(1).argmax(dim=1)  # B
    found = output.boxes.float().flatten(2).gather(2, best[:, None, None].expand(-1, 4, -1))  # B, 4, 1
    iou = overlap(found[..., 0], boxes)[0]
    return torch.where(positive, iou, 0).sum() / positive.sum().clamp(min=1)
