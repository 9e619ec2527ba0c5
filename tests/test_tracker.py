"""The tracker: geometry to sub-pixel, many targets, odd frames, clear errors, constant memory."""

import copy
import gc
import pickle
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from acme_family import MaskedNet

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.models.heads import MixerHead, TrackOutput
from correlation_aware.runtime.export import export
from correlation_aware.tracking import crop as crop_module
from correlation_aware.tracking.boxes import vote
from correlation_aware.tracking.crop import Crop, as_boxes, as_rgb, clip_box
from correlation_aware.tracking.device_crop import crop_resize, upload_region


def make_tracker(config=None, **overrides):
    torch.manual_seed(0)
    return ca.create_tracker(ca.create_model("sbt_test_track", **overrides), device="cpu", config=config)


def noise(height=240, width=320, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plant(tracker, location, box, score=0.9):
    """Makes the head report `score` and `box` (cxcywh in 0..1) at `location` and nothing elsewhere."""

    def hook(head, inputs, output):
        logits, scores, boxes = (torch.zeros_like(t) for t in output)
        scores[:, location[0], location[1]] = score
        boxes[:, :, location[0], location[1]] = torch.tensor(box, dtype=boxes.dtype)
        return TrackOutput(logits, scores, boxes)

    return tracker.model.head.register_forward_hook(hook)


def test_a_planted_box_comes_back_in_the_frame():
    tracker = make_tracker(config=ca.TrackerConfig(damp_size=False))
    frame = noise()
    start = (140.0, 100.0, 30.0, 20.0)
    target = np.array([147.3, 90.6, 33.4, 25.8])
    tracker.init(frame, start)
    crop = Crop.around(start, 4)
    cx, cy, w, h = crop.to_crop(target)
    plant(tracker, (int(cy * 16), int(cx * 16)), (cx, cy, w, h))
    result = tracker.update(frame)
    assert result.box == pytest.approx(target, abs=1e-4)  # float32 of a 98 px crop
    assert result.score == pytest.approx(0.9) and not result.lost


def test_the_search_region_is_around_the_visible_part_of_the_last_box():
    tracker = make_tracker(config=ca.TrackerConfig(damp_size=False))
    tracker.init(noise(), (300, 100, 60, 40))  # 20 of 60 px are in the frame
    plant(tracker, (8, 8), (0.5, 0.5, 0.1, 0.1))  # in the middle of the crop
    x, y, w, h = tracker.update(noise()).box
    assert (x + w / 2, y + h / 2) == pytest.approx((310, 120), abs=0.5)  # of whole pixels
    assert w == pytest.approx(0.1 * Crop.around((300, 100, 20, 40), 4).side)


def test_a_planted_box_comes_back_through_pixels():
    """A disc is found in the resized crop by its center of mass and mapped back to the frame."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cx, cy = rng.uniform(60, 260), rng.uniform(60, 180)
        y, x = np.mgrid[:240, :320] + 0.5
        disc = np.clip(9 - np.hypot(x - cx, y - cy), 0, 1)  # anti-aliased, radius 8.5
        frame = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)
        crop = Crop.around((cx - 20 + rng.uniform(-9, 9), cy - 15 + rng.uniform(-9, 9), 40, 30), 4)
        pixels = crop.cut(frame, 128)[..., 0].astype(float)
        rows, columns = np.mgrid[:128, :128] + 0.5
        center = crop.to_frame(
            (np.sum(columns * pixels) / pixels.sum() / 128, np.sum(rows * pixels) / pixels.sum() / 128, 0, 0)
        )
        assert center[:2] == pytest.approx((cx, cy), abs=0.1)


def test_crop_side_position_and_padding():
    crop = Crop.around((10, 20, 40, 10), 2)
    assert crop == Crop(10, 5, 40)  # ceil(2 * sqrt(400)), center (30, 25)
    frame = np.full((100, 100, 3), 200, np.uint8)
    pixels = Crop(-20, 70, 40).cut(frame, 40)
    assert (pixels[:30, 20:] == 200).all() and not pixels[30:].any() and not pixels[:, :20].any()
    for x, y in ((300, 300), (-30, 40), (40, -30), (-60, -60), (40, 100)):
        assert not Crop(x, y, 20).cut(frame, 32).any()  # wholly outside
    box = (3.5, 7.25, 11.0, 5.5)
    assert crop.to_frame(crop.to_crop(box)) == pytest.approx(box)


@pytest.mark.parametrize(
    ("box", "factor", "expected"),
    [
        ((10, 20, 10, 10), 2, Crop(5, 15, 20)),  # 20 exactly
        ((10, 20, 40, 31), 2, Crop(-6, 0, 71)),  # 70.4; x -5.5, of two as near the even one
        ((100.3, 50.8, 30, 20), 4, Crop(66, 12, 98)),  # 97.98; x 66.3, y 11.8
        ((100.3, 50.8, 33.3, 21.1), 4, Crop(63, 8, 107)),  # 106.03; x 63.45, y 7.85
        ((100.3, 50.8, 33.3, 21.1), 4.5, Crop(57, 1, 120)),  # 119.28; x 56.95, y 1.35
        ((-7.2, -3.9, 5, 9), 4, Crop(-18, -13, 27)),  # 26.8; x -18.2, y -12.9
        ((8, 8, 0.1, 0.1), 2, Crop(8, 8, 1)),  # 0.2; x 7.55
    ],
)
def test_sides_are_rounded_up_and_positions_to_the_nearest(box, factor, expected):
    assert Crop.around(box, factor) == expected


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_crops_of_a_device_are_those_of_opencv(size):
    """Crops smaller, larger and as large as `size`, inside, over an edge and wholly outside, of noise."""
    rng = np.random.default_rng(size)
    for _ in range(12):
        height, width = rng.integers(40, 300, 2)
        frame = noise(height, width, int(rng.integers(1000)))
        crops = [Crop(*rng.integers(-120, (width, height)), rng.integers(1, 400)) for _ in range(3)]
        crops += [Crop(10, 10, size), Crop(-5, 3, 2 * size), Crop(12, 30, size // 2)]
        actual = crop_resize(*upload_region(frame, crops, torch.device("cpu")), size)
        expected = np.stack([c.cut(frame, size) for c in crops]).transpose(0, 3, 1, 2)
        assert actual.shape == expected.shape and torch.equal(actual, actual.round())
        assert np.abs(actual.numpy() - expected).max() <= 1  # OpenCV computes in fixed point


def test_only_the_needed_region_of_a_frame_is_uploaded():
    frame = noise(100, 200)
    part, crops = upload_region(frame, [Crop(50, 20, 30), Crop(90, -10, 20)], torch.device("cpu"))
    assert torch.equal(part, torch.from_numpy(frame[0:50, 50:110]))
    assert crops == [Crop(0, 20, 30), Crop(40, -10, 20)]


def test_a_track_with_crops_of_a_device_is_the_same():
    """With the bundled weights, over the demo's clip: two pixels of a hundred differ by one."""
    config = ca.TrackerConfig(redetect=False)  # the target is lost, and a search multiplies small differences
    here = ca.create_tracker("sbt_light_cell_track", device="cpu", config=config)
    there = ca.create_tracker(here.model, device="cpu", config=config)
    there._crops_on_device = True
    frames = list(draw_clip(12))
    for tracker in (here, there):
        tracker.init(*frames[0])
    for frame, _ in frames[1:]:
        a, b = here.update(frame), there.update(frame)
        assert a.box == pytest.approx(b.box, abs=0.25) and a.score == pytest.approx(b.score, abs=0.01)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 30, 40, 50), (20, 30, 40, 50)),
        ((-15, -5, 40, 50), (0, 0, 25, 45)),
        ((90, 70, 40, 50), (90, 70, 10, 10)),
        ((500, 500, 25, 35), (90, 70, 10, 10)),
        ((-500, -500, 25, 35), (0, 0, 10, 10)),
        ((50, 40, 3, 2), (50, 40, 3, 2)),  # a small target keeps its size
        ((98, -1, 4, 3), (96, 0, 4, 3)),  # at an edge, too
        ((50, 40, 0.2, 0.5), (50, 40, 1, 1)),  # but has a pixel
    ],
)
def test_clip_box_keeps_a_margin_inside(box, expected):
    assert clip_box(box, height=80, width=100) == pytest.approx(expected)


