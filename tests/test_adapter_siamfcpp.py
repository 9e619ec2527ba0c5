"""SiamFC++'s adapter against a stand-in that states the tracker's interface."""

import copy
import importlib
import math
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import correlation_aware as ca

WIDTH = 16
NAME = "correlation_aware.adapters.siamfcpp"


class Registry(dict):
    def register(self, component):
        assert component.__name__ not in self
        self[component.__name__] = component
        return component


class ModuleBase(nn.Module):
    """Options are copied at construction, set by the builder, and used in `update_params`."""

    default_hyper_params: ClassVar = {"pretrain_model_path": ""}

    def __init__(self):
        super().__init__()
        self._hyper_params = copy.deepcopy(self.default_hyper_params)

    def get_hps(self):
        return self._hyper_params

    def set_hps(self, hps):
        for key in hps:
            if key not in self._hyper_params:
                raise KeyError
            self._hyper_params[key] = hps[key]

    def update_params(self):
        if self._hyper_params["pretrain_model_path"]:
            self.load_model_param(torch.load(self._hyper_params["pretrain_model_path"]))


class DenseboxHead(ModuleBase):
    """Maps for class and box (B, C, N, N) -> scores and centers (B, N * N, 1), boxes (B, N * N, 4), map."""

    default_hyper_params: ClassVar = {"x_size": 303}

    def update_params(self):
        self.convs = nn.ModuleList(nn.LazyConv2d(c, 1) for c in (1, 1, 4))

    def forward(self, c_out, r_out, x_size=0):
        maps = (c_out, c_out, r_out)
        cls, ctr, box = (conv(m).flatten(2).transpose(1, 2) for conv, m in zip(self.convs, maps))
        return [cls, ctr, box * (x_size or self._hyper_params["x_size"]), c_out]


class SiamTrack(ModuleBase):
    """The stock model: one image at a time, and kernels as the template's features."""

    default_hyper_params: ClassVar = {
        "pretrain_model_path": "",
        "head_width": WIDTH,
        "corr_fea_output": False,
        "trt_mode": False,
        "amp": False,
    }

    def __init__(self, backbone, head, loss=None):
        super().__init__()
        self.basemodel, self.head, self.loss = backbone, head, loss
        self._phase = "train"

    def update_params(self):
        for name in ("c_z_k", "r_z_k", "c_x", "r_x"):
            setattr(self, name, nn.Conv2d(WIDTH, WIDTH, 3))
        super().update_params()

    def train_forward(self, data):
        f_z, f_x = self.basemodel(data["im_z"]), self.basemodel(data["im_x"])
        maps = (xcorr_depthwise(x(f_x), k(f_z)) for x, k in ((self.c_x, self.c_z_k), (self.r_x, self.r_z_k)))
        cls, ctr, box, _ = self.head(*maps)
        return {"cls_pred": cls, "ctr_pred": ctr, "box_pred": box}

    def forward(self, *args, phase=None):
        assert (phase or self._phase) == "train"
        return self.train_forward(args[0])


def xcorr_depthwise(x, kernel):
    b, c, h, w = kernel.shape
    out = F.conv2d(x.view(1, b * c, *x.shape[2:]), kernel.view(b * c, 1, h, w), groups=b * c)
    return out.view(b, c, *out.shape[2:])


STAND_IN = {
    "model.backbone.backbone_base": {"TRACK_BACKBONES": None},
    "model.common_opr.common_block": {"xcorr_depthwise": xcorr_depthwise},
    "model.module_base": {"ModuleBase": ModuleBase},
    "model.task_model.taskmodel_base": {"TRACK_TASKMODELS": None},
    "model.task_model.taskmodel_impl.siamese_track": {"SiamTrack": SiamTrack},
    "model.task_head.taskhead_impl.track_head": {"DenseboxHead": DenseboxHead},
}


@pytest.fixture
def tracker(monkeypatch):
    """The adapter, imported while a stand-in takes the tracker's place."""
    for path, names in STAND_IN.items():
        parts = ["videoanalyst", *path.split(".")]
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            if name not in sys.modules or sys.modules[name] is None:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for key, value in names.items():
            setattr(sys.modules[name], key, Registry() if value is None else value)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setattr(
        importlib.import_module("correlation_aware.adapters"), "siamfcpp", None, raising=False
    )
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def build_backbone(tracker, **options):
    return backbone_of(tracker.SiamFCppBackbone, **options)


def backbone_of(kind, **options):
    torch.manual_seed(0)
    backbone = kind()
    backbone.set_hps({"model": "sbt_test", "out_channels": WIDTH, **options})
    backbone.update_params()
    return backbone


