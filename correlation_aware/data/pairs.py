"""Training pairs: a template image, a search image, and the target's box in the search image."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from correlation_aware.data.keyed_random import KeyedRandom

__all__ = ["MixedPairs", "PairBatch", "PairSource", "Renormalized", "denormalize", "normalize"]


class PairBatch(NamedTuple):
    """A batch of B pairs.

    Attributes:
        template: (B, 3, Hz, Wz) template images, normalized with ImageNet's mean and standard deviation.
        search: (B, 3, Hx, Wx) search images, normalized likewise.
        boxes: (B, 4) cxcywh in 0..1 of the search image; a box may extend beyond the image.
        positive: (B,) bool, False where the template's target is not in the search image.
        source: Index of the source in a mix, a scalar that stays on the CPU.
    """

    template: Tensor
    search: Tensor
    boxes: Tensor
    positive: Tensor
    source: Tensor = torch.zeros((), dtype=torch.long)

    def to(self, device: str | torch.device) -> "PairBatch":
        """The batch on a device."""
        template, search, boxes, positive = (field.to(device, non_blocking=True) for field in self[:4])
        return PairBatch(template, search, boxes, positive, self.source)


class PairSource(Protocol):
    """An endless source of pairs. Batch n depends only on the seed of the source and on n."""

    def batch(self, number: int) -> PairBatch: ...


class MixedPairs:
    """Batches from several sources at random. Batch n depends only on the seeds and on n.

    Args:
        sources: Sources with their weights: the share of the batches that each one provides.
        seed: Seed of the choice of the source.
        names: Names of the sources in the log.
    """

    def __init__(
        self, sources: Sequence[tuple[PairSource, float]], seed: int = 0, names: Sequence[str] = ()
    ) -> None:
        self.names = list(names)
        self.sources = [source for source, _ in sources]
        self.weights = torch.tensor([float(weight) for _, weight in sources])
        self.seed = seed

    def batch(self, number: int) -> PairBatch:
        """Batch `number`, counted from 0."""
        index = int(KeyedRandom(self.seed, number).multinomial(self.weights, 1))
        return self.sources[index].batch(number)._replace(source=torch.tensor(index))


class Renormalized:
    """A source whose images are converted to another normalization and number of channels.

    Args:
        source: Pairs normalized with ImageNet's mean and standard deviation.
        mean: Mean of the pixels in 0..1, one value or one per channel.
        std: Standard deviation of the pixels in 0..1, one value or one per channel.
        in_chans: Number of channels: 3 for RGB, 1 for the mean of the three channels.

    Raises:
        ValueError: Another number of channels.
    """

    def __init__(
        self, source: PairSource, mean: Sequence[float], std: Sequence[float], in_chans: int
    ) -> None:
        if in_chans not in (1, 3):
            raise ValueError(f"Pairs are images of 1 or 3 channels, not in_chans={in_chans}.")
        self.source, self.in_chans = source, in_chans
        self.names: list[str] = getattr(source, "names", [])
        self._mean, self._std = (255 * torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def batch(self, number: int) -> PairBatch:
        """Batch `number` of the source, in the model's normalization."""
        batch = self.source.batch(number)
        return batch._replace(template=self._convert(batch.template), search=self._convert(batch.search))

    def _convert(self, images: Tensor) -> Tensor:
        pixels = denormalize(images).float()
        if self.in_chans == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)


def normalize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..255, normalized with ImageNet's mean and standard deviation."""
    mean, std = _statistics(images.device)
    return (images - mean).div_(std)


def denormalize(images: Tensor) -> Tensor:
    """Inverse of `normalize`: uint8 images (B, 3, H, W)."""
    mean, std = _statistics(images.device)
    return (images * std + mean).round().clamp(0, 255).to(torch.uint8)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std