def test_clip_box_in_a_frame_smaller_than_the_margin():
    assert clip_box((2, 2, 50, 50), height=6, width=100) == pytest.approx((2, 0, 50, 6))


def test_several_targets_equal_several_trackers():
    boxes = np.array([[40, 50, 30, 20], [200, 120, 24, 36], [150, 10, 40, 40]], dtype=float)
    together = make_tracker()
    together.init(noise(), boxes)
    alone = [make_tracker() for _ in boxes]
    for tracker, box in zip(alone, boxes):
        tracker.init(noise(), box)
    for seed in (1, 2):
        results = together.update(noise(seed=seed))
        for result, tracker in zip(results, alone, strict=True):
            single = tracker.update(noise(seed=seed))
            assert result.box == pytest.approx(single.box, abs=1e-3)  # another batch, another order of sums
            assert result.score == pytest.approx(single.score, abs=1e-5)
    one = make_tracker()
    one.init(noise(), boxes[:1])
    assert isinstance(one.update(noise()), list)


def test_the_window_prefers_the_center():
    frame = noise()
    results = []
    for window_weight in (0.0, 0.49):
        tracker = make_tracker(config=ca.TrackerConfig(window_weight=window_weight, scale_penalty=0))
        tracker.init(frame, (140, 100, 30, 20))

        def hook(head, inputs, output):
            logits, scores, boxes = (torch.zeros_like(t) for t in output)
            for location, score in (((8, 8), 0.8), ((1, 1), 0.9)):
                scores[:, location[0], location[1]] = score
                boxes[:, :, location[0], location[1]] = torch.tensor(
                    [location[1] / 16, location[0] / 16, 0.2, 0.2]
                )
            return TrackOutput(logits, scores, boxes)

        tracker.model.head.register_forward_hook(hook)
        results.append(tracker.update(frame))
    assert [r.score for r in results] == pytest.approx([0.9, 0.8])


