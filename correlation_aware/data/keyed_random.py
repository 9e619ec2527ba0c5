"""Random numbers that depend only on a key, so batch 1000 can be generated without batches 0 to 999."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeyedRandom"]


class KeyedRandom:
    """Random number generator on the CPU, seeded by a key: the same numbers for every device.

    Args:
        key: Integers of at least 0, such as a seed and a batch number.

    Attributes:
        device_seed: Seed for a second generator, on the device of the images.
    """

    def __init__(self, *key: int) -> None:
        words = np.random.SeedSequence(key).generate_state(2, np.uint64)
        self.device_seed = int(words[0]) >> 1
        self._generator = torch.Generator().manual_seed(int(words[1]) >> 1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in low..high."""
        return torch.rand(*shape, generator=self._generator) * (high - low) + low

    def normal(self, std: float, *shape: int) -> Tensor:
        """Normal numbers of mean 0."""
        return torch.randn(*shape, generator=self._generator) * std

    def log_uniform(self, spread: float, *shape: int) -> Tensor:
        """Factors in e^-spread .. e^spread, uniform in the logarithm."""
        return self.uniform(-spread, spread, *shape).exp()

    def bernoulli(self, probability: float, *shape: int) -> Tensor:
        """Booleans, True with this probability."""
        return torch.rand(*shape, generator=self._generator) < probability

    def stratified(self, count: int) -> Tensor:
        """`count` numbers, one in each of `count` equal parts of 0..1, in random order."""
        order = torch.randperm(count, generator=self._generator)
        return (order + torch.rand(count, generator=self._generator)) / count

    def multinomial(self, weights: Tensor, count: int) -> Tensor:
        """`count` indices into `weights`, each with a probability proportional to its weight."""
        if count == 0:
            return torch.zeros(0, dtype=torch.long)
        return torch.multinomial(weights, count, replacement=True, generator=self._generator)

    def integers(self, limits: Tensor) -> Tensor:
        """One integer in 0..limit - 1 for each limit."""
        numbers = torch.rand(limits.shape, generator=self._generator, dtype=torch.float64)
        return torch.minimum((numbers * limits).long(), limits - 1)
