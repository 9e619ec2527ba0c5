"""Exported trackers in int8, and sessions that run given exported files."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tiny_tracker import tiny_tracker
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import export as cli_export
from correlation_aware.demo_clip import draw_clip
from correlation_aware.evaluation.int8 import CalibrationClip, calibration_clips, quantize_tracker
from correlation_aware.evaluation.trackers import NamedTracker
from correlation_aware.models import registry
from correlation_aware.runtime.export import export, open_graph, read_metadata
from correlation_aware.runtime.quantize import quantize
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking import browser_page

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'onnx>=1.17' (the extra [export])")
pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")


def clips(count: int) -> list[CalibrationClip]:
    drawn = (zip(*draw_clip(8, (120, 160), seed)) for seed in range(count))
    return [CalibrationClip(f"clip {i}", frames, np.array(boxes)) for i, (frames, boxes) in enumerate(drawn)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported files of the tiny tracker, in float32 and int8."""
    folder = tmp_path_factory.mktemp("exported")
    export(tiny_tracker(), folder, "onnx", ["template", "search"])
    report = quantize_tracker(tiny_tracker(), folder / "TrackModel", clips(5))
    (folder / "report.json").write_text(json.dumps(asdict(report)))
    return folder


def test_the_file_in_int8(folder):
    source, made = (onnx.load(str(folder / f"TrackModel.{name}search.onnx")) for name in ("", "int8."))
    onnx.checker.check_model(made, full_check=True)
    assert {item.domain: item.version for item in made.opset_import} == {"": 18}
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    producers = {node.output[0]: node for node in made.graph.node}
    layers = [node for node in made.graph.node if node.op_type in ("Conv", "MatMul")]
    in_float = [node for node in layers if node.input[1] in weights]
    assert len(layers) == 7 and len(in_float) == 2  # those of scores and boxes
    for node in (node for node in layers if node not in in_float):  # weights per channel in int8
        values, scale, _ = producers[node.input[1]].input
        assert producers[node.input[1]].op_type == "DequantizeLinear"
        assert weights[values].data_type == onnx.TensorProto.INT8
        channels = weights[values].dims[0 if node.op_type == "Conv" else 1]
        assert list(weights[scale].dims) == [channels]
    for output in made.graph.output:  # no rounding of what follows the last layers
        assert producers[output.name].op_type != "DequantizeLinear"
    assert not any(node.op_type in ("Clip", "Relu") for node in made.graph.node)  # part of the ranges
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input]
    assert shapes == [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in source.graph.input
    ]
    before, after = (read_metadata(folder / f"TrackModel.{name}search.onnx") for name in ("", "int8."))
    assert after == {**before, "precision": "int8"}
    template = (folder / "TrackModel.int8.template.onnx").read_bytes()
    assert template == (folder / "TrackModel.template.onnx").read_bytes()


def test_the_report_is_of_the_crops_held_back(folder):
    report = json.loads((folder / "report.json").read_text())
    assert (report["calibration_crops"], report["held_back_crops"]) == (4 * 3, 3)
    assert 0 < report["score_mean"] <= report["score_max"] < 0.05
    assert 0 < report["box_mean"] <= report["box_max"] < 0.05
    functions = [open_graph(folder / f"TrackModel.{name}search.onnx") for name in ("", "int8.")]
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 16, 1, 1), (2, 3, 64, 64))]
    for expected, actual in zip(*(function(*inputs) for function in functions)):
        assert actual.shape == expected.shape and 0 < np.abs(actual - expected).max() < 0.1
    assert 0 <= report["ao_int8"] <= 1 and 0 <= report["ao_float32"] <= 1
    assert report["ms_int8"] > 0 and report["mb_int8"] > 0


def test_lost_targets_are_not_searched_for(tmp_path, monkeypatch):
    """A crop per frame calibrates, also of a network that loses every target."""
    crops = []

    def recording(source, output, inputs):
        crops.extend(len(search) for _, search in inputs)
        quantize(source, output, inputs)

    monkeypatch.setattr("correlation_aware.evaluation.int8.quantize", recording)
    model = tiny_tracker()
    with torch.no_grad():
        model.head.cls[2].bias[0] -= 20  # all scores are near 0
    export(model, tmp_path, "onnx", ["template", "search"])
    quantize_tracker(model, tmp_path / "TrackModel", clips(5))
    assert crops == [1] * 4 * 3


def test_a_tracker_runs_given_files(folder):
    model, clip = tiny_tracker(), list(draw_clip(4, (120, 160)))
    trackers = {
        name: ca.create_tracker(model, device="cpu", runtime="onnx", exported=folder / name)
        for name in ("TrackModel", "TrackModel.int8")
    }
    trackers["eager"] = ca.create_tracker(model, device="cpu")
    boxes = {}
    for name, tracker in trackers.items():
        tracker.init(*clip[0])
        twin = copy.deepcopy(tracker)
        boxes[name] = np.array([tracker.update(frame).box for frame, _ in clip[1:]])
        assert np.array_equal([twin.update(frame).box for frame, _ in clip[1:]], boxes[name])
        assert twin.session.exported == tracker.session.exported
    np.testing.assert_allclose(boxes["TrackModel"], boxes["eager"], rtol=0, atol=1e-2)
    assert 0 < np.abs(boxes["TrackModel.int8"] - boxes["eager"]).max() < 20
    settings = [NamedTracker.of_model(tracker).settings for tracker in trackers.values()]
    hashes = [of_tracker.get("exported") for of_tracker in settings]
    assert hashes[2] is None and len(set(hashes)) == 3  # results of int8 and float32 are told apart