def test_the_window_is_symmetric_and_highest_in_the_center():
    """Of two locations that mirror each other the better one wins, however little better it is."""
    scores = {}

    def hook(head, inputs, output):
        logits, values, boxes = (torch.zeros_like(t) for t in output)
        rows, columns = ((torch.arange(n) + 0.5) / n for n in values.shape[1:])
        boxes[:, 0], boxes[:, 1], boxes[:, 2:] = columns, rows[:, None], 0.25
        for (row, column), score in scores.items():
            values[:, row, column] = score
        return TrackOutput(logits, values, boxes)

    def best_location(window_weight):
        tracker = make_tracker(config=ca.TrackerConfig(window_weight=window_weight, scale_penalty=0))
        tracker.model.head.register_forward_hook(hook)
        tracker.init(noise(), (140, 100, 30, 30))  # a crop of 120 px, 7.5 a location
        x, y, w, h = tracker.update(noise()).box
        return int((y + h / 2 - 115 + 60) / 7.5), int((x + w / 2 - 155 + 60) / 7.5)

    for location in ((0, 5), (3, 3), (4, 9), (7, 7), (12, 2)):
        mirrored = {
            (15 - location[0], location[1]),
            (location[0], 15 - location[1]),
            (15 - location[0], 15 - location[1]),
        }
        for other in mirrored:
            for better in (location, other):
                scores.clear()
                scores.update({location: 0.5, other: 0.5, better: 0.5001})
                assert best_location(0.2) == better
    scores.clear()
    assert best_location(1.0) in {(7, 7), (7, 8), (8, 7), (8, 8)}


def test_the_papers_decode_is_the_best_score_and_its_box():
    """Whatever head votes, and wherever the window has its maximum."""
    model = ca.create_model("siam_test_track", head="tower")
    assert model.head.box_vote > 0
    tracker = ca.create_tracker(model, device="cpu", decode="paper")
    start = (140.0, 100.0, 30.0, 20.0)
    tracker.init(noise(), start)
    frame = noise(seed=1)
    crop = Crop.around(start, tracker.model.sizes.search_factor)
    with torch.inference_mode():
        scores, boxes = tracker.session(tracker.images(frame, [crop], tracker.model.sizes.search_size))
    row, column = divmod(int(scores[0].argmax()), scores.shape[2])
    expected = clip_box(crop.to_frame(boxes[0, :, row, column].numpy()), 240, 320, 10)
    result = tracker.update(frame)
    assert result.box == pytest.approx(tuple(expected), abs=1e-4)
    assert result.score == pytest.approx(scores.max().item())
    released = ca.create_tracker(model, device="cpu", decode="released").config
    assert (released.window_weight, released.scale_penalty, released.damp_size) == (0.49, 0, False)
    assert ca.create_tracker(model, device="cpu", decode="default").config == ca.TrackerConfig()
    with pytest.raises(ValueError, match="decode='peper' is not one of default, paper, released"):
        ca.create_tracker(model, device="cpu", decode="peper")
    with pytest.raises(ValueError, match="Both config and decode='paper' are given"):
        ca.create_tracker(model, device="cpu", decode="paper", config=ca.TrackerConfig())


