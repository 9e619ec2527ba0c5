"""Bilinear sampling of the pool: images of a batch in one set of tensor operations."""

from typing import NamedTuple

import torch
from torch import Tensor

from correlation_aware.data.stills.geometry import Region
from correlation_aware.data.stills.pool import LEVELS, ImagePool

__all__ = ["BLACK", "MEAN", "REFLECT", "Sampled", "sample"]

BLACK, MEAN, REFLECT = 0, 1, 2  # border modes: content outside a photograph
_EVEN_BYTES = 0x00FF00FF
# Pixels of a chunk on a CPU. Larger chunks overflow the cache, and the allocator does not reuse their memory.
_CPU_PIXELS = 1 << 17


class Sampled(NamedTuple):
    """A batch of n sampled images.

    Attributes:
        rgb: (n, 3, H, W) in 0..255.
        mask: (n, H, W) in 0..1, mask of the object; 1 everywhere if the photograph has no mask.
        edge_distance: (n, H, W) distance of every pixel to the nearest edge of its photograph, divided by the
            photograph's shorter side; negative outside the photograph.
        x: (n, H, W) x of every pixel in region coordinates.
        y: (n, H, W) y of every pixel in region coordinates.
    """

    rgb: Tensor
    mask: Tensor
    edge_distance: Tensor
    x: Tensor
    y: Tensor


