"""Trackers besides our own in the evaluation: NanoTrack, OpenCV's, a fixed box, and those of other people."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from correlation_aware.cli import eval as cli_eval
from correlation_aware.evaluation.one_pass import overlap, run_sequence
from correlation_aware.evaluation.trackers import OpenCVTracker, create_baseline
from correlation_aware.tracking.tracker import TrackResult


def moving_square(count: int, side: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames and boxes of a dark target with a red spot in its middle that moves by 7, -3 px per frame."""
    boxes = np.array([(30 + 7 * i, 100 - 3 * i, side, side) for i in range(count)], float)
    frames = [np.full((160, 220, 3), 90, np.uint8) for _ in boxes]
    for frame, (x, y, w, h) in zip(frames, boxes.astype(int)):
        frame[y : y + h, x : x + w] = 30
        frame[y + h // 3 : y + h - h // 3, x + w // 3 : x + w - w // 3] = (240, 20, 20)
    return frames, boxes


def save_nanotrack(folder: Path, locations: int = 15) -> str:
    """An ONNX network in the form of NanoTrack's that scores the red of a location; its boxes are fixed."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, info, f = onnx.helper, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT

    def save(name, nodes, inputs, outputs, weights):
        graph = h.make_graph(
            nodes, name, inputs, outputs, [onnx.numpy_helper.from_array(*w) for w in weights]
        )
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), folder / name)

    pool = h.make_node("AveragePool", ["image"], ["features"], kernel_shape=[16, 16], strides=[16, 16],
                       pads=[8] * 4 if locations == 16 else [0, 0, 1, 1])  # fmt: skip
    save(
        "backbone.onnx",
        [pool],
        [info("image", f, [1, 3, 255, 255])],
        [info("features", f, [1, 3, 16, 16])],
        [],
    )
    # blue, green and red to the logits of background and target
    red = np.array([[0, 0, 0], [-0.05, -0.05, 0.1]], np.float32).reshape(2, 3, 1, 1)
    nodes = [
        h.make_node("AveragePool", ["search"], ["shared"], kernel_shape=[17 - locations] * 2),
        h.make_node("Conv", ["shared", "red", "bias"], ["scores"]),
        h.make_node("Conv", ["shared", "none", "side"], ["boxes"]),
    ]
    weights = [
        (red, "red"), (np.array([0, -4], np.float32), "bias"),
        (np.zeros((4, 3, 1, 1), np.float32), "none"), (np.full(4, 31.75, np.float32), "side"),
    ]  # fmt: skip
    inputs = [info("template", f, [1, 3, 8, 8]), info("search", f, [1, 3, 16, 16])]
    outputs = [info("scores", f, [1, 2, *[locations] * 2]), info("boxes", f, [1, 4, *[locations] * 2])]
    save("head.onnx", nodes, inputs, outputs, weights)
    return f"{folder / 'backbone.onnx'},{folder / 'head.onnx'}"


@pytest.mark.parametrize("version, locations", [("v2", 16), ("v3", 15)])
def test_nanotrack_follows_what_its_network_scores(tmp_path, version, locations):
    files = save_nanotrack(tmp_path, locations)
    baseline = create_baseline(f"nanotrack-{version}:{files}")
    assert (baseline.name, baseline.weights) == (f"nanotrack-{version}", files)
    frames, boxes = moving_square(12)
    tracked, scores, _ = run_sequence(baseline.tracker, frames, boxes[0])
    assert overlap(tracked, boxes).min() > 0.5  # locations are 10 px apart in the frame
    np.testing.assert_allclose(tracked[:, 2:], 40, atol=1)  # 63.5 px of a crop that is scaled by 127/80
    assert scores.min() > 0.5
    other = "v3" if version == "v2" else "v2"
    with pytest.raises(ValueError, match=rf"head\.onnx has outputs .*; NanoTrack{other.upper()} has"):
        create_baseline(f"nanotrack-{other}:{files}")
    with pytest.raises(ValueError, match="outside the frame"):
        baseline.tracker.init(frames[0], np.array([300.0, 0, 20, 20]))


def test_a_tracker_of_opencv_follows_and_starts_anew():
    baseline = create_baseline("opencv:mil")
    frames, boxes = moving_square(4)
    cv2.setRNGSeed(0)
    for start in (0, 1):  # a second sequence on the same tracker
        tracked, _, seconds = run_sequence(baseline.tracker, frames[start:], boxes[start] + 0.3)
        # MIL is random and drifts on a square without texture, but it starts on the box of its own sequence
        assert overlap(tracked[:1], boxes[start : start + 1]).min() > 0.9
        assert overlap(tracked[:2], boxes[start : start + 2]).min() > 0.1 and len(seconds) == 4 - start
    assert baseline.name == "opencv-mil"


def test_still_returns_the_first_box_in_every_frame():
    frames, boxes = moving_square(3)
    tracked, scores, _ = run_sequence(create_baseline("still").tracker, frames, boxes[0])
    assert tracked.tolist() == [boxes[0].tolist()] * 3 and scores.tolist() == [1, 1, 1]


MODULE = """
import numpy
class Fixed:
    def init(self, frame, box): self.box = box
    def update(self, frame): return numpy.array([self.box])  # no score
class Lost(Fixed):
    def update(self, frame): return None
def nothing(): return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(MODULE)
    (tmp_path / "needs.py").write_text("import a_missing_package")
    monkeypatch.chdir(tmp_path)
    yield "somebodys"
    sys.modules.pop("somebodys", None)


def test_a_tracker_of_a_module_in_the_current_folder(module):
    path = list(sys.path)
    baseline = create_baseline(f"{module}:Fixed")
    assert baseline.name == "somebodys.Fixed" and sys.path == path
    frames, boxes = moving_square(3)
    tracked, scores, _ = run_sequence(baseline.tracker, frames, boxes[0])
    assert tracked.tolist() == [boxes[0].tolist()] * 3
    assert scores[0] == 1 and np.isnan(scores[1:]).all()  # unknown
    with pytest.raises(ValueError, match="frame 1: the tracker returned None; expected a box of four finite"):
        run_sequence(create_baseline(f"{module}:Lost").tracker, frames, boxes[0])


@pytest.mark.parametrize(
    "text, error, words",
    [
        ("nothing", ValueError, "neither module:factory nor one of still, .*opencv:nano:BACKBONE,HEAD"),
        ("still:3", ValueError, "still:3: expected still$"),
        ("opencv:nano:a.onnx", ValueError, "expected opencv:nano:BACKBONE,HEAD"),
        ("opencv:nano:a.onnx,", ValueError, "expected opencv:nano:BACKBONE,HEAD"),
        (
            "opencv:nano:a.onnx,b.onnx",
            FileNotFoundError,
            "there is no file a.onnx; expected opencv:nano:BACK",
        ),
        ("nanotrack-v3:needs.py,needs.py", ValueError, "needs.py cannot be read as an ONNX model"),
        ("opencv:vit:needs.py", ValueError, "OpenCV's TrackerVit cannot read needs.py"),
        ("absent:make", ModuleNotFoundError, "there is no module absent in the current folder or installed"),
        ("needs:make", ModuleNotFoundError, "No module named 'a_missing_package'"),
        ("somebodys:absent", ValueError, "somebodys has no function absent; it has Fixed, Lost, nothing"),
        ("somebodys:nothing", ValueError, r"nothing\(\) returned int, which is not a tracker"),
    ],
)
def test_mistakes_name_what_is_known(module, text, error, words):
    with pytest.raises(error, match=words):
        create_baseline(text)


def test_a_tracker_that_opencv_was_built_without(monkeypatch):
    monkeypatch.delattr(cv2, "TrackerCSRT_create", raising=False)
    with pytest.raises(
        ImportError, match=r"has no TrackerCSRT; it has .*MIL.*opencv-contrib-python-headless"
    ):
        create_baseline("opencv:csrt")


def test_the_command_line_takes_a_tracker_instead_of_a_model(tmp_path):
    from test_evaluation import write_sequence

    write_sequence(tmp_path / "val" / "a", [(10, 10, 20, 20), (10, 10, 20, 20), (20, 10, 20, 20)])
    (tmp_path / "val" / "list.txt").write_text("a\n")
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")

    def run(*options):
        return CliRunner().invoke(app, ["eval", "got10k", str(tmp_path), *options])

    words = ["--name", "first-box", "--json", str(tmp_path / "all.json"), "--output", str(tmp_path / "out")]
    result = run("--tracker", "still", *words)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["tracker"] == "first-box" and report["average"]["ao"] == pytest.approx((1 + 1 / 3) / 2)
    assert (tmp_path / "out/GOT-10k/first-box/a/a_001.txt").is_file()
    result = run("--tracker", "still", "--model", "sbt_test_track", "--runtime", "eager")
    assert "--model, --runtime: no effect with --tracker" in str(result.exception)
    result = run("--tracker", "still", "--name", "../x")
    assert "--name '../x' has to be the name of a folder" in str(result.exception)


def test_a_result_of_our_tracker_has_a_score():
    class Ours:
        def init(self, frame, box): ...

        def update(self, frame):
            return TrackResult((1.0, 2.0, 3.0, 4.0), 0.25, False)

    frames, boxes = moving_square(2)
    tracked, scores, _ = run_sequence(Ours(), frames, boxes[0])
    assert tracked[1].tolist() == [1, 2, 3, 4] and scores.tolist() == [1, 0.25]


def test_what_a_tracker_of_opencv_is_given_and_gives():
    class Recorded:
        """In the form of OpenCV's trackers."""

        answers = iter([(True, (11, 12, 13, 14)), (False, (0, 0, 0, 0)), (True, (21, 22, 23, 24))])

        def init(self, image, box):
            assert (
                image.flags["C_CONTIGUOUS"]
                and image[100, 30].tolist() == [1, 2, 3]
                and box == (30, 100, 40, 41)
            )

        def update(self, image):
            return next(self.answers)

    frames, boxes = moving_square(4)
    frames[0][100, 30] = (3, 2, 1)  # red 3, which is last for OpenCV
    tracked, scores, _ = run_sequence(OpenCVTracker(Recorded), frames, boxes[0] + [0.4, -0.4, 0.1, 0.6])
    assert tracked[1:].tolist() == [[11, 12, 13, 14], [11, 12, 13, 14], [21, 22, 23, 24]]
    assert scores.tolist() == [1, 1, 0, 1]