def test_size_is_damped_by_score_and_penalty():
    start, score = (140.0, 100.0, 30.0, 30.0), 0.8
    tracker = make_tracker(config=ca.TrackerConfig(scale_penalty=0.1, window_weight=0))
    tracker.init(noise(), start)
    plant(
        tracker, (8, 8), (0.5, 0.5, 0.75, 0.5), score
    )  # 90 x 60 in a crop of 120: three and two times as large
    w, h = tracker.update(noise()).box[2:]
    # padded sizes: sqrt((30 + 30) * (30 + 30)) and sqrt((90 + 75) * (60 + 75)); aspects 1 and 1.5
    change = np.sqrt(165 * 135) / 60 * 1.5
    rate = score * np.exp(-0.1 * (change - 1))
    assert (w, h) == pytest.approx((30 + rate * 60, 30 + rate * 30), abs=1e-4)


def test_boxes_vote_by_score_and_overlap(monkeypatch):
    """A neighbor moves the box by its weight, others of little overlap and of score 0 do not."""
    shift, score = 0.025, 0.4
    locations = {
        (8, 8): (0.8, (0.5, 0.5, 0.25, 0.25)),
        (8, 9): (score, (0.5 + shift, 0.5, 0.25, 0.25)),  # IoU 0.225 / 0.275
        (2, 2): (0.7, (0.1, 0.1, 0.25, 0.25)),
    }

    def track(box_vote):
        config = ca.TrackerConfig(scale_penalty=0, window_weight=0, damp_size=False, box_vote=box_vote)
        tracker = make_tracker(config=config)
        tracker.init(noise(), (140, 100, 30, 30))

        def hook(head, inputs, output):
            logits, scores, boxes = (torch.zeros_like(t) for t in output)
            boxes += 0.5  # at the target, with score 0
            for (row, column), (value, box) in locations.items():
                scores[:, row, column], boxes[:, :, row, column] = value, torch.tensor(box)
            return TrackOutput(logits, scores, boxes)

        tracker.model.head.register_forward_hook(hook)
        x, y, w, h = tracker.update(noise()).box
        return (x + w / 2 - 95) / 120, (y + h / 2 - 55) / 120, w / 120, h / 120  # of the crop

    for exponent in (2, 8):
        weight = score * (0.225 / 0.275) ** exponent
        moved = 0.5 + shift * weight / (0.8 + weight)
        assert track(exponent) == pytest.approx((moved, 0.5, 0.25, 0.25), abs=1e-5)
    assert track(0) == pytest.approx((0.5, 0.5, 0.25, 0.25), abs=1e-5)
    assert track(None) == track(0)  # the mixer head does not ask for a vote
    monkeypatch.setattr(MixerHead, "box_vote", 2.0, raising=False)
    assert track(None) == track(2) != track(0)
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"box_vote={value} must be a"):
            ca.TrackerConfig(box_vote=value)


def test_a_vote_without_weights_is_the_best_box():
    best = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.4, 0.4, 0.0, 0.0]])
    boxes = best[:, :, None, None].expand(-1, -1, 2, 2)
    assert torch.equal(vote(boxes, torch.zeros(2, 2, 2), best, 8), best)  # scores 0
    scores = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]] * 2)
    torch.testing.assert_close(vote(boxes, scores, best, 8), best)  # an empty box overlaps nothing


def test_the_penalty_prefers_a_target_of_the_same_size():
    tracker = make_tracker(config=ca.TrackerConfig(scale_penalty=0.5, window_weight=0, damp_size=False))
    tracker.init(noise(), (140, 100, 30, 30))

    def hook(head, inputs, output):
        logits, scores, boxes = (torch.zeros_like(t) for t in output)
        for location, score, side in (((8, 8), 0.7, 0.25), ((4, 4), 0.9, 0.75)):
            scores[:, location[0], location[1]] = score
            boxes[:, :, location[0], location[1]] = torch.tensor([0.5, 0.5, side, side])
        return TrackOutput(logits, scores, boxes)

    tracker.model.head.register_forward_hook(hook)
    result = tracker.update(noise())
    assert result.score == pytest.approx(0.7) and result.box[2] == pytest.approx(30, abs=1e-4)


