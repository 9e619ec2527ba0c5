"""Evaluation on synthetic clips, calibration of scores, and their commands."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import eval as cli_eval
from correlation_aware.cli import eval_clips
from correlation_aware.cli import train as cli_train
from correlation_aware.data.stills.synthetic_clips import Clip
from correlation_aware.data.videos.sequences import Video
from correlation_aware.evaluation import long_term
from correlation_aware.evaluation.calibration import (
    fit_calibration,
    plot_reliability,
    reliability,
    scored_frames,
)
from correlation_aware.evaluation.long_term import LongTermResult, long_term_scores, track_clip
from correlation_aware.evaluation.one_pass import overlap
from correlation_aware.evaluation.synthetic import ClipValidation, evaluate_clip
from correlation_aware.evaluation.videos import VideoValidation
from correlation_aware.tracking.tracker import Tracker, TrackerConfig, TrackResult
from correlation_aware.tracking.video import write_image


class Scripted:
    """A tracker with predefined results."""

    def __init__(self, *results):
        self.results = iter(results)

    def init(self, frame, box):
        pass

    def update(self, frame):
        return next(self.results)


@pytest.fixture
def run():
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")
    app.add_typer(cli_train.app, name="train")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_overlap_by_hand():
    boxes = [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 0, 0]]
    truth = [[0, 0, 2, 2], [1, 0, 2, 2], [5, 5, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlap(boxes, truth), [1, 1 / 3, 0, 0])


def test_hidden_frames_are_not_evaluated():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    clip = Clip(frames, np.tile(np.float32([0, 0, 4, 4]), (4, 1)), np.float32([1, 1, 0.1, 0.6]))
    right, wrong = TrackResult((0, 0, 4, 4), 0.9, False), TrackResult((4, 4, 4, 4), 0.2, True)
    result = evaluate_clip(Scripted(right, wrong, wrong), clip)
    np.testing.assert_allclose(result.ious, [1, 0])
    np.testing.assert_allclose(result.scores, [1, 0.9, 0.2, 0.2])
    scores, hits = scored_frames([result, result])
    np.testing.assert_allclose(scores, [0.9, 0.2] * 2)
    assert hits.tolist() == [True, False] * 2
    with pytest.raises(ValueError, match="no frames to calibrate on"):
        scored_frames([])


def test_frames_with_a_quarter_of_the_target_are_evaluated():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    clip = Clip(frames, np.tile(np.float32([0, 0, 4, 4]), (4, 1)), np.float32([1, 0.24, 0.25, 0.3]))
    result = evaluate_clip(Scripted(*[TrackResult((0, 0, 4, 4), 0.9, False)] * 3), clip)
    assert result.evaluated.tolist() == [False, False, True, True]


def test_reliability_by_hand():
    result = reliability(np.array([0.1, 0.2, 0.9, 1.0]), np.array([False, True, True, True]), bins=2)
    np.testing.assert_allclose(result.score, [0.15, 0.95])
    np.testing.assert_allclose(result.accuracy, [0.5, 1.0])
    assert result.count.tolist() == [2, 2]
    assert result.error == pytest.approx((0.35 * 2 + 0.05 * 2) / 4)
    empty = reliability(np.array([0.9]), np.array([True]), bins=2)
    assert np.isnan(empty.score[0]) and empty.error == pytest.approx(0.1)


def test_a_fit_recovers_the_parameters():
    random = np.random.default_rng(0)
    logits = random.normal(1, 2, 20_000)
    right = random.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    scores = 1 / (1 + np.exp(-logits))
    scale, shift = fit_calibration(scores, right)
    assert scale == pytest.approx(0.5, abs=0.03) and shift == pytest.approx(-1, abs=0.06)
    calibrated = 1 / (1 + np.exp(-(scale * logits + shift)))
    # 20,000 frames in 10 bins: an accuracy is known to about 0.01
    assert reliability(calibrated, right).error < 0.02 < 0.2 < reliability(scores, right).error
    scale, shift = fit_calibration(np.array([0.0, 1.0]), np.array([False, True]))  # separable scores
    assert np.isfinite([scale, shift]).all()
    with pytest.raises(ValueError, match="2 correct and 0 wrong"):
        fit_calibration(np.array([0.5, 0.6]), np.array([True, True]))


@pytest.mark.parametrize("scores", [(0.9, 0.8, 0.2, 0.3), (0.4, 0.6, 0.6, 0.4)])
def test_scores_that_do_not_tell_right_from_wrong_are_refused(scores):
    with pytest.raises(ValueError, match="2 correct boxes do not have higher scores"):
        fit_calibration(np.array(scores), np.array([False, False, True, True]))


def test_a_fit_of_few_frames_is_cautious():
    """Platt's targets: of one right and three wrong boxes, 2/3 and 1/5 instead of 1 and 0."""
    scores, right = np.array([0.3, 0.6, 0.5, 0.8]), np.array([False, True, False, False])
    scale, shift = fit_calibration(scores, right)
    fitted = 1 / (1 + np.exp(-(scale * np.log(scores / (1 - scores)) + shift)))
    assert fitted.sum() == pytest.approx(2 / 3 + 3 / 5)  # where the slope of the loss by the shift is 0


