"""Boxes are drawn in their place, labels inside the frame, sheets show every frame; the demo clip."""

from itertools import pairwise

import numpy as np
import pytest

from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.draw import (
    COLORS,
    contact_sheet,
    draw_box,
    draw_result,
    draw_score_maps,
    target_color,
)
from correlation_aware.tracking.tracker import TrackResult

GRAY = np.full((120, 160, 3), 128, np.uint8)


def touched(frame: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column, first and last row that differ from GRAY."""
    rows, columns = np.nonzero((frame != GRAY).any(axis=2))
    return columns.min(), columns.max(), rows.min(), rows.max()


def test_the_line_follows_the_box() -> None:
    drawn = draw_box(GRAY, (40, 30, 50, 20), (255, 0, 0), thickness=1)
    assert (GRAY == 128).all()  # a copy was drawn on
    left, right, top, bottom = touched(drawn)
    for actual, edge in ((left, 40), (right, 90), (top, 30), (bottom, 50)):
        assert abs(actual - edge) <= 3
    assert (drawn[38, 60] == 128).all()  # inside
    assert (
        drawn[40, 39:41, 0].astype(int).sum() > drawn[40, 39:41, 1].astype(int).sum() + 100
    )  # red on the left edge


def test_a_score_map_is_drawn_over_its_search_region() -> None:
    """One location of 4 x 4 is high: a region of 80 px is bright around its middle alone."""
    scores = np.zeros((4, 4), np.float32)
    scores[1, 2] = 1
    drawn = draw_score_maps(GRAY, [(scores, Crop(30, 20, 80))]).astype(int)
    assert (GRAY == 128).all()
    row, column = np.unravel_index(drawn.sum(axis=2).argmax(), GRAY.shape[:2])
    assert (
        abs(row - (20 + 1.5 * 20)) <= 1 and abs(column - (30 + 2.5 * 20)) <= 1
    )  # the middle of the location
    assert drawn[50, 80, 0] > drawn[50, 80, 2] + 80  # yellow
    left, right, top, bottom = touched(drawn)
    assert (left, right, top, bottom) == pytest.approx((30, 110, 20, 100), abs=3)  # the line has a contour
    assert drawn[90, 40].max() < 100  # a score of 0 darkens the gray
    lower = np.zeros((4, 4), np.float32), Crop(50, 30, 60)  # of another target, over the high location
    both = draw_score_maps(GRAY, [(scores, Crop(30, 20, 80)), lower])
    assert (both[row, column] == drawn[row, column]).all()


@pytest.mark.parametrize("crop", [Crop(-60, -50, 120), Crop(100, 70, 120), Crop(-50_000, -50_000, 10**5)])
def test_a_search_region_may_extend_beyond_the_frame(crop: Crop) -> None:
    """Also one that no memory holds. Inside the frame it is what a larger frame shows there."""
    scores = np.random.default_rng(0).random((8, 8), np.float32)
    drawn = draw_score_maps(GRAY, [(scores, crop)])
    assert drawn.shape == GRAY.shape and (drawn != GRAY).any()
    if crop.side < 1000:
        wide = np.full((480, 640, 3), 128, np.uint8)
        expected = draw_score_maps(wide, [(scores, Crop(crop.x + 200, crop.y + 200, crop.side))])
        inner = np.s_[205:315, 205:355]  # without the line of the region along the frame
        error = np.abs(drawn[5:115, 5:155].astype(int) - expected[inner]).max()
        assert error <= 3  # weights of the interpolation have 1/32 pixel
    assert (draw_score_maps(GRAY, [(scores, Crop(500, 500, 50))]) == GRAY).all()


@pytest.mark.parametrize("edge", [40, 40.5])
def test_the_line_is_on_the_edge_to_half_a_pixel(edge: float) -> None:
    """Pixel i covers i..i + 1, as everywhere: the middle of the left line is at the box's x."""
    drawn = draw_box(GRAY, (edge, 30, 50, 40), (255, 255, 255), thickness=1)[50, 30:60, 0]
    light = np.clip(drawn.astype(float) - 128, 0, None)  # the line, without its dark contour
    assert (np.arange(30, 60) + 0.5) @ light / light.sum() == pytest.approx(edge, abs=0.1)


def test_the_line_grows_with_the_frame() -> None:
    large = np.full((1080, 1920, 3), 128, np.uint8)
    widths = [
        (draw_box(frame, (0.25 * w, 0.25 * h, 0.5 * w, 0.5 * h))[h // 2, : w // 2] != 128).any(axis=1).sum()
        for frame, h, w in ((GRAY, 120, 160), (large, 1080, 1920))
    ]
    assert widths[1] >= widths[0] + 4


def test_a_lost_target_looks_different() -> None:
    seen, lost = (draw_result(GRAY, TrackResult((40, 50, 60, 40), 0.21, flag)) for flag in (False, True))

    def red(frame: np.ndarray) -> int:
        return int(((frame[..., 0] > 200) & (frame[..., 1] < 90) & (frame[..., 2] < 90)).sum())

    assert red(seen) == 0 and red(lost) > 100  # the background of the text
    line = (lost[90:91, 40:100] != 128).any(axis=2)
    assert 0 < line.sum() < line.size  # dashes leave gaps


@pytest.mark.parametrize(
    "box", [(-30, -30, 60, 60), (150, 110, 500, 500), (0, 0, 160, 120), (-900, 20, 20, 20), (70, 60, 0, 0)]
)
def test_any_box_can_be_drawn_and_its_label_stays_inside(box: tuple[float, float, float, float]) -> None:
    drawn = draw_result(GRAY, TrackResult(box, 0.5, False), label="a target with a long name")
    assert drawn.shape == GRAY.shape and drawn.dtype == np.uint8
    assert (drawn == COLORS[0]).all(axis=2).sum() > 300  # the background of the text


def test_colors_differ() -> None:
    first = np.array([target_color(i) for i in range(8)], float)
    gaps = np.linalg.norm(first[:, None] - first[None], axis=2) + 1e3 * np.eye(8)
    assert gaps.min() > 60
    assert target_color(8) == target_color(0)


def test_a_sheet_holds_every_frame() -> None:
    frames = [np.full((30, 40, 3), (10 * i + 60, 255, 255), np.uint8) for i in range(5)]
    sheet = contact_sheet(frames, columns=3, width=320, captions=None)
    assert sheet.shape[1] == 320 and sheet.dtype == np.uint8
    for i in range(5):
        assert (sheet == frames[i][0, 0]).all(axis=2).sum() > 60 * 70
    tall = contact_sheet([frames[0], np.full((90, 40, 3), 255, np.uint8)], columns=2, width=320)
    white = np.nonzero((tall == 255).all(axis=2).any(axis=0))[0]
    assert white.size == pytest.approx(40 / 90 * 30 / 40 * 154, abs=3)  # whole, so narrow in a tile of 4:3
    assert (contact_sheet(frames, captions=[f"frame {i}" for i in range(5)]) != contact_sheet(frames)).any()


def test_impossible_sheets_are_refused() -> None:
    for frames, columns, width in (([], 4, 1280), ([GRAY], 0, 1280), ([GRAY], 4, 30)):
        with pytest.raises(ValueError, match="needs frames and tiles"):
            contact_sheet(frames, columns, width)
    with pytest.raises(ValueError, match="1 frames need 1 captions, not 2"):
        contact_sheet([GRAY], captions=["a", "b"])


def test_a_clip_is_the_same_for_a_seed_and_another_for_another() -> None:
    one, same, other = (list(draw_clip(3, (96, 128), seed)) for seed in (4, 4, 5))
    for (a, box_a), (b, box_b), (c, box_c) in zip(one, same, other):
        assert a.shape == (96, 128, 3) and a.dtype == np.uint8
        assert (a == b).all() and box_a == box_b
        assert (a != c).mean() > 0.5 and box_a != box_c


def test_boxes_of_a_clip_hold_the_target_tightly() -> None:
    for i, (frame, (x, y, w, h)) in enumerate(draw_clip(30)):
        assert x >= 0 and y >= 0 and x + w <= 480 and y + h <= 360
        if i % 30 > 15:
            continue  # the leaf comes
        red = (frame[..., 0] > 120) & (frame[..., 1] < 0.3 * frame[..., 0]) & (frame[..., 2] < 80)
        rows, columns = np.nonzero(red)
        assert x - 1 <= columns.min() and columns.max() + 1 <= x + w + 1
        assert y - 1 <= rows.min() and rows.max() + 1 <= y + h + 1
        assert red.sum() > 0.3 * w * h


def test_the_leaf_covers_the_target_once() -> None:
    shown = []
    for frame, (x, y, w, h) in draw_clip(60):
        target = frame[int(y) : int(y + h), int(x) : int(x + w)].astype(int)
        shown.append(((target[..., 0] > 120) & (target[..., 1] < 0.3 * target[..., 0])).mean() > 0.05)
    changes = sum(a != b for a, b in pairwise(shown))
    assert shown[0] and shown[-1] and changes == 2
    assert 1 <= shown.count(False) <= 12


def test_impossible_clips_are_refused() -> None:
    for length, size in ((0, (360, 480)), (5, (63, 480))):
        with pytest.raises(ValueError, match="a clip needs"):
            draw_clip(length, size)