def test_lost_follows_the_threshold_and_the_target_stays():
    tracker = make_tracker(config=ca.TrackerConfig(lost_threshold=0.5, redetect=False))
    tracker.init(noise(), (140, 100, 30, 20))
    handle = plant(tracker, (8, 8), (0.5, 0.5, 0.3, 0.3), score=0.4)
    assert tracker.update(noise()).lost
    handle.remove()
    plant(tracker, (8, 8), (0.5, 0.5, 0.3, 0.3), score=0.6)
    assert not tracker.update(noise()).lost


@pytest.mark.parametrize("output", ["scores", "boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_target_without_a_finite_prediction_is_lost_and_others_go_on(output, value):
    boxes = [(140, 100, 30, 20), (60, 60, 40, 40)]
    config = ca.TrackerConfig(redetect=False)  # on noise both targets are lost
    tracker, other = make_tracker(config=config), make_tracker(config=config)
    for each in (tracker, other):
        each.init(noise(), boxes)
        each.update(noise(seed=1))
    before = tracker.update(noise(seed=2))
    assert other.update(noise(seed=2)) == before

    def hook(head, inputs, predicted):
        getattr(predicted, output)[1] = value
        return predicted

    handle = tracker.model.head.register_forward_hook(hook)
    with pytest.warns(RuntimeWarning, match="gave NaN or infinite values for 1 of 2 targets") as caught:
        for seed in (3, 4):
            results, expected = (each.update(noise(seed=seed)) for each in (tracker, other))
            assert results[0] == expected[0]
            assert results[1] == ca.TrackResult(before[1].box, 0.0, True, 1)
    assert len(caught) == 1
    handle.remove()
    assert np.isfinite(tracker.update(noise(seed=5))[1].box).all()


def test_gray_and_rgba_frames_and_sizes_that_change():
    frame = noise()
    gray = frame[..., 0]
    rgba = np.concatenate([np.repeat(gray[..., None], 3, axis=2), gray[..., None]], axis=2)
    boxes = []
    for view in (gray, gray[..., None], rgba):
        tracker = make_tracker()
        tracker.init(view, (140, 100, 30, 20))
        boxes.append(tracker.update(view).box)
    assert boxes[0] == boxes[1] == boxes[2]
    for size in ((480, 640), (60, 80), (11, 9)):
        x, y, w, h = tracker.update(noise(*size)).box
        assert x >= 0 and y >= 0 and x + w <= size[1] + 1e-6 and y + h <= size[0] + 1e-6
    rgba = np.concatenate([frame, gray[..., None]], axis=2)
    assert np.array_equal(as_rgb(rgba), frame)  # alpha is the last channel
    rotated = noise(320, 240).transpose(1, 0, 2)  # a view that is not contiguous
    tracker.update(rotated)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((10, 10, 3), np.float32), r"round\(\)\.astype\('uint8'\)"),
        (np.zeros((3, 10, 12), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((10, 10, 2), np.uint8), r"this one has \(10, 10, 2\)"),
        (np.zeros((0, 10, 3), np.uint8), "this one has"),
        (torch.zeros(3, 10, 10, dtype=torch.uint8), r"permute\(1, 2, 0\)"),
        (torch.zeros(10, 10, 3, dtype=torch.uint8), r"Use frame\.cpu\(\)\.numpy\(\)"),
        (np.zeros((10, 10, 3), np.uint16), r"clip\(0, 255\)"),  # astype alone wraps around
        ([[0]], "not list"),
        (None, "The video may have ended"),
        ("frame.jpg", "open_frames"),
    ],
)
def test_errors_of_invalid_frames_say_how_to_correct_them(frame, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(frame)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), r"got shape \(3,\)"),
        ("10,20,30,40", "four numbers"),
        (np.zeros((0, 4)), "got shape"),
        ((10, float("nan"), 5, 5), "not finite"),
        ((10, 10, 0, 5), "no area"),
        ((10, 10, 5, -5), "no area"),
        ((400, 10, 20, 20), "outside the frame, which is 320 x 240 px"),
        ((0.07, 0.37, 0.2, 0.25), r"smaller than a pixel\. For fractions .* \(22\.4, 88\.8, 64, 60\)"),
        ((10, 10, 30, 0.5), "smaller than a pixel"),
        ((10**400, 1, 2, 3), "four numbers"),
        ((1, 2j, 3, 4), "four numbers"),
        ([(10, 10, 5, 5), (-50, 10, 20, 20)], r"\(-50, 10, 20, 20\) is outside"),
    ],
)
def test_errors_of_invalid_boxes_say_why(box, message):
    with pytest.raises(ValueError, match=message):
        as_boxes(box, 240, 320)