def sample(
    pool: ImagePool,
    region: Region,
    placement: Tensor,
    size: tuple[int, int],
    mip_bias: Tensor | None = None,
    border: Tensor | None = None,
    bend: Tensor | None = None,
) -> Sampled:
    """Samples images in which each region is at its place, surrounded by its photograph.

    Args:
        pool: Photographs.
        region: n regions.
        placement: (n, 3, 3) homographies, see `place`.
        size: Height and width of the images in pixels.
        mip_bias: (n,) offset to the mip level that matches the scale: 1 halves the resolution, -1 aliases; 0
            by default.
        border: (n,) BLACK, MEAN or REFLECT; BLACK by default.
        bend: (n, 2) displacement of the region's center, in region coordinates, which falls to 0 at its edge:
            the outline does not move. Keep it below 0.3; larger ones fold the image.
    """
    n = len(placement)
    border = torch.full((n,), BLACK) if border is None else border
    parameters, integers = _parameters(pool, region, placement, size, mip_bias, border, bend)
    parameters = parameters.to(pool.device, non_blocking=True)
    integers = integers.to(pool.device, non_blocking=True)
    reflects = bool((border == REFLECT).any())
    step = max(1, _CPU_PIXELS // (size[0] * size[1])) if pool.device.type == "cpu" else max(1, n)
    parts = [
        _sample(pool.pixels, *p, size, reflects) for p in zip(parameters.split(step), integers.split(step))
    ]
    return parts[0] if len(parts) == 1 else Sampled(*(torch.cat(fields) for fields in zip(*parts)))


def _parameters(
    pool: ImagePool,
    region: Region,
    placement: Tensor,
    size: tuple[int, int],
    mip_bias: Tensor | None,
    border: Tensor,
    bend: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Parameters of every image, each kind in one tensor for one transfer to the device.

    Returns:
        (n, 18) homography, half size, center and size of the photograph in pixels of the mip level, bend,
        whether the border reflects; and (n, 2) int32, or int64 of a large pool, offset of the level in the
        pool and border color.
    """
    to_region = torch.linalg.inv(placement.double())  # pixels of the image to region coordinates
    middle = torch.tensor([size[1] / 2, size[0] / 2, 1.0], dtype=torch.float64)
    area = torch.linalg.det(to_region).abs() / (to_region[:, 2] @ middle).abs().clamp(min=1e-3) ** 3
    step = (area * region.half_size.prod(dim=1)).sqrt().float()  # pixels of the photograph per image pixel
    level = step.clamp(min=1e-3).log2() + (0 if mip_bias is None else mip_bias)
    level = level.round().clamp(0, LEVELS - 1).long()
    shrink = 0.5 ** level[:, None]
    half_size, center = region.half_size * shrink, region.center * shrink
    photo = region.image, level
    photo_size = torch.stack([pool.width[photo], pool.height[photo]], dim=1).float()
    bend = torch.zeros_like(half_size) if bend is None else bend
    reflects = (border == REFLECT)[:, None].float()
    columns = [to_region.float().flatten(1), half_size, center, photo_size, bend, reflects]
    red, green, blue = pool.mean[region.image].round().int().unbind(1)
    border_color = (red | green << 8 | blue << 16) * (border == MEAN)
    whole = torch.int32 if len(pool.pixels) < 2**31 else torch.int64
    integers = torch.stack([pool.offset[photo].to(whole), border_color.to(whole)], dim=1)
    return torch.cat(columns, dim=1), integers


def _sample(
    pixels: Tensor, parameters: Tensor, integers: Tensor, size: tuple[int, int], reflects: bool
) -> Sampled:
    n = len(parameters)
    h = parameters.T.reshape(-1, n, 1, 1).unbind(0)  # a homography, then the rest, each (n, 1, 1)
    half_x, half_y, center_x, center_y, width, height, bend_x, bend_y, reflect = h[9:]
    u = torch.arange(size[1], device=pixels.device) + 0.5
    v = (torch.arange(size[0], device=pixels.device) + 0.5)[:, None]
    inverse = (h[6] * u + (h[7] * v + h[8])).reciprocal_()
    x, y = (h[0] * u + (h[1] * v + h[2])).mul_(inverse), (h[3] * u + (h[4] * v + h[5])).mul_(inverse)
    region_x, region_y = x, y
    inside = (1 - x * x).addcmul_(y, y, value=-1).clamp_(min=0).square_()
    x, y = x.addcmul(inside, bend_x), y.addcmul(inside, bend_y)
    x, y = x.mul_(half_x).add_(center_x), y.mul_(half_y).add_(center_y)  # pixels of the photograph
    if reflects:
        x = torch.where(reflect > 0, width - (width - x.remainder(2 * width)).abs(), x)
        y = torch.where(reflect > 0, height - (height - y.remainder(2 * height)).abs(), y)
    edge = torch.minimum((width / 2 - (x - width / 2).abs_()), (height / 2 - (y - height / 2).abs_()))
    start, border_color = integers.T.reshape(2, n, 1, 1)
    packed = torch.where(edge >= 0, _bilinear(pixels, x, y, width, height, start), border_color.int())
    rgba = packed[..., None].view(torch.uint8).permute(0, 3, 1, 2)
    rgb = rgba[:, :3].to(torch.float32, memory_format=torch.contiguous_format)
    return Sampled(rgb, rgba[:, 3] / 255, edge.div_(torch.minimum(width, height)), region_x, region_y)


def _bilinear(pixels: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor, start: Tensor) -> Tensor:
    """Bilinear samples at x, y: (n, H, W) int32 of four packed bytes. Overwrites x and y.

    One multiplication weights two bytes: as the weights sum to 256, each product fits into 16 bits.
    """
    x = torch.minimum(x.sub_(0.5).clamp_(min=0), width - 1)
    y = torch.minimum(y.sub_(0.5).clamp_(min=0), height - 1)
    x0, y0 = x.int(), y.int()
    fx, fy = x.sub_(x0).mul_(256).int(), y.sub_(y0).mul_(256).int()
    row, last_column, last_row = width.int(), width.int() - 1, height.int() - 1
    right = (x0 < last_column).int()
    down = (y0 < last_row).int().mul_(row)
    even, odd = torch.zeros_like(x0), torch.zeros_like(x0)
    index = y0.mul_(row).add_(x0)
    index = index.add_(start) if start.dtype == index.dtype else index + start
    both = (fx * fy).add_(128).bitwise_right_shift_(8)
    weights = (256 - fx).sub_(fy).add_(both), fx - both, both, fy - both
    for step, weight in zip((None, right, down, -right), weights):  # offsets clockwise from the top left
        index = index if step is None else index.add_(step)
        tap = pixels.index_select(0, index.flatten()).view_as(index)
        even.addcmul_(tap & _EVEN_BYTES, weight)
        odd.addcmul_(tap.bitwise_right_shift_(8).bitwise_and_(_EVEN_BYTES), weight)
    even = even.bitwise_right_shift_(8).bitwise_and_(_EVEN_BYTES)
    return even.bitwise_or_(odd.bitwise_and_(~_EVEN_BYTES))
