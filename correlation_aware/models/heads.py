"""Prediction heads: search features to scores and boxes. A new one is a class under `@register_head`.

`MixerHead` is SBT's, as the authors released it, `PaperMixerHead` as the paper writes it. `CellHead` is
ours: an anchor-free head that predicts, from the features of each location alone, the distances to the four
sides of the box, so it works at any size. `TowerHead` puts two depth-wise separable convolutions before the
same prediction; `TwoScaleHead` is the same for images of two sizes. `CenterHead` is that of OSTrack and
SuperSBT: a score map, the size of the box, and the offset of its center from the location. `CornerHead` is
that of STARK: heat maps of two corners, whose expectations are the one box of the image.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Eq. 7 - https://arxiv.org/abs/2203.01666
Checked against the outputs of the authors' released code
(https://github.com/phiphiphi31/SBT). Licensed under Apache-2.0.

`CenterHead` is from `Joint Feature Learning and Relation Modeling for Tracking` (Ye et al., ECCV 2022) -
https://arxiv.org/abs/2203.11991, `CornerHead` from `Learning Spatio-Temporal Transformer for Visual Tracking`
(Yan et al., ICCV 2021) - https://arxiv.org/abs/2103.17154; both are checked against
https://github.com/botaoye/OSTrack (MIT).

SBT's released code deviates twice from the paper, and released weights depend on it: a block mixes positions
first and channels second (Eq. 7 has it the other way round), and the last channel layer has no ReLU. So it is
the default, `mixer`; `mixer_paper` is Eq. 7.
"""

import itertools
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from correlation_aware.models.registry import register_head

__all__ = [
    "CellHead",
    "CenterHead",
    "CornerHead",
    "MixerHead",
    "PaperMixerHead",
    "TowerHead",
    "TrackOutput",
    "TwoScaleHead",
]

SCORE_MARGIN = 1e-4  # scores and sizes of CenterHead are kept this far from 0 and 1


class TrackOutput(NamedTuple):
    """Predictions for every location of the search features.

    Attributes:
        logits: (B, 2, H, W); class 0 is the target, class 1 the background.
        scores: (B, H, W), the target's probability; always float32, since in bfloat16 several locations would
            share the best score.
        boxes: (B, 4, H, W), cxcywh in 0..1 of the search image; always float32, since bfloat16 would round
            them to 1/256 of the image.
    """

    logits: Tensor
    scores: Tensor
    boxes: Tensor


# so that torch.export.save and torch.load with weights_only=True take it
pytree._register_namedtuple(TrackOutput, serialized_type_name="correlation_aware.TrackOutput")
torch.serialization.add_safe_globals([TrackOutput])


class MixMlp(nn.Module):
    """Two Mix-MLP blocks: linear over positions, ReLU, linear over channels, ReLU (not at the very end)."""

    def __init__(self, dim: int, positions: int, out_dim: int) -> None:
        super().__init__()
        self.spatial = nn.ModuleList([nn.Linear(positions, dim), nn.Linear(dim, positions)])
        self.channel = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, out_dim)])
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, positions) -> (B, out_dim, positions)."""
        x = F.relu(self.spatial[0](x)).mT  # B, dim, C
        x = F.relu(self.channel[0](x)).mT
        x = F.relu(self.spatial[1](x)).mT  # B, positions, dim
        return self.channel[1](x).mT


@register_head("mixer")
class MixerHead(nn.Module):
    """Classification and regression, a stack of two Mix-MLP blocks each.

    Args:
        dim: Channels of the search features.
        feature_size: Height and width of the search features; linear layers over positions bind the head to
            them.
    """

    def __init__(self, dim: int, feature_size: tuple[int, int]) -> None:
        super().__init__()
        self.feature_size = feature_size
        positions = feature_size[0] * feature_size[1]
        self.cls = MixMlp(dim, positions, 2)
        self.box = MixMlp(dim, positions, 4)

    def calibrate(self, scale: float, shift: float) -> None:
        """See `CellHead.calibrate`."""
        _calibrate(cast(nn.Linear, self.cls.channel[1]), scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location.

        Raises:
            ValueError: Features of another size than the head was built for.
        """
        size = _check_size(features, self.feature_size)
        x = features.flatten(2)
        logits = self.cls(x).unflatten(2, size)
        boxes = self.box(x).float().sigmoid().unflatten(2, size)
        return TrackOutput(logits, torch.softmax(logits.float(), dim=1)[:, 0], boxes)