@pytest.mark.parametrize(
    "box", [(-30, 80, 100, 90), (-20, -20, 80, 80), (90, -70, 95, 107), (12, 9, 40, 98), (-5, -5, 400, 300)]
)
def test_a_box_over_any_edge_is_clipped_to_its_visible_part(box):
    """The box and its mirror images, in a frame of 320 x 240 px, also around the template."""
    x, y, w, h = box
    clipped = (max(x, 0), max(y, 0), min(x + w, 320) - max(x, 0), min(y + h, 240) - max(y, 0))
    for flip_x in (False, True):
        for flip_y in (False, True):
            given, expected = (
                (320 - a - c if flip_x else a, 240 - b - d if flip_y else b, c, d)
                for a, b, c, d in (box, clipped)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert as_boxes(given, 240, 320).tolist() == [list(expected)]
    tracker, part = make_tracker(), make_tracker()
    tracker.init(noise(), box)
    part.init(noise(), clipped)
    assert tracker.update(noise(seed=1)) == part.update(noise(seed=1))


def test_a_box_that_looks_like_corners_is_warned_of():
    with pytest.warns(UserWarning, match=r"Most of the box \(200, 150, 300, 230\).*looks like x1, y1"):
        assert as_boxes((200, 150, 300, 230), 240, 320).tolist() == [[200, 150, 120, 90]]


def test_boxes_come_as_tensors_of_any_dtype_too():
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        boxes = torch.tensor([[1, 2, 30, 40]], dtype=dtype, requires_grad=dtype.is_floating_point)
        assert as_boxes(boxes, 240, 320).tolist() == [[1, 2, 30, 40]]


def test_a_target_of_three_pixels_stays_that_small():
    tracker = make_tracker(config=ca.TrackerConfig(damp_size=False))
    tracker.init(noise(), (140, 100, 3, 3))
    side = Crop.around((140, 100, 3, 3), 4).side
    plant(tracker, (8, 8), (0.5, 0.5, 3 / side, 2 / side))
    assert tracker.update(noise()).box[2:] == pytest.approx((3, 2))


def test_crops_of_any_side_need_the_memory_of_a_frame(monkeypatch):
    frame = noise()
    assert not Crop(-(10**7), -(10**7), 10**7).cut(frame, 32).any()  # with a border 300 TB
    assert Crop(-(10**6), -(10**6), 2 * 10**6).cut(frame, 32).shape == (32, 32, 3)
    crops = [Crop(10, 20, 30), Crop(-40, 7, 333), Crop(250, -90, 200), Crop(400, 10, 50), Crop(3, 3, 1)]
    expected = [crop.cut(frame, 64) for crop in crops]
    monkeypatch.setattr(crop_module, "LARGEST_COPY", 0)
    for crop, pixels in zip(crops, expected):
        assert np.abs(crop.cut(frame, 64).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": float("nan")}, "margin=nan must be a number"),
        ({"margin": -5}, "margin=-5 must be a finite number of at least 1"),
        ({"min_size": float("inf")}, "min_size=inf must be a finite number"),
        ({"scale_penalty": float("nan")}, "scale_penalty=nan must be a number"),
        ({"scale_penalty": None}, "scale_penalty=None must be a number"),
        ({"window_weight": "a"}, "window_weight='a' must be a number"),
        ({"update_interval": 2.5}, "update_interval=2.5 must be a whole number"),
        ({"damp_size": "no"}, "damp_size='no' must be True or False"),
        ({"template_update": "often"}, "template_update='often' is not one of none, confident"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ca.TrackerConfig(**settings)


def test_a_session_says_that_another_one_moved_its_model():
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    other = ca.create_tracker(tracker.model, device="cpu", dtype="bfloat16")
    assert other.session.dtype == torch.bfloat16
    for call in (tracker.update, lambda frame: tracker.init(frame, (140, 100, 30, 20))):
        with pytest.raises(RuntimeError, match=r"moved to torch\.bfloat16 .* Create a model for each"):
            call(noise())


def test_wrapped_models_are_refused_by_name(tmp_path):
    model = ca.create_model("sbt_test_track")
    compiled = torch.nn.Module()
    compiled._orig_mod = model  # as in torch.compile, which takes seconds
    for wrapped, advice in (
        (compiled, r"model\._orig_mod\. .*runtime='compile'"),
        (torch.nn.DataParallel(model), r"wrapper around TrackModel: pass the model itself, model\.module"),
    ):
        for use in (
            lambda wrapped: ca.create_tracker(wrapped, device="cpu"),
            lambda wrapped: ca.save_pretrained(wrapped, tmp_path / "saved"),
            lambda wrapped: export(wrapped, tmp_path / "exported"),
        ):
            with pytest.raises(ValueError, match=advice):
                use(wrapped)
    assert not list(tmp_path.iterdir())


def test_update_before_init_and_other_mistakes():
    with pytest.raises(RuntimeError, match="call init"):
        make_tracker().update(noise())
    with pytest.raises(ValueError, match="needs a `_track` model"):
        ca.create_tracker(ca.create_model("sbt_test"), device="cpu")
    with pytest.raises(ValueError, match="is not one of auto, eager"):
        ca.create_tracker(ca.create_model("sbt_test_track"), runtime="warp")
    for dtype in ("floaty", torch.int8, np.float32):
        with pytest.raises(ValueError, match="is not one of float32, float16, bfloat16, float64"):
            ca.create_tracker(ca.create_model("sbt_test_track"), device="cpu", dtype=dtype)
    with pytest.raises(TypeError, match="must be a TrackerConfig"):
        make_tracker(config={"margin": 5})
    with pytest.raises(ValueError, match="window_weight=2"):
        ca.TrackerConfig(window_weight=2)
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    with pytest.raises(ValueError):
        tracker.init(noise(), (0, 0, 0, 0))
    tracker.update(noise())  # a refused init leaves the target in place


def test_random_weights_are_said_to_be_random():
    with pytest.warns(RuntimeWarning, match="random weights: it will not track"):
        tracker = ca.create_tracker("sbt_test_track", device="cpu")
    assert tracker.weights_name == "random" and tracker.name == "sbt_test_track"


def test_weights_from_a_folder(tmp_path):
    torch.manual_seed(1)
    model = ca.create_model("sbt_test_track", search_factor=5)
    ca.save_pretrained(model, tmp_path)
    config = ca.TrackerConfig(damp_size=False)
    tracker = ca.create_tracker(tmp_path, device="cpu", dtype=torch.bfloat16, config=config)
    assert tracker.weights_name == str(tmp_path) and tracker.session.dtype == torch.bfloat16
    assert tracker.model.sizes.search_factor == 5
    tracker.init(noise(), (140, 100, 30, 20))
    plant(tracker, (8, 8), (0.5, 0.5, 0.5, 0.5))
    side = Crop.around((140, 100, 30, 20), 5).side
    assert tracker.update(noise()).box[2] == pytest.approx(side / 2)


def test_timings_add_up():
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    start = time.perf_counter()
    for _ in range(3):
        tracker.update(noise())
    spent = time.perf_counter() - start
    t = tracker.timings
    assert t.frames == 3 and min(t.crop, t.model, t.post) > 0 and t.crop + t.model + t.post <= spent
    tracker.init(noise(), (140, 100, 30, 20))
    assert tracker.timings.frames == 0


def test_timings_tell_the_parts_apart(monkeypatch):
    """By a clock that moves in the parts alone: 1 second for crops, 10 for a head, 100 for the selection."""
    tracker, now = make_tracker(), 0.0
    tracker.init(noise(), (140, 100, 30, 20))
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def takes(seconds, function):
        def slower(*arguments):
            nonlocal now
            now += seconds
            return function(*arguments)

        return slower

    monkeypatch.setattr(tracker, "images", takes(1, tracker.images))
    tracker.model.head.register_forward_hook(takes(10, lambda *_: None))
    monkeypatch.setattr(tracker, "_select", takes(100, tracker._select))
    for _ in range(2):
        tracker.update(noise())
    t = tracker.timings
    assert (t.frames, t.crop, t.model, t.post) == (2, 2, 20, 200)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_memory_is_constant_over_many_frames():
    def resident_mib():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    tracker = make_tracker(template_size=32, search_size=64)
    frames = [noise(seed=s) for s in range(4)]
    tracker.init(frames[0], (140, 100, 30, 20))
    for i in range(1_500):
        tracker.update(frames[i % 4])
        if i == 300:
            before = resident_mib()
    assert resident_mib() - before < 16  # one 240 x 320 frame kept each time would be 260 MiB


@pytest.mark.parametrize("runtime", ["eager", "onnx"])
def test_a_pickled_tracker_goes_on_where_it_was(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path))
    if runtime == "onnx":
        pytest.importorskip("onnxruntime")
    frames = np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8)
    model = ca.TrackModel.build(MaskedNet(), "cell")  # whose export is quick
    tracker = ca.create_tracker(model, device="cpu", runtime=runtime)
    tracker.init(frames[0], (30, 30, 24, 20))
    tracker.update(frames[1])
    again = pickle.loads(pickle.dumps(tracker))
    assert again.update(frames[2]) == tracker.update(frames[2])


def test_a_copied_tracker_has_a_model_of_its_own():
    frames = np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8)
    tracker = ca.create_tracker(ca.create_model("sbt_test_track"), device="cpu")
    tracker.init(frames[0], (30, 30, 24, 20))
    for again in (copy.deepcopy(tracker), copy.copy(tracker)):
        assert again.session is not tracker.session and again.timings is not tracker.timings
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.zero_()
    assert again.update(frames[1]).score == pytest.approx(0.5)  # all logits are 0
    assert tracker.update(frames[1]).score != pytest.approx(0.5)