def build(tracker, kind=None, backbone=None, **options):
    """As the tracker's builder does."""
    backbone = build_backbone(tracker) if backbone is None else backbone
    head = DenseboxHead()
    head.update_params()
    model = (kind or tracker.SiamTrackCA)(backbone, head)
    model.set_hps(options)
    model.update_params()
    model.train()(pair(1))  # the head's channels become known
    return model


def pair(batch=2, z_size=127, x_size=151, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"im_z": z_size, "im_x": x_size}
    return {k: torch.rand(batch, 3, s, s, generator=generator) * 255 for k, s in sizes.items()}


def test_it_registers_itself_with_options_that_yacs_takes(tracker):
    backbones = sys.modules["videoanalyst.model.backbone.backbone_base"].TRACK_BACKBONES
    models = sys.modules["videoanalyst.model.task_model.taskmodel_base"].TRACK_TASKMODELS
    assert backbones["SiamFCppBackbone"] is tracker.SiamFCppBackbone
    assert models["SiamTrackCA"] is tracker.SiamTrackCA
    legal = (str, int, float, bool, list, tuple)
    assert all(isinstance(v, legal) for v in tracker.SiamFCppBackbone.default_hyper_params.values())
    assert "pretrain_model_path" in tracker.SiamFCppBackbone.default_hyper_params
    assert not list(tracker.SiamFCppBackbone().parameters())  # built lazily, from the options


def test_former_names_in_yaml_files(tracker):
    backbones = sys.modules["videoanalyst.model.backbone.backbone_base"].TRACK_BACKBONES
    former = backbones["SBTBackbone"]
    assert former.default_hyper_params == tracker.SiamFCppBackbone.default_hyper_params
    with pytest.warns(DeprecationWarning, match="'SBTBackbone' is called 'SiamFCppBackbone' now"):
        backbone = former()
    backbone.set_hps({"model": "siamfcpp_ca"})
    with (
        pytest.warns(DeprecationWarning, match="'siamfcpp_ca' is called 'sbt_small_siamfcpp' now"),
        torch.device("meta"),
    ):
        backbone.update_params()
    assert backbone.net.pretrained_cfg["architecture"] == tracker.DEFAULT_NAME
    assert isinstance(build(tracker, backbone=backbone_of(former)).basemodel, tracker.SiamFCppBackbone)
    with pytest.warns(DeprecationWarning, match="'FITTED' is called 'DEFAULT_NAME'"):
        assert tracker.FITTED == tracker.DEFAULT_NAME


