"""Precise RoI Pooling in plain PyTorch: the exact mean of the bilinear surface in every bin of a box.

Paper: `Acquisition of Localization Confidence for Accurate Object Detection` (Jiang et al., ECCV 2018) -
https://arxiv.org/abs/1807.11590

The surface is a sum of hat functions, one for each location, so its integral over a bin is separable: along
each axis the weight of a location is the growth of its hat's integral between the two edges of the bin.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PrRoIPool2D", "prroi_pool2d"]


def _hat_integral(u: Tensor) -> Tensor:
    """Integral of max(0, 1 - |t|) from minus infinity to `u`."""
    u = u.clamp(-1, 1)
    return 0.5 + u - 0.5 * u * u.abs()


def _axis_weights(start: Tensor, end: Tensor, bins: int, locations: int) -> tuple[Tensor, Tensor]:
    """Integral of every location's hat over every bin between `start` and `end`, both (R,), in locations.

    Returns:
        Weights (R, bins, locations) and the width of a bin (R,).
    """
    width = (end - start).clamp(min=0) / bins
    steps = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    edges = start[:, None] + width[:, None] * steps  # R, bins + 1
    centers = torch.arange(locations, device=start.device, dtype=start.dtype)
    return _hat_integral(edges[..., None] - centers).diff(dim=1), width


def prroi_pool2d(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    """Pools boxes, differentiable in the features and in the boxes.

    Args:
        features: (B, C, H, W), zero outside. Location (i, j) is the surface's value at y = i, x = j.
        rois: (R, 5): index of the image in the batch, then x0, y0, x1, y1 in pixels of the image.
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Locations per pixel, 1 / stride.

    Returns:
        (R, C, pooled_height, pooled_width); zero for a box without area.

    Raises:
        ValueError: Shapes other than these.
    """
    if features.ndim != 4:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (batch, channels, H, W).")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois have shape {tuple(rois.shape)}; expected (boxes, 5): index, x0, y0, x1, y1.")
    x0, y0, x1, y1 = (rois[:, 1:] * spatial_scale).unbind(1)
    rows, height = _axis_weights(y0, y1, pooled_height, features.shape[2])
    columns, width = _axis_weights(x0, x1, pooled_width, features.shape[3])
    area = height * width
    rows = rows / torch.where(area > 0, area, torch.ones_like(area))[:, None, None]  # weights are 0 at area 0
    index = rois[:, 0].long()
    turn = F.one_hot(index, features.shape[0]).cumsum(0).gather(1, index[:, None])[:, 0] - 1
    most = int(turn.max()) + 1 if len(rois) else 0  # boxes in one image
    rows, columns = (
        _by_image(weights.to(features.dtype), index, turn, features.shape[0], most)
        for weights in (rows, columns)
    )
    return torch.einsum("bkph,bchw,bkqw->bkcpq", rows, features, columns)[index, turn]


def _by_image(weights: Tensor, index: Tensor, turn: Tensor, images: int, most: int) -> Tensor:
    """(R, bins, locations) -> (images, most, bins, locations): no box needs a copy of its features."""
    grouped = weights.new_zeros(images, most, *weights.shape[1:])
    return grouped.index_put((index, turn), weights)


class PrRoIPool2D(nn.Module):
    """`prroi_pool2d` as a layer, with the names and the call of the CUDA-only original.

    Args:
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Locations per pixel, 1 / stride.
    """

    def __init__(self, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
        super().__init__()
        self.pooled_height = int(pooled_height)
        self.pooled_width = int(pooled_width)
        self.spatial_scale = float(spatial_scale)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(B, C, H, W), (R, 5) -> (R, C, pooled_height, pooled_width); see `prroi_pool2d`."""
        return prroi_pool2d(features, rois, self.pooled_height, self.pooled_width, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"{self.pooled_height}, {self.pooled_width}, spatial_scale={self.spatial_scale}"