@pytest.mark.parametrize("head", ["mixer", "cell"])
@torch.no_grad()
def test_a_head_takes_a_calibration(head):
    torch.manual_seed(0)
    model = ca.create_model("sbt_test_track", head=head).eval()
    photos = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    before = model(*photos)
    model.head.calibrate(0.5, -1.0)
    after = model(*photos)
    logit = before.logits[:, 0] - before.logits[:, 1]
    torch.testing.assert_close(after.scores, torch.sigmoid(0.5 * logit - 1), rtol=1e-5, atol=1e-6)
    assert torch.equal(after.boxes, before.boxes)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    result = reliability(np.array([0.1, 0.2, 0.9]), np.array([False, True, True]))
    plot_reliability(result, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300


@pytest.fixture
def searches_of_trackers(monkeypatch):
    """Whether trackers search for lost targets, for each `init` of one."""
    searches, init = [], Tracker.init

    def recording(tracker, frame, box):
        searches.append(tracker.config.redetect)
        init(tracker, frame, box)

    monkeypatch.setattr(Tracker, "init", recording)
    return searches


def test_the_score_is_not_used_before_it_is_calibrated(photos, run, tmp_path, searches_of_trackers):
    """In training and for its calibration there is no search for lost targets, which depends on it."""
    model = ca.create_model("sbt_test_track").eval()
    ClipValidation({str(photos): 1.0}, count=1)(model)
    frames = [np.full((64, 64, 3), value, np.uint8) for value in (90, 100)]
    for frame, name in zip(frames, "01"):
        write_image(tmp_path / f"{name}.png", frame)
    files = [tmp_path / f"{name}.png" for name in "01"]
    video = Video("video", files, np.tile(np.array([20.0, 20, 16, 16]), (2, 1)), np.ones(2, bool))
    VideoValidation([[video]])(model)
    run("train", "calibrate", photos, "--model", "sbt_test_track", "--count", 1, "--output", tmp_path / "out")
    assert searches_of_trackers == [False] * 3
    run("eval", "clips", photos, "--model", "sbt_test_track", "--weights", "random", "--count", 1)
    assert searches_of_trackers[3:] == [True]  # what a user gets


def test_validation_in_training(photos):
    validate = ClipValidation({str(photos): 1.0}, count=1)
    model = ca.create_model("sbt_test_track")
    first = validate(model.eval())
    assert 0 <= first["sr75"] <= first["sr50"] <= first["ao"] * 2 and first == validate(model)


def test_eval_clips_and_a_sweep(run, photos, tmp_path):
    words = ["eval", "clips", photos, "--model", "sbt_test_track", "--weights", "random", "--device", "cpu"]
    words += ["--count", "1", "--json", tmp_path / "all.json"]
    result = run(*words, "--sweep", "window_weight=0,0.5", "--sweep", "damp_size=0,1")
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "all.json").read_text())["settings"]
    assert list(settings) == [f"window_weight={w} damp_size={d}" for w in ("0", "0.5") for d in (0, 1)]
    assert {"ao", "sr50", "calibration_error"} <= set(settings["window_weight=0 damp_size=1"])
    for sweep, message in (
        ("windo_weight=1", "Near: window_weight"),
        ("window_weight=a", "is not NAME=V,V"),
        ("window_weight=2", "must be in 0..1"),
    ):
        result = run(*words, "--sweep", sweep)
        assert isinstance(result.exception, ValueError) and message in str(result.exception)
    result = run(*words, "--sweep", "window_weight=0,1", "--plot", tmp_path / "plot.png")
    assert "--plot shows one combination" in str(result.exception)


def long_term_result(overlaps, scores, absent=(), unclear=(), lost=()):
    count = len(overlaps)
    absent, unclear, lost = (np.isin(np.arange(count), chosen) for chosen in (absent, unclear, lost))
    arrays = np.array(overlaps, float), np.array(scores, float), ~absent & ~unclear, absent
    return LongTermResult(*arrays, np.full(count, 0.02), lost)


