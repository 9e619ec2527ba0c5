"""The DiMP adapter against a stand-in of pytracking: contract, caching, several targets, errors."""

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_in_pytracking as pytracking
import torch

import correlation_aware as ca
from correlation_aware.models.contract import TemplateState
from correlation_aware.models.sbt import SBT
from correlation_aware.weights import load_state_dict

ROOT = Path(__file__).resolve().parent.parent
MODULE = "correlation_aware.adapters.dimp"
SIZE = 96  # of search images, so that tests are quick; DiMP's are 288 px


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """pytracking's modules are ours, and the adapter is imported afresh; both are gone afterwards."""
    before = set(sys.modules)
    for name, module in pytracking.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    torch.manual_seed(0)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("ltr", "pytracking", MODULE)):
            del sys.modules[name]


@pytest.fixture
def dimp():
    return importlib.import_module(MODULE)


def make_net(dimp, **arguments):
    torch.manual_seed(0)
    arguments = {"backbone": "sbt_test", "backbone_pretrained": False, **arguments}
    return dimp.dimpnet_sbt(filter_size=4, **arguments)


def batch(images=2, tests=3, sequences=4, seed=0):
    """What DiMP's actor gives its network; the boxes are around the middle."""
    generator = torch.Generator().manual_seed(seed)
    boxes = 30 + 12 * torch.rand(images, sequences, 4, generator=generator)
    return {
        "train_imgs": torch.randn(images, sequences, 3, SIZE, SIZE, generator=generator),
        "test_imgs": torch.randn(tests, sequences, 3, SIZE, SIZE, generator=generator),
        "train_bb": boxes,
        "test_proposals": 30 + 12 * torch.rand(tests, sequences, 5, 4, generator=generator),
    }


def frame(seed):
    return np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def make_tracker(dimp, tmp_path, box=(50, 40, 24, 20), params=None):
    if params is None:
        pytracking.save_network(make_net(dimp), tmp_path / "net.pth")
        params = pytracking.parameters(tmp_path / "net.pth", SIZE)
    tracker = dimp.DiMPCA(params)
    tracker.initialize(frame(0), {"init_bbox": box})
    return tracker


# The backbone


def test_default_is_the_modified_sbt_with_resnet_50s_outputs(dimp):
    backbone = dimp.DiMPBackbone().eval()
    assert sum(p.numel() for p in backbone.parameters()) == 8_625_984
    with torch.no_grad():
        state = backbone.encode_template(torch.randn(1, 3, 128, 128))
        features = backbone(torch.randn(1, 3, 288, 288), ["layer2", "layer3"], state)
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "layer2": (1, 512, 36, 36),
        "layer3": (1, 1024, 18, 18),
    }
    assert all(f.is_contiguous() for f in features.values())
    for name, stride, channels in (("layer2", 8, 512), ("layer3", 16, 1024)):
        assert backbone.out_feature_strides(name) == backbone.out_feature_strides()[name] == stride
        assert backbone.out_feature_channels(name) == backbone.out_feature_channels()[name] == channels


def test_layer3_knows_the_template_and_a_state_gives_the_same_numbers(dimp):
    backbone = dimp.DiMPBackbone("sbt_test").eval()
    one, other = torch.randn(2, 1, 3, 64, 64)
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        a, b = backbone(x, template=one), backbone(x, template=other)
        cached = backbone(x, ["layer3"], backbone.encode_template(one))
    assert list(cached) == ["layer3"] and torch.equal(cached["layer3"], a["layer3"])
    assert not torch.equal(a["layer3"], b["layer3"])
    assert torch.equal(a["layer2"], b["layer2"])  # comes before the first EoC-CA block


SBT_PARTS = {"conv1": "stages.0.embed.proj", "bn1": "stages.0.embed.norm"}
SBT_PARTS |= {f"layer{i + 1}": f"stages.{i}." for i in range(3)}
ACME_PARTS = {
    "conv1": "stem.conv",
    "bn1": "stem.norm",
    "layer1": "stem",
    "layer2": "middle",
    "layer3": "last",
}


