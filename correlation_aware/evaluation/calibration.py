"""What a score means: how often the box is right when the tracker says 0.8, and how to make that 0.8.

Reference: `On Calibration of Modern Neural Networks` (Guo et al., 2017) - https://arxiv.org/abs/1706.04599;
the fit is Platt's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require
from correlation_aware._files import atomic_path
from correlation_aware.evaluation.one_pass import SequenceResult

__all__ = ["HIT", "Reliability", "fit_calibration", "plot_reliability", "reliability", "scored_frames"]

HIT = 0.5  # a box is right if its overlap with the truth is above this
EDGE = 1e-6  # scores nearer to 0 or 1 are taken as this near

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Scores against what came of them, in bins of equal width over 0..1.

    Attributes:
        score: (bins,) mean score; NaN in an empty bin.
        right: (bins,) share of right boxes, likewise.
        count: (bins,) number of frames.
        error: Expected calibration error: mean distance of the two, every frame alike.
    """

    score: Array
    right: Array
    count: NDArray[np.int64]
    error: float


def scored_frames(results: Sequence[SequenceResult]) -> tuple[Array, NDArray[np.bool_]]:
    """Scores (N,) of all frames that count, and (N,) whether their boxes are right.

    Raises:
        ValueError: No frame counts.
    """
    scores = np.concatenate([r.scores[r.counts] for r in results]) if results else np.empty(0)
    if not scores.size:
        raise ValueError("There is nothing to calibrate on: no frame has a visible, known target.")
    return scores, np.concatenate([r.ious for r in results]) > HIT


def reliability(scores: Array, right: NDArray[np.bool_], bins: int = 10) -> Reliability:
    """Compares scores (N,) in 0..1 with (N,) whether the boxes are right."""
    which = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(which, values, bins) / count for values in (scores, right))
    return Reliability(means, shares, count, float(np.nansum(np.abs(means - shares) * count) / count.sum()))


def fit_calibration(scores: Array, right: NDArray[np.bool_]) -> tuple[float, float]:
    """Scale and shift of the logit after which a score is the probability that the box is right.

    Args:
        scores: (N,) in 0..1.
        right: (N,).

    Returns:
        What the head's `calibrate` takes.

    Raises:
        ValueError: All boxes are right, or none.
    """
    hits, misses = int(right.sum()), int((~right).sum())
    if not hits or not misses:
        raise ValueError(
            f"{hits} right and {misses} wrong boxes: a calibration needs both. Take more or harder clips."
        )
    clipped = np.clip(scores, EDGE, 1 - EDGE)
    x = np.stack([np.log(clipped / (1 - clipped)), np.ones_like(clipped)], axis=1)  # N, 2
    wanted = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))  # Platt's, so that no fit runs away
    found = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's method on a convex loss; halved steps where it overshoots
        p = 1 / (1 + np.exp(-x @ found))
        gradient = x.T @ (p - wanted)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        before, size = _loss(x @ found, wanted), 1.0
        while _loss(x @ (found - size * step), wanted) > before and size > 1e-6:
            size /= 2
        found = found - size * step
        if np.abs(step).max() < 1e-9:
            break
    return float(found[0]), float(found[1])


def plot_reliability(found: Reliability, path: str | Path, title: str = "") -> None:
    """Draws scores against shares of right boxes, and how many frames have them, into a picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to get it.
    """
    (figures,) = require("matplotlib.figure")
    figure = figures.Figure(figsize=(5, 5.5), layout="constrained")
    curve, frames = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = len(found.count)
    centres = (np.arange(bins) + 0.5) / bins
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    curve.bar(centres, np.nan_to_num(found.right), width=0.94 / bins, color="#7aa6c2")
    curve.plot(found.score, found.right, "o-", color="#1f4e6b", markersize=4)
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"share of boxes with IoU > {HIT}")
    curve.set_title(f"{title}\ncalibration error {found.error:.3f}".strip(), fontsize=10)
    frames.bar(centres, found.count, width=0.94 / bins, color="0.6")
    frames.set(xlabel="score", ylabel="frames")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _loss(logits: Array, wanted: Array) -> float:
    return float((np.logaddexp(0, logits) - wanted * logits).sum())