def test_without_the_tracker_the_error_names_the_checkout(monkeypatch):
    monkeypatch.setitem(sys.modules, "videoanalyst", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    importlib.import_module("correlation_aware.adapters")
    with pytest.raises(ModuleNotFoundError, match="checkout of megvii-research/video_analyst on PYTHONPATH"):
        importlib.import_module(NAME)


def test_an_import_that_comes_too_late_is_said(tracker, monkeypatch):
    config = ModuleType("videoanalyst.config.config")
    config.cfg = {}
    monkeypatch.setitem(sys.modules, "videoanalyst.config.config", config)
    monkeypatch.delitem(sys.modules, NAME)
    for name, registry in (
        ("backbone.backbone_base", "BACKBONES"),
        ("task_model.taskmodel_base", "TASKMODELS"),
    ):
        getattr(sys.modules[f"videoanalyst.model.{name}"], f"TRACK_{registry}").clear()
    with pytest.raises(RuntimeError, match="Move the import to the first line"):
        importlib.import_module(NAME)


@pytest.mark.parametrize("side", [95, 127, 128, 151, 255, 256, 271, 289, 303, 304])
def test_locations_are_centered_on_the_image_and_lie_on_the_networks_grid(tracker, side):
    pad, start, locations = tracker.grid(side)
    assert locations == (side - 87) // 8 and 0 <= pad < 8
    first = 8 * start - pad  # the network's location i is centered on pixel 8 i of the padded image
    assert first == (side - 1 - 8 * (locations - 1)) // 2  # where the tracker's head puts it
    assert start + locations <= math.ceil((side + pad) / 8)


@pytest.mark.parametrize(("side", "locations"), [(289, 25), (303, 27)])
@torch.inference_mode()
def test_shapes(tracker, side, locations):
    backbone = build_backbone(tracker, out_channels=256).eval()
    images = pair(1, x_size=side)
    z, x = backbone.correlate(backbone.encode_template(images["im_z"]), images["im_x"])
    assert z.shape == (1, 256, 5, 5) and x.shape == (1, 256, locations, locations)
    assert z.is_contiguous() and x.is_contiguous()
    alone = backbone(images["im_z"])  # correlated with itself
    expected, _ = backbone.correlate(backbone.encode_template(images["im_z"]), images["im_z"])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone(images["im_x"]), x, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_images_arrive_as_normalized_rgb_with_their_pixels_on_the_grid(tracker):
    backbone = build_backbone(tracker)
    seen = []
    backbone.net.stages[0].embed.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    bgr = pair(1)["im_z"]
    backbone.encode_template(bgr)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = (bgr.flip(1) / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert seen[0].shape == (1, 3, 128, 128)
    torch.testing.assert_close(seen[0][:, :, 1:, 1:], rgb, rtol=0, atol=1e-5)
    assert not seen[0][:, :, 0].any() and not seen[0][:, :, :, 0].any()  # the network's mean


@pytest.mark.parametrize("name", ["sbt_test", "siam_test", "acme"])
@torch.inference_mode()
def test_phases_give_the_numbers_of_training_and_encode_a_template_once(tracker, acme, name):
    model = build(tracker, backbone=build_backbone(tracker, model=name)).eval()
    images = pair(1, x_size=303)
    expected = model(images, phase="train")
    calls = Counter()
    net = model.basemodel.net
    first = net.get_submodule(net.pretrained_cfg["first_conv"])
    first.register_forward_pre_hook(lambda _, args: calls.update([args[0].shape[-1]]))
    features = model(images["im_z"], phase="feature")
    assert len(features) == 1 and isinstance(features[0], ca.TemplateState)
    for _ in range(2):
        score, boxes, cls, ctr, extra = model(images["im_x"], *features, phase="track")
    assert calls == {128: 1, 304: 2}
    assert score.shape == (1, 23 * 23, 1) and boxes.shape == (1, 23 * 23, 4)
    torch.testing.assert_close(cls, expected["cls_pred"].sigmoid(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ctr, expected["ctr_pred"].sigmoid(), rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes, expected["box_pred"], rtol=0, atol=1e-3)  # pixels, up to 303
    assert torch.equal(score, cls * ctr)
    assert set(extra) == {"c_x", "r_x", "corr_fea"} and model.cf is extra["c_x"]
    model.set_hps({"corr_fea_output": True})
    assert "corr_fea" in model(images, phase="train")


@torch.inference_mode()
def test_several_targets_share_one_model(tracker):
    model = build(tracker).eval()
    one, other = pair(1, seed=1), pair(1, seed=2)
    states = [model(p["im_z"], phase="feature")[0] for p in (one, other)]
    alone = [model(one["im_x"], state, phase="track")[0] for state in states]
    assert not torch.allclose(*alone)
    assert torch.equal(model(one["im_x"], states[0], phase="track")[0], alone[0])
    both = model(torch.cat([one["im_z"], other["im_z"]]), phase="feature")
    together = model(one["im_x"], *both, phase="track")[0]  # two targets in one image
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_features_for_the_online_classifier(tracker):
    model = build(tracker).eval()
    one, other = pair(1, seed=1), pair(2, seed=2)
    with pytest.raises(RuntimeError, match="run phase 'feature' first"):
        model.instance(one["im_x"])
    (state,) = model(one["im_z"], phase="feature")
    model.instance(other["im_x"])  # augmented images of one target
    recent = model.cf
    assert recent.shape == (2, WIDTH, 6, 6)
    model(other["im_z"][:1], phase="feature")
    model.instance(other["im_x"], state)
    assert torch.equal(model.cf, recent)


@pytest.mark.parametrize("name", ["SiamTrackCA", "SiamTrack"])
def test_a_gradient_in_every_parameter_and_two_groups_of_learning_rates(tracker, name):
    model = build(tracker, SiamTrack if name == "SiamTrack" else None)
    predictions = model(pair())
    sum(p.square().mean() for p in predictions.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    names = [n for n, _ in model.named_parameters()]
    slow = [n for n in names if re.search("basemodel", n)]
    fast = [n for n in names if re.search("^((?!basemodel).)*$", n)]
    assert sorted(slow + fast) == sorted(names) and len(slow) == len(list(model.basemodel.parameters()))
    copy.deepcopy(model)  # the stock model's template hangs on the graph


def test_save_and_load(tracker, tmp_path):
    model, other = build(tracker), build(tracker)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    torch.save(model.state_dict(), tmp_path / "snapshot.pkl")
    other.load_state_dict(torch.load(tmp_path / "snapshot.pkl"))
    with torch.inference_mode():
        one, two = (m.eval()(pair(), phase="train")["cls_pred"] for m in (model, other))
    assert torch.equal(one, two)


def test_a_stock_checkpoint_fills_the_head_and_says_so(tracker, tmp_path, caplog):
    stock = build(tracker, SiamTrack, Stock())
    path = tmp_path / "stock.pkl"
    torch.save(stock.state_dict(), path)
    model = build(tracker)
    report = model.load_model_param(torch.load(path))
    assert {n.split(".")[0] for n in report.loaded} == {"head", "c_z_k", "r_z_k", "c_x", "r_x"}
    assert all(n.startswith("basemodel.") for n in (*report.unexpected, *report.missing))
    assert torch.equal(model.c_x.weight, stock.c_x.weight)
    assert "took a checkpoint in part: tensors: " in caplog.text


class Stock(nn.Module):
    """A backbone of the tracker's own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 88, stride=8)

    def forward(self, image):
        return self.conv1(image)


def test_weights_of_a_backbone(tracker, tmp_path, caplog):
    torch.manual_seed(1)
    net = ca.create_model("sbt_test")
    ca.save_pretrained(net, tmp_path)
    backbone = build_backbone(tracker, pretrain_model_path=str(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(backbone.net.parameters(), net.parameters()))
    assert not caplog.text
    build_backbone(tracker, pretrain_model_path=str(tmp_path), depths=[1, 1, 5])
    assert "20 missing" in caplog.text  # the fifth block


def test_options_reach_the_network(tracker):
    cross = [[], [], [0, 2]]
    backbone = build_backbone(
        tracker, depths=[1, 2, 3], mlp_ratios=[8, 8, 4], cross_blocks=cross, drop_path_rate=0.2, z_size=111
    )
    assert backbone.net.model_args == {
        "depths": [1, 2, 3],
        "mlp_ratios": [8, 8, 4],
        "cross_blocks": cross,
        "drop_path_rate": 0.2,
    }
    assert backbone(pair(1, z_size=111)["im_z"]).shape == (1, WIDTH, 3, 3)
    with torch.device("meta"):
        fitted = build_backbone(tracker, model=tracker.DEFAULT_NAME, out_channels=256)
    # with 5.9 M of the tracker's own 16.3 M, as the paper's Table 6
    assert sum(p.numel() for p in fitted.parameters()) == 10_379_328


def test_mistakes_say_how_to_mend_them(tracker, acme):
    backbone = build_backbone(tracker)
    with pytest.raises(ValueError, match=r"template is 128 x 128 px, but z_size=127"):
        backbone.encode_template(torch.zeros(1, 3, 128, 128))
    with pytest.raises(RuntimeError, match="151 x 151 px came before any template of z_size=127"):
        backbone(pair()["im_x"])
    with pytest.raises(ValueError, match="94 px has no location; SiamFC\\+\\+ needs at least 95 px"):
        backbone.correlate(backbone.encode_template(pair()["im_z"]), torch.zeros(2, 3, 94, 94))
    with pytest.raises(ValueError, match="Near: sbt_test"):
        build_backbone(tracker, model="sbt_tset")
    with pytest.raises(ValueError, match="no option 'dephts'; there are pretrain_model_path, model, depths"):
        build_backbone(tracker, dephts=[1])
    with pytest.raises(FileNotFoundError, match="no weights file 'models/alexnet/alexnet-nopad"):
        build_backbone(tracker, pretrain_model_path="models/alexnet/alexnet-nopad-bn-md5.pkl")
    with pytest.raises(ValueError, match="without _track or _cls"):
        build_backbone(tracker, model="sbt_test_track")
    with pytest.raises(
        ValueError, match=r"SiamFC\+\+ needs features of stride 8; those of 'acme_rigid' have"
    ):
        build_backbone(tracker, model="acme_rigid")
    with pytest.raises(TypeError, match="depths"):
        build_backbone(tracker, model="acme", depths=[1, 1, 2])
    with pytest.raises(ValueError, match="AcmeNet has no gradient checkpointing"):
        build_backbone(tracker, model="acme", grad_checkpointing=True)
    with pytest.raises(ValueError, match=r"not on Stock: set model\.backbone\.name: SiamFCppBackbone"):
        build(tracker, backbone=Stock())
    with pytest.raises(ValueError, match=r"head_width=8 must equal SiamFCppBackbone\.out_channels=16"):
        build(tracker, head_width=8)
    with pytest.raises(ValueError, match="no TensorRT form"):
        build(tracker, trt_mode=True)
    model = build(tracker).eval()
    (state,) = model(pair()["im_z"], phase="feature")
    with pytest.raises(ValueError, match=r"not \(Tensor, Tensor, Tensor\)"):
        model(pair()["im_x"], torch.zeros(1), torch.zeros(1), phase="track")
    with pytest.raises(ValueError, match="mem_len: 1"):
        model(state, torch.zeros(1), torch.zeros(1), phase="track")
    with pytest.raises(ValueError, match="'freeze_track_fea' is not train, feature or track"):
        model(pair()["im_x"], phase="freeze_track_fea")


def test_example(tracker, monkeypatch, capsys):
    monkeypatch.setitem(SiamTrack.default_hyper_params, "head_width", 256)
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 256)
    path = Path(__file__).resolve().parent.parent / "examples" / "ca_siamfcpp.py"
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "a training step, loss" in printed
    assert printed.count("scores (1, 529, 1) boxes (1, 529, 4)") == 2  # 23 x 23 in the stand-in
