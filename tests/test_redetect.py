"""Re-detection: a lost target keeps its box, the frame is searched, and only the target is taken again."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware.models.heads import TrackOutput
from correlation_aware.tracking import redetect
from correlation_aware.tracking.redetect import Appearance, Memory, color_histogram, pooled_features, tiles
from correlation_aware.tracking.tracker import DECODES

START = (42.0, 42.0, 36.0, 36.0)  # of the target in the drawn clip
ON, OFF = ca.TrackerConfig(redetect=True), ca.TrackerConfig(redetect=False)


def noise(height=240, width=320, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_tracker(config=ON, name="sbt_test_track"):
    torch.manual_seed(0)
    return ca.create_tracker(ca.create_model(name), device="cpu", config=config)


def set_scores(tracker, score):
    """Makes the head report a score in the middle of every crop, and a box of a quarter of its side."""

    def hook(head, inputs, output):
        logits, scores, boxes = (torch.zeros_like(t) for t in output)
        middle = scores.shape[1] // 2
        scores[:, middle, middle] = score
        boxes[:, :2], boxes[:, 2:] = 0.5, 0.25
        return TrackOutput(logits, scores, boxes)

    return tracker.model.head.register_forward_hook(hook)


def disk(color, marks):
    """A disk with marks, 36 x 36 px, and its opacity."""
    image = np.full((36, 36, 3), color, np.uint8)
    for i in range(3):
        cv2.circle(image, (9 + 9 * i, 10 + 8 * (i % 2)), 4, marks, cv2.FILLED, cv2.LINE_AA)
    cv2.rectangle(image, (6, 24), (29, 29), marks, cv2.FILLED)
    return image, cv2.circle(np.zeros((36, 36), np.float32), (18, 18), 17, 1.0, cv2.FILLED, cv2.LINE_AA)


TARGET, ALIKE = disk((200, 40, 30), (250, 220, 60)), disk((40, 70, 200), (120, 230, 240))


def paste(frame, sprite, center):
    image, alpha = sprite
    shift = np.float32([[1, 0, center[0] - 18], [0, 1, center[1] - 18]])
    image, alpha = (cv2.warpAffine(layer, shift, frame.shape[1::-1]) for layer in (image, alpha))
    return (frame * (1 - alpha[..., None]) + image * alpha[..., None]).astype(np.uint8)


def draw(target, alike):
    coarse = np.random.default_rng(3).integers(60, 180, (12, 16, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (240, 180), interpolation=cv2.INTER_CUBIC)
    for sprite, center in ((ALIKE, alike), (TARGET, target)):
        frame = frame if center is None else paste(frame, sprite, center)
    return frame


def long_term_clip():
    """Frames with the centers of the target: it vanishes beside a look-alike and returns elsewhere."""
    path = [(60 + 2 * i, 60) for i in range(8)] + [None] * 6 + [(190 - i, 140) for i in range(5)]
    return [(draw(center, (70 + 2 * i, 110)), center) for i, center in enumerate(path)]


@pytest.fixture(scope="module")
def model():
    return ca.create_model("siam_lite0_ca_half_track", pretrained=True)


def center_of(result):
    x, y, w, h = result.box
    return x + w / 2, y + h / 2


def test_a_target_that_returns_elsewhere_is_found_and_a_look_alike_is_not_taken(model):
    clip = long_term_clip()
    on, off = (ca.create_tracker(model, device="cpu", config=config) for config in (ON, OFF))
    results = {}
    for tracker in (on, off):
        tracker.init(clip[0][0], START)
        results[tracker] = [tracker.update(frame) for frame, _ in clip[1:]]
    before, gone, after = results[on][:7], results[on][7:13], results[on][13:]
    assert before == results[off][:7]  # of a target that is tracked nothing changes
    assert all(r.lost and r.box == before[-1].box and r.score <= 0.3 for r in gone)
    assert [r.lost for r in after[-3:]] == [False] * 3
    for result, (_, center) in zip(after[-3:], clip[-3:]):
        assert center_of(result) == pytest.approx(center, abs=3)
    without = results[off][9:13]  # the look-alike is tracked
    assert not any(r.lost for r in without) and center_of(without[-1]) == pytest.approx((96, 110), abs=4)


def test_it_is_the_default_except_for_the_papers_and_the_released_choice():
    assert ca.TrackerConfig() == ON and make_tracker(None).config.redetect
    assert {name: config.redetect for name, config in DECODES.items()} == {
        "default": True,
        "paper": False,
        "released": False,
    }


def test_switched_off_a_lost_target_is_tracked_on_in_one_crop(monkeypatch):
    tracker = make_tracker(OFF)
    tracker.init(noise(), (140, 100, 30, 20))
    counts = count_crops(tracker, monkeypatch)
    set_scores(tracker, 0.1)
    results = [tracker.update(noise()) for _ in range(3)]
    assert counts == [1] * 3 and all(result.lost for result in results)
    assert results[0].box != results[1].box != (140, 100, 30, 20)


def test_without_the_check_of_appearances_the_look_alike_is_taken(model, monkeypatch):
    monkeypatch.setattr(Memory, "accepts", lambda *_: True)
    clip = long_term_clip()
    tracker = ca.create_tracker(model, device="cpu", config=ON)
    tracker.init(clip[0][0], START)
    results = [tracker.update(frame) for frame, _ in clip[1:14]]
    assert center_of(results[-1]) == pytest.approx((96, 110), abs=4) and not results[-1].lost


def test_the_box_of_a_lost_target_stays_and_one_frame_is_no_evidence():
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    handle = set_scores(tracker, 0.9)
    box = tracker.update(noise()).box
    handle.remove()
    handle = set_scores(tracker, 0.2)
    for _ in range(12):
        result = tracker.update(noise())
        assert result.lost and result.box == box and result.score == pytest.approx(0.2)
    handle.remove()
    set_scores(tracker, 0.9)
    first, second = tracker.update(noise()), tracker.update(noise())
    assert first.lost and first.box == box and first.score == pytest.approx(0.3)  # at most lost_threshold
    assert not second.lost and second.score == pytest.approx(0.9)


def test_a_score_between_the_two_thresholds_is_no_evidence():
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    set_scores(tracker, 0.2)
    tracker.update(noise())
    tracker.model.head._forward_hooks.clear()
    set_scores(tracker, 0.55)
    assert all(tracker.update(noise()).lost for _ in range(4))


def test_what_has_replaced_the_target_in_its_place_is_noticed():
    """The score stays high and the box does not jump: the look in each tenth frame tells."""
    tracker = make_tracker()
    tracker.init(draw((60, 60), None), START)
    set_scores(tracker, 0.9)
    replaced = draw(None, (60, 60))
    results = [tracker.update(replaced) for _ in range(11)]
    assert [r.lost for r in results] == [False] * 9 + [True] * 2
    assert results[-1].box == results[-3].box
    again = [tracker.update(draw((60, 60), None)) for _ in range(2)]
    assert [r.lost for r in again] == [True, False]


def test_the_second_best_box_is_remembered_as_a_distractor():
    tracker = make_tracker()
    frame = draw((60, 60), (110, 110))
    tracker.init(frame, START)
    set_scores(tracker, 0.9)

    def add_second(head, inputs, output):
        side = output.scores.shape[1]
        row = round((110 + 12) / 144 * side)  # the search region is 144 px wide and begins at -12
        output.scores[:, row, row] = 0.5
        output.boxes[:, :2, row, row], output.boxes[:, 2:, row, row] = (110 + 12) / 144, 0.25
        return output

    tracker.model.head.register_forward_hook(add_second)
    memory = tracker._redetection.memories[0]
    for _ in range(9):
        tracker.update(frame)
    assert not memory.distractors
    tracker.update(frame)
    (distractor,) = memory.distractors
    alike = color_histogram(frame, np.array([92.0, 92, 36, 36]))
    assert distractor.color @ alike > 0.99 and memory.first.color @ alike < 0.3


def count_crops(tracker, monkeypatch):
    """Numbers of search images of all calls of the tracker's session from now on."""
    counts, session = [], tracker.session

    class Counting(type(session)):
        def __call__(self, search, templates=None):
            counts.append(len(search))
            return super().__call__(search, templates)

    monkeypatch.setattr(session, "__class__", Counting)
    return counts


