"""One-pass evaluation: hand-computed figures on a tiny tree, the toolkit's file layout, clear errors."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from correlation_aware.cli import eval as cli_eval
from correlation_aware.evaluation.benchmarks import SequenceFailure, evaluate, open_benchmark
from correlation_aware.evaluation.one_pass import Scores, SequenceResult, average, score
from correlation_aware.evaluation.results import ResultFolder
from correlation_aware.tracking.tracker import TrackResult


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
    a, b = evaluate(Still(), open_benchmark("got10k", root))
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
    results = list(evaluate(Still(), open_benchmark("got10k", root)))
    folder = ResultFolder(tmp_path / "results", open_benchmark("got10k", root), "still")
    for result in results:
        folder.write(result)
    experiment = experiments.ExperimentGOT10k(
        str(root), "val", str(tmp_path / "results"), str(tmp_path / "reports")
    )
    monkeypatch.setattr(experiment, "plot_curves", lambda *_: None)
    report = experiment.report(["still"])["still"]
    assert report["overall"]["ao"] == pytest.approx(score(results).ao)
    assert report["overall"]["sr"] == pytest.approx(score(results).sr50)
    assert report["seq_wise"]["a"]["ao"] == pytest.approx(score(results[:1]).ao)


def test_results_are_written_to_a_thousandth_of_a_pixel(root, tmp_path):
    boxes = np.array([[10.1234, 20.5, 30.25, 40.9996], [1 / 3, -2.5, 1000.75, 7.0]])
    seconds = np.array([0.25, 0.00390625])
    folder = ResultFolder(tmp_path, open_benchmark("got10k", root), "mine")
    path = folder.write(SequenceResult("b", boxes, np.ones(2), seconds, None))
    assert path == tmp_path / "GOT-10k/mine/b/b_001.txt"
    assert path.read_text() == "10.123,20.500,30.250,41.000\n0.333,-2.500,1000.750,7.000\n"
    assert np.loadtxt(path.with_name("b_time.txt")).tolist() == seconds.tolist()
    read = folder.read("b")
    assert np.array_equal(read.boxes, boxes.round(3)) and np.array_equal(read.seconds, seconds)


def test_selected_sequences_and_errors(root, tmp_path):
    benchmark = open_benchmark("got10k", root)
    assert [result.name for result in evaluate(Still(), benchmark, ["b"])] == ["b"]
    with pytest.raises(ValueError, match=r"Unknown sequence c; known: a, b"):
        list(evaluate(Still(), benchmark, ["c"]))
    with pytest.raises(ValueError, match=r"Unknown benchmark 'got'; known: got10k"):
        open_benchmark("got", root)
    with pytest.raises(ValueError, match=r"GOT-10k has no subset 'vol'; it has val, train, test"):
        open_benchmark("got10k", root, "vol")
    with pytest.raises(FileNotFoundError, match=r"neither a list\.txt nor folders with a groundtruth\.txt"):
        open_benchmark("got10k", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none does not exist; a folder in GOT-10k's layout"):
        open_benchmark("got10k", tmp_path / "none")
    with pytest.raises(ValueError, match="no frames to score"):
        score([])


FAULTS = {
    "a first box that is nan": (
        "groundtruth.txt",
        "nan,nan,nan,nan\n1,2,3,4\n",
        "no visible target to start on",
    ),
    "a first box without an area": ("groundtruth.txt", "0,0,0,0\n1,2,3,4\n", "no visible target to start on"),
    "too few lines": (
        "groundtruth.txt",
        "1,2,3,4\n",
        "absence.label must have 1 integers, one per frame; it has 2",
    ),
    "too many lines": ("groundtruth.txt", "1,2,3,4\n" * 3, "must have 3 integers"),
    "text": ("groundtruth.txt", "x,y,w,h\n1,2,3,4\n", "not a table of numbers"),
    "five numbers": ("groundtruth.txt", "1,2,3,4,5\n1,2,3,4,5\n", "must have 4 numbers .* or 8"),
    "too many flags": ("cover.label", "8 8 8", "must have 2 integers, one per frame; it has 3"),
    "a damaged frame": ("00000002.jpg", "", "00000002.jpg: not an image"),
    "a frame too many": ("cover.jpg", "", "the order of the frames in .* is unknown"),
}


@pytest.mark.parametrize("file, content, words", FAULTS.values(), ids=FAULTS)
def test_a_bad_sequence_is_named_and_the_others_go_on(root, file, content, words):
    write_sequence(root / "val" / "c", [(10, 10, 20, 20)] * 2)
    (root / "val" / "list.txt").write_text("a\nb\nc\n")
    (root / "val" / "b" / file).write_text(content)
    a, b, c = evaluate(Still(), open_benchmark("got10k", root))
    assert isinstance(b, SequenceFailure) and b.name == "b"
    assert re.search(words, b.reason) and "Error: " in b.reason, b.reason
    assert a.ious.size == 2 and c.ious.tolist() == [1]


def test_a_wrong_number_of_lines_is_refused_without_flags_too(root):
    for label in ("cover", "absence", "cut_by_image"):
        (root / "val" / "a" / f"{label}.label").unlink()
    for lines in (3, 5):
        (root / "val" / "a" / "groundtruth.txt").write_text("1,2,3,4\n" * lines)
        (failure,) = evaluate(Still(), open_benchmark("got10k", root), ["a"])
        assert f"4 frames and {lines} lines of annotation" in failure.reason


def test_a_tracker_that_raises_fails_in_its_sequence_alone(root):
    class Fragile(Still):
        def update(self, frame):
            if self.box[0] == 40:
                raise ZeroDivisionError
            return super().update(frame)

    a, b = evaluate(Fragile(), open_benchmark("got10k", root))
    assert a.ious.size == 2 and b == SequenceFailure("b", "ZeroDivisionError")


def test_names_with_blanks_and_all_separators(root):
    for name, line in {
        "m space name": "1 2\t3 4",
        "c": "1;2;3;4",
        "d": "1, 2, 3, 4",
        "p": "1,2,4,2,4,6,1,6",
    }.items():
        write_sequence(root / "val" / name, [(1, 2, 3, 4)] * 3)
        (root / "val" / name / "groundtruth.txt").write_text(f"{line}\r\n" * 3)
    (root / "val" / "list.txt").write_text("m space name\r\n\nc\nd \np\n")
    for result in evaluate(Still(), open_benchmark("got10k", root)):
        assert isinstance(result, SequenceResult), result
        np.testing.assert_allclose(result.ious, [1, 1])
        assert result.boxes[0].tolist() == [1, 2, 3, 4]


ABSENT = {
    "zeros": ("groundtruth.txt", "9 9 9 9\n9 9 9 9\n0 0 0 0\n9 9 9 9\n9 9 9 9", [1, 1, 1]),
    "nan": ("groundtruth.txt", "9 9 9 9\n9 9 9 9\nnan nan nan nan\n9 9 9 9\n9 9 9 9", [1, 1, 1]),
    "absence": ("absence.label", "0\n0\n1\n0\n0", [1, 1, 1]),
    "cover": ("cover.label", "8\n8\n0\n8\n8", [1, 1, 1]),
    "a miss": ("groundtruth.txt", "9 9 9 9\n9 9 9 9\n50 30 9 9\n9 9 9 9\n9 9 9 9", [1, 0, 1, 1]),
}


@pytest.mark.parametrize("file, content, expected", ABSENT.values(), ids=ABSENT)
def test_absent_frames_are_left_out_however_they_are_written(root, file, content, expected):
    folder = root / "val" / "c"
    write_sequence(folder, [(9, 9, 9, 9)] * 5)
    for optional in ("cover.label", "absence.label", "cut_by_image.label", "meta_info.ini"):
        (folder / optional).unlink()
    (folder / file).write_text(content)
    (root / "val" / "list.txt").write_text("c")
    (result,) = evaluate(Still(), open_benchmark("got10k", root))
    np.testing.assert_allclose(result.ious, expected)


def test_the_test_set_has_results_and_no_figures(root, tmp_path):
    (root / "val").rename(root / "test")
    (root / "test/a/groundtruth.txt").write_text("10,10,20,20\n")
    benchmark = open_benchmark("got10k", root, "test")
    a, _ = evaluate(Still(), benchmark)
    assert a.boxes.shape == (4, 4) and a.overlaps is None and not a.ious.size
    folder = ResultFolder(tmp_path, benchmark, "still")
    folder.write(a)
    assert isinstance(folder.read("a"), SequenceResult)


def app():
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")
    return app


def test_a_bad_sequence_changes_the_exit_code_and_is_in_the_json(root, tmp_path):
    (root / "val" / "b" / "groundtruth.txt").write_text("nan nan nan nan\n1 2 3 4\n")
    words = ["eval", "got10k", str(root), "--tracker", "still", "--json", str(tmp_path / "all.json")]
    result = CliRunner().invoke(app(), words)
    assert result.exit_code == 3, result.output
    assert "b failed: ValueError: the first frame has no visible target" in result.output
    assert "1 of 2 sequences failed: b" in result.output and "average" in result.output
    report = json.loads((tmp_path / "all.json").read_text())
    assert list(report["failed"]) == ["b"] and list(report["sequences"]) == ["a"]
    (root / "val" / "a" / "groundtruth.txt").write_text("x")
    result = CliRunner().invoke(app(), words)
    assert "None of 2 sequences could be evaluated; a: " in str(result.exception)


def test_files_of_results_are_scored_without_running(root, tmp_path):
    still = ResultFolder(tmp_path, open_benchmark("got10k", root), "still")
    for result in evaluate(Still(), open_benchmark("got10k", root)):
        still.write(result)
    flat = tmp_path / "flat"  # as other toolkits write it: one file per sequence, tabs, no times
    flat.mkdir()
    for name in "ab":
        lines = (still.path / name / f"{name}_001.txt").read_text().replace(",", "\t")
        (flat / f"{name}.txt").write_text(lines)
    words = ["eval", "got10k", str(root), "--json", str(tmp_path / "all.json"), "--results"]
    for folder in (still.path, flat):
        result = CliRunner().invoke(app(), [*words, str(folder)])
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "all.json").read_text())
        assert report["average"]["ao"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    (flat / "b.txt").write_text("1,2,3,4\n")
    result = CliRunner().invoke(app(), [*words, str(flat)])
    assert result.exit_code == 3 and "the result has 1 boxes and the sequence 2 frames" in result.output
    result = CliRunner().invoke(app(), [*words, str(flat), "--tracker", "still"])
    assert "--tracker: no effect with --results" in str(result.exception)


def test_eval_got10k(root, tmp_path):
    words = ["eval", "got10k", str(root), "--model", "sbt_test_track", "--weights", "random"]
    words += ["--device", "cpu", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    result = CliRunner().invoke(app(), words)
    assert result.exit_code == 0, result.output
    assert "average" in result.output and "frames/s" in result.output
    figures = json.loads((tmp_path / "all.json").read_text())
    assert set(figures["sequences"]) == {"a", "b"}
    assert set(figures["average"]) == set(Scores.__dataclass_fields__)
    boxes = np.loadtxt(tmp_path / "out/GOT-10k/sbt_test_track/a/a_001.txt", delimiter=",")
    assert boxes.shape == (4, 4)
    words[words.index("--output") + 1] = str(tmp_path / "paper")
    result = CliRunner().invoke(app(), [*words, "--decode", "paper"])
    assert result.exit_code == 0, result.output
    files = (tmp_path / name / "GOT-10k" / "sbt_test_track.json" for name in ("out", "paper"))
    default, paper = (json.loads(file.read_text())["run"]["config"] for file in files)
    assert (default["window_weight"], default["damp_size"]) == (0.49, True)
    assert (paper["window_weight"], paper["damp_size"]) == (0, False)
    result = CliRunner().invoke(
        app(), ["eval", "got10k", str(root), "--tracker", "still", "--decode", "paper", "--redetect"]
    )
    assert "--decode, --redetect: no effect with --tracker" in str(result.exception)
    result = CliRunner().invoke(app(), [*words, "--subset", "vol"])
    assert "has no subset 'vol'; it has val, train, test" in str(result.exception)


def test_a_sequence_whose_target_is_never_seen_again_is_left_out(root, tmp_path):
    write_sequence(root / "val" / "c", [(10, 10, 20, 20)] * 3, hidden=2)
    (root / "val" / "list.txt").write_text("a\nb\nc\n")
    words = ["eval", "got10k", str(root), "--model", "sbt_test_track", "--weights", "random"]
    result = CliRunner().invoke(app(), [*words, "--device", "cpu", "--json", str(tmp_path / "all.json")])
    assert result.exit_code == 0, result.output
    assert set(json.loads((tmp_path / "all.json").read_text())["sequences"]) == {"a", "b"}
