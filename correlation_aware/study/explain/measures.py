"""Numbers about score maps: true-positive rate, negative objects, hard frames and failures (Figs. 6, 13)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from correlation_aware.tracking.crop import Crop

__all__ = [
    "BACKGROUND",
    "DISTRACTOR",
    "TARGET",
    "Failure",
    "MapStatistics",
    "find_failures",
    "label_locations",
    "locations_inside",
    "map_statistics",
    "neighbor_purity",
    "select_hard_frames",
]

BACKGROUND, TARGET, DISTRACTOR = 0, 1, 2
FAILED_OVERLAP = 0.1  # overlap below which the target is not tracked

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MapStatistics:
    """What a score map says about target and background.

    A location is positive if its score is at least the threshold, and is the target's if its center is inside
    the target's box.

    Attributes:
        true_positive_rate: Fraction of the target's locations that are positive; NaN if it has no location in
            the search region.
        negative_objects: Number of connected components of positive locations (8 neighbors) without any
            location of the target.
    """

    true_positive_rate: float
    negative_objects: int


@dataclass(frozen=True)
class Failure:
    """Frames in which a tracker does not have the target.

    Attributes:
        start: First frame of the failure.
        end: Frame after its last one.
    """

    start: int
    end: int


def locations_inside(box: ArrayLike, crop: Crop, size: Sequence[int]) -> Mask:
    """Which locations of a search region have their center inside a box.

    Args:
        box: x, y, w, h in pixels of the frame.
        crop: Search region.
        size: Height and width of the score map.

    Returns:
        (H, W).
    """
    x, y, w, h = np.asarray(box, float)
    rows, columns = ((np.arange(n) + 0.5) * crop.side / n for n in size)
    in_rows = (rows + crop.y >= y) & (rows + crop.y <= y + h)
    in_columns = (columns + crop.x >= x) & (columns + crop.x <= x + w)
    return np.asarray(in_rows[:, None] & in_columns[None, :])


def map_statistics(scores: Array, crop: Crop, box: ArrayLike, threshold: float = 0.5) -> MapStatistics:
    """True-positive rate and number of negative objects of a score map, as in Fig. 6 of the paper.

    The paper gives no definitions; these are ours, see `MapStatistics`.

    Args:
        scores: (H, W) score map in 0..1.
        crop: Search region.
        box: Box of the target, x, y, w, h in pixels of the frame.
        threshold: Smallest score of a positive location.

    Raises:
        ValueError: A threshold outside 0..1, or a score map that is not (H, W).
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be in 0..1.")
    if np.ndim(scores) != 2:
        raise ValueError(f"A score map is (H, W); this one has shape {np.shape(scores)}.")
    target = locations_inside(box, crop, np.shape(scores))
    positive = np.asarray(scores) >= threshold
    rate = float(positive[target].mean()) if target.any() else math.nan
    return MapStatistics(rate, len(_components(positive, without=target)))


def label_locations(
    maps: Iterable[tuple[Array, Crop]],
    crop: Crop,
    size: Sequence[int],
    target: ArrayLike,
    distractors: Sequence[ArrayLike] = (),
    threshold: float = 0.1,
) -> NDArray[np.int64]:
    """What each location of a search region shows: `BACKGROUND`, `TARGET` or `DISTRACTOR`.

    Distractors are what is inside the boxes `distractors`. Without any, they are the negative objects of the
    score maps of all models together, with a low threshold, so that the labels are the same for each model.

    Args:
        maps: Score map and search region of every model.
        crop: Search region to label.
        size: Height and width of the labels.
        target: Box of the target, x, y, w, h in pixels of the frame.
        distractors: Boxes of distractors, likewise.
        threshold: Smallest score of a location of a negative object.

    Returns:
        (H, W).
    """
    labels = np.full(tuple(size), BACKGROUND)
    if distractors:
        for box in distractors:
            labels[locations_inside(box, crop, size)] = DISTRACTOR
    else:
        rows, columns = ((np.arange(n) + 0.5) / n * crop.side for n in size)
        for scores, region in maps:
            height, width = len(scores), len(scores[0])
            inside = locations_inside(target, region, scores.shape)
            objects = np.zeros(scores.shape, bool)
            for component in _components(scores >= threshold, without=inside):
                objects |= component
            # the location of that map at the center of each location
            i, j = (
                np.floor((start - origin + offsets) / region.side * n).astype(int)
                for start, origin, offsets, n in (
                    (crop.y, region.y, rows, height),
                    (crop.x, region.x, columns, width),
                )
            )
            known = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))[None, :]
            chosen = objects[i.clip(0, height - 1)][:, j.clip(0, width - 1)]
            labels[known & chosen] = DISTRACTOR
    labels[locations_inside(target, crop, size)] = TARGET
    return labels


def neighbor_purity(features: Array, labels: NDArray[np.int64], neighbors: int = 5) -> float:
    """How far the target's features are apart from the others, without the distortion of t-SNE.

    Args:
        features: (N, C) features of N locations.
        labels: (N,) labels of `label_locations`.
        neighbors: Number of neighbors of a location, by cosine similarity.

    Returns:
        Mean fraction of the nearest neighbors of the target's locations that are the target's, 0..1; NaN with
        fewer than two locations of the target.
    """
    target = labels == TARGET
    if target.sum() < 2:
        return math.nan
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    similarity = unit[target] @ unit.T
    similarity[np.arange(int(target.sum())), np.flatnonzero(target)] = -np.inf  # not its own neighbor
    count = min(neighbors, int(target.sum()) - 1)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return float(target[nearest].mean())


def select_hard_frames(difficulty: Array, count: int) -> list[int]:
    """Frames with the highest difficulty, not close to each other.

    Args:
        difficulty: (T,) difficulty of each frame; NaN for frames that are left out.
        count: Largest number of frames.

    Returns:
        Frames in rising order of difficulty's rank: the most difficult first.
    """
    remaining = np.array(difficulty, float)
    gap = max(1, len(remaining) // (3 * count))
    chosen: list[int] = []
    while len(chosen) < count and not np.isnan(remaining).all():
        frame = int(np.nanargmax(remaining))
        chosen.append(frame)
        remaining[max(0, frame - gap + 1) : frame + gap] = np.nan
    return chosen


def find_failures(overlaps: Array | None, lost: Mask, merge: int = 10) -> list[Failure]:
    """Failures of a tracker: overlaps below 0.1, or without a ground truth frames that it reports as lost.

    Args:
        overlaps: (T,) overlap with the ground truth, NaN where it is unknown; None without one.
        lost: (T,) whether the tracker reports the target as lost.
        merge: Failures with fewer frames than this between them are one.

    Returns:
        Failures in the order of time.
    """
    failed = lost if overlaps is None else np.nan_to_num(overlaps, nan=1.0) < FAILED_OVERLAP
    failures: list[Failure] = []
    for frame in np.flatnonzero(failed):
        if failures and frame - failures[-1].end < merge:
            failures[-1] = Failure(failures[-1].start, int(frame) + 1)
        else:
            failures.append(Failure(int(frame), int(frame) + 1))
    return failures


def _components(mask: Mask, without: Mask) -> list[Mask]:
    """Connected components of a mask (8 neighbors) that do not touch another mask."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == i for i in range(1, count) if not without[labels == i].any()]
