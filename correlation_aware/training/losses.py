"""The tracking loss: cross-entropy for the score map, L1 and GIoU for the boxes.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.models.heads import TrackOutput
from correlation_aware.tracking.boxes import overlap
from correlation_aware.training.config import check_values

__all__ = ["LossConfig", "TrackLoss", "best_location_iou", "positive_locations", "track_loss"]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms.

    Attributes:
        kind: `weighted`: means over the locations, of which those of the background weigh `background`, as in
            the authors' code and TransT. `bce`: the paper's Eq. 10 and 11 as they are written, sums over the
            locations of a pair, which all weigh 1; mean over the pairs.
        score: Weight of the cross-entropy.
        l1: Weight of the L1 distance of the boxes, cxcywh in 0..1, summed over the four coordinates.
        giou: Weight of 1 - GIoU.
        background: Weight of a background location in the cross-entropy, relative to a target location. With
            a search factor of 4 the target covers 1/16 of the locations, so the default balances the two.
        per_pair: Whether the box terms weight every pair equally; otherwise they weight every target location
            equally, and large targets more.
        iou_aware: Whether the score of a target location is trained to be the IoU of its box with the true
            box instead of 1, so that the location with the best box has the best score (VarifocalNet,
            https://arxiv.org/abs/2008.13367).
    """

    kind: Literal["weighted", "bce"] = "weighted"
    score: float = 12.0
    l1: float = 7.0
    giou: float = 5.0
    background: float = 0.0625
    per_pair: bool = False
    iou_aware: bool = False

    def __post_init__(self) -> None:
        check_values("loss", self, **dict.fromkeys(("score", "l1", "giou", "background"), (0, math.inf)))
        if self.kind == "bce":
            others = ("background", "per_pair", "iou_aware")
            if changed := [name for name in others if getattr(self, name) != getattr(LossConfig, name)]:
                raise ValueError(
                    f"loss.{changed[0]}={getattr(self, changed[0])} contradicts loss.kind=bce, Eq. 10 of the "
                    "paper. Remove it, or set loss.kind=weighted."
                )


class TrackLoss(NamedTuple):
    """Loss terms, scalars; `total` is the weighted sum of the other three, which are unweighted."""

    total: Tensor
    score: Tensor
    l1: Tensor
    giou: Tensor


def track_loss(output: TrackOutput, boxes: Tensor, positive: Tensor, config: LossConfig) -> TrackLoss:
    """Loss of a batch of pairs. No branch depends on values, so that a GPU is never synchronized.

    Args:
        output: Predictions at every location; half precision is converted to float32.
        boxes: (B, 4), cxcywh in 0..1 of the search image.
        positive: (B,) bool; False if the target is not in the search image: `boxes` is ignored.
        config: Weights of the terms.
    """
    boxes = torch.where(positive[:, None], boxes, 0.5)
    inside = positive_locations(boxes, positive, output.scores.shape[1:])  # B, H, W
    predicted, truth = output.boxes.float(), boxes[:, :, None, None]
    iou, giou_map = overlap(predicted, truth)  # B, H, W each
    target = torch.where(inside, iou.detach(), 0.0) if config.iou_aware else inside.float()
    cross_entropy = F.cross_entropy(
        output.logits.float(), torch.stack([target, 1 - target], 1), reduction="none"
    )
    weight = inside.float()
    if config.kind == "bce":
        score, weight = cross_entropy.sum() / len(inside), weight / len(inside)
    else:
        class_weight = torch.where(inside, 1.0, config.background)
        score = (cross_entropy * class_weight).sum() / class_weight.sum()
        if config.per_pair:
            weight = weight / weight.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        weight = weight / weight.sum().clamp(min=1)
    l1 = ((predicted - truth).abs().sum(dim=1) * weight).sum()
    giou = ((1 - giou_map) * weight).sum()

    total = config.score * score + config.l1 * l1 + config.giou * giou
    return TrackLoss(total, score, l1, giou)


def positive_locations(boxes: Tensor, positive: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Locations of the score map whose center is inside the target's box.

    A box smaller than the spacing of the locations is enlarged to it, so that every target has a location.

    Args:
        boxes: (B, 4), cxcywh in 0..1.
        positive: (B,) bool; a pair with False has no positive location.
        size: Height and width of the score map.

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


@torch.no_grad()
def best_location_iou(output: TrackOutput, boxes: Tensor, positive: Tensor) -> Tensor:
    """IoU of the box at the highest-scoring location with the true box, mean over the positive pairs.

    Args:
        output: Predictions at every location.
        boxes: (B, 4), cxcywh in 0..1 of the search image.
        positive: (B,) bool; False if the target is not in the search image.

    Returns:
        A scalar, 0 without positive pairs.
    """
    best = output.scores.flatten(1).argmax(dim=1)  # B
    predicted = output.boxes.float().flatten(2).gather(2, best[:, None, None].expand(-1, 4, -1))  # B, 4, 1
    iou = overlap(predicted[..., 0], boxes)[0]
    return torch.where(positive, iou, 0).sum() / positive.sum().clamp(min=1)
