"""One-pass evaluation: hand-computed figures on a tiny tree, the toolkit's file layout, clear errors."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from correlation_aware.cli import eval as cli_eval
from correlation_aware.tracking.tracker import TrackResult

pytest.importorskip("got10k")
from correlation_aware.evaluation.got10k import evaluate, open_dataset, write_results
from correlation_aware.evaluation.one_pass import Scores, SequenceResult, average, score


class Still:
    """Holds the first box."""

    def init(self, frame, box):
        self.box = tuple(box)

    def update(self, frame):
        assert frame.dtype == np.uint8 and frame.shape == (40, 60, 3)
        return TrackResult(self.box, 1.0, False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences of 60 x 40 px. Overlaps of the still box: a 1, 1/3, (hidden), b 3/4."""
    folder = tmp_path / "data"
    write_sequence(
        folder / "val" / "a", [(10, 10, 20, 20), (10, 10, 20, 20), (20, 10, 20, 20), (0, 0, 5, 5)], 1
    )
    write_sequence(
        folder / "val" / "b", [(40, 0, 20, 10), (45, 0, 20, 10)]
    )  # leaves the frame: w counts as 15
    (folder / "val" / "list.txt").write_text("a\nb\n")
    return folder


def write_sequence(folder: Path, boxes: list[tuple[int, int, int, int]], hidden: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(len(boxes)):
        cv2.imwrite(str(folder / f"{i + 1:08d}.jpg"), np.full((40, 60, 3), 10 * i, np.uint8))
    np.savetxt(folder / "groundtruth.txt", boxes, fmt="%.4f", delimiter=",")
    seen = [8] * (len(boxes) - hidden) + [0] * hidden
    for label in ("cover", "absence", "cut_by_image"):
        np.savetxt(folder / f"{label}.label", seen if label == "cover" else [0] * len(boxes), fmt="%d")
    (folder / "meta_info.ini").write_text("[METAINFO]\nurl: \nresolution: (60, 40)\n")


def test_figures_by_hand(root):
    a, b = evaluate(Still(), open_dataset(root))
    np.testing.assert_allclose(a.ious, [1, 1 / 3])
    np.testing.assert_allclose(b.ious, [3 / 4])  # truth 45..60, still box 40..60, both clipped to the frame
    assert np.array_equal(a.boxes, np.tile([10, 10, 20, 20], (4, 1)))
    # thresholds 0, 0.05, ..., 1: an overlap of 1 is above 20 of 21, 1/3 above 7, 3/4 above 15
    of_a = score([a])
    assert (of_a.ao, of_a.sr50, of_a.sr75, of_a.frames) == (pytest.approx(2 / 3), 0.5, 0.5, 2)
    assert of_a.auc == pytest.approx((20 + 7) / 42)
    frames, sequences = score([a, b]), average([a, b])
    assert frames.ao == pytest.approx((1 + 1 / 3 + 3 / 4) / 3)
    assert frames.auc == pytest.approx((20 + 7 + 15) / 63)
    assert sequences.ao == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert (sequences.sr50, sequences.sr75) == (0.75, 0.25)  # 0.75 is not above 0.75
    assert frames.fps == sequences.fps == pytest.approx(4 / (a.seconds[1:].sum() + b.seconds[1:].sum()))


def test_an_overlap_counts_where_it_is_above_a_threshold_not_at_it():
    """As in the toolkit's `ExperimentGOT10k.report` (ious > 0.5) and `_calc_curves` (np.greater)."""
    ious = np.array([np.nan, 0.5, np.nextafter(0.5, 1), 0.75, np.nextafter(0.75, 1), 0.0])
    (zeros, ones) = np.zeros((6, 4)), np.ones(6)
    scores = score([SequenceResult("a", zeros, ones, ones, ious)])
    assert (scores.sr50, scores.sr75, scores.frames) == (3 / 5, 1 / 5, 5)
    # above how many of 0, 0.05, ..., 1
    assert scores.auc == pytest.approx((10 + 11 + 15 + 16 + 0) / (5 * 21))


def test_the_toolkit_reports_the_same(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    experiments = pytest.importorskip("got10k.experiments")
    results = list(evaluate(Still(), open_dataset(root)))
    for result in results:
        write_results(tmp_path / "results", "still", result)
    experiment = experiments.ExperimentGOT10k(
        str(root), "val", str(tmp_path / "results"), str(tmp_path / "reports")
    )
    monkeypatch.setattr(experiment, "plot_curves", lambda *_: None)
    report = experiment.report(["still"])["still"]
    assert report["overall"]["ao"] == pytest.approx(score(results).ao)
    assert report["overall"]["sr"] == pytest.approx(score(results).sr50)
    assert report["seq_wise"]["a"]["ao"] == pytest.approx(score(results[:1]).ao)


def test_results_are_written_to_a_thousandth_of_a_pixel(tmp_path):
    boxes = np.array([[10.1234, 20.5, 30.25, 40.9996], [1 / 3, -2.5, 1000.75, 7.0]])
    seconds = np.array([0.25, 0.00390625])
    path = write_results(tmp_path, "mine", SequenceResult("a", boxes, np.ones(2), seconds, None))
    assert path.read_text() == "10.123,20.500,30.250,41.000\n0.333,-2.500,1000.750,7.000\n"
    assert np.loadtxt(path.with_name("a_time.txt")).tolist() == seconds.tolist()


def test_selected_sequences_and_errors(root, tmp_path):
    dataset = open_dataset(root)
    assert [result.name for result in evaluate(Still(), dataset, ["b"])] == ["b"]
    with pytest.raises(ValueError, match=r"Unknown sequence c; known: a, b"):
        list(evaluate(Still(), dataset, ["c"]))
    (root / "val" / "b" / "00000002.jpg").unlink()
    with pytest.raises(ValueError, match="Sequence b is incomplete"):
        list(evaluate(Still(), dataset, ["b"]))
    with pytest.raises(FileNotFoundError, match=r"val/list\.txt"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="no frames to score"):
        score([])


def test_the_error_of_a_missing_toolkit_says_how_to_install_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "got10k.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install correlation_aware\[eval\]"):
        open_dataset(root)


def test_eval_got10k(root, tmp_path):
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")
    words = ["eval", "got10k", str(root), "--model", "sbt_test_track", "--weights", "random"]
    words += ["--device", "cpu", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "average" in result.output and "frames/s" in result.output
    figures = json.loads((tmp_path / "all.json").read_text())
    assert set(figures["sequences"]) == {"a", "b"}
    assert set(figures["average"]) == set(Scores.__dataclass_fields__)
    boxes = np.loadtxt(tmp_path / "out/GOT-10k/sbt_test_track/a/a_001.txt", delimiter=",")
    assert boxes.shape == (4, 4)
    result = CliRunner().invoke(app, [*words, "--subset", "vol"])
    assert isinstance(result.exception, ValueError) and "val, train, test" in str(result.exception)


def test_a_sequence_whose_target_is_never_seen_again_is_left_out(root, tmp_path):
    write_sequence(root / "val" / "c", [(10, 10, 20, 20)] * 3, hidden=2)
    (root / "val" / "list.txt").write_text("a\nb\nc\n")
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")
    words = ["eval", "got10k", str(root), "--model", "sbt_test_track", "--weights", "random"]
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--json", str(tmp_path / "all.json")])
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "all.json").read_text())["sequences"]) == {"a", "b"}
