"""What every source of training data yields: a template, a search picture, and where the target is in it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from correlation_aware.data.draws import Draws

__all__ = ["MixedPairs", "PairBatch", "PairSource", "Renormalized", "denormalize", "normalize"]


class PairBatch(NamedTuple):
    """B pairs of pictures.

    Attributes:
        template: (B, 3, Hz, Wz), normalised with ImageNet's mean and standard deviation.
        search: (B, 3, Hx, Wx), likewise.
        boxes: (B, 4) cxcywh in 0..1 of the search picture; a target may reach over its edge.
        positive: (B,) bool; where False the target of the template is not in the search picture.
    """

    template: Tensor
    search: Tensor
    boxes: Tensor
    positive: Tensor

    def to(self, device: str | torch.device) -> "PairBatch":
        return PairBatch(*(field.to(device, non_blocking=True) for field in self))


class PairSource(Protocol):
    """An endless source of pairs. Batch n depends on the source's seed and n alone."""

    def batch(self, number: int) -> PairBatch: ...


class MixedPairs:
    """Batches of several sources in turn, by their weights; batch n depends on the seeds and n alone.

    Args:
        sources: Each with its weight, its share of the batches.
        seed: Of the turns.
    """

    def __init__(self, sources: Sequence[tuple[PairSource, float]], seed: int = 0) -> None:
        self.sources = [source for source, _ in sources]
        self.weights = torch.tensor([float(weight) for _, weight in sources])
        self.seed = seed

    def batch(self, number: int) -> PairBatch:
        """Batch `number`, from 0."""
        turn = int(Draws(self.seed, number).weighted(self.weights, 1))
        return self.sources[turn].batch(number)


class Renormalized:
    """A source whose images get another normalization and number of channels, as a model needs them.

    Args:
        source: Pairs normalized with ImageNet's mean and standard deviation.
        mean: Mean of the pixels in 0..1, one value or one per channel.
        std: Standard deviation, likewise.
        in_chans: 3 for RGB, 1 for the mean of the three channels.

    Raises:
        ValueError: Another number of channels.
    """

    def __init__(
        self, source: PairSource, mean: Sequence[float], std: Sequence[float], in_chans: int
    ) -> None:
        if in_chans not in (1, 3):
            raise ValueError(f"Pairs are images of 1 or 3 channels, not in_chans={in_chans}.")
        self.source, self.in_chans = source, in_chans
        self._mean, self._std = (255 * torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def batch(self, number: int) -> PairBatch:
        """Batch `number` of the source, in the model's normalization."""
        batch = self.source.batch(number)
        return batch._replace(template=self._convert(batch.template), search=self._convert(batch.search))

    def _convert(self, images: Tensor) -> Tensor:
        pixels = denormalize(images)
        if self.in_chans == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)


def normalize(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..255 to mean 0 and deviation 1 over ImageNet."""
    mean, std = _statistics(pictures.device)
    return (pictures - mean).div_(std)


def denormalize(pictures: Tensor) -> Tensor:
    """The way back: uint8 (B, 3, H, W)."""
    mean, std = _statistics(pictures.device)
    return (pictures * std + mean).round().clamp(0, 255).to(torch.uint8)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std
