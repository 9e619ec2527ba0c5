"""Bootstrap intervals over sequences: how far a mean would move with other sequences of the same kind.

Reference: `What Teachers Should Know About the Bootstrap` (Hesterberg, 2015) - https://arxiv.org/abs/1411.5279
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from correlation_aware.evaluation.one_pass import Array

__all__ = ["CONFIDENCE", "FEWEST", "RESAMPLES", "Comparison", "Interval", "compare", "intervals"]

RESAMPLES = 10_000
FEWEST = 6  # sequences that have an interval: of 5, all may be won with a probability above 5 %
CONFIDENCE = 0.95
TIE = 0.0005  # figures that are closer are equal in tables of three decimals


@dataclass(frozen=True)
class Interval:
    """A mean over sequences with its confidence interval; NaN bounds for fewer than 6 sequences.

    Attributes:
        mean: Mean over the sequences.
        low: Lower bound.
        high: Upper bound.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two trackers on the same sequences, a against b.

    Attributes:
        difference: Mean of a minus b, with the interval of the paired bootstrap.
        wins: Number of sequences on which a is better.
        ties: Number of sequences on which they differ by less than 0.0005.
        losses: Number of sequences on which b is better.
        reversed: Fraction of resamples in which the difference has the opposite sign or is 0.
        needed: Number of sequences with this difference and spread that would separate the two; 0 for a
            difference of 0.
    """

    difference: Interval
    wins: int
    ties: int
    losses: int
    reversed: float
    needed: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def intervals(values: Array, seed: int = 0) -> list[Interval]:
    """Means over sequences and their intervals, by the expanded percentile bootstrap.

    The percentiles are those at which a mean of as many normal values would have Student's interval, since
    the plain ones are too narrow for few sequences.

    Args:
        values: (sequences, figures).
        seed: Seed of the resamples.

    Returns:
        An interval per figure.
    """
    means = values.mean(axis=0)
    count = len(values)
    if count < FEWEST:
        return [Interval(float(mean), math.nan, math.nan) for mean in means]
    low, high = np.quantile(_resample(values, seed), _levels(count), axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(means, low, high)]


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Compares two trackers by the paired bootstrap: both have the same sequences in every resample.

    Args:
        a: Figure of one tracker per sequence.
        b: Figure of the other one, of the same sequences.
        seed: Seed of the resamples.
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    (interval,) = intervals(difference[:, None], seed)
    sign = math.copysign(1, interval.mean)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    width = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    known = abs(interval.mean) > 1e-9 and math.isfinite(spread)
    return Comparison(
        interval,
        wins=int((difference >= TIE).sum()),
        ties=int((abs(difference) < TIE).sum()),
        losses=int((difference <= -TIE).sum()),
        reversed=float((_resample(difference[:, None], seed) * sign <= 0).mean()),
        needed=math.ceil((width * spread / interval.mean) ** 2) if known else 0,
    )


def _resample(values: Array, seed: int) -> Array:
    """Means (resamples, figures) over sequences drawn with replacement."""
    return np.asarray(_draws(len(values), seed) @ values / len(values))


@lru_cache(maxsize=1)  # takes longer than the rest of a comparison, and all pairs of a report have the same
def _draws(count: int, seed: int) -> Array:
    """(resamples, count): how often each of a number of sequences is in each resample."""
    rng = np.random.default_rng([seed, count])
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)


def _levels(count: int) -> tuple[float, float]:
    """Levels of the percentiles for a number of sequences."""
    freedom = count - 1
    angles = np.linspace(0, np.pi / 2, 100_001)  # of t = sqrt(freedom) * tan(angle)
    mass = np.cumsum(np.cos(angles) ** (freedom - 1))
    t = math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE, mass / mass[-1], angles))
    level = NormalDist().cdf(-t * math.sqrt(count / freedom))
    return level, 1 - level