def test_two_threads_in_one_tracker_are_refused():
    frames = np.random.default_rng(0).integers(0, 255, (3, 90, 120, 3), np.uint8)
    tracker = ca.create_tracker(ca.create_model("sbt_test_track"), device="cpu")
    tracker.init(frames[0], (30, 30, 24, 20))
    expected = [copy.deepcopy(tracker).update(frame) for frame in frames[1:]]
    inside, go_on = threading.Event(), threading.Event()

    def wait(*arguments):
        inside.set()
        assert go_on.wait(60)

    hook = tracker.model.register_forward_pre_hook(wait)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(tracker.update, frames[1])
        assert inside.wait(60)
        calls = (
            lambda: tracker.init(frames[2], (1, 2, 30, 40)),
            lambda: tracker.add(frames[2], (1, 2, 30, 40)),
            lambda: tracker.update(frames[2]),
            lambda: tracker.update_template(frames[2]),
            lambda: tracker.remove(0),
        )
        for call in calls:
            with pytest.raises(RuntimeError, match="Two threads use this tracker at the same time"):
                call()
        go_on.set()
        assert first.result() == expected[0]
        hook.remove()
        pool.submit(tracker.init, frames[0], (30, 30, 24, 20)).result()  # one after the other
    assert tracker.update(frames[2]) == expected[1]


