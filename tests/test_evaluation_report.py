"""The report: intervals, comparisons, attributes, and the page, JSON, CSV and LaTeX that are made of it."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_evaluation import write_sequence
from test_evaluation_benchmarks import BOXES, make_lasot, make_otb, make_uav123, write_lines
from typer.testing import CliRunner

from correlation_aware.cli import app
from correlation_aware.evaluation.attributes import COLUMNS, read_attributes
from correlation_aware.evaluation.benchmarks import Benchmark, open_benchmark
from correlation_aware.evaluation.bootstrap import Interval, compare, intervals
from correlation_aware.evaluation.one_pass import average
from correlation_aware.evaluation.report import METRICS, Pair, make_report
from correlation_aware.evaluation.report_page import _sentence, write_page
from correlation_aware.evaluation.results import ResultFolder, describe_run
from correlation_aware.evaluation.submission import find_faults, pack
from correlation_aware.tracking.tracker import TrackResult

NAMES = [f"s{i}" for i in range(8)]


class Moves:
    """Moves the first box by `step` px per frame, with a score of 0.9 before and 0.2 after the 2nd frame."""

    def __init__(self, step: float) -> None:
        self.step = step

    def init(self, frame, box):
        self.box, self.score = np.array(box), 0.9

    def update(self, frame):
        self.box[0] += self.step
        score, self.score = self.score, 0.2
        return TrackResult(tuple(self.box), score, False)


@pytest.fixture
def drawn_benchmark(tmp_path: Path) -> Benchmark:
    """Sequence i moves by i px per frame."""
    for i, name in enumerate(NAMES):
        write_sequence(tmp_path / "data" / "val" / name, [(2 + i * j, 5, 12, 10) for j in range(4)])
    (tmp_path / "data" / "val" / "list.txt").write_text("\n".join(NAMES))
    return open_benchmark("got10k", tmp_path / "data")


@pytest.fixture
def folders(drawn_benchmark, tmp_path) -> list[str]:
    """A run of a tracker with scores, and files of boxes alone without the last sequence."""
    run = ResultFolder(tmp_path / "out", drawn_benchmark, "good")
    run.start(describe_run(drawn_benchmark, "good", "ab" * 32, {"window": {"weight": 0.4}}))
    assert len(list(run.evaluate(Moves(3)))) == len(NAMES)
    for result in ResultFolder(tmp_path / "other", drawn_benchmark, "x").evaluate(Moves(0), NAMES[:-1]):
        (tmp_path / "text").mkdir(exist_ok=True)
        write_lines(tmp_path / "text" / f"{result.name}.txt", result.boxes.tolist(), "\t")
    return [str(run.path), f"<b>&_bad={tmp_path / 'text'}"]


def test_intervals_have_the_width_of_students():
    values = np.random.default_rng(1).normal(0.5, 0.1, (12, 1))
    ((mean, low, high),) = [(i.mean, i.low, i.high) for i in intervals(values)]
    half = 2.201 * values.std(ddof=1) / math.sqrt(12)  # t of 11 degrees of freedom
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert intervals(values) == intervals(values) != intervals(values, seed=1)
    assert intervals(np.full((6, 1), 0.25)) == [Interval(0.25, 0.25, 0.25)]
    (few,) = intervals(values[:5])
    assert few.mean == pytest.approx(values[:5].mean()) and math.isnan(few.low) and math.isnan(few.high)


def test_a_comparison_is_paired():
    base = np.linspace(0, 1, 12)  # a spread far larger than the difference of the two
    c = compare(base + 0.01 + 0.002 * (-1.0) ** np.arange(12), base)
    assert c.is_clear and (c.wins, c.ties, c.losses, c.reversed) == (12, 0, 0, 0)
    assert c.difference.mean == pytest.approx(0.01)
    noise = np.array([0.3, -0.2, 0.1, 0, -0.1, 0.2, -0.3, 0.1])
    c = compare(base[:8] + noise, base[:8])
    assert not c.is_clear and (c.wins, c.ties, c.losses) == (4, 1, 3) and 0.2 < c.reversed < 0.5
    assert c.needed == math.ceil((1.959964 * noise.std(ddof=1) / noise.mean()) ** 2)
    assert not compare(base[:5] + 0.5, base[:5]).is_clear  # five sequences say nothing
    assert compare(base, base).needed == 0


def test_figures_are_of_the_sequences_that_all_trackers_have(drawn_benchmark, folders, tmp_path):
    (tmp_path / "text" / "s2.txt").write_text("1,2,3,4\n")  # damaged
    report = make_report(folders, worst=2)
    assert (report.benchmark, report.subset, report.main) == ("GOT-10k", "val", "ao")
    assert list(report.sequences) == ["s0", "s1", "s3", "s4", "s5", "s6"]
    assert report.left_out["s7"] == "no result of <b>&_bad"
    assert "1 boxes and the sequence 4 frames" in report.left_out["s2"]
    good, bad = report.trackers
    assert (good.name, bad.name) == ("good", "<b>&_bad")
    folder = ResultFolder(tmp_path / "out", drawn_benchmark, "good")
    expected = average([folder.read(name) for name in report.sequences])
    for metric in ("ao", "sr50", "sr75", "auc"):
        assert good.totals[metric].mean == pytest.approx(getattr(expected, metric)), metric
    assert good.totals["precision"].mean == 1  # at most 9 px
    success = good.curves["success"]
    assert success.mean() == pytest.approx(good.totals["auc"].mean) and (np.diff(success) <= 0).all()
    assert good.curves["precision"][20] == good.totals["precision"].mean
    (pair,) = report.pairs
    assert (pair.better, pair.worse) == ("good", "<b>&_bad")
    c = pair.comparison  # the second is better on s0 and s1: 0 and 1 px per frame
    assert (c.wins, c.ties, c.losses) == (4, 0, 2)
    assert c.difference.mean == pytest.approx(good.totals["ao"].mean - bad.totals["ao"].mean)
    assert good.calibration is not None and bad.calibration is None
    assert good.calibration.count.tolist() == [0, 0, 12, 0, 0, 0, 0, 0, 0, 6]  # 2 of 3 frames with 0.2
    assert good.speed is not None and good.speed.median <= good.speed.p95 and bad.speed is None
    assert [(frame.sequence, frame.index) for frame in bad.worst] == [("s6", 2), ("s5", 3)]  # 2 * 6 = 12 px
    assert bad.worst[0].overlap == 0 and bad.worst[0].truth == (14, 5, 12, 10)


def test_scores_are_kept_and_are_not_submitted(drawn_benchmark, folders, tmp_path):
    folder = ResultFolder(tmp_path / "out", drawn_benchmark, "good")
    assert folder.read("s0").scores.tolist() == [1, 0.9, 0.2, 0.2]
    assert find_faults(folder.path, drawn_benchmark) == []
    assert not [name for name in pack(folder.path, drawn_benchmark, tmp_path / "s.zip") if "score" in name]
    folder.files("s0")[2].write_text("1\n0.5\n")
    assert "the result has 2 scores and the sequence 4 frames" in folder.read("s0").reason


class Checks(HTMLParser):
    """Elements that are closed in order, what they refer to, and controls without a name."""

    VOID = ("meta", "image", "rect", "path", "polyline", "circle", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.refers += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "svg":
            assert found.get("aria-hidden") == "true" or (found["role"] == "img" and found["aria-label"])
        if tag == "button":
            assert found["type"] == "button"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_command_line_writes_a_page_and_tables(folders, tmp_path):
    files = {option: tmp_path / f"r.{option}" for option in ("html", "json", "csv", "tex")}
    options = [f"--{'latex' if option == 'tex' else option}={path}" for option, path in files.items()]
    result = CliRunner().invoke(
        app, ["eval", "report", f"<i>good={folders[0]}", folders[1], *options, "--worst", "2"]
    )
    assert result.exit_code == 0, str(result.exception)
    assert "s7 is left out: no result of <b>&_bad" in result.output
    page = files["html"].read_text("utf-8")
    checks = Checks()
    checks.feed(page)
    assert not checks.open and len(set(checks.ids)) == len(checks.ids)
    images = [link for link in checks.refers if not link.startswith("#")]
    assert len(images) == 4 and all(link.startswith("data:image/jpeg;base64,") for link in images)
    assert {link[1:] for link in checks.refers if link.startswith("#")} <= set(checks.ids)
    text = "".join(checks.text)
    assert "<b>&_bad" in text and "<i>good" in text and not {"b", "i"} & set(checks.tags)
    assert "A difference on 7 sequences means little" in text and "ab" * 32 in text
    assert "window weight" in text and str(tmp_path) not in page
    assert "Files of boxes without a manifest" in text and "calibration error" in text

    content = json.loads(files["json"].read_text(), parse_constant=pytest.fail)
    good, bad = content["trackers"].values()
    assert good["totals"]["ao"]["mean"] > bad["totals"]["ao"]["mean"]
    assert "root" not in good["manifest"]["machine"]
    rows = list(csv.DictReader(files["csv"].open(newline="")))
    assert len([row for row in rows if row["kind"] == "sequence"]) == 2 * 7 * len(METRICS)
    (ao,) = [row for row in rows if (row["tracker"], row["kind"], row["metric"]) == ("<i>good", "all", "ao")]
    assert float(ao["low"]) < float(ao["value"]) < float(ao["high"]) and ao["sequences"] == "7"
    latex = files["tex"].read_text()
    assert r"<b>\&\_bad & " in latex and latex.count(r"\textbf{") >= len(METRICS)


def test_a_page_with_many_trackers(folders, tmp_path):
    many = [f"long_name_{i}={folders[0]}" for i in range(8)]
    write_page(make_report(many, worst=0), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    table = page.partition('id="overall"')[2].partition("</section>")[0]
    lines = re.findall(r'stroke="(.*?)".*?stroke-dasharray="(.*?)"', table)
    assert len(lines) == len(set(lines)) == 8  # as in the plots, where colors repeat with other dashes
    assert "long_<wbr>name_<wbr>3" in table and ">long_name_3<" not in table
    assert page.count("<details>") == 1 + 28 + 8 and "Every pair by sequence" in page
    write_page(make_report(many[:2], worst=0), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count("<details>") == 1 + 2 and "Every pair by sequence" not in page


def test_two_sequences_have_no_interval(drawn_benchmark, folders, tmp_path):
    for name in ("s0", "s1", "s2", "s3", "s4"):
        for path in (tmp_path / "text").rglob(f"{name}*.txt"):
            path.unlink()
    result = CliRunner().invoke(app, ["eval", "report", *folders])
    assert result.exit_code == 0, str(result.exception)
    text = " ".join(result.stdout.split())
    assert "(too few sequences for an interval), 2 won" in text and "nan" not in text


def test_sequences_that_are_there_are_not_asked_for():
    """With 7 sequences the interval is wider than the normal one, from which the number needed follows."""
    c = compare(np.linspace(-1, 1, 7) + 0.58, np.zeros(7))
    assert not c.is_clear and c.needed == 6
    assert "would separate" not in _sentence(Pair("a", "b", c), 7)
    assert "About 6 sequences with this difference" in _sentence(Pair("a", "b", c), 5)


def test_worst_frames_without_their_images(drawn_benchmark, folders, tmp_path):
    for path in (tmp_path / "data").rglob("0000000[234].jpg"):
        path.write_bytes(b"")
    result = CliRunner().invoke(app, ["eval", "report", *folders, "--html", str(tmp_path / "r.html")])
    assert result.exit_code == 0, str(result.exception)
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "The image cannot be read. s6, frame 3 of 4." in page and "base64" not in page


def test_mistakes(drawn_benchmark, folders, tmp_path):
    run, (other,) = folders[0], folders[1:]
    for arguments, words in (
        ([other], "no manifest that says the benchmark: name it with --benchmark"),
        ([f"{run}.json"], r"good\.json is a file; expected the folder of a tracker"),
        ([f"{run}x"], r"goodx does not exist; expected the folder of a tracker"),
        ([str(Path(run).parent)], r"GOT-10k has no results; expected .* such as FOLDER/GOT-10k/TRACKER"),
        ([str(Path(run).parent.parent)], "out has no results; expected the folder of a tracker"),
        ([run, run], "Two trackers are named good: write one of them as another_name="),
        ([], "needs the folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            make_report(arguments)
    with pytest.raises(ValueError, match=r"A report is on one benchmark: good got10k; --benchmark otb"):
        make_report([run], benchmark="otb")
    with pytest.raises(ValueError, match="GOT-10k has no files of attributes; OTB2015, LaSOT"):
        make_report([run], attributes=tmp_path)
    for path in (tmp_path / "text").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="text has no results; expected"):
        make_report(folders)
    (tmp_path / "text" / "another.txt").write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=r"no sequence in common .*; s0: no result of <b>&_bad"):
        make_report(folders)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"The dataset was in .*data; name its folder with --root"):
        make_report([run])
    assert len(make_report([run], root=tmp_path / "moved").sequences) == len(NAMES)


@pytest.mark.parametrize(
    "key, make, place, names",
    [
        ("otb", make_otb, "anno/att", {"Jogging.2": "jogging-2"}),
        ("lasot", make_lasot, "annos/att", {}),
        ("uav123", make_uav123, "anno/UAV123/att", {}),
    ],
)
def test_published_attributes(tmp_path, key, make, place, names):
    sequences = make(tmp_path)
    benchmark = open_benchmark(key, tmp_path)
    columns = COLUMNS[benchmark.protocol.title]
    for i, name in enumerate(sequences):
        flags = [int(j == i) for j in range(len(columns))]
        write_lines(tmp_path / place / f"{names.get(name, name)}.txt", [flags])
    videos = {name: benchmark[name] for name in sequences}
    groups, source = read_attributes(benchmark, videos)
    assert source == f"published by {benchmark.protocol.title}"
    assert groups == {columns[i]: [name] for i, name in enumerate(sequences)}
    assert read_attributes(benchmark, videos, tmp_path / place) == (groups, source)
    write_lines(tmp_path / place / f"{sequences[0]}.txt", [[1, 2]])
    with pytest.raises(ValueError, match=rf"must have {len(columns)} numbers, 0 or 1: '1 2'"):
        read_attributes(benchmark, videos)
    (tmp_path / place / f"{sequences[0]}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {sequences[0]}.txt with the attributes"):
        read_attributes(benchmark, videos)


def test_attributes_of_got10k_and_of_boxes(tmp_path):
    folder = tmp_path / "val" / "a"
    write_sequence(folder, [*BOXES, (20, 10, 45, 20)], hidden=0)
    (folder / "meta_info.ini").write_text("[METAINFO]\nroot_class: animal\nmotion_class: unknown\n")
    (folder / "cover.label").write_text("8\n8\n4\n8\n")
    write_sequence(tmp_path / "val" / "b", [(0, 0, 40, 40), (0, 0, 40, 40)])
    cv2.imwrite(str(folder / "00000001.jpg"), np.zeros((40, 60, 3), np.uint8))
    benchmark = open_benchmark("got10k", tmp_path)
    groups, source = read_attributes(benchmark, {name: benchmark[name] for name in benchmark.names})
    assert groups == {
        "aspect ratio change": ["a"],
        "label: at most 60 % visible": ["a"],
        "low resolution": ["a"],
        "root class: animal": ["a"],
    }
    assert "computed from the annotated boxes" in source and "meta_info.ini" in source