def test_files_that_cannot_be_run_are_refused(folder):
    model = tiny_tracker()
    with pytest.raises(ValueError, match=r"needs runtime='onnx' or 'openvino', not 'eager'"):
        InferenceSession(model, runtime="eager", exported=folder / "TrackModel")
    with pytest.raises(FileNotFoundError, match=r"There is no .*other\.template\.onnx.*FOLDER/TrackModel"):
        InferenceSession(model, runtime="onnx", exported=folder / "other")
    with torch.no_grad():
        model.head.cls[2].bias += 1
    with pytest.raises(ValueError, match="was not exported from these weights of TrackModel"):
        InferenceSession(model, runtime="onnx", exported=folder / "TrackModel")
    with pytest.raises(ValueError, match="at least 4 clips"):
        quantize_tracker(tiny_tracker(), folder / "TrackModel", clips(3))
    with pytest.raises(ValueError, match="at least one example"):
        quantize(folder / "TrackModel.search.onnx", folder / "none.onnx", [])
    assert not (folder / "none.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x07garbage", None], ids=["empty", "other", "cut"])
def test_damaged_files_are_named(folder, tmp_path, content):
    for graph in ("template", "search"):
        whole = (folder / f"TrackModel.{graph}.onnx").read_bytes()
        path = tmp_path / f"TrackModel.{graph}.onnx"
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
        for read in (read_metadata, open_graph):
            if content != b"" or read is open_graph:  # nothing at all is a message of protobuf
                with pytest.raises(RuntimeError, match="is not an exported file, or a damaged one") as raised:
                    read(path)
                assert str(raised.value).startswith(str(path))
    with pytest.raises((RuntimeError, ValueError), match=r"TrackModel\.template\.onnx"):
        InferenceSession(tiny_tracker(), runtime="onnx", exported=tmp_path / "TrackModel")


def test_clips_of_photographs_and_videos(photos, tmp_path):
    (clip,) = calibration_clips([str(photos)], count=1)
    assert clip.frames.shape == (24, 240, 320, 3) and clip.boxes.shape == (24, 4)
    assert np.isfinite(clip.boxes[0]).all()
    video = tmp_path / "videos" / "train" / "one"
    video.mkdir(parents=True)
    for number, image in enumerate(sorted(photos.iterdir())):
        (video / f"{number:08d}.png").write_bytes(image.read_bytes())
    (video / "groundtruth.txt").write_text("nan,nan,nan,nan\n1,2,30,40\nnan,nan,nan,nan\n3,4,30,40\n")
    (clip,) = calibration_clips([f"got10k:{tmp_path / 'videos'}"])
    assert np.array_equal(clip.boxes, [[1, 2, 30, 40], [np.nan] * 4, [3, 4, 30, 40]], equal_nan=True)
    for _ in range(2):  # read again for the tracker in int8
        assert [frame.shape for frame in clip.frames] == [(120, 160, 3)] * 3


def test_the_command_writes_a_page_in_int8(photos, tmp_path, monkeypatch):
    """Without the files of the npm registry; test_browser_page.py has a page with them."""
    monkeypatch.setattr(browser_page, "PACKAGES", ())
    monkeypatch.setitem(registry._MODELS, "tiny_track", lambda **_: tiny_tracker())
    monkeypatch.setattr("correlation_aware.evaluation.int8.LENGTH", 4)
    app = typer.Typer()
    app.command()(cli_export.export)
    words = ["tiny_track", "--weights", "random", "--output", str(tmp_path / "out"), "--int8"]
    words += ["--format", "web", "--calibration", str(photos)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "int8, calibrated with 24 crops; on 8 crops held back" in result.output
    assert "http://localhost:8000" in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tiny_track.template.onnx", "tiny_track.search.onnx", "index.html", "tracker.js"} <= names
    in_int8 = {f"tiny_track.int8.{end}" for end in ("search.onnx", "template.onnx", "json")}
    assert in_int8 == {name for name in names if ".int8." in name}
    graphs = json.loads((tmp_path / "out" / "model.json").read_text())["graphs"]
    assert graphs == {"template": "tiny_track.template.onnx", "search": "tiny_track.int8.search.onnx"}
    report = json.loads((tmp_path / "out" / "tiny_track.int8.json").read_text())
    assert report["calibration"] == [str(photos)] and report["held_back_crops"] == 8


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("tiny_track", "missing", "There is no folder or shard"),
        ("tiny_track", "got10k:missing", "neither a list.txt nor folders"),
        ("sbt_test", None, "has no head"),
    ],
)
def test_mistakes_end_before_the_export(photos, tmp_path, monkeypatch, name, source, message):
    monkeypatch.setitem(registry._MODELS, "tiny_track", lambda **_: tiny_tracker())
    app = typer.Typer()
    app.command()(cli_export.export)
    words = [name, "--weights", "random", "--output", str(tmp_path / "out"), "--int8"]
    result = CliRunner().invoke(app, [*words, "--calibration", source or str(photos)])
    assert message in str(result.exception) and not (tmp_path / "out").exists()