def test_a_model_of_one_channel_tracks():
    frames = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), np.uint8)
    tracker = ca.create_tracker(ca.create_model("sbt_test_track", in_chans=1), device="cpu")
    gray = np.broadcast_to(frames.mean(axis=3, keepdims=True).round().astype(np.uint8), frames.shape)
    for video in (frames, gray, gray[..., 0]):
        tracker.init(video[0], (30, 30, 24, 20))
        assert 0 < tracker.update(video[1]).score < 1
    with pytest.raises(ValueError, match="in_chans=4"):
        ca.create_tracker(ca.create_model("sbt_test_track", in_chans=4), device="cpu")


def test_weights_for_a_model_object_are_refused():
    with pytest.raises(ValueError, match="pretrained='half' has no effect on a model object"):
        ca.create_tracker(ca.create_model("sbt_test_track"), pretrained="half")


def test_old_names_of_the_tracker_warn():
    with pytest.warns(DeprecationWarning, match="TrackerConfig"):
        config = ca.TrackerConfig(window=0.2, penalty=0.3)
    assert config == ca.TrackerConfig(window_weight=0.2, scale_penalty=0.3)
    with pytest.warns(DeprecationWarning, match="scale_penalty"):
        assert config.penalty == 0.3
    tracker = make_tracker()
    with pytest.warns(DeprecationWarning, match="weights_name"):
        assert tracker.weights == "random"