@pytest.mark.parametrize(
    "names", [["conv1", "bn1", "layer1"], ["layer2"], ["conv1", "layer3"], "all", "none"]
)
@pytest.mark.parametrize(("model", "parts"), [("sbt_test", SBT_PARTS), ("acme", ACME_PARTS)])
def test_frozen_layers_do_not_train(dimp, acme, model, parts, names):
    backbone = make_net(dimp, backbone=model, frozen_backbone_layers=names).train().feature_extractor
    for name, parameter in backbone.named_parameters():
        frozen = names == "all" or any(parts[n] in name for n in names if n in parts)
        assert parameter.requires_grad is not frozen


def test_weights_of_a_network_of_the_zoo_fill_the_backbone(dimp, tmp_path):
    net = ca.create_model("sbt_test")  # stride 8; strides are no part of the weights
    backbone = dimp.DiMPBackbone("sbt_test", ca.save_pretrained(net, tmp_path))
    trunk = backbone.trunk.model.state_dict()
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="sbt_test"):  # it has no weights of its own
        dimp.DiMPBackbone("sbt_test", True)


# Templates


def test_a_template_holds_its_box_in_the_middle(dimp):
    images = torch.zeros(2, 3, 80, 100)
    images[0, :, 20:40, 30:50] = 1  # y, x
    images[1, :, 60:80, 0:20] = 1  # in the corner
    boxes = torch.tensor([[30.0, 20, 20, 20], [0, 60, 20, 20]])
    templates = dimp.cut_templates(images, boxes, factor=2, size=64)
    inside = templates[0, 0, 17:47, 17:47]
    assert templates.shape == (2, 3, 64, 64) and inside.min() > 0.99
    assert templates[0].sum() == pytest.approx(3 * 32 * 32, rel=0.01)  # a quarter of the square
    assert templates[1, 0, 63, 0] == 1 and templates[1, 0, 0, 63] == 0  # the border repeats


def test_templates_come_from_the_first_train_image(dimp):
    net, data = make_net(dimp).eval(), batch()
    with torch.no_grad():
        scores, overlaps = net(**data)
        state = net.encode_template(data["train_imgs"][0], data["train_bb"][0])
        later = {**data, "train_bb": data["train_bb"].clone()}
        later["train_bb"][1:] += 5
        assert torch.equal(net(**later)[0][0], scores[0])
    assert [tuple(t.shape) for t in state] == [(4, 4, 4, 32)]  # 64 px at stride 16
    assert [tuple(s.shape) for s in scores] == [(3, 4, 6, 6)] * 2 and overlaps.shape == (3, 4, 5)


