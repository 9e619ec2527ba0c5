"""Reads pictures out of the pool: every pixel of every sample of a batch at once, bilinear."""

from typing import NamedTuple

import torch
from torch import Tensor

from correlation_aware.data.stills.geometry import Cut
from correlation_aware.data.stills.pool import LEVELS, ImagePool

__all__ = ["BLACK", "MEAN", "REFLECT", "Sampled", "sample"]

BLACK, MEAN, REFLECT = 0, 1, 2  # what is seen beyond the rim of a photograph
_EVEN_BYTES = 0x00FF00FF
_CPU_PIXELS = 1 << 17  # more at once leave the cache, and memory of that size comes anew from the system


class Sampled(NamedTuple):
    """n pictures.

    Attributes:
        rgb: (n, 3, H, W) in 0..255.
        mask: (n, H, W) in 0..1, of the object; 1 everywhere if the photograph has no mask.
        rim: (n, H, W) distance to the rim of the photograph, in its shorter sides; below 0 beyond it.
        x, y: (n, H, W) of every pixel, in units of the cut.
    """

    rgb: Tensor
    mask: Tensor
    rim: Tensor
    x: Tensor
    y: Tensor


def sample(
    pool: ImagePool,
    cut: Cut,
    placement: Tensor,
    size: tuple[int, int],
    softness: Tensor | None = None,
    border: Tensor | None = None,
    bend: Tensor | None = None,
) -> Sampled:
    """Pictures in which each cut lies at its place, with the photograph around it.

    Args:
        pool: The photographs.
        cut: n of them.
        placement: (n, 3, 3), see `place`.
        size: Height and width of the pictures.
        softness: (n,) levels above the one that suits the scale: 1 is half the resolution, -1 aliases.
        border: (n,) BLACK, MEAN or REFLECT; BLACK by default.
        bend: (n, 2) moves what is inside the cut, in units; below 0.3, or it folds. The outline stays.
    """
    n = len(placement)
    border = torch.full((n,), BLACK) if border is None else border
    numbers, offset = _parameters(pool, cut, placement, size, softness, border, bend)
    numbers = numbers.to(pool.device, non_blocking=True)
    offset = offset.to(pool.device, non_blocking=True)
    reflects = bool((border == REFLECT).any())
    step = max(1, _CPU_PIXELS // (size[0] * size[1])) if pool.device.type == "cpu" else max(1, n)
    parts = [_sample(pool.pixels, *p, size, reflects) for p in zip(numbers.split(step), offset.split(step))]
    return parts[0] if len(parts) == 1 else Sampled(*(torch.cat(fields) for fields in zip(*parts)))


def _parameters(
    pool: ImagePool,
    cut: Cut,
    placement: Tensor,
    size: tuple[int, int],
    softness: Tensor | None,
    border: Tensor,
    bend: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What a picture needs to know, (n, 18) and the start of its level (n, 2): one transfer to the device."""
    view = torch.linalg.inv(placement.double())  # pixels of the picture to units
    middle = torch.tensor([size[1] / 2, size[0] / 2, 1.0], dtype=torch.float64)
    area = torch.linalg.det(view).abs() / (view[:, 2] @ middle).abs().clamp(min=1e-3) ** 3
    step = (area * cut.half.prod(dim=1)).sqrt().float()  # pixels of the photograph for one of the picture
    wanted = step.clamp(min=1e-3).log2() + (0 if softness is None else softness)
    level = wanted.round().clamp(0, LEVELS - 1).long()
    shrink = 0.5 ** level[:, None]
    half, centre = cut.half * shrink, cut.centre * shrink
    photo = cut.picture, level
    sides = torch.stack([pool.width[photo], pool.height[photo]], dim=1).float()
    bend = torch.zeros_like(half) if bend is None else bend
    columns = [view.float().flatten(1), half, centre, sides, bend, (border == REFLECT)[:, None].float()]
    red, green, blue = pool.mean[cut.picture].round().int().unbind(1)
    beyond = (red | green << 8 | blue << 16) * (border == MEAN)
    return torch.cat(columns, dim=1), torch.stack([pool.offset[photo].int(), beyond.int()], dim=1)


def _sample(
    pixels: Tensor, numbers: Tensor, starts: Tensor, size: tuple[int, int], reflects: bool
) -> Sampled:
    n = len(numbers)
    h = numbers.T.reshape(-1, n, 1, 1).unbind(0)  # a homography, then the rest, each (n, 1, 1)
    half_x, half_y, centre_x, centre_y, width, height, bend_x, bend_y, reflect = h[9:]
    u = torch.arange(size[1], device=pixels.device) + 0.5
    v = (torch.arange(size[0], device=pixels.device) + 0.5)[:, None]
    below = (h[6] * u + (h[7] * v + h[8])).reciprocal_()
    x, y = (h[0] * u + (h[1] * v + h[2])).mul_(below), (h[3] * u + (h[4] * v + h[5])).mul_(below)
    units = x, y
    inside = (1 - x * x).addcmul_(y, y, value=-1).clamp_(min=0).square_()
    x, y = x.addcmul(inside, bend_x), y.addcmul(inside, bend_y)
    x, y = x.mul_(half_x).add_(centre_x), y.mul_(half_y).add_(centre_y)
    if reflects:
        x = torch.where(reflect > 0, width - (width - x.remainder(2 * width)).abs(), x)
        y = torch.where(reflect > 0, height - (height - y.remainder(2 * height)).abs(), y)
    rim = torch.minimum((width / 2 - (x - width / 2).abs_()), (height / 2 - (y - height / 2).abs_()))
    start, beyond = starts.T.reshape(2, n, 1, 1)
    packed = torch.where(rim >= 0, _bilinear(pixels, x, y, width, height, start), beyond)
    rgba = packed[..., None].view(torch.uint8).permute(0, 3, 1, 2)
    rgb = rgba[:, :3].to(torch.float32, memory_format=torch.contiguous_format)
    return Sampled(rgb, rgba[:, 3] / 255, rim.div_(torch.minimum(width, height)), *units)


def _bilinear(pixels: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor, start: Tensor) -> Tensor:
    """(n, H, W) int32 of four bytes at x, y; overwrites these.

    Two bytes are weighed in one multiplication: with weights that sum to 256 each fits into its 16 bits.
    """
    x = torch.minimum(x.sub_(0.5).clamp_(min=0), width - 1)
    y = torch.minimum(y.sub_(0.5).clamp_(min=0), height - 1)
    x0, y0 = x.int(), y.int()
    fx, fy = x.sub_(x0).mul_(256).int(), y.sub_(y0).mul_(256).int()
    row, last_column, last_row = width.int(), width.int() - 1, height.int() - 1
    right = (x0 < last_column).int()
    down = (y0 < last_row).int().mul_(row)
    index = y0.mul_(row).add_(x0).add_(start)
    both = (fx * fy).add_(128).bitwise_right_shift_(8)
    weights = (256 - fx).sub_(fy).add_(both), fx - both, both, fy - both
    even = torch.zeros_like(index)
    odd = torch.zeros_like(index)
    for step, weight in zip((None, right, down, -right), weights):  # clockwise from the top left
        index = index if step is None else index.add_(step)
        tap = pixels.index_select(0, index.flatten()).view_as(index)
        even.addcmul_(tap & _EVEN_BYTES, weight)
        odd.addcmul_(tap.bitwise_right_shift_(8).bitwise_and_(_EVEN_BYTES), weight)
    even = even.bitwise_right_shift_(8).bitwise_and_(_EVEN_BYTES)
    return even.bitwise_or_(odd.bitwise_and_(~_EVEN_BYTES))
