"""Exported files and sessions give the numbers of the model they were made from."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import export as cli_export
from correlation_aware.demo_clip import draw_clip
from correlation_aware.runtime import export as export_module
from correlation_aware.runtime import session as session_module
from correlation_aware.runtime.export import OPSET, export, metadata, open_graph
from correlation_aware.runtime.graphs import split_graphs
from correlation_aware.runtime.session import InferenceSession

RUNTIMES = ("eager", "onnx", "openvino")


def needs(format):
    for name in {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "openvino")}.get(
        format, ()
    ):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def tracker_model():
    torch.manual_seed(0)
    return ca.create_model("sbt_test_track", head="cell").eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the file, so that each format is exported once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cached(cache, monkeypatch):
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(cache))
    return cache


@pytest.mark.parametrize(
    ("name", "arguments", "format"),
    [
        ("sbt_test", {}, "onnx"),
        ("sbt_test", {"features_only": True, "out_indices": (1, 2)}, "torch"),
        ("sbt_test_track", {"attention": "pooled"}, "onnx"),
        ("sbt_test_cls", {"num_classes": 5}, "onnx"),
        ("sbt_test_cls", {"num_classes": 5}, "openvino"),
    ],
)
def test_exports_are_compared(name, arguments, format, tmp_path):
    needs(format)
    torch.manual_seed(0)
    model = ca.create_model(name, **arguments)
    made = export(model, tmp_path, format)
    assert [m.graph for m in made] == list(split_graphs(model)) and model.training  # it is put back as it was
    for m in made:
        assert m.path.is_file() and 0 <= m.difference < 1e-5  # float32 in another order
        if format == "onnx":
            check_onnx(m.path, masks="attention" in arguments)
    assert not list(tmp_path.glob(".export-*"))


KINDS = {
    "global": ("sbt_test_track", {"attention": "global"}),
    "absolute": ("sbt_test_track", {"position": "absolute", "head": "cell"}),
    "patchify": (
        "sbt_test",
        {"patch_embed": "patchify", "position": "none", "stage_norms": True, "in_chans": 1},
    ),
    "strides": ("sbt_test", {"strides": (4, 2, 2), "template_size": 128, "search_size": 192}),
    "features": (
        "sbt_test",
        {"features_only": True, "out_indices": (0, 2), "cross_blocks": ((0,), (0,), (1, 3))},
    ),
    "classifier": ("sbt_test_cls", {"num_classes": 5, "attention": "pooled", "position": "absolute"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "format"),
    [*((kind, "onnx") for kind in KINDS), ("global", "openvino"), ("absolute", "openvino")]
    + [("absolute", "torch"), ("strides", "torch")],
)
def test_every_kind_of_model_exports(kind, format, tmp_path):
    """The pair's graph, which has all operations of the two others; pooled attention is in the test above."""
    needs(format)
    torch.manual_seed(0)
    name, arguments = KINDS[kind]
    model = ca.create_model(name, **arguments)
    (made,) = export(model, tmp_path, format, [list(split_graphs(model))[-1]])
    assert made.difference < 1e-5  # float32 in another order
    if format == "onnx":
        check_onnx(made.path, masks=arguments.get("attention") == "pooled")


