"""Exported files give the numbers of the model they were made from."""

import json
import sys

import numpy as np
import pytest
import torch
import typer
from acme_family import AcmeNet, MaskedNet
from torch import nn
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import export as cli_export
from correlation_aware.demo_clip import draw_clip
from correlation_aware.models.contract import FeatureNet
from correlation_aware.models.profile import profile
from correlation_aware.runtime import export as export_module
from correlation_aware.runtime.export import OPSET, export, metadata, open_graph
from correlation_aware.runtime.graphs import split_graphs

# An export takes time per block. Four of them are of every kind: EoC-SA, EoC-CA of both streams, EoC-SA after
# it, and EoC-CA of the search stream alone.
SMALLER = {"depths": (1, 1, 2), "cross_blocks": ((), (0,), (1,))}


@pytest.fixture(scope="module")
def tracker_model():
    torch.manual_seed(0)
    return ca.create_model("sbt_test_track", head="cell", **SMALLER).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "format", "graphs"),
    [
        ("sbt_test_track", {"attention": "pooled", **SMALLER}, "onnx", ["pair"]),  # all: test_plugin.py
        ("sbt_test_cls", {"num_classes": 5, "depths": (1, 1, 1, 1)}, "openvino", None),
        ("sbt_test", {"features_only": True, "out_indices": (1, 2), **SMALLER}, "torch", ["pair"]),
    ],
)
def test_exports_are_compared(needs, name, arguments, format, graphs, tmp_path, caplog):
    needs(format)
    caplog.set_level("INFO", "correlation_aware.runtime")
    torch.manual_seed(0)
    model = ca.create_model(name, **arguments)
    made = export(model, tmp_path, format, graphs)
    assert [m.graph for m in made] == (graphs or list(split_graphs(model)))
    assert model.training  # it is put back as it was
    assert f"Exporting {name} to {format}" in caplog.text  # it takes a while
    for m in made:
        assert m.path.is_file() and 0 <= m.difference < 1e-5  # float32 in another order
        if format == "onnx":
            check_onnx(m.path, masks="attention" in arguments)
    assert not list(tmp_path.glob(".export-*"))


KINDS = {
    "tracker": (
        "sbt_test_track",
        {"attention": "global", "position": "absolute", "head": "cell", **SMALLER},
    ),
    "strides": (
        "sbt_test",
        {
            **{"strides": (4, 2, 2), "template_size": 128, "search_size": 192},
            **{"patch_embed": "patchify", "position": "none", "stage_norms": True, "in_chans": 1},
            **SMALLER,
        },
    ),
    "features": (
        "sbt_test",
        {"features_only": True, "out_indices": (0, 2), **SMALLER, "cross_blocks": ((0,), (0,), (1,))},
    ),
    "classifier": (
        "sbt_test_cls",
        {"num_classes": 5, "attention": "pooled", "position": "absolute", "depths": (1, 1, 1, 1)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "format"),
    [
        *((kind, "onnx") for kind in KINDS),
        ("tracker", "torch"),
        ("strides", "torch"),
    ],
)
def test_every_kind_of_model_exports(needs, kind, format, tmp_path):
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


def test_metadata_lie_in_the_files(needs, tmp_path, tracker_model):
    needs("onnx")
    import onnxruntime

    (made,) = export(tracker_model, tmp_path, "onnx", ["template"])
    check_onnx(made.path, masks=False)
    actual = onnxruntime.InferenceSession(str(made.path)).get_modelmeta().custom_metadata_map
    expected = {**metadata(tracker_model), "graph": "template"}
    assert {key: actual[key] for key in expected} == expected
    assert json.loads(actual["input_size"]) == [3, 128, 128] and actual["model"] == "sbt_test_track"
    assert actual["box_vote"] == "0.0" and metadata(ca.create_model("siam_test_track"))["box_vote"] == "8.0"
    assert "box_vote" not in metadata(ca.create_model("sbt_test"))
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


@torch.no_grad()
def test_integers_of_a_file_must_be_equal():
    graph = split_graphs(MaskedNet().eval())["template"]
    maps, mask, best = (t.numpy() for t in graph.module(*graph.example(0, 1)))

    def compare(*outputs):
        return export_module._compare(graph, lambda _: outputs, [(0, 1)])

    assert compare(maps, mask, best) == 0
    assert compare(maps, mask, best + 1) == float("inf")
    assert compare(maps, ~mask, best) == float("inf")


def test_export_and_profile_do_not_change_the_model(tmp_path):
    """Parts of several dtypes, and a part in evaluation mode, as while fine-tuning."""
    torch.manual_seed(0)
    model = ca.TrackModel.build(AcmeNet(), "center")
    model.backbone.bfloat16()
    model.head.score.eval()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export(model, tmp_path, "torch", ["template"])
    for _ in range(2):
        assert [module.training for module in model.modules()] == modes
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])
        profile(model)


def test_models_made_by_hand(tmp_path):
    """Mean and std of the network's description or class, or ImageNet's; no name of the zoo."""
    cfg = {"mean": (0.1, 0.2, 0.3)}
    net = ca.create_model("sbt_test", pretrained_cfg_overlay=cfg)
    tracker = ca.create_tracker(ca.TrackModel.build(net, "cell"), device="cpu")
    assert tracker.name == "TrackModel"
    assert tracker._mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    frame, box = next(iter(draw_clip(1, (120, 160))))
    tracker.init(frame, box)
    assert 0 <= tracker.update(frame).score <= 1
    plain = AcmeNet()
    assert json.loads(metadata(plain)["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    plain.default_data_cfg = {"mean": (0.5, 0.5, 0.5)}
    for model in (plain, FeatureNet(plain), ca.TrackModel.build(plain, "cell")):
        assert metadata(model)["model"] == type(model).__name__
        assert json.loads(metadata(model)["mean"]) == [0.5, 0.5, 0.5]
        assert json.loads(metadata(model)["input_size"]) == [3, 128, 128]
    (made,) = export(ca.TrackModel.build(AcmeNet(), "cell"), tmp_path, "torch", ["template"])
    assert made.path.name == "TrackModel.template.pt2"


def test_what_cannot_be_exported_says_so(tracker_model, monkeypatch):
    with pytest.raises(ValueError, match="is not one of onnx, openvino, torch"):
        export(tracker_model, "nowhere", "tflite")
    with pytest.raises(ValueError, match=r"\['image'\] are not among template, search, pair"):
        export(tracker_model, "nowhere", "torch", ["image"])
    with pytest.raises(ValueError, match="Linear is not a model of create_model"):
        split_graphs(nn.Linear(2, 2))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*onnxscript.*\(the extra \[export\]\)"):
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
