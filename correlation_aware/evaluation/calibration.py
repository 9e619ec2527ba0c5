"""Calibration of scores: a score of 0.8 should mean that 80 % of the boxes are correct.

Reference: `On Calibration of Modern Neural Networks` (Guo et al., 2017) - https://arxiv.org/abs/1706.04599;
the fit is Platt scaling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require
from correlation_aware._files import PLOT_SUFFIXES, atomic_path, check_output_file
from correlation_aware.evaluation.one_pass import SequenceResult

__all__ = ["HIT", "Reliability", "fit_calibration", "plot_reliability", "reliability", "scored_frames"]

HIT = 0.5  # a box is correct if its IoU with the ground truth is above this
EDGE = 1e-6  # scores are clamped to [EDGE, 1 - EDGE]
MIN_SCALE = 1e-3  # a smaller scale of the logit would make all scores equal; a negative one reverses them

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: mean score and accuracy in bins of equal width over 0..1.

    Attributes:
        score: (bins,) mean score; NaN in an empty bin.
        accuracy: (bins,) fraction of correct boxes; NaN in an empty bin.
        count: (bins,) number of frames.
        error: Expected calibration error: mean of |score - accuracy| over all frames.
    """

    score: Array
    accuracy: Array
    count: NDArray[np.int64]
    error: float


def scored_frames(results: Sequence[SequenceResult]) -> tuple[Array, NDArray[np.bool_]]:
    """Scores and correctness of all evaluated frames.

    Args:
        results: Results of tracked sequences.

    Returns:
        Scores (N,) in 0..1, and (N,) bool, whether the boxes are correct.

    Raises:
        ValueError: No evaluated frames, or a tracker without scores.
    """
    scores = np.concatenate([r.scores[r.evaluated] for r in results]) if results else np.empty(0)
    if not scores.size:
        raise ValueError(
            "There are no frames to calibrate on: no frame has a visible target with a known box."
        )
    if not np.isfinite(scores).all():
        raise ValueError("The tracker has no scores to calibrate: they are not finite.")
    return scores, np.concatenate([r.ious for r in results]) > HIT


def reliability(scores: Array, correct: NDArray[np.bool_], bins: int = 10) -> Reliability:
    """Computes a reliability diagram.

    Args:
        scores: (N,) in 0..1.
        correct: (N,) whether the boxes are correct.
        bins: Number of bins.
    """
    index = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score, accuracy = (np.bincount(index, values, bins) / count for values in (scores, correct))
    error = np.nansum(np.abs(mean_score - accuracy) * count) / count.sum()
    return Reliability(mean_score, accuracy, count, float(error))


def fit_calibration(scores: Array, correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Fits scale and shift of the logit so that the score is the probability of a correct box.

    Args:
        scores: (N,) in 0..1.
        correct: (N,) whether the boxes are correct.

    Returns:
        Scale and shift, the arguments of the head's `calibrate`.

    Raises:
        ValueError: All boxes are correct, or none; or scores that are not higher for correct boxes, for
            which a fit is of no use.
    """
    hits, misses = int(correct.sum()), int((~correct).sum())
    if not hits or not misses:
        raise ValueError(
            f"{hits} correct and {misses} wrong boxes: a calibration needs both. Use more or harder clips."
        )
    clipped = np.clip(scores, EDGE, 1 - EDGE)
    x = np.stack([np.log(clipped / (1 - clipped)), np.ones_like(clipped)], axis=1)  # N, 2
    # Platt's targets, so that the fit is finite for separable scores
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))
    parameters = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's method on a convex loss; halved steps where it overshoots
        p = 1 / (1 + np.exp(-x @ parameters))
        gradient = x.T @ (p - target)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        before, size = _loss(x @ parameters, target), 1.0
        while _loss(x @ (parameters - size * step), target) > before and size > 1e-6:
            size /= 2
        parameters = parameters - size * step
        if np.abs(step).max() < 1e-9:
            break
    scale, shift = map(float, parameters)
    if not scale >= MIN_SCALE:
        raise ValueError(
            f"The fit has the scale {scale:.2g}; it must be at least {MIN_SCALE}. The {hits} correct boxes "
            f"do not have higher scores than the {misses} wrong ones: calibrated scores would be reversed or "
            "equal. Use more clips, or train the tracker further."
        )
    return scale, shift


def plot_reliability(result: Reliability, path: str | Path, title: str = "") -> None:
    """Plots a reliability diagram and the number of frames per bin to an image file.

    Args:
        result: Reliability diagram.
        path: Path of the image; its suffix, one of `PLOT_SUFFIXES`, sets the format.
        title: Title of the plot.

    Raises:
        ValueError: Another suffix.
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    check_output_file(path, PLOT_SUFFIXES)
    (figures,) = require("matplotlib.figure")
    figure = figures.Figure(figsize=(5, 5.5), layout="constrained")
    curve, frames = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = len(result.count)
    centers = (np.arange(bins) + 0.5) / bins
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    curve.bar(centers, np.nan_to_num(result.accuracy), width=0.94 / bins, color="#7aa6c2")
    curve.plot(result.score, result.accuracy, "o-", color="#1f4e6b", markersize=4)
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"fraction of boxes with IoU > {HIT}")
    curve.set_title(f"{title}\ncalibration error {result.error:.3f}".strip(), fontsize=10)
    frames.bar(centers, result.count, width=0.94 / bins, color="0.6")
    frames.set(xlabel="score", ylabel="frames")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _loss(logits: Array, target: Array) -> float:
    """Binary cross-entropy, summed."""
    return float((np.logaddexp(0, logits) - target * logits).sum())