def check_onnx(path, masks):
    """Valid, of plain operators of the opset, and without booleans, but for PyTorch's pooling to 7 x 7."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    graph = model.graph
    assert {i.domain: i.version for i in model.opset_import} == {"": OPSET}
    assert {node.domain for node in graph.node} == {""} and not model.functions
    values = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)]
    constants = [t.data_type for t in graph.initializer]
    conditional = {"If", "Loop", "Scan", "Where"} & {node.op_type for node in graph.node}
    if masks:
        assert conditional <= {"Where"}
    else:
        assert onnx.TensorProto.BOOL not in values + constants and not conditional
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in graph.output} == {"batch"}


def test_a_file_that_differs_is_not_written(tmp_path, tracker_model, monkeypatch):
    monkeypatch.setattr(export_module, "open_graph", lambda path: lambda *arrays: [np.float32([[[[9]]]])])
    with pytest.raises(RuntimeError, match=r"pair\.pt2|template\.pt2 differs from the model"):
        export(tracker_model, tmp_path, "torch", ["template"])
    assert not list(tmp_path.iterdir())


def test_metadata_lie_in_the_files(tmp_path, tracker_model):
    needs("onnx")
    import onnxruntime

    (made,) = export(tracker_model, tmp_path, "onnx", ["template"])
    actual = onnxruntime.InferenceSession(str(made.path)).get_modelmeta().custom_metadata_map
    expected = {**metadata(tracker_model), "graph": "template"}
    assert {key: actual[key] for key in expected} == expected
    assert json.loads(actual["input_size"]) == [3, 128, 128] and actual["model"] == "sbt_test_track"
    (program,) = export(tracker_model, tmp_path, "torch", ["template"])
    extra = {"metadata.json": ""}
    torch.export.load(program.path, extra_files=extra)
    assert json.loads(extra["metadata.json"])["weights_sha256"] == expected["weights_sha256"]


def test_the_hash_is_of_the_weights(tracker_model):
    before = metadata(tracker_model)["weights_sha256"]
    assert metadata(tracker_model)["weights_sha256"] == before
    with torch.no_grad():
        tracker_model.head.cls[2].bias += 1e-3
        assert metadata(tracker_model)["weights_sha256"] != before
        tracker_model.head.cls[2].bias -= 1e-3


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sessions_equal_the_model(runtime, tracker_model, cached):
    needs(runtime)
    session = InferenceSession(tracker_model, runtime=runtime)
    assert session.outputs == ("scores", "boxes")
    generator = torch.Generator().manual_seed(1)
    template = torch.randn(3, 3, 64, 64, generator=generator)
    search = torch.randn(1, 3, 128, 128, generator=generator)  # three targets in one image
    with pytest.raises(RuntimeError, match="call set_template"):
        session(search)
    session.set_template(template)
    with torch.no_grad():
        expected = tracker_model(template, search)
    scores, boxes = session(search)
    # float32 in another order of operations
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    session.set_template(template[:1])
    assert torch.allclose(session(search)[0], expected.scores[:1], atol=1e-5)
    for scores in session(search.expand(2, -1, -1, -1))[0]:  # one template, two images
        assert torch.allclose(scores, expected.scores[0], atol=1e-5)
    session.set_template(template)
    with pytest.raises(ValueError, match="template batch 3 and search batch 2"):
        session(search.expand(2, -1, -1, -1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sessions_of_one_model_are_apart(runtime, tracker_model, cached):
    needs(runtime)
    first, second = (InferenceSession(tracker_model, runtime=runtime) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    template, search = (torch.randn(n, 3, side, side, generator=generator) for n, side in ((2, 64), (1, 128)))
    first.set_template(template[:1])
    alone = first(search)[0]
    second.set_template(template[1:])
    assert not torch.allclose(second(search)[0], alone)
    assert torch.equal(first(search)[0], alone)


@pytest.mark.parametrize("runtime", RUNTIMES[1:])
def test_a_tracker_follows_alike_on_every_runtime(runtime, tracker_model, cached):
    needs(runtime)
    frames = list(draw_clip(5, (120, 160)))
    trackers = [ca.create_tracker(tracker_model, device="cpu", runtime=r) for r in ("eager", runtime)]
    assert trackers[1].session.runtime == runtime
    for tracker in trackers:
        tracker.init(*frames[0])
    for frame, _ in frames[1:]:
        ours, reference = (np.array(tracker.update(frame).box) for tracker in reversed(trackers))
        assert np.abs(ours - reference).max() < 0.5  # pixels


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 3), (3, 1), (1, 3)])
def test_a_second_init_forgets_the_first_target(runtime, first, second, tracker_model, cached):
    """Templates and boxes of the targets before are not used: the numbers are those of a fresh tracker."""
    needs(runtime)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    boxes = np.array([(20, 20, 30, 24), (90, 60, 40, 40), (60, 10, 24, 36), (100, 20, 30, 30)], float)
    targets = boxes[0] if first == 1 else boxes[:3]
    others = boxes[3] if second == 1 else boxes[1:]
    used, fresh = (ca.create_tracker(tracker_model, device="cpu", runtime=runtime) for _ in range(2))
    used.init(frames[0], targets)
    before = used.update(frames[1])
    used.init(frames[0], others)
    fresh.init(frames[0], others)
    for frame in frames[1:]:
        after = used.update(frame)
        assert after == fresh.update(frame) and after != before


def test_a_session_computes_as_its_model():
    model = ca.create_model("sbt_test", dtype=torch.bfloat16)
    session = InferenceSession(model)
    assert session.dtype == torch.bfloat16 and next(model.parameters()).dtype == torch.bfloat16
    session.set_template(torch.zeros(1, 3, 64, 64))
    assert session(torch.zeros(1, 3, 128, 128))[0].dtype == torch.bfloat16


def test_exports_are_kept(cached, tracker_model, monkeypatch):
    needs("onnx")
    InferenceSession(tracker_model, runtime="onnx")
    monkeypatch.setattr(session_module, "export", lambda *_: pytest.fail("exported again"))
    InferenceSession(tracker_model, runtime="onnx")
    assert len(list(cached.glob("sbt_test_track-*-onnx"))) == 1


def test_exports_of_different_models_are_kept_apart(tmp_path, monkeypatch):
    """Same name and same shapes of the weights: the weights themselves, and what no shape shows, count."""
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path))
    monkeypatch.setattr(session_module, "export", lambda model, folder, *_: folder.mkdir())

    def cached_in(seed=0, **arguments):
        torch.manual_seed(seed)
        model = ca.create_model("sbt_test_track", head="cell", **arguments)
        return {path.parent for path in session_module._exported(model, "onnx")}.pop()

    changes = [{}, {"seed": 1}, {"heads": (1, 1, 1)}, {"cross_blocks": ((), (), (0,))}, {"search_size": 96}]
    assert len({cached_in(**change) for change in changes}) == len(changes)
    assert cached_in() == cached_in()


def test_a_layer_whose_code_changed_is_exported_again(tmp_path, monkeypatch):
    code = "from torch import nn\n\nclass Scale(nn.Module):\n    factor = {}\n"
    file = tmp_path / "changing_layer.py"
    file.write_text(code.format(2))
    monkeypatch.syspath_prepend(tmp_path)
    model = ca.create_model("sbt_test_track")
    model.head.scale = importlib.import_module("changing_layer").Scale()
    before = session_module._cache_key(model, {"model": "scale"})
    assert session_module._cache_key(model, {"model": "scale"}) == before
    assert session_module._cache_key(model, {"model": "other"}) != before
    file.write_text(code.format(3))
    assert session_module._cache_key(model, {"model": "scale"}) != before


SIGNAL_AFTER_OPENVINO = """
import signal, sys
from correlation_aware.runtime.export import open_graph
first, second = (open_graph(path) for path in sys.argv[1:])
del first, second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals with a stack of their own")
def test_signals_are_handled_after_openvino_sessions(cached, tracker_model):
    """Two cores that go in the order they came leave a thread without a stack for signal handlers."""
    needs("openvino")
    InferenceSession(tracker_model, runtime="openvino")  # writes the files
    files = [str(path) for path in cached.glob("*-openvino/*.xml")]
    program = [sys.executable, "-c", SIGNAL_AFTER_OPENVINO, *files]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout == "handled\n", result.stderr


