"""Photometric augmentation of image batches: illumination, camera and codec, random for every image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from correlation_aware._deprecation import renamed_fields
from correlation_aware.data.keyed_random import KeyedRandom

__all__ = ["PhotometricConfig", "photometric_augment", "recolor"]

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness


@renamed_fields(colour="color", grey="gray")
@dataclass(frozen=True)
class PhotometricConfig:
    """Strength of the photometric augmentation. Probabilities are per image unless noted otherwise.

    Attributes:
        brightness: Standard deviation of the brightness shift, in levels of 0..255.
        contrast: Largest |log| of the contrast factor, and of the saturation factor.
        color: Standard deviation of the log of each channel's gain.
        tone: Largest bend of the tone curve, 0..1.
        gray: Probability that both images of a pair are gray.
        shade: Probability of a linear gradient of the illumination.
        blur: Probability of defocus or motion blur.
        noise: Probability of sensor noise.
        codec: Probability of block artifacts as of JPEG.
    """

    brightness: float = 16.0
    contrast: float = 0.3
    color: float = 0.06
    tone: float = 0.4
    gray: float = 0.08
    shade: float = 0.3
    blur: float = 0.2
    noise: float = 0.25
    codec: float = 0.2


def photometric_augment(
    images: Tensor, rng: KeyedRandom, noise: torch.Generator, config: PhotometricConfig, gray: Tensor
) -> Tensor:
    """Images under random illumination, from random cameras and codecs.

    Args:
        images: (B, 3, H, W) in 0..255, on any device.
        rng: Random number generator of the parameters.
        noise: Random number generator of the pixel noise, on the device of the images.
        config: Strength.
        gray: (B,) bool, images to convert to gray.

    Returns:
        (B, 3, H, W) in 0..255.
    """
    n, device = len(images), images.device
    matrix, shift = _color_matrix(rng, config, gray)
    mixed = torch.baddbmm(shift.to(device), matrix.to(device), images.flatten(2))
    out = mixed.view_as(images)
    bend = rng.uniform(-config.tone, config.tone, n, 1, 1, 1).to(device)
    out.mul_(out.mul(bend / -255).add_(1 + bend)).clamp_(0, 255)
    for probability, augment in ((config.shade, _shade), (config.blur, _blur), (config.codec, _codec)):
        if len(indices := rng.bernoulli(probability, n).nonzero()[:, 0]):
            at = indices.to(device)
            out.index_copy_(0, at, augment(out.index_select(0, at), rng))
    if len(indices := rng.bernoulli(config.noise, n).nonzero()[:, 0]):
        at = indices.to(device)
        strength = rng.uniform(0.7, 2.5, len(indices), 1, 1, 1).exp().to(device)
        grain = torch.randn(len(indices), *out.shape[1:], device=device, generator=noise)
        out.index_add_(0, at, grain * strength)
    return out.clamp_(0, 255)


def recolor(rng: KeyedRandom, count: int) -> Tensor:
    """(count, 3, 3) matrices that clearly change the color of a look-alike: hue rotation, channel gains."""
    angle = rng.uniform(0.7, 2 * torch.pi - 0.7, count)
    cos, sin = (f(angle).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) * 3**-0.5
    rotation = cos * torch.eye(3) + sin * cross + (1 - cos) * torch.outer(axis, axis)
    return rng.normal(0.3, count, 3, 1).exp() * rotation


def _color_matrix(rng: KeyedRandom, config: PhotometricConfig, gray: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (B, 3, 3) and shifts (B, 3, 1) that combine saturation, gains, contrast and brightness."""
    n = len(gray)
    saturation = (rng.log_uniform(config.contrast, n) * ~gray).view(-1, 1, 1)
    matrix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(LUMA).expand(3, 3)
    gains = rng.normal(config.color, n, 3).exp()
    gains = torch.where(gray[:, None], gains[:, :1], gains)
    contrast = rng.log_uniform(config.contrast, n)[:, None]
    shift = (1 - contrast) * 110 + rng.normal(config.brightness, n, 1)
    return matrix * (gains * contrast)[:, :, None], shift.expand(-1, 3)[:, :, None]


def _shade(images: Tensor, rng: KeyedRandom) -> Tensor:
    """A linear gradient of the illumination."""
    height, width = images.shape[2:]
    slope = rng.normal(0.2, len(images), 2).clamp(-0.45, 0.45).to(images.device)
    x, y = (torch.linspace(-1, 1, side, device=images.device) for side in (width, height))
    light = 1 + slope[:, 0].view(-1, 1, 1) * x + slope[:, 1].view(-1, 1, 1) * y[:, None]
    return images.mul_(light[:, None]).clamp_(max=255)


def _blur(images: Tensor, rng: KeyedRandom) -> Tensor:
    """Gaussian blur, isotropic or along one direction; its width grows with the image size."""
    n, _, height, width = images.shape
    reach = max(2, min(height, width) // 32)
    angle = rng.uniform(0, torch.pi, n)
    axis = torch.stack([angle.cos(), angle.sin()], dim=1)
    long, short = rng.uniform(0.15, 0.55, n) * reach, rng.uniform(0.08, 0.25, n) * reach
    offset = torch.arange(-reach, reach + 1.0)
    grid = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1)  # rows, columns, xy
    along = grid @ axis.T
    across = grid @ torch.stack([-axis[:, 1], axis[:, 0]])
    weights = torch.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2)).permute(2, 0, 1)
    weights = (weights / weights.sum(dim=(1, 2), keepdim=True)).to(images.device)
    padded = F.pad(images, [reach] * 4, mode="replicate").view(1, 3 * n, height + 2 * reach, -1)
    kernels = weights[:, None].repeat_interleave(3, dim=0)
    return F.conv2d(padded, kernels, groups=3 * n).view_as(images)


def _codec(images: Tensor, rng: KeyedRandom) -> Tensor:
    """Quantizes the cosine transform of 8 x 8 blocks in brightness and color channels, as JPEG does."""
    n, _, height, width = images.shape
    device = images.device
    red, green, blue = LUMA
    to_ycc = torch.tensor([LUMA, (-red, -green, 1 - blue), (1 - red, -green, -blue)])
    to_rgb = torch.linalg.inv(to_ycc).to(device)
    k = torch.arange(8.0, device=device)
    cosines = torch.cos((k + 0.5) * k[:, None] * torch.pi / 8) * 0.5
    cosines[0] *= 0.5**0.5
    strength = rng.uniform(-0.7, 1.3, n).exp().to(device).view(-1, 1, 1, 1, 1, 1)
    channel = torch.tensor([1.0, 2.0, 2.0], device=device).view(1, 3, 1, 1, 1, 1)
    steps = strength * channel * (8 + 4 * (k + k[:, None])).view(1, 1, 1, 1, 8, 8)
    padded = F.pad(images, [0, -width % 8, 0, -height % 8], mode="replicate")
    ycc = torch.einsum("dc,nchw->ndhw", to_ycc.to(device), padded)
    blocks = rearrange(ycc, "n c (rows y) (cols x) -> n c rows cols y x", y=8, x=8)
    levels = cosines @ blocks @ cosines.T
    blocks = cosines.T @ (torch.round(levels / steps) * steps) @ cosines
    ycc = rearrange(blocks, "n c rows cols y x -> n c (rows y) (cols x)")
    return torch.einsum("dc,nchw->ndhw", to_rgb, ycc)[:, :, :height, :width]
