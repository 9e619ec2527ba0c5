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


def test_a_seed_gives_the_clips_that_it_gave_before():
    golden_pairs.check("clips", golden_pairs.clips())