def test_what_cannot_run_says_so(tracker_model, monkeypatch):
    with pytest.raises(ValueError, match=r"runtime='tensorrt' is not one of auto, eager"):
        InferenceSession(tracker_model, runtime="tensorrt")
    needs("openvino")
    with pytest.raises(ValueError, match=r"supports float32, bfloat16, not dtype=torch\.float16"):
        InferenceSession(tracker_model, dtype=torch.float16, runtime="openvino")
    with pytest.raises(ValueError, match="supports device='cpu' only, not device=cuda"):
        InferenceSession(tracker_model, device="cuda", runtime="onnx")
    with pytest.raises(ValueError, match="runtime='cudagraph' supports device='cuda' only, not device=cpu"):
        InferenceSession(tracker_model, runtime="cudagraph")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="needs a CUDA GPU, and PyTorch finds none"):
            ca.create_tracker(tracker_model, runtime="cudagraph")
    with pytest.raises(ValueError, match="is not one of onnx, openvino, torch"):
        export(tracker_model, "nowhere", "tflite")
    with pytest.raises(ValueError, match=r"\['image'\] are not among template, search, pair"):
        export(tracker_model, "nowhere", "torch", ["image"])
    with pytest.raises(ValueError, match="Linear is not a model of create_model"):
        split_graphs(nn.Linear(2, 2))
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install correlation_aware\[export\]"):
        export(tracker_model, "nowhere", "onnx")


def test_the_command(tmp_path):
    app = typer.Typer()
    app.command()(cli_export.export)
    words = ["sbt_test_track", "--output", str(tmp_path), "--format", "torch", "--graph", "template"]
    result = CliRunner().invoke(app, [*words, "--weights", "random"])
    assert result.exit_code == 0, result.output
    assert "largest difference" in result.output
    path = tmp_path / "sbt_test_track.template.pt2"
    assert open_graph(path)(np.zeros((1, 3, 64, 64), np.float32))[0].shape[0] == 1
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ValueError) and "has no default weights" in str(result.exception)
