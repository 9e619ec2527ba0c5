"""Compositing: pastes regions of photographs onto images, in batches and in place."""

from typing import NamedTuple

import torch
from torch import Tensor

from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.stills.geometry import Region, bounding_boxes
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import Sampled, sample

__all__ = ["EdgeStyle", "covered_fraction", "paste", "square_region"]

TILE_STEP = 16  # tile sizes are multiples of it


class EdgeStyle(NamedTuple):
    """Edge profiles of n pasted regions.

    Attributes:
        mask_threshold: (n,) value of the blurred mask at which an object becomes transparent.
        feather: (n,) width of a rectangle's soft edge, in x^4 + y^4.
    """

    mask_threshold: Tensor
    feather: Tensor

    @classmethod
    def sample(cls, rng: KeyedRandom, count: int) -> "EdgeStyle":
        """Random profiles, so that no single kind of edge reveals that something was pasted."""
        return cls(rng.uniform(0.15, 0.4, count), rng.uniform(-2.3, 0.3, count).exp())

    def repeat(self, count: int) -> "EdgeStyle":
        """The first profile, `count` times."""
        return EdgeStyle(self.mask_threshold[:1].expand(count), self.feather[:1].expand(count))


def paste(
    pool: ImagePool,
    canvas: Tensor,
    indices: Tensor,
    region: Region,
    placement: Tensor,
    edges: EdgeStyle,
    mip_bias: Tensor | None = None,
    colors: Tensor | None = None,
    bend: Tensor | None = None,
) -> None:
    """Pastes k regions onto some of n images, in place.

    Args:
        pool: Photographs.
        canvas: (n, 3, H, W) images in 0..255, on the pool's device.
        indices: (k,) indices of the images to paste on, each at most once.
        region: k regions.
        placement: (k, 3, 3) homographies, see `place`.
        edges: k edge profiles.
        mip_bias: (k,) offset to the mip level, see `sample`.
        colors: (k, 3, 3) matrices that mix red, green and blue; the identity by default.
        bend: (k, 2) displacement of the center, see `sample`.
    """
    if len(indices) == 0:
        return
    device = canvas.device
    corner, size = _tile(placement, region, (canvas.shape[2], canvas.shape[3]))
    shift = torch.eye(3).repeat(len(indices), 1, 1)
    shift[:, :2, 2] = -corner
    layer = sample(pool, region, shift @ placement, size, mip_bias, bend=bend)
    rgb = layer.rgb
    if colors is not None:
        rgb = torch.bmm(colors.to(device), rgb.flatten(2)).clamp_(0, 255).view_as(rgb)
    threshold, feather = edges.mask_threshold.to(device), edges.feather.to(device)
    alpha = _alpha(layer, region.masked.to(device), threshold, feather)
    flat = canvas.view(-1)
    index = _flat_indices(indices, corner.long(), size, canvas.shape).to(device)
    index = torch.stack([index + c * canvas.shape[2] * canvas.shape[3] for c in range(3)], dim=1).flatten()
    below = flat.index_select(0, index).view_as(rgb)
    flat.index_copy_(0, index, torch.lerp(below, rgb, alpha[:, None]).flatten())


def square_region(image: Tensor, center: Tensor, side: Tensor) -> Region:
    """Square regions of photographs, without an outline.

    Args:
        image: (n,) indices of photographs.
        center: (n, 2) x, y in pixels of the photographs.
        side: (n,) side in pixels of the photographs.
    """
    n = len(image)
    half_size = (side / 2)[:, None].expand(-1, 2)
    return Region(image, center, half_size, torch.zeros(n, 0, 2), torch.zeros(n, dtype=torch.bool))


def covered_fraction(pool: ImagePool, region: Region, placement: Tensor, size: tuple[int, int]) -> Tensor:
    """(n,) fraction of each output image that the region's photograph covers, in 0..1.

    Args:
        pool: Photographs.
        region: n regions.
        placement: (n, 3, 3) homographies, see `place`.
        size: Height and width of the output images in pixels.
    """
    corners = pool.sizes(region.image)[:, None] * torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    boxes = bounding_boxes(placement, (corners - region.center[:, None]) / region.half_size[:, None])
    output = torch.tensor([float(size[1]), float(size[0])])
    low = (boxes[:, :2] - boxes[:, 2:] / 2).clamp(min=0)
    high = (boxes[:, :2] + boxes[:, 2:] / 2).minimum(output)
    return ((high - low).clamp(min=0) / output).prod(dim=1)


def _tile(placement: Tensor, region: Region, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Tiles of the canvas that hold each region with its soft edge.

    Returns:
        Top left corners (k, 2) x, y in pixels, and the smallest height and width that fits all.
    """
    boxes = bounding_boxes(placement, region.outline * 1.2)
    canvas = torch.tensor([float(size[1]), float(size[0])])
    low = (boxes[:, :2] - boxes[:, 2:] / 2 - 2).clamp(min=0).minimum(canvas - 1).floor()
    high = (boxes[:, :2] + boxes[:, 2:] / 2 + 2).clamp(min=1).minimum(canvas).ceil()
    needed = ((high - low).amax(dim=0) / TILE_STEP).ceil() * TILE_STEP
    tile = needed.clamp(min=TILE_STEP).minimum(canvas)
    return low.minimum(canvas - tile), (int(tile[1]), int(tile[0]))


def _flat_indices(indices: Tensor, corner: Tensor, size: tuple[int, int], shape: torch.Size) -> Tensor:
    """(k, h, w) indices of the tiles' pixels in the first channel of the flattened canvas."""
    rows = corner[:, 1, None] + torch.arange(size[0])
    columns = corner[:, 0, None] + torch.arange(size[1])
    first = indices * (shape[1] * shape[2] * shape[3])
    return first[:, None, None] + rows[:, :, None] * shape[3] + columns[:, None]


def _alpha(layer: Sampled, masked: Tensor, threshold: Tensor, feather: Tensor) -> Tensor:
    """(k, h, w) opacity in 0..1."""
    threshold, feather, masked = (v.view(-1, 1, 1) for v in (threshold, feather, masked))
    mask = layer.mask.sub(threshold).div_(0.9 - threshold).clamp_(0, 1)
    rounded = (1 - layer.x.square().square_()).sub_(layer.y.square().square_())
    rounded = rounded.div_(feather).add_(0.5).clamp_(0, 1)
    return torch.where(masked, mask, rounded).mul_(layer.edge_distance >= 0)
