"""Random numbers that depend on a key alone, so that batch 1000 can be made without the 999 before it."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Random numbers on the CPU; pictures are made on any device from the same ones.

    Args:
        key: Whole numbers from 0 upwards, such as a seed and the number of a batch.
    """

    def __init__(self, *key: int) -> None:
        words = np.random.SeedSequence(key).generate_state(2, np.uint64)
        self.device_seed = int(words[0]) >> 1
        self._generator = torch.Generator().manual_seed(int(words[1]) >> 1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator) * (high - low) + low

    def normal(self, std: float, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * std

    def scale(self, spread: float, *shape: int) -> Tensor:
        """Factors in e^-spread .. e^spread, uniform in the logarithm."""
        return self.uniform(-spread, spread, *shape).exp()

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with this probability."""
        return torch.rand(*shape, generator=self._generator) < probability

    def strata(self, count: int) -> Tensor:
        """`count` numbers in 0..1, one in each of as many equal parts, in random order."""
        order = torch.randperm(count, generator=self._generator)
        return (order + torch.rand(count, generator=self._generator)) / count

    def weighted(self, weights: Tensor, count: int) -> Tensor:
        """`count` indices, each as likely as its weight."""
        if count == 0:
            return torch.zeros(0, dtype=torch.long)
        return torch.multinomial(weights, count, replacement=True, generator=self._generator)

    def below(self, limits: Tensor) -> Tensor:
        """A whole number in 0..limit - 1 for each limit."""
        draws = torch.rand(limits.shape, generator=self._generator, dtype=torch.float64)
        return torch.minimum((draws * limits).long(), limits - 1)