class PaperMixMlp(MixMlp):
    """Two Mix-MLP blocks as in Eq. 7: linear over channels, ReLU, linear over positions, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, positions) -> (B, out_dim, positions)."""
        for channel, spatial in zip(self.channel, self.spatial):
            x = F.relu(channel(x.mT)).mT
            x = F.relu(spatial(x))
        return x


@register_head("mixer_paper")
class PaperMixerHead(nn.Module):
    """`MixerHead` as the paper writes it: channels before positions, and a ReLU after every layer.

    Outputs are not negative after the last ReLU. What follows it the paper does not say: here the score is
    the softmax of two outputs, and a box is the four outputs themselves, cxcywh, with no sigmoid, which would
    make every coordinate 0.5 or more. Its score cannot be calibrated: no weight is added after the ReLU.

    Args:
        dim: Channels of the search features.
        feature_size: Height and width of the search features, as in `MixerHead`.
    """

    def __init__(self, dim: int, feature_size: tuple[int, int]) -> None:
        super().__init__()
        self.feature_size = feature_size
        positions = feature_size[0] * feature_size[1]
        self.cls = PaperMixMlp(dim, positions, 2)
        self.box = PaperMixMlp(dim, positions, 4)
        # the last ReLU would have no gradient at locations with a negative sum: initially few have one
        nn.init.constant_(cast(nn.Linear, self.box.spatial[1]).bias, 0.5)
        nn.init.constant_(cast(nn.Linear, self.cls.spatial[1]).bias, 1.0)

    def forward(self, features: Tensor) -> TrackOutput:
        """See `MixerHead.forward`."""
        size = _check_size(features, self.feature_size)
        x = features.flatten(2)
        logits = self.cls(x).unflatten(2, size)
        boxes = self.box(x).float().unflatten(2, size)
        return TrackOutput(logits, torch.softmax(logits.float(), dim=1)[:, 0], boxes)