def test_long_term_scores_by_hand():
    """Frames: start, three in sight, two absent, one in part, two in sight again."""
    result = long_term_result(
        [1, 0.8, 0.6, 0.2, 0, 0, 0.9, 0, 0.7], [1, 0.9, 0.9, 0.3, 0.2, 0.9, 0.9, 0.2, 0.9], (4, 5), (6,), (7,)
    )
    scores = long_term_scores([result])
    assert scores.threshold == pytest.approx(0.9)
    assert scores.precision == pytest.approx((0.8 + 0.6 + 0 + 0.7) / 4)  # frames 1, 2, 5, 8
    assert scores.recall == pytest.approx((0.8 + 0.6 + 0.7) / 5)  # of frames 1, 2, 3, 7, 8
    p, r = scores.precision, scores.recall
    assert scores.f1 == pytest.approx(2 * p * r / (p + r))
    assert result.returns == [7] and result.redetected == 1 and not result.ends_elsewhere
    assert scores.redetected == 1 and scores.ends_elsewhere == 0 and scores.returns == 1
    assert scores.milliseconds == pytest.approx(20)
    other = long_term_result([1, 0.8, 0, 0], [1, 0.9, 0.9, 0.9], absent=(2,))
    assert other.ends_elsewhere and other.redetected == 0
    both = long_term_scores([result, other])
    assert both.ends_elsewhere == 0.5 and both.redetected == 0.5 and both.clips == 2
    assert both.precision == pytest.approx(((0.8 + 0.6 + 0.7) / 4 + 0.8 / 3) / 2)  # averages over clips
    assert not long_term_result([1, 0.8, 0, 0], [1] * 4, (2,), lost=(3,)).ends_elsewhere
    assert long_term_result([1, 0, 0.9], [1] * 3, (1,), lost=(2,)).redetected == 0  # it says that it is lost
    with pytest.raises(ValueError, match="no results to score"):
        long_term_scores([])


def test_a_tracker_that_knows_when_it_is_lost_has_the_higher_precision():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    clip = Clip(frames, np.tile(np.float32([0, 0, 4, 4]), (4, 1)), np.float32([1, 1, 0, 0.1]))
    right, unsure = TrackResult((0, 0, 4, 4), 0.9, False), TrackResult((0, 0, 4, 4), 0.2, True)
    knows, trusts = (track_clip(Scripted(right, last, right), clip) for last in (unsure, right))
    assert knows.lost.tolist() == [False, False, True, False] and knows.overlaps[2] == 0
    assert knows.present.tolist() == [True, True, False, False]
    assert knows.absent.tolist() == [False, False, True, False]
    assert long_term_scores([knows]).f1 == 1 and long_term_scores([trusts]).precision == 0.5
    with pytest.raises(ValueError, match="no scores"):
        track_clip(Scripted(*[(0, 0, 4, 4)] * 3), clip)


def test_eval_longterm(run, photos, tmp_path, monkeypatch):
    short = replace(long_term.LONG_TERM_CLIPS, length=36, size=(96, 128), absences=1)
    monkeypatch.setattr(long_term, "LONG_TERM_CLIPS", short)
    words = [
        "eval",
        "longterm",
        photos,
        "--model",
        "sbt_test_track",
        "--weights",
        "random",
        "--device",
        "cpu",
    ]
    result = run(*words, "--count", "1", "--json", tmp_path / "all.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "all.json").read_text())
    assert list(report["settings"]) == ["redetect=0", "redetect=1"] and report["clips"] == 1
    for scores in report["settings"].values():
        assert 0 <= scores["f1"] <= 1 and scores["returns"] == 1 and scores["milliseconds"] > 0
    assert "elsewhere" in result.output and "redetect=1" in result.output
    result = run(*words, "--sweep", "redetect_crop=2")
    assert "Near: redetect_crops" in str(result.exception)
    result = run(*words, "--decode", "paper", "--sweep", "redetect_crops=2,8")
    assert "redetect_crops=... has no effect with redetect off: add" in str(result.exception)
    assert len(eval_clips._grid(["redetect_crops=2,8"], TrackerConfig())) == 2
    assert len(eval_clips._grid(["redetect=0,1", "redetect_crops=2,8"], TrackerConfig())) == 4


def test_a_sweep_takes_old_names_and_settings_without_a_default():
    with pytest.warns(DeprecationWarning, match="window is now called window_weight"):
        grid = eval_clips._grid(["window=0,0.5"], TrackerConfig())
    assert list(grid) == ["window_weight=0", "window_weight=0.5"]
    assert [c.box_vote for c in eval_clips._grid(["box_vote=0,8"], TrackerConfig()).values()] == [0.0, 8.0]


def test_train_calibrate(run, photos, tmp_path, monkeypatch):
    seen = np.array([0.2, 0.4, 0.6, 0.9]), np.array([False, True, False, True])
    monkeypatch.setattr("correlation_aware.evaluation.calibration.scored_frames", lambda results: seen)
    ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "model")
    result = run(
        "train",
        "calibrate",
        photos,
        "--model",
        tmp_path / "model",
        "--output",
        tmp_path / "out",
        "--count",
        1,
    )
    assert result.exit_code == 0, result.output
    before, after = (ca.from_pretrained(tmp_path / name).head.cls.channel[1] for name in ("model", "out"))
    scale, shift = fit_calibration(*seen)
    torch.testing.assert_close(after.weight, before.weight * scale)
    torch.testing.assert_close(after.bias, before.bias * scale + torch.tensor([shift, 0.0]))
