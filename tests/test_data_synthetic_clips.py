"""Synthetic clips: exact boxes, smooth paths, the same clip for the same numbers."""

from dataclasses import replace

import cv2
import golden_pairs
import numpy as np
import pytest
import torch

from correlation_aware.data.stills import synthetic_clips
from correlation_aware.data.stills.files import Still
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.synthetic_clips import ClipConfig, synthetic_clip

BARE = ClipConfig(
    length=12, size=(96, 128), noise=0.0, gray=0.0, distractors=0, occluder=0.0, target=(0.2, 0.3)
)


@pytest.fixture(scope="module")
def pool():
    """Four bright ellipses on a dark background, and a dark photograph, the only one that is sampled."""
    stills = []
    for number in range(4):
        image, mask = np.full((150, 200, 3), 15, np.uint8), np.zeros((150, 200), np.uint8)
        cv2.ellipse(mask, (100, 75), (28 + 3 * number, 20), 15 * number, 0, 360, 255, cv2.FILLED)
        image[mask > 0] = (230, 210, 250)
        stills.append(Still(image, mask))
    return ImagePool([*stills, Still(np.full((150, 200, 3), 15, np.uint8))], weights=[0, 0, 0, 0, 1])


@pytest.fixture
def bright_target(monkeypatch):
    monkeypatch.setattr(
        synthetic_clips, "_target", lambda rng, pool, *_: pool.sample_regions(rng, torch.tensor([2]), 1.0)
    )


def bright_box(frame):
    """Box, xywh, around the bright pixels."""
    ys, xs = np.nonzero(frame.mean(axis=2) > 105)
    return np.array([xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()], float)


@pytest.mark.parametrize("natural", [0.0, 1.0])
def test_boxes_are_where_the_target_is(pool, bright_target, natural):
    for number in range(3):
        clip = synthetic_clip(pool, number, config=replace(BARE, natural=natural))
        off = np.abs([bright_box(frame) - box for frame, box in zip(clip.frames, clip.boxes)])
        assert off.mean() < 1.0 and off.max() < 3.5
        assert (clip.visible == 1).all()


def test_shapes_types_and_smooth_paths(pool):
    clip = synthetic_clip(pool, 0, config=ClipConfig(length=20, size=(90, 130)))
    assert clip.frames.shape == (20, 90, 130, 3) and clip.frames.dtype == np.uint8
    assert clip.boxes.shape == (20, 4) and clip.boxes.dtype == np.float32
    assert clip.visible.shape == (20,) and (clip.visible >= 0).all() and (clip.visible <= 1).all()
    center = clip.boxes[:, :2] + clip.boxes[:, 2:] / 2
    assert np.abs(np.diff(center, axis=0)).max() < 15 and np.ptp(center, axis=0).max() > 3
    assert (center > 0).all() and (center < (130, 90)).all()


def test_the_same_numbers_give_the_same_clip(pool):
    config = ClipConfig(length=4, size=(64, 80))
    first, again, other, seeded = (
        synthetic_clip(pool, *key, config=config) for key in ((3, 1), (3, 1), (4, 1), (3, 2))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first.frames, other.frames) and not np.array_equal(first.frames, seeded.frames)


def test_an_occluder_lowers_visibility(pool, bright_target):
    clips = [
        synthetic_clip(pool, i, config=replace(BARE, occluder=1.0, natural=0.0, length=30)) for i in range(4)
    ]
    assert min(clip.visible.min() for clip in clips) < 0.7
    assert max(clip.visible.max() for clip in clips) == 1


@pytest.mark.parametrize("number", range(3))
def test_a_target_is_out_of_sight_and_returns_elsewhere(pool, bright_target, number):
    """Once it leaves the frame and once it is covered, where the bright target is then not in the frame."""
    config = replace(BARE, natural=0.0, absences=2, length=90, target=(0.2, 0.22))
    clip = synthetic_clip(pool, number, config=config)
    hidden = clip.visible < 0.01
    edges = np.flatnonzero(np.diff(hidden.astype(int)))
    assert len(edges) == 4 and not hidden[0] and not hidden[-1]  # two absences
    low, high = clip.boxes[:, :2], clip.boxes[:, :2] + clip.boxes[:, 2:]
    outside = (low >= (128, 96)).any(axis=1) | (high <= 0).any(axis=1)
    first, second = hidden.copy(), hidden.copy()
    first[edges[1] + 1 :], second[: edges[1] + 1] = False, False
    left, covered = (first, second) if outside[first].any() else (second, first)
    assert outside[left].all() and not outside[covered].any() and min(left.sum(), covered.sum()) > 9
    for frame in clip.frames[hidden]:
        assert (frame.mean(axis=2) > 105).sum() == 0
    whole = clip.visible > 0.99
    off = np.abs([bright_box(f) - b for f, b in zip(clip.frames[whole], clip.boxes[whole])])
    assert off.mean() < 1.0 and off.max() < 3.5
    center = clip.boxes[:, :2] + clip.boxes[:, 2:] / 2
    moved = [np.linalg.norm(center[end + 1] - center[start]) for start, end in edges.reshape(2, 2)]
    assert max(moved) > 20


def test_absences_need_a_target_that_can_leave_and_time_for_it():
    with pytest.raises(ValueError, match=r"absences=2 with natural=0\.4"):
        ClipConfig(absences=2, length=150)
    for settings in ({"absences": 2, "length": 59}, {"absences": -1}):
        with pytest.raises(ValueError, match="12 frames or more before, in and after"):
            ClipConfig(natural=0, **settings)


def test_a_seed_gives_the_clips_that_it_gave_before():
    golden_pairs.check("clips", golden_pairs.clips())
