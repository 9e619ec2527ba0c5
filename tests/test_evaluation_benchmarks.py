"""The benchmarks of the field: their layouts, figures of their toolkits, and files for their servers."""

import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_evaluation import Still, write_sequence
from typer.testing import CliRunner

from correlation_aware.cli import app
from correlation_aware.cli.eval import COMMANDS
from correlation_aware.evaluation import layouts
from correlation_aware.evaluation.benchmarks import BENCHMARKS, evaluate, open_benchmark
from correlation_aware.evaluation.one_pass import SequenceResult, average, center_errors, overlap, score
from correlation_aware.evaluation.results import ResultFolder
from correlation_aware.evaluation.submission import find_faults, pack

BOXES = [(10, 10, 20, 20), (10, 10, 20, 20), (20, 10, 20, 20)]  # the still box has IoU 1, 1, 1/3


def write_frames(folder: Path, count: int, first: int = 1, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = cv2.imencode(suffix, np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    for i in range(first, first + count):
        (folder / f"{i:06d}{suffix}").write_bytes(content)


def write_lines(path: Path, rows: list, separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def make_otb(root: Path) -> list[str]:
    write_frames(root / "Car" / "img", 3)
    write_lines(root / "Car" / "groundtruth_rect.txt", BOXES, "\t")
    write_frames(root / "Jogging" / "img", 3)
    write_lines(root / "Jogging" / "groundtruth_rect.1.txt", BOXES)
    write_lines(root / "Jogging" / "groundtruth_rect.2.txt", BOXES[::-1])
    write_frames(root / "Human4" / "img", 3)
    write_lines(root / "Human4" / "groundtruth_rect.1.txt", [])
    write_lines(root / "Human4" / "groundtruth_rect.2.txt", BOXES)
    write_frames(root / "Football1" / "img", 80)
    write_lines(root / "Football1" / "groundtruth_rect.txt", [BOXES[0]] * 74)
    return ["Car", "Football1", "Human4", "Jogging.1", "Jogging.2"]


def make_lasot(root: Path) -> list[str]:
    for name in ("cat-1", "cat-20", "dog-3"):
        folder = root / name.split("-")[0] / name
        write_frames(folder / "img", 3)
        write_lines(folder / "groundtruth.txt", BOXES)
        write_lines(folder / "full_occlusion.txt", [(0, 0, 0)])
        write_lines(folder / "out_of_view.txt", [(0, 0, 0)])
    (root / "testing_set.txt").write_text("cat-1\ndog-3\n")
    return ["cat-1", "dog-3"]


def make_lasot_ext(root: Path) -> list[str]:
    make_lasot(root)
    (root / "testing_set.txt").unlink()
    return ["cat-1", "cat-20", "dog-3"]


def make_uav123(root: Path) -> list[str]:
    write_frames(root / "data_seq/UAV123/bike1", 3)
    write_lines(root / "anno/UAV123/bike1.txt", BOXES)
    write_frames(root / "data_seq/UAV123/truck4", 580)
    write_lines(root / "anno/UAV123/truck4_2.txt", [*BOXES, ("NaN",) * 4])  # frames 577 to 580
    write_frames(root / "data_seq/UAV123/car1_s", 3)
    write_lines(root / "anno/UAV123/car1_s.txt", BOXES)
    return ["bike1", "car1_s", "truck4_2"]


def make_nfs(root: Path) -> list[str]:
    corners = [(x, y, x + w, y + h) for x, y, w, h in BOXES]
    rows = [
        (0, *corner, i, 0, 0, 0, '"car"') for i, corner in enumerate(c for c in corners for _ in range(8))
    ]
    write_frames(root / "car" / "30" / "car", 3)
    write_lines(root / "car" / "30" / "car.txt", rows, " ")
    write_frames(root / "dog" / "30" / "dog", 3)
    write_lines(root / "dog" / "30" / "dog.txt", rows[::8] + rows[-1:], " ")  # a line too many
    return ["car", "dog"]


def make_tnl2k(root: Path) -> list[str]:
    write_frames(root / "a_video_01" / "imgs", 3, suffix=".png")
    write_lines(root / "a_video_01" / "groundtruth.txt", BOXES)
    return ["a_video_01"]


def make_trackingnet(root: Path) -> list[str]:
    for name in ("a_0", "b_1"):
        write_frames(root / "TEST" / "frames" / name, 3, first=0)
        write_lines(root / "TEST" / "anno" / f"{name}.txt", BOXES[:1])
    return ["a_0", "b_1"]


MAKERS = {name.removeprefix("make_"): value for name, value in globals().items() if name.startswith("make_")}


@pytest.mark.parametrize("key", MAKERS)
def test_layouts(tmp_path, key):
    names = MAKERS[key](tmp_path)
    benchmark = open_benchmark(key, tmp_path)
    assert list(benchmark.names) == names
    results = list(evaluate(Still(), benchmark))
    for result in results:
        assert isinstance(result, SequenceResult), result
    if key == "trackingnet":
        assert all(result.overlaps is None and len(result.boxes) == 3 for result in results)
        return
    third = [r for r in results if r.name not in ("Football1", "Jogging.2")]
    for result in third:
        np.testing.assert_allclose(result.ious, [1, 1, 1 / 3], err_msg=result.name)
        scores = score([result])
        assert (scores.precision, scores.normalized_precision) == (
            1,
            pytest.approx(2 / 3),
        )  # 10 px, 0.5 widths
    if key == "uav123":
        assert results[-1].boxes.shape == (4, 4)
        assert [path.stem for path in benchmark["truck4_2"].frames] == [f"{i:06d}" for i in range(577, 581)]
    if key == "otb":
        assert len(results[1].ious) == 74


def test_every_benchmark_has_a_command_and_errors_name_the_layout(tmp_path):
    assert set(COMMANDS) == set(BENCHMARKS) == {"got10k", *MAKERS}
    for key in BENCHMARKS:
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}|no video"):
            open_benchmark(key, tmp_path)
    make_lasot_ext(tmp_path)
    assert list(open_benchmark("lasot", tmp_path, "train").names) == ["dog-3"]
    names = list(open_benchmark("lasot", tmp_path).names)  # the published list, what is missing included
    assert names[:2] == ["cat-1", "cat-20"] and len(set(names)) == 280 and "airplane-1" in names
    assert len(open_benchmark("lasot", tmp_path, "all").names) == 3
    with pytest.raises(FileNotFoundError, match="subset=all takes them all"):
        open_benchmark("lasot", tmp_path / "dog")


def test_the_starts_of_uav123_are_those_of_the_toolkit():
    datasets = pytest.importorskip("got10k.datasets")
    known = json.loads((Path(datasets.__file__).parent / "uav123.json").read_text())["UAV123"]
    starts = {
        f"{folder}_{i}": start
        for folder, all in layouts.UAV123_STARTS.items()
        for i, start in enumerate(all, 1)
    }
    expected = {name: m["start_frame"] for name, m in known.items() if m["folder_name"] != name}
    assert starts == expected and len(known) == 123


def test_the_toolkit_reports_the_same_for_uav123_and_otb(tmp_path, monkeypatch):
    """ExperimentUAV123 and ExperimentOTB on random boxes of a few sequences."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    experiments = pytest.importorskip("got10k.experiments")
    rng = np.random.default_rng(0)
    truth = {name: rng.uniform(1, 50, (7, 4)) for name in ("a", "b")}
    boxes = {name: value + rng.normal(0, 9, (7, 4)).clip(-0.9 * value.min()) for name, value in truth.items()}
    truth["a"][3] = np.nan
    experiment = object.__new__(experiments.ExperimentUAV123)
    experiment.nbins_iou, experiment.nbins_ce = 21, 51
    experiment.result_dir, experiment.report_dir = str(tmp_path / "results"), str(tmp_path / "reports")

    class Dataset:
        seq_names = tuple(truth)

        def __len__(self):
            return len(truth)

        def __iter__(self):
            return iter([([], truth[name]) for name in truth])

    experiment.dataset = Dataset()
    results = []
    for name in truth:
        boxes[name][0] = truth[name][0]
        write_lines(tmp_path / "results" / "t" / f"{name}.txt", boxes[name].tolist())
        overlaps = np.where(
            np.isnan(truth[name][:, 0]), np.nan, overlap(boxes[name], np.nan_to_num(truth[name]))
        )
        results.append(
            SequenceResult(
                name, boxes[name], np.ones(7), np.ones(7), overlaps, truth[name], counts_first=True
            )
        )
    monkeypatch.setattr(experiment, "plot_curves", lambda *_: None)
    overall = experiment.report(["t"])["t"]["overall"]
    ours = average(results)
    assert overall["success_score"] == pytest.approx(ours.auc, abs=1e-6)
    assert overall["precision_score"] == pytest.approx(ours.precision, abs=1e-6)
    assert overall["success_rate"] == pytest.approx(ours.sr50, abs=1e-6)


def test_metrics_agree_with_the_toolkit_on_any_boxes():
    hypothesis = pytest.importorskip("hypothesis")
    metrics = pytest.importorskip("got10k.utils.metrics")
    st = hypothesis.strategies
    # random, touching and empty boxes, partly or wholly outside the frame, and frames without a truth
    position = st.one_of(st.integers(-40, 120), st.floats(-200, 400, width=32))
    side = st.one_of(st.integers(0, 60), st.floats(0, 300, width=32), st.just(0))
    box = st.tuples(position, position, side, side)
    frames = st.lists(st.tuples(box, st.one_of(box, st.just((np.nan,) * 4))), min_size=1, max_size=3)

    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @hypothesis.given(frames, st.tuples(st.integers(1, 300), st.integers(1, 300)))
    def check(pairs, size):
        a, b = (np.array([pair[i] for pair in pairs], float) for i in (0, 1))
        visible = ~np.isnan(b[:, 0])
        a, b = a[visible], b[visible]
        for bound in (None, size):
            expected = metrics.rect_iou(a.copy(), b.copy(), bound=bound)
            np.testing.assert_allclose(overlap(a, b, bound), expected, atol=1e-6)
        np.testing.assert_allclose(center_errors(a, b), metrics.center_error(a, b), atol=1e-6)
        known = b[:, 2:].min(initial=1, axis=1) > 0
        by_hand = (a[known, :2] + a[known, 2:] / 2 - b[known, :2] - b[known, 2:] / 2) / b[known, 2:]
        np.testing.assert_allclose(
            center_errors(a[known], b[known], normalized=True), np.hypot(*by_hand.T), rtol=1e-6, atol=1e-6
        )

    check()


def test_boxes_that_are_not_finite_are_misses():
    truth = np.array([[1.0, 2, 3, 4]] * 3)
    boxes = np.array([[1.0, 2, 3, 4], [np.nan] * 4, [np.inf, 0, 1, 1]])
    assert overlap(boxes, truth).tolist() == [1, 0, 0]
    scores = score([SequenceResult("a", boxes, np.ones(3), np.ones(3), overlap(boxes, truth), truth, True)])
    assert (scores.ao, scores.precision) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.fixture
def submission(tmp_path):
    root = tmp_path / "data"
    for name in ("GOT-10k_Test_000001", "GOT-10k_Test_000002"):
        write_sequence(root / "test" / name, BOXES)
        write_lines(root / "test" / name / "groundtruth.txt", BOXES[:1])
    (root / "test" / "list.txt").write_text("GOT-10k_Test_000001\nGOT-10k_Test_000002\n")
    benchmark = open_benchmark("got10k", root, "test")
    folder = ResultFolder(tmp_path / "out", benchmark, "still")
    assert len(list(folder.evaluate(Still()))) == 2
    return root, folder


def test_a_submission_for_got10k(submission, tmp_path):
    root, folder = submission
    words = ["eval", "pack", "got10k", str(root), str(folder.path), "--output", str(tmp_path / "s.zip")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "with 4 files of 2 sequences" in result.output, result.output
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        name = "GOT-10k_Test_000001"
        assert archive.namelist()[:2] == [f"{name}/{name}_001.txt", f"{name}/{name}_time.txt"]
        assert (
            archive.read(f"{name}/{name}_001.txt").decode().splitlines()
            == ["10.000,10.000,20.000,20.000"] * 3
        )
    (folder.path / name / f"{name}_001.txt").unlink()
    (tmp_path / "s.zip").unlink()
    result = CliRunner().invoke(app, words)
    assert f"there is no {name}/{name}_001.txt" in result.output and not (tmp_path / "s.zip").exists()
    assert "1 faults, listed above" in str(result.exception)
    result = CliRunner().invoke(app, [*words[:2], "otb", *words[3:]])
    assert "otb has no server to submit to; expected got10k or trackingnet" in str(result.exception)


LINE = "10,10,20,20\n"
SUBMISSION_FAULTS = {
    "too few boxes": ("_001.txt", LINE * 2, "2 boxes for 3 frames"),
    "nan": (
        "_001.txt",
        f"{LINE}nan,1,2,3\n{LINE}",
        r"1 boxes are not finite or have no area, such as line 2",
    ),
    "no area": (
        "_001.txt",
        f"{LINE}{LINE}1,2,0,3\n",
        r"have no area, such as line 3: \[1.0, 2.0, 0.0, 3.0\]",
    ),
    "another first box": ("_001.txt", f"9,9,9,9\n{LINE * 2}", "the first box is .* not the given"),
    "text": ("_001.txt", "x\n", "is not a table of numbers"),
    "corners": ("_001.txt", "1,2,3,4,5,6,7,8\n" * 3, "8 numbers per line"),
    "no time": ("_time.txt", "0.1\n0\n0.1\n", "3 times for 3 frames, all of which have to be positive"),
    "too few times": ("_time.txt", "0.1\n", "1 times for 3 frames"),
    "another file": ("_note.txt", "hello", "_note.txt is not a file of a result"),
}


@pytest.mark.parametrize("suffix, content, words", SUBMISSION_FAULTS.values(), ids=SUBMISSION_FAULTS)
def test_what_a_server_would_reject(submission, tmp_path, suffix, content, words):
    _, folder = submission
    assert find_faults(folder.path, folder.benchmark) == []
    name = "GOT-10k_Test_000002"
    (folder.path / name / f"{name}{suffix}").write_text(content)
    (fault,) = find_faults(folder.path, folder.benchmark)
    assert name in fault and re.search(words, fault), fault
    with pytest.raises(ValueError, match=r"has 1 faults: .*GOT-10k_Test_000002"):
        pack(folder.path, folder.benchmark, tmp_path / "s.zip")


def test_a_submission_for_trackingnet_through_the_command_line(tmp_path):
    make_trackingnet(tmp_path / "data")
    words = ["eval", "trackingnet", str(tmp_path / "data"), "--tracker", "still", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, str(result.exception)
    path = tmp_path / "TrackingNet" / "still"
    result = CliRunner().invoke(
        app, ["eval", "pack", "trackingnet", str(tmp_path / "data"), str(path), "--output", f"{path}.zip"]
    )
    assert result.exit_code == 0, str(result.exception)
    with zipfile.ZipFile(f"{path}.zip") as archive:
        assert archive.namelist() == ["a_0.txt", "b_1.txt"]


def test_a_table_with_precisions(tmp_path):
    make_tnl2k(tmp_path)
    words = ["eval", "tnl2k", str(tmp_path), "--tracker", "still", "--json", str(tmp_path / "a.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, str(result.exception)
    assert "Pnorm" in result.output and "0.667" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["average"]["precision"] == 1