@pytest.mark.parametrize(("images", "tests"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("model", ["sbt_test", "supersbt_test", "acme", "acme_rigid"])
def test_sequences_do_not_mix(dimp, acme, model, images, tests):
    """A batch of sequences equals the sequences one by one: states repeat in the order of the images."""
    net, data = make_net(dimp, backbone=model).eval(), batch(images, tests, sequences=3)
    with torch.no_grad():
        scores, overlaps = net(**data)
        for i in range(3):
            alone = net(**{key: value[:, i : i + 1] for key, value in data.items()})
            torch.testing.assert_close(scores[-1][:, i : i + 1], alone[0][-1], rtol=0, atol=1e-5)
            torch.testing.assert_close(overlaps[:, i : i + 1], alone[1], rtol=0, atol=1e-5)


# Training


@pytest.mark.parametrize("model", ["sbt_test", "acme"])
def test_a_gradient_in_every_parameter_and_a_falling_loss(dimp, acme, model):
    net, data = make_net(dimp, backbone=model).train(), batch(tests=1, sequences=4)
    if model == "sbt_test":
        net.feature_extractor.trunk.set_grad_checkpointing()
    groups = [net.classifier.filter_initializer, net.classifier.filter_optimizer]
    groups += [net.classifier.feature_extractor, net.bb_regressor, net.feature_extractor]
    parameters = [p for group in groups for p in group.parameters()]  # as pytracking's train settings do
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters()}
    assert len(parameters) == len(list(net.parameters()))
    optimizer = torch.optim.Adam([{"params": g.parameters(), "lr": 1e-3} for g in groups])
    labels, truth = torch.rand(1, 4, 6, 6), torch.rand(1, 4, 5)
    losses = []
    for _ in range(10):
        scores, overlaps = net(**data)
        loss = sum((s - labels).square().mean() for s in scores) + (overlaps - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_networks_are_saved_and_loaded_as_pytracking_does(dimp, tmp_path):
    net, data = make_net(dimp, backbone_overrides={"drop_path_rate": 0.1}).eval(), batch()
    net.constructor.kwds["backbone_pretrained"] = True  # as in training; loading must not look for weights
    pytracking.save_network(net, tmp_path / "net.pth")
    del sys.modules[MODULE]  # the checkpoint alone brings the adapter in
    again = pytracking.load_network(tmp_path / "net.pth").eval()
    with torch.no_grad():
        assert torch.equal(net(**data)[1], again(**data)[1])
    assert again.feature_extractor.trunk.model.config.drop_path_rate == 0.1


def test_the_pooling_is_ours_wherever_pytracking_looks(dimp):
    net = make_net(dimp)
    assert isinstance(net.classifier.pool, dimp.PrRoIPool2D)
    assert sys.modules[pytracking.POOL].PrRoIPool2D is dimp.PrRoIPool2D


# Tracking


def test_the_template_is_encoded_once_and_stays(dimp, tmp_path, monkeypatch):
    calls = []
    encode = SBT.encode_template
    monkeypatch.setattr(SBT, "encode_template", lambda net, z: calls.append(z) or encode(net, z))
    tracker = make_tracker(dimp, tmp_path)
    state = tracker.template
    for i in (1, 2, 3):
        tracker.track(frame(i))
    assert len(calls) == 1 and tracker.template is state
    assert [len(m) for m in tracker.memory] == [2, 1, 1, 1]
    net = tracker.params.net
    patch, coords = pytracking.sample_patch(
        pytracking.as_tensor(frame(3)),
        tracker.pos,
        tracker.target_scale * tracker.img_sample_sz,
        tracker.img_sample_sz,
    )
    with torch.no_grad():
        features = net.extract_backbone_features(net.preprocess_image(patch), template=state)
    assert torch.equal(net.extract_classification_feat(features), tracker.memory[-1])
    # the template is cut as in training: from the search image, at the target's box in it
    centers, scales = tracker.get_sample_location(coords)
    box = tracker.get_iounet_box(tracker.pos, tracker.target_sz, centers[0], scales[0])
    patch, _ = pytracking.sample_patch(
        pytracking.as_tensor(frame(0)),
        tracker.pos,
        tracker.target_scale * tracker.img_sample_sz,
        tracker.img_sample_sz,
    )
    torch.testing.assert_close(calls[0], dimp.cut_templates(net.preprocess_image(patch), box[None], 2, 64))
    side = (24 * 20) ** 0.5 / tracker.target_scale.item()
    assert (box[2:].prod().sqrt().item(), side) == pytest.approx((side, SIZE / 5))


def test_targets_share_a_network_but_not_their_templates(dimp, tmp_path):
    first = make_tracker(dimp, tmp_path)
    alone = [first.track(frame(i))["layer3"] for i in (1, 2)]
    first = make_tracker(dimp, tmp_path, params=first.params)
    second = make_tracker(dimp, tmp_path, box=(90, 60, 30, 30), params=first.params)
    assert first.params.net is second.params.net and first.template is not second.template
    for i in (1, 2):
        together = first.track(frame(i))["layer3"]
        other = second.track(frame(i))["layer3"]
        assert torch.equal(together, alone[i - 1]) and not torch.equal(together, other)


def test_a_second_initialize_takes_a_new_template(dimp, tmp_path):
    tracker = make_tracker(dimp, tmp_path)
    before = tracker.template
    tracker.initialize(frame(7), {"init_bbox": (20, 30, 40, 20)})
    assert not torch.equal(before[0], tracker.template[0])
    assert tracker.net.extract_backbone is not tracker.params.net.extract_backbone
    assert tracker.net.classifier is tracker.params.net.classifier


# Mistakes


def test_without_pytracking_the_adapter_says_what_to_do(monkeypatch):
    for name in pytracking.modules():
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(
        ModuleNotFoundError, match=r"needs pytracking, and there is no module 'ltr'. Put a check"
    ):
        importlib.import_module(MODULE)


def test_a_package_that_pytracking_misses_is_named_as_such(monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "pytracking.tracker.dimp.dimp":
                raise ModuleNotFoundError("No module named 'visdom'", name="visdom")

    monkeypatch.delitem(sys.modules, "pytracking.tracker.dimp.dimp")
    monkeypatch.setitem(
        sys.modules, "pytracking.tracker.dimp", package := type(sys)("pytracking.tracker.dimp")
    )
    package.__path__ = []
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'visdom'$"):
        importlib.import_module(MODULE)


def test_the_former_name_of_the_backbone(dimp):
    with pytest.warns(DeprecationWarning, match="'SBTBackbone' is called 'DiMPBackbone' now"):
        assert dimp.SBTBackbone is dimp.DiMPBackbone
    with pytest.raises(AttributeError, match="has no attribute 'SBTBone'"):
        dimp.SBTBone  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frozen_layers": ["layer5"]}, "frozen_layers has 'layer5', which is not one of"),
        ({"frozen_layers": "some"}, "frozen_layers has 'some', which is not one of all, none"),
        ({"overrides": {"depth": (1, 1, 2)}}, "Unknown argument 'depth'. Near: depths"),
        ({"overrides": {"strides": (4, 2, 1)}}, r"DiMP needs features of stride 8, 16; .* have \[4, 8, 8\]"),
        (
            {"model": "acme", "overrides": {"output_stride": 8}},
            r"have \[4, 8, 8\] with output_stride=8: leave",
        ),
        ({"model": "sbt_test_track"}, "'sbt_test_track' is a TrackModel: take a name without _track"),
        ({"model": "sbt_tset"}, "There is no model 'sbt_tset'. Near: sbt_test"),
    ],
)
def test_wrong_arguments_are_named(dimp, acme, arguments, message):
    with pytest.raises(TypeError if "depth'" in message else ValueError, match=message):
        dimp.DiMPBackbone(**{"model": "sbt_test", **arguments})


def test_wrong_inputs_are_named(dimp):
    net, x = make_net(dimp), torch.randn(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"without a template. Track with DiMPCA instead of DiMP"):
        net.extract_backbone_features(x)
    with pytest.raises(ValueError, match="no output layer 'layer4'; there are layer2, layer3"):
        net.extract_backbone_features(x, ["layer4"], TemplateState(torch.zeros(1, 4, 4, 32)))
    with pytest.raises(ValueError, match="template is 16 x 16 px; each side must be at least 32"):
        net.feature_extractor(x, template=torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"boxes \(1, 1, 4\) must have the shapes"):
        net.encode_template(x, torch.rand(1, 1, 4))
    data = batch()
    with pytest.raises(ValueError, match=r"expected \(images, sequences, 3, height, width\) for both"):
        net(**{**data, "test_imgs": data["test_imgs"][0]})


def test_a_checkpoint_of_stock_dimp_is_recognized(dimp):
    stock, net = pytracking.dimpnet50(), make_net(dimp)
    with pytest.raises(
        RuntimeError, match=r"checkpoint of stock DiMP: 11 of its 17 tensors fit this network"
    ):
        net.load_state_dict(stock.state_dict())
    report = load_state_dict(net, stock.state_dict(), partial=True)
    assert {name.split(".")[0] for name in report.loaded} == {"classifier", "bb_regressor"}
    assert torch.equal(net.bb_regressor.predictor.weight, stock.bb_regressor.predictor.weight)
    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
        net.load_state_dict({"something": torch.zeros(1)})


def test_a_tracker_wants_our_network_and_a_first_frame(dimp, tmp_path):
    pytracking.save_network(pytracking.dimpnet50(), tmp_path / "stock.pth")
    params = pytracking.parameters(tmp_path / "stock.pth", SIZE)
    tracker = dimp.DiMPCA(params)
    with pytest.raises(ValueError, match=r"params\.net holds a DiMPnet, but DiMPCA tracks with a DiMPnetCA"):
        tracker.initialize(frame(0), {"init_bbox": (50, 40, 24, 20)})
    with pytest.raises(RuntimeError, match="call initialize"):
        tracker.extract_backbone_features(None, None, None, None)


# The example


def test_example(dimp, tmp_path, monkeypatch, capsys):
    path = ROOT / "examples" / "ca_dimp.py"
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "two targets, one network True" in printed and "loss" in printed
