"""What light, cameras and codecs do to a picture; a batch at a time, every picture its own way."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.data.draws import Draws

__all__ = ["PhotometricConfig", "alter", "recolour"]

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class PhotometricConfig:
    """How much two pictures of one target differ. Probabilities are of one picture, unless said otherwise.

    Attributes:
        brightness: Standard deviation of the shift, in grey levels.
        contrast: Spread of the logarithm of the contrast, also of the saturation.
        colour: Standard deviation of the logarithm of each channel's gain.
        tone: Largest bend of the tone curve, 0..1.
        grey: Probability that both pictures are grey.
        shade: Probability of a gradient of light over the picture.
        blur: Probability of blur, of the lens or of motion.
        noise: Probability of noise.
        codec: Probability of the blocks of a codec such as JPEG.
    """

    brightness: float = 16.0
    contrast: float = 0.3
    colour: float = 0.06
    tone: float = 0.4
    grey: float = 0.08
    shade: float = 0.3
    blur: float = 0.2
    noise: float = 0.25
    codec: float = 0.2


def alter(
    pictures: Tensor, draws: Draws, noise: torch.Generator, config: PhotometricConfig, grey: Tensor
) -> Tensor:
    """(B, 3, H, W) in 0..255 as other cameras would have it under other light.

    Args:
        pictures: On any device.
        draws: The random numbers.
        noise: Of the device, for the noise of every pixel.
        config: How much.
        grey: (B,) bool, pictures without colour.
    """
    n, device = len(pictures), pictures.device
    matrix, shift = _colour(draws, config, grey)
    mixed = torch.baddbmm(shift.to(device), matrix.to(device), pictures.flatten(2))
    out = mixed.view_as(pictures)
    bend = draws.uniform(-config.tone, config.tone, n, 1, 1, 1).to(device)
    out.mul_(out.mul(bend / -255).add_(1 + bend)).clamp_(0, 255)
    for probability, change in ((config.shade, _shade), (config.blur, _blur), (config.codec, _codec)):
        if len(which := draws.chance(probability, n).nonzero()[:, 0]):
            at = which.to(device)
            out.index_copy_(0, at, change(out.index_select(0, at), draws))
    if len(which := draws.chance(config.noise, n).nonzero()[:, 0]):
        at = which.to(device)
        strength = draws.uniform(0.7, 2.5, len(which), 1, 1, 1).exp().to(device)
        grain = torch.randn(len(which), *out.shape[1:], device=device, generator=noise)
        out.index_add_(0, at, grain * strength)
    return out.clamp_(0, 255)


def recolour(draws: Draws, count: int) -> Tensor:
    """(count, 3, 3) matrices that give a look-alike clearly other colours: hue turned, channels weighed."""
    angle = draws.uniform(0.7, 2 * torch.pi - 0.7, count)
    cos, sin = (f(angle).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) * 3**-0.5
    turn = cos * torch.eye(3) + sin * cross + (1 - cos) * torch.outer(axis, axis)
    return draws.normal(0.3, count, 3, 1).exp() * turn


def _colour(draws: Draws, config: PhotometricConfig, grey: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (B, 3, 3) and shifts (B, 3, 1) for saturation, gains, contrast and brightness together."""
    n = len(grey)
    saturation = (draws.scale(config.contrast, n) * ~grey).view(-1, 1, 1)
    matrix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(LUMA).expand(3, 3)
    gains = draws.normal(config.colour, n, 3).exp()
    gains = torch.where(grey[:, None], gains[:, :1], gains)
    contrast = draws.scale(config.contrast, n)[:, None]
    shift = (1 - contrast) * 110 + draws.normal(config.brightness, n, 1)
    return matrix * (gains * contrast)[:, :, None], shift.expand(-1, 3)[:, :, None]


def _shade(pictures: Tensor, draws: Draws) -> Tensor:
    """Light that falls off in one direction."""
    height, width = pictures.shape[2:]
    slope = draws.normal(0.2, len(pictures), 2).clamp(-0.45, 0.45).to(pictures.device)
    x, y = (torch.linspace(-1, 1, side, device=pictures.device) for side in (width, height))
    light = 1 + slope[:, 0].view(-1, 1, 1) * x + slope[:, 1].view(-1, 1, 1) * y[:, None]
    return pictures.mul_(light[:, None]).clamp_(max=255)


def _blur(pictures: Tensor, draws: Draws) -> Tensor:
    """Gaussians, round or long in one direction; wide ones where the pictures are large."""
    n, _, height, width = pictures.shape
    reach = max(2, min(height, width) // 32)
    angle = draws.uniform(0, torch.pi, n)
    axis = torch.stack([angle.cos(), angle.sin()], dim=1)
    long, short = draws.uniform(0.15, 0.55, n) * reach, draws.uniform(0.08, 0.25, n) * reach
    offset = torch.arange(-reach, reach + 1.0)
    grid = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1)  # rows, columns, xy
    along = grid @ axis.T
    across = grid @ torch.stack([-axis[:, 1], axis[:, 0]])
    weights = torch.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2)).permute(2, 0, 1)
    weights = (weights / weights.sum(dim=(1, 2), keepdim=True)).to(pictures.device)
    padded = F.pad(pictures, [reach] * 4, mode="replicate").view(1, 3 * n, height + 2 * reach, -1)
    kernels = weights[:, None].repeat_interleave(3, dim=0)
    return F.conv2d(padded, kernels, groups=3 * n).view_as(pictures)


def _codec(pictures: Tensor, draws: Draws) -> Tensor:
    """Rounds the cosine transform of 8 x 8 blocks, in brightness and colour, as JPEG does."""
    n, _, height, width = pictures.shape
    device = pictures.device
    red, green, blue = LUMA
    to_ycc = torch.tensor([LUMA, (-red, -green, 1 - blue), (1 - red, -green, -blue)])
    to_rgb = torch.linalg.inv(to_ycc).to(device)
    k = torch.arange(8.0, device=device)
    cosines = torch.cos((k + 0.5) * k[:, None] * torch.pi / 8) * 0.5
    cosines[0] *= 0.5**0.5
    coarse = draws.uniform(-0.7, 1.3, n).exp().to(device).view(-1, 1, 1, 1, 1, 1)
    channel = torch.tensor([1.0, 2.0, 2.0], device=device).view(1, 3, 1, 1, 1, 1)
    steps = coarse * channel * (8 + 4 * (k + k[:, None])).view(1, 1, 1, 1, 8, 8)
    padded = F.pad(pictures, [0, -width % 8, 0, -height % 8], mode="replicate")
    ycc = torch.einsum("dc,nchw->ndhw", to_ycc.to(device), padded)
    blocks = ycc.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # n, 3, rows, columns, 8, 8
    levels = cosines @ blocks @ cosines.T
    blocks = cosines.T @ (torch.round(levels / steps) * steps) @ cosines
    ycc = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return torch.einsum("dc,nchw->ndhw", to_rgb, ycc)[:, :, :height, :width]