@pytest.mark.parametrize("most", [2, 5])
def test_the_number_of_crops_is_bounded_and_they_are_one_batch(most, monkeypatch):
    tracker = make_tracker(ca.TrackerConfig(redetect=True, redetect_crops=most))
    tracker.init(noise(), [(140, 100, 10, 10), (30, 40, 12, 9), (200, 50, 300, 300)])
    counts = count_crops(tracker, monkeypatch)
    set_scores(tracker, 0.1)
    for _ in range(9):
        tracker.update(noise())
    assert counts == [3] + [2 * most + 2] * 8  # of the largest target the frame is one crop
    tracker.remove(1)
    tracker.update(noise())
    assert counts[-1] == most + 2


def test_the_search_goes_over_the_whole_frame_and_starts_at_the_box():
    box, (height, width) = np.array([200.0, 30, 20, 20]), (180, 320)
    memory = Memory(Appearance(np.ones(1), np.ones(1)), np.ones(2), lost=True)
    every = tiles(box, 4, height, width)
    seen = [memory.crops(box, 4, height, width, 4) for _ in range(-(-len(every) // 3))]
    assert {crop for crops in seen for crop in crops[1:]} == set(every)
    assert all(len(crops) == 4 and (crops[0].x, crops[0].y) == (170, 0) for crops in seen)
    covered = np.zeros((height, width), bool)
    for crop in every:
        covered[max(0, crop.y) : crop.y + crop.side, max(0, crop.x) : crop.x + crop.side] = True
    assert covered.all()
    distances = [np.hypot(c.x + c.side / 2 - 210, c.y + c.side / 2 - 40) for c in every]
    assert distances == sorted(distances) and distances[0] < 40
    assert len(tiles(np.array([5.0, 5, 2, 2]), 4, 1080, 1920)) <= 60  # a bounded time for tiny targets


def test_a_lost_target_does_not_change_another_one(model):
    """The second target is the look-alike, which stays; alone it is tracked to the same boxes."""
    clip = long_term_clip()
    together, alone = (ca.create_tracker(model, device="cpu", config=ON) for _ in range(2))
    second = (52.0, 92.0, 36.0, 36.0)
    together.init(clip[0][0], [START, second])
    alone.init(clip[0][0], second)
    for i, (frame, _) in enumerate(clip[1:12], 1):
        first, other = together.update(frame)
        single = alone.update(frame)
        assert other.box == pytest.approx(single.box, abs=1e-2) and not other.lost
        assert first.lost == (i >= 8)


def test_targets_come_and_go_while_one_is_lost(model):
    clip = long_term_clip()
    tracker = ca.create_tracker(model, device="cpu", config=ON)
    tracker.init(clip[0][0], [(52.0, 92.0, 36.0, 36.0)])
    tracker.add(clip[0][0], START)
    for frame, _ in clip[1:11]:
        results = tracker.update(frame)
    assert [r.lost for r in results] == [False, True]
    tracker.remove(0)
    assert tracker.add(clip[11][0], (74.0, 92.0, 36.0, 36.0)) == (2,)
    for frame, _ in clip[11:]:
        results = tracker.update(frame)
    assert [r.target for r in results] == [1, 2] and not results[0].lost
    assert center_of(results[0]) == pytest.approx(clip[-1][1], abs=3)


def test_a_search_goes_on_in_a_pickle_and_in_a_copy(model):
    clip = long_term_clip()
    tracker = ca.create_tracker(model, device="cpu", config=ON)
    tracker.init(clip[0][0], START)
    for frame, _ in clip[1:15]:  # the last one has a first candidate
        assert tracker.update(frame).score > 0
    assert tracker._redetection.memories[0].lost
    others = [pickle.loads(pickle.dumps(tracker)), copy.deepcopy(tracker)]
    for frame, _ in clip[15:]:
        expected = tracker.update(frame)
        assert [other.update(frame) for other in others] == [expected] * 2
    assert not expected.lost
    assert others[1]._redetection.memories[0] is not tracker._redetection.memories[0]


@pytest.mark.parametrize("name", ["onestream_vit_test_track", "siam_test_track", "supersbt_test_track"])
def test_every_family_searches(name):
    tracker = make_tracker(name=name)
    tracker.init(noise(90, 120), (30, 30, 24, 20))
    handle = set_scores(tracker, 0.1)
    assert tracker.update(noise(90, 120)).lost and tracker.update(noise(90, 120)).lost
    handle.remove()
    set_scores(tracker, 0.9)
    results = [tracker.update(noise(90, 120)) for _ in range(2)]
    assert [r.lost for r in results] == [True, False]


def test_a_target_without_a_finite_prediction_is_lost_and_found_again():
    tracker = make_tracker()
    tracker.init(noise(), (140, 100, 30, 20))
    handle = set_scores(tracker, float("nan"))
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        results = [tracker.update(noise()) for _ in range(3)]
    assert all(r == ca.TrackResult((140, 100, 30, 20), 0.0, True) for r in results)
    handle.remove()
    set_scores(tracker, 0.9)
    assert [tracker.update(noise()).lost for _ in range(2)] == [True, False]


def test_appearances_are_judged_in_units_of_the_targets_own_changes():
    def seen(color, features):
        vectors = (np.array([np.cos(a), np.sin(a)], np.float32) for a in (color, features))
        return Appearance(*vectors)

    memory = Memory.of_target([seen(0, 0), seen(0.4, 0.3), seen(-0.4, -0.3)])
    spread = 1 - np.cos([0.4, 0.3])
    np.testing.assert_allclose(memory.spread, spread, rtol=1e-5)
    other = seen(0.6, 0.4)
    assert memory.change(other) == pytest.approx(((1 - np.cos([0.6, 0.4])) / spread).mean(), rel=1e-5)
    assert memory.accepts(other, 3) and not memory.accepts(other, 1.5)
    memory.remember(seen(0.8, 0.5))  # nearer to it than the target's first appearance
    assert not memory.accepts(other, 3) and memory.accepts(seen(0.1, 0.1), 3)
    memory.learn(seen(1, 1))
    assert (memory.spread > spread).all()
    before = memory.spread
    memory.learn(seen(0, 0))
    assert (memory.spread == before).all()  # what the target has shown it can show again
    for angle in np.linspace(0, 3, 30):
        memory.remember(seen(angle, angle))
    assert len(memory.distractors) <= redetect.DISTRACTORS
    assert (Memory.of_target([seen(0, 0)] * 3).spread == redetect.SMALLEST_SPREAD).all()


def test_colors_and_features_of_a_box():
    frame = draw((60, 60), (150, 110))
    target, again, alike = (
        color_histogram(f, np.array(box))
        for f, box in (
            (frame, START),
            (draw((160, 90), None), (142.0, 72.0, 36.0, 36.0)),
            (frame, (132.0, 92.0, 36.0, 36.0)),
        )
    )
    assert target @ target == pytest.approx(1) and target @ again > 0.99 and target @ alike < 0.3
    assert color_histogram(frame, np.array([-50.0, -50, 10, 10])) @ target < 1  # a box outside the frame
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 5, 4, 7, generator=rng)
    pooled = torch.nn.functional.normalize(maps.mean((1, 2)), dim=1)
    for layout in (maps, maps.permute(0, 3, 1, 2)):  # channels, the largest dimension, last or first
        np.testing.assert_allclose(pooled_features([layout, torch.ones(2, 3).bool()]), pooled, rtol=1e-5)
    assert pooled_features([torch.ones(2, 3).bool()]).shape == (2, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redetect": "yes"}, "redetect='yes' must be True or False"),
        ({"redetect_crops": 1}, "redetect_crops=1 must be at least 2"),
        ({"redetect_threshold": 1.5}, "redetect_threshold=1.5 must be in 0..1"),
        ({"redetect_threshold": 0.2}, "must be at least lost_threshold=0.3"),
        ({"lost_threshold": 0.7}, "redetect_threshold=0.6 must be .*Raise it, or set redetect=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ca.TrackerConfig(**settings)
