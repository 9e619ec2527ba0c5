"""The checkpoints in the package give the boxes and scores that they gave when they were published.

Everything between a frame and a box is passed: crop factors, order and statistics of the channels, network,
head, penalty, window. The frames are computed here, from sines, so that no change of the package's own clip
and no image library alters them.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import correlation_aware as ca

# Short name, of the stored numbers: weights.
CHECKPOINTS = {
    "light_cell": "sbt_light_cell_track.video",
    "light_half": "sbt_light_half_track.video",
    "lite0_two_scales": "siam_lite0_ca_two_scales_track.video",
    "lite0": "siam_lite0_ca_track.video",
    "lite0_half": "siam_lite0_ca_half_track.video",
}

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_bundled.json").read_text())
# Other CPUs and libraries round otherwise: one grey level in 2 % of the pixels moves a box by up to 0.05 px
# and a score by up to 0.0004. So every frame starts from the true box of the one before: in a free run such a
# shift may round a crop to the next pixel. The best location leads by 0.0003 of the score, so that none is
# tipped. The smallest fault tried (window 0.45 for 0.49) moves a box by 0.9 px.
PIXELS, SCORE = 0.1, 0.002


def frames(length=16, height=180, width=320):
    """A striped ellipse that grows and swings over moving waves: uint8 RGB frames and its boxes."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    for t in range(length):
        waves = [
            np.sin((columns + 2 * t) * a + 2 * np.sin(rows * b))
            for a, b in ((0.11, 0.05), (0.07, 0.09), (0.05, 0.13))
        ]
        cx, cy = 51.1 + 14 * t + 9 * np.sin(1.3 * t), 87.9 + 30 * np.sin(0.6 * t)
        rx, ry = 15.7 + 0.5 * t, 12.2 + 0.7 * t
        u, v = (columns - cx) / rx, (rows - cy) / ry
        red, green, blue = (
            200 + 40 * np.sin(5 * u),
            70 + 50 * np.sin(4 * v + 1),
            40 + 30 * np.cos(6 * u * v),
        )
        inside = np.clip((1 - np.hypot(u, v)) * 10, 0, 1)[..., None]
        ground, target = 110 + 45 * np.stack(waves, axis=-1), np.stack([red, green, blue], axis=-1)
        frame = ground + (target - ground) * inside
        yield np.clip(frame, 0, 255).round().astype(np.uint8), (cx - rx, cy - ry, 2 * rx, 2 * ry)


@pytest.mark.parametrize("tag", CHECKPOINTS)
def test_a_bundled_checkpoint_gives_its_published_numbers(tag):
    tracker = ca.create_tracker(CHECKPOINTS[tag], device="cpu", runtime="eager")
    results = []
    for before, (frame, _) in pairwise(frames()):
        tracker.init(*before)
        results.append(tracker.update(frame))
    np.testing.assert_allclose([r.box for r in results], GOLDEN[tag]["boxes"], rtol=0, atol=PIXELS)
    np.testing.assert_allclose([r.score for r in results], GOLDEN[tag]["scores"], rtol=0, atol=SCORE)


@pytest.mark.parametrize("tag", CHECKPOINTS)
def test_a_bundled_checkpoint_follows(tag):
    tracker = ca.create_tracker(CHECKPOINTS[tag], device="cpu", runtime="eager")
    first, *others = frames()
    tracker.init(*first)
    for frame, box in others:
        result = tracker.update(frame)
        limit = 16 if tag == "light_half" else 6  # seen: up to 14.0 and 4.3, of a target 31 to 46 px wide
        assert np.abs(np.subtract(result.box, box)).max() < limit and not result.lost