@register_head("cell")
class CellHead(nn.Module):
    """Two-layer perceptrons on each location; a box is the distances from there to its four sides.

    Args:
        dim: Channels of the search features.
        feature_size: Of no effect: the head works at any size.
    """

    def __init__(self, dim: int, feature_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.cls = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))
        self.box = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
        for branch in (self.cls, self.box):
            nn.init.xavier_uniform_(cast(Tensor, branch[0].weight))
            nn.init.normal_(cast(Tensor, branch[2].weight), std=0.01)
        # a target fills a quarter of the search image's side: initially every side is an eighth away
        nn.init.constant_(cast(Tensor, self.box[2].bias), math.log(1 / 7))

    def calibrate(self, scale: float, shift: float) -> None:
        """Changes the weights so that the difference of the two logits becomes scale * difference + shift.

        A positive scale keeps the order of the scores.
        """
        _calibrate(cast(nn.Linear, self.cls[2]), scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location, for any H and W."""
        x = features.permute(0, 2, 3, 1)  # B, H, W, C
        return _distance_output(self.cls(x).permute(0, 3, 1, 2), self.box(x).permute(0, 3, 1, 2))


class SeparableLayer(nn.Module):
    """3x3 depth-wise convolution, norm over the whole map, 1x1 convolution, ReLU; added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.GroupNorm(1, dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + F.relu(self.proj(self.norm(self.dwconv(x))))


@register_head("tower")
class TowerHead(nn.Module):
    """A tower of depth-wise separable convolutions per branch, then boxes as distances, as in `CellHead`.

    Args:
        dim: Channels of the search features.
        feature_size: Of no effect: the head works at any size.
        layers: Layers of each tower.

    Attributes:
        box_vote: Exponent of the tracker's vote of overlapping boxes, see `TrackerConfig.box_vote`.
    """

    box_vote = 8.0

    def __init__(self, dim: int, feature_size: tuple[int, int] | None = None, layers: int = 2) -> None:
        super().__init__()
        self.cls, self.box = _tower(dim, layers, 2), _tower(dim, layers, 4)
        _start_small(self.cls, self.box)
        nn.init.constant_(cast(Tensor, self.box[-1].bias), math.log(1 / 7))  # as in CellHead

    def calibrate(self, scale: float, shift: float) -> None:
        """See `CellHead.calibrate`."""
        _calibrate(cast(nn.Conv2d, self.cls[-1]), scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location, for any H and W."""
        x = _channels_last(features)
        return _distance_output(self.cls(x).contiguous(), self.box(x))


@register_head("tower_two_scales")
class TwoScaleHead(nn.Module):
    """`TowerHead` for features of `TwoScaleNet`: both sizes score locations, the full size has the boxes.

    Args:
        dim: Channels of the search features, those of both sizes together.
        feature_size: Of no effect: the head works at any even size.
        layers: Layers of each tower.

    Attributes:
        box_vote: See `TowerHead`.
    """

    box_vote = TowerHead.box_vote

    def __init__(self, dim: int, feature_size: tuple[int, int] | None = None, layers: int = 2) -> None:
        super().__init__()
        self.full = TowerHead(dim // 2, feature_size, layers)
        self.half_cls = _tower(dim // 2, layers, 2)
        _start_small(self.half_cls)
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))  # of the mean

    def calibrate(self, scale: float, shift: float) -> None:
        """See `CellHead.calibrate`; the towers are not changed."""
        _calibrate(self, scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location, for even H and W.

        Logits are the mean of the two sizes', those of the half size interpolated.
        """
        full, half = features.chunk(2, dim=1)
        logits, _, boxes = self.full(full)
        coarse = self.half_cls(_channels_last(half[:, :, ::2, ::2])).contiguous()
        logits = (logits + F.interpolate(coarse, logits.shape[2:], mode="bilinear")) / 2
        logits = logits * self.weight + self.bias[:, None, None]
        return TrackOutput(logits, torch.softmax(logits.float(), dim=1)[:, 0], boxes)


@register_head("center")
class CenterHead(nn.Module):
    """Three stacks of 3x3 convolutions: score, offset of the center from the location, size of the box.

    Args:
        dim: Channels of the search features.
        feature_size: Of no effect: the head works at any size.
        hidden: Channels of the first convolution; each of the next three has half of those before it.
    """

    def __init__(self, dim: int, feature_size: tuple[int, int] | None = None, hidden: int = 256) -> None:
        super().__init__()
        self.score, self.offset, self.size = (_conv_stack(dim, hidden, outputs) for outputs in (1, 2, 2))

    def calibrate(self, scale: float, shift: float) -> None:
        """See `CellHead.calibrate`."""
        _calibrate(cast(nn.Conv2d, self.score[-1]), scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location, for any H and W.

        The background's logit is 0. A predicted center may be slightly outside of 0..1.
        """
        score = self.score(features)  # B, 1, H, W
        offset = self.offset(features).float()
        size = self.size(features).float().sigmoid().clamp(SCORE_MARGIN, 1 - SCORE_MARGIN)
        height, width = score.shape[2:]
        column = torch.arange(width, device=score.device)[None, :]
        row = torch.arange(height, device=score.device)[:, None]
        cx, cy = (column + offset[:, 0]) / width, (row + offset[:, 1]) / height
        boxes = torch.stack([cx, cy, size[:, 0], size[:, 1]], dim=1)
        scores = score[:, 0].float().sigmoid().clamp(SCORE_MARGIN, 1 - SCORE_MARGIN)
        return TrackOutput(torch.cat([score, torch.zeros_like(score)], dim=1), scores, boxes)


@register_head("corner")
class CornerHead(nn.Module):
    """Two stacks of 3x3 convolutions: a heat map of each corner, whose expected positions make the box.

    There is one box for an image: it is the same at every location. The score of a location is that of a
    third, small stack, which STARK and OSTrack do not have: it tells how much the location is the target's,
    as in the other heads, so that the same losses and trackers work. Of a checkpoint of theirs it stays
    untrained.

    Args:
        dim: Channels of the search features.
        feature_size: Of no effect: the head works at any size.
        hidden: Channels of the first convolution; each of the next three has half of those before it. The
            stack of the score has a quarter of them.
    """

    def __init__(self, dim: int, feature_size: tuple[int, int] | None = None, hidden: int = 256) -> None:
        super().__init__()
        self.top_left, self.bottom_right = (_conv_stack(dim, hidden, 1) for _ in range(2))
        self.score = _conv_stack(dim, hidden // 4, 1)

    def calibrate(self, scale: float, shift: float) -> None:
        """See `CellHead.calibrate`."""
        _calibrate(cast(nn.Conv2d, self.score[-1]), scale, shift)

    def forward(self, features: Tensor) -> TrackOutput:
        """(B, C, H, W) -> predictions per location, for any H and W.

        The background's logit is 0. In training a size may be negative, as in STARK: a lower bound would
        leave it without a gradient.
        """
        score = self.score(features)  # B, 1, H, W
        top_left = _expected_position(self.top_left(features))  # B, 2
        bottom_right = _expected_position(self.bottom_right(features))
        size = bottom_right - top_left
        if not self.training:
            size = size.clamp(min=SCORE_MARGIN)
        box = torch.cat([(top_left + bottom_right) / 2, size], dim=1)  # B, 4
        boxes = box[:, :, None, None].expand(-1, -1, *score.shape[2:])
        scores = score[:, 0].float().sigmoid()
        return TrackOutput(torch.cat([score, torch.zeros_like(score)], dim=1), scores, boxes.contiguous())


def _expected_position(heat: Tensor) -> Tensor:
    """Mean x and y of a softmax over (B, 1, H, W): (B, 2); location i of n is at i / n of the image."""
    height, width = heat.shape[2:]
    row = torch.arange(height, dtype=torch.float32, device=heat.device) / height
    column = torch.arange(width, dtype=torch.float32, device=heat.device) / width
    positions = torch.stack([column.repeat(height), row.repeat_interleave(width)], dim=1)  # H * W, 2
    return (heat.flatten(1).float().softmax(dim=1)[:, :, None] * positions).sum(dim=1)


def _distance_output(logits: Tensor, distances: Tensor) -> TrackOutput:
    """Predictions from (B, 2, H, W) logits and (B, 4, H, W) distances to the sides, before the sigmoid.

    Distances to left, top, right and bottom are in 0..1 of the image, from the middle of a location.
    """
    height, width = distances.shape[2:]
    left, top, right, bottom = distances.float().sigmoid().unbind(dim=1)
    row = (torch.arange(height, device=distances.device)[:, None] + 0.5) / height
    column = (torch.arange(width, device=distances.device)[None, :] + 0.5) / width
    cx, cy = column + (right - left) / 2, row + (bottom - top) / 2
    boxes = torch.stack([cx, cy, left + right, top + bottom], dim=1)
    return TrackOutput(logits, torch.softmax(logits.float(), dim=1)[:, 0], boxes)


def _conv_stack(dim: int, hidden: int, outputs: int) -> nn.Sequential:
    """Four times convolution, BatchNorm, ReLU, with half the channels each time, then a 1x1 convolution."""
    widths = [dim, hidden, hidden // 2, hidden // 4, hidden // 8]
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
        for i, o in itertools.pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, 1))


def _check_size(features: Tensor, expected: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the features, which a head over positions is bound to."""
    size = (features.shape[2], features.shape[3])
    if size != expected:
        raise ValueError(
            f"The search features are {size[0]} x {size[1]}; this head needs {expected[0]} x {expected[1]}. "
            "Resize the search image, or give create_model another search_size."
        )
    return size


def _channels_last(features: Tensor) -> Tensor:
    """The same features in an order of memory in which depth-wise and 1x1 convolutions are faster."""
    return features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _tower(dim: int, layers: int, outputs: int) -> nn.Sequential:
    """Depth-wise separable convolutions, then a 1x1 convolution."""
    return nn.Sequential(*(SeparableLayer(dim) for _ in range(layers)), nn.Conv2d(dim, outputs, 1))


def _start_small(*towers: nn.Sequential) -> None:
    """Makes the outputs of towers small at first."""
    for tower in towers:
        nn.init.normal_(cast(Tensor, tower[-1].weight), std=0.01)
        nn.init.zeros_(cast(Tensor, tower[-1].bias))


@torch.no_grad()
def _calibrate(last: nn.Linear | nn.Conv2d | TwoScaleHead, scale: float, shift: float) -> None:
    assert last.bias is not None
    last.weight.mul_(scale)
    last.bias.mul_(scale)
    last.bias[0] += shift
