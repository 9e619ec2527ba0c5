"""Evaluation on synthetic clips, calibration of scores, and their commands."""

import json

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import eval as cli_eval
from correlation_aware.cli import train as cli_train
from correlation_aware.data.stills.synthetic_clips import Clip
from correlation_aware.evaluation.calibration import (
    fit_calibration,
    plot_reliability,
    reliability,
    scored_frames,
)
from correlation_aware.evaluation.one_pass import overlap
from correlation_aware.evaluation.synthetic import ClipValidation, evaluate_clip
from correlation_aware.tracking.tracker import TrackerConfig, TrackResult


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


def test_a_sweep_takes_old_names_and_settings_without_a_default():
    with pytest.warns(DeprecationWarning, match="window is now called window_weight"):
        grid = cli_eval._grid(["window=0,0.5"], TrackerConfig())
    assert list(grid) == ["window_weight=0", "window_weight=0.5"]
    assert [c.box_vote for c in cli_eval._grid(["box_vote=0,8"], TrackerConfig()).values()] == [0.0, 8.0]


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
