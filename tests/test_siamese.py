"""Siamese networks: correlations against loops, caches, exports, weights of backbones, and updates."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from costs import network_and_tracker
from safetensors.torch import save_file
from training_runs import SyntheticPairs

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware.data.pairs import Renormalized, normalize
from correlation_aware.models.eoc import EoCBlock, concat_streams
from correlation_aware.models.heads import TowerHead
from correlation_aware.models.siamese import (
    CorrelationFilter,
    SiameseConfig,
    depthwise_correlation,
    pixel_correlation,
)
from correlation_aware.ops import unpack
from correlation_aware.runtime.export import export
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import Tracker, TrackerConfig
from correlation_aware.training.losses import LossConfig, best_location_iou, track_loss

NECKS = ("dw_corr", "pixel_corr", "cross_attention", "dcf")
EMBEDDED = {"backbone": "sbt_test", "levels": ("S3B4",), "lateral": None, "embedded": True}


def images(templates=1, searches=1, size=(64, 128), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((templates, size[0]), (searches, size[1]))
    return tuple(torch.randn(n, 3, side, side, generator=generator) for n, side in shapes)


def network(neck="cross_attention", name="siam_test", **overrides):
    torch.manual_seed(0)
    return ca.create_model(name, neck=neck, **overrides)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4), (5, 2)])
def test_depthwise_correlation_is_a_sum_over_shifts(kernel):
    generator = torch.Generator().manual_seed(0)
    x, k = torch.randn(2, 3, 6, 5, generator=generator), torch.randn(2, 3, *kernel, generator=generator)
    top, left = (kernel[0] - 1) // 2, (kernel[1] - 1) // 2
    expected = torch.zeros_like(x)
    for b, c, y, u in np.ndindex(*x.shape):
        for i, j in np.ndindex(*kernel):
            row, column = y + i - top, u + j - left
            if 0 <= row < 6 and 0 <= column < 5:
                expected[b, c, y, u] += x[b, c, row, column] * k[b, c, i, j]
    torch.testing.assert_close(depthwise_correlation(x, k), expected)
    torch.testing.assert_close(depthwise_correlation(x, k[:1])[0], expected[0])  # one for all
    torch.testing.assert_close(depthwise_correlation(x[:1], k)[0], expected[0])
    compiled = torch.compile(depthwise_correlation, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, k), expected)


def test_pixel_correlation_is_a_product_per_pair_of_locations():
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 4, 3, 5, generator=generator), torch.randn(2, 6, 4, generator=generator)
    output = pixel_correlation(x, z)
    assert output.shape == (2, 6, 3, 5)
    for b, n, y, u in np.ndindex(*output.shape):
        assert output[b, n, y, u].item() == pytest.approx((x[b, :, y, u] @ z[b, n]).item() / 2, abs=1e-5)


@torch.no_grad()
def test_the_filter_solves_the_ridge_regression():
    side, channels = 5, 3
    cfg = SiameseConfig(neck="dcf", dim=channels, crop=side)
    neck = CorrelationFilter(channels, cfg, ca.Sizes(), reduction=8)
    neck.log_penalty.fill_(math.log(0.3))
    features = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(side + 2, periodic=False)[1:-1]
    z = (features[0] * torch.outer(window, window) / channels**0.5).double()
    distance = torch.arange(side) - (side - 1) / 2
    label = torch.exp(-0.5 * (distance / (0.1 * side / 2)).square()).double()
    # a sample per circular shift: the filter's value at offset (i, j) meets the features at (y + i, x + j)
    offsets = range(-(side // 2), side // 2 + 1)
    columns = [
        z[c].roll((-i, -j), (0, 1)).flatten() for c in range(channels) for i in offsets for j in offsets
    ]
    samples = torch.stack(columns, dim=1)
    target = torch.outer(label, label).flatten()
    expected = torch.linalg.solve(samples.T @ samples + 0.3 * torch.eye(len(columns)), samples.T @ target)
    actual = neck.solve(*neck.make_kernel(features))
    torch.testing.assert_close(actual.double(), expected.view(1, channels, side, side), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_filters_response_follows_the_target():
    torch.manual_seed(0)
    cfg = SiameseConfig(neck="dcf", dim=8)
    neck = CorrelationFilter(8, cfg, ca.Sizes(), reduction=8)
    target = torch.randn(8, 5, 5)
    template, search = 0.1 * torch.randn(1, 8, 15, 15), 0.1 * torch.randn(1, 8, 31, 31)
    template[0, :, 5:10, 5:10] = target
    search[0, :, 18:23, 6:11] = target
    filters = neck.solve(*neck.make_kernel(template))
    assert filters.shape == (1, 8, 7, 7)  # the default crop
    response = depthwise_correlation(search, filters).sum(dim=1)[0]
    assert divmod(response.argmax().item(), 31) == (20, 8)


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_keys_of_both_images(batch):
    torch.manual_seed(0)
    block = EoCBlock(8, 2, cross=True, mlp_ratio=2, keys="both").eval()
    z, x = torch.randn(batch, 2, 3, 8), torch.randn(batch, 4, 4, 8)
    tokens, shapes = concat_streams(z, x)
    output, residual, _ = block(tokens, None, shapes)
    maps = unpack(output + residual, shapes)
    for b in range(batch):
        both = block.norm1(torch.cat([z[b].flatten(0, 1), x[b].flatten(0, 1)]))
        q = block.attn.q(both).view(-1, 2, 4)
        k, v = block.attn.kv(both).view(-1, 2, 2, 4).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 2
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        attended = torch.cat([z[b].flatten(0, 1), x[b].flatten(0, 1)]) + block.attn.proj(mixed)
        search = attended[6:].view(1, 4, 4, 8)
        expected = search + block.mlp(block.norm2(search).flatten(0, 2), [(1, 4, 4)]).view(1, 4, 4, 8)
        torch.testing.assert_close(maps[1][b], expected[0], rtol=0, atol=1e-5)
    alone, residual, left = block(tokens, None, shapes, True)
    assert left == shapes[1:]
    torch.testing.assert_close(unpack(alone + residual, left)[0], maps[1], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="leave out attn"):
        EoCBlock(8, 2, cross=True, keys="both", attn=block.attn)


@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_trains_caches_and_takes_batches(neck):
    net = network(neck)
    net(*images(2, 2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    net.eval()
    template, search = images(3, 3)
    with torch.inference_mode():
        expected = torch.cat([net(template[i, None], search[i, None]) for i in range(3)])
        state = net.encode_template(template)
        assert torch.equal(net(state, search), net(template, search))
        torch.testing.assert_close(net(state, search), expected, rtol=0, atol=1e-5)
        one = net(state.index([0]), search)
        torch.testing.assert_close(one[:1], expected[:1], rtol=0, atol=1e-5)
        many = net(state, search[:1])
        torch.testing.assert_close(many[:1], expected[:1], rtol=0, atol=1e-5)
        assert one.shape == many.shape == expected.shape == (3, 16, 16, 16)
        z, x = net.forward_features(state, search)
        assert z.shape == (3, 16, 8, 8) and z.is_contiguous()
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
        half = net.to(torch.bfloat16)(template.bfloat16(), search.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_exports(neck, tmp_path):
    export(network(neck, "siam_test_track").eval(), tmp_path, "torch", ["pair"])  # which compares numbers


def test_dcf_exports_from_older_versions_of_pytorch():
    """The exporter of PyTorch 2.11 has no ONNX operator for `torch.hann_window`."""
    pair = (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 128, 128))
    program = torch.export.export(network("dcf", "siam_test_track").eval(), pair)
    assert not [node for node in program.graph.nodes if "window" in str(node.target)]


@pytest.mark.parametrize("neck", ["cross_attention", "dcf"])
@torch.inference_mode()
def test_necks_compile_without_graph_breaks(neck):
    net, pair = network(neck, keys="both") if neck == "cross_attention" else network(neck), images()
    compiled = torch.compile(net.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*pair), net(*pair), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("neck", "format", "graphs"),
    [("dcf", "onnx", ["template", "search"]), ("cross_attention", "openvino", ["search"])],
)
def test_other_runtimes(neck, format, graphs, tmp_path):
    """The template's graph too where it has layers of its own: it solves for the filter."""
    export(network(neck, "siam_test_track").eval(), tmp_path, format, graphs)


@torch.inference_mode()
def test_levels_are_added_with_learned_weights():
    net = network("dw_corr", levels=(2, 3), output_stride=8, lateral=None).eval()
    template, search = images()
    outputs = []
    for neck in net.necks:
        neck.register_forward_hook(lambda m, i, output: outputs.append(output[-1]))
    net.level_logits.copy_(torch.tensor([0.0, math.log(3)]))
    output = net(template, search)
    torch.testing.assert_close(output, 0.25 * outputs[0] + 0.75 * outputs[1])
    assert net.feature_info.reduction() == [8] and net.no_weight_decay() == {"level_logits"}
    with pytest.raises(ValueError, match=r"have the strides \[8, 16\], but must have the same"):
        network("dw_corr", levels=(2, 3))


@torch.inference_mode()
def test_lateral_features_are_added_to_the_resized_result():
    net = network(keys="both").eval()
    template, search = images()
    coarse, fine = net.extract(search)
    (x,) = net.necks[0](net.encode_template(template), coarse)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear") + net.lateral(fine)
    torch.testing.assert_close(net(template, search), expected)
    assert ca.create_model("siam_test", lateral=None)(template, search).shape == (1, 16, 8, 8)


def test_the_backbones_batch_norms_keep_their_statistics():
    net, other = network("dw_corr"), network("dw_corr", frozen_norms=False)
    for model in (net, other):
        model.train()(*images(2, 2))
    key = "extractor.bn1.running_mean"
    fresh = network("dw_corr").state_dict()[key]
    assert torch.equal(net.state_dict()[key], fresh) and not torch.equal(other.state_dict()[key], fresh)
    assert net.necks[0].adjust[1].training and not net.extractor.bn1.training
    assert net.extractor.bn1.weight.requires_grad


@torch.inference_mode()
def test_sbt_blocks_as_levels():
    sbt = ca.create_model("sbt_test").eval()
    template, search = images()
    stages, last = [(2, 1), (2, 3)], [(2, 3)]
    alone = sbt.forward_blocks(None, search, stages)
    assert [maps[0].shape for maps in alone] == [(1, 32, 16, 16)] * 2
    torch.testing.assert_close(alone[1][0], sbt.forward_template(search), rtol=0, atol=1e-6)
    (pair,) = sbt.forward_blocks(template, search, last)
    for actual, expected in zip(pair, sbt.forward_features(template, search)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    state = sbt.encode_template(template)
    assert torch.equal(sbt.forward_blocks(state, search, last)[0][1], pair[1])
    with pytest.raises(ValueError, match="begin before the first EoC-CA block"):
        sbt.forward_blocks(state, search, [(2, 0)])
    with pytest.raises(ValueError, match="begin before the first EoC-CA block"):
        sbt.forward_blocks(state, search, [(1, 0)])


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("neck", ["dw_corr", "cross_attention", "dcf"])
def test_sbt_with_and_without_embedded_correlation(neck, embedded):
    arguments = {"backbone": "sbt_test", "levels": ("S3B3", "S3B4"), "lateral": None, "embedded": embedded}
    net = network(neck, **arguments)
    template, search = images(2, 2)
    net(template, search).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    with torch.inference_mode():
        x = net(template, search)
        assert x.shape == (2, 16, 16, 16)
        torch.testing.assert_close(net(net.encode_template(template), search), x, rtol=0, atol=1e-6)
        other = net.extractor.encode_template(template)
        assert torch.equal(net.encode_template(template)[0], other[0]) == embedded
        z, again = net.forward_features(template, search)
        assert z.shape == (2, 16, 8, 8)
        torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
        assert net.update_interval == (6 if neck == "dcf" and not embedded else 0)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_nfnet"])
@torch.inference_mode()
def test_other_backbones_of_timm(name):
    net = network("dw_corr", backbone=name, levels=(2,), lateral=None).eval()
    plain = timm.create_model(name, features_only=True, out_indices=(2,)).eval()
    plain.load_state_dict(net.extractor.state_dict(), strict=False)
    reduction = net.feature_info.reduction()[-1]
    assert plain.feature_info.reduction() == [reduction]
    template, search = images()
    assert net(template, search).shape == (1, 16, 128 // reduction, 128 // reduction)
    (features,) = net.extract(search)
    assert features.shape == plain(search)[0].shape
    cfg = timm.get_pretrained_cfg(name)
    assert net.default_data_cfg == {"mean": cfg.mean, "std": cfg.std}


def test_a_models_own_normalization_reaches_the_tracker():
    model = ca.create_model("siam_lite0_ca_track", template_size=32, search_size=64)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == (mean, std)
    gray = ca.create_model("siam_lite0_ca", in_chans=1, device="meta")
    assert gray.pretrained_cfg["mean"] == pytest.approx(mean[:1])
    tracker = Tracker(InferenceSession(model.eval()))
    frame = np.full((80, 80, 3), 191, np.uint8)
    seen = []
    model.backbone.extractor.conv_stem.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    tracker.init(frame, (30, 30, 20, 20))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 0.5))  # (191 - 127) / 128


def test_training_pairs_have_the_models_own_normalization():
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()

    class Pairs(SyntheticPairs):
        def batch(self, number):
            return super().batch(number)._replace(template=normalize(pixels), search=normalize(pixels))

    cfg = ca.create_model("siam_lite0_ca", device="meta").pretrained_cfg
    batch = Renormalized(Pairs(), cfg["mean"], cfg["std"], 3).batch(0)
    torch.testing.assert_close(batch.search, (pixels - 127) / 128)
    gray = Renormalized(Pairs(), [0.5], [0.25], 1).batch(0)
    torch.testing.assert_close(gray.template, (pixels.mean(dim=1, keepdim=True) / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("name", ["siam_test", "siam_test_track"])
def test_weights_of_a_timm_classifier_fill_the_backbone(name, tmp_path):
    torch.manual_seed(1)
    classifier = timm.create_model("test_efficientnet")
    state = {k: v for k, v in classifier.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "classifier.safetensors")
    source = f"backbone:{tmp_path / 'classifier.safetensors'}"
    model = ca.create_model(name, pretrained=source)
    assert model.weights_name == source
    own = model.image_backbone.state_dict()
    assert all(torch.equal(own[k], state[k]) for k in own if k in state)
    report = ca.load_pretrained(model, source)
    assert not report.missing and "classifier.weight" in report.unexpected
    gray = ca.create_model(name, pretrained=source, in_chans=1)
    torch.testing.assert_close(
        gray.image_backbone.conv_stem.weight, state["conv_stem.weight"].sum(dim=1, keepdim=True)
    )
    with pytest.raises(ValueError, match="does not fit"):
        ca.create_model("siam_test", backbone="test_resnet", pretrained=source)
    with pytest.raises(ValueError, match=r"timm has no weights 'timm:resnet50\.none'\. Its tags: .*a1_in1k"):
        ca.create_model(name, pretrained="timm:resnet50.none")
    with pytest.raises(ValueError, match=r"For weights of timm write 'timm:resnet50\.a1_in1k'"):
        ca.create_model(name, pretrained="resnet50.a1_in1k")
    with pytest.raises(ValueError, match="networks of two images, not SBTClassifier"):
        ca.create_model("sbt_test_cls", pretrained=source)


def test_names_of_timm_are_addresses():
    source = weights.resolve_weights("timm:resnet50.a1_in1k")
    assert source.hub_file == ("timm/resnet50.a1_in1k", "model.safetensors", None) and source.backbone_only
    assert weights.resolve_weights("timm:resnet50").hub_file == source.hub_file
    with pytest.warns(DeprecationWarning, match=r"is called 'timm:resnet50\.a1_in1k' now") as warned:
        assert weights.resolve_weights("backbone:resnet50.a1_in1k") == source
    assert warned[0].filename == __file__
    entry = weights.resolve_weights("backbone:sbt_base_pvtv2.in1k")
    assert entry.entry is not None and entry.is_starting_point


def test_the_normalization_of_timms_weights_comes_with_them():
    """Where it is another than that of the model's other weights; one that we correct stays."""
    name, half = "mobilenetv4_conv_small", (0.5, 0.5, 0.5)
    net = network("dw_corr", backbone=name, levels=(2,), lateral=None)
    mean = net.pretrained_cfg["mean"]
    state = net.image_backbone.state_dict()
    for tag, expected in (("e2400_r224_in1k", mean), ("e3600_r256_in1k", half)):
        source = weights.resolve_weights(f"timm:{name}.{tag}")
        report = ca.load_pretrained(net, replace(source, hub_file=None, state_dict=state))
        assert net.pretrained_cfg["mean"] == expected and net.weights_name == f"timm:{name}.{tag}"
        assert net.pretrained_cfg["license"] == "apache-2.0" and not report.missing
        assert all(loaded.startswith("extractor.") for loaded in report.loaded)
    missing = {key: tensor for key, tensor in state.items() if "conv_stem" not in key}
    with pytest.raises(ValueError, match="does not fit"):  # not in part, as a network that resembles it
        ca.load_pretrained(net, replace(source, hub_file=None, state_dict=missing))
    lite = ca.create_model("siam_lite0_ca")
    source = weights.resolve_weights("timm:tf_efficientnet_lite0")
    ca.load_pretrained(lite, replace(source, hub_file=None, state_dict=lite.image_backbone.state_dict()))
    assert lite.pretrained_cfg["mean"] == (127 / 255,) * 3


def test_weights_of_a_classifier_fill_an_sbt_backbone(tmp_path):
    classifier = ca.create_model("sbt_test_cls")
    ca.save_pretrained(classifier, tmp_path)
    model = network("dw_corr", "siam_test_track", backbone="sbt_test", levels=("S3B4",), lateral=None)
    report = ca.load_pretrained(model, f"backbone:{tmp_path}", partial=True)
    assert not report.missing
    own = model.image_backbone.state_dict()
    assert all(torch.equal(own[k], v) for k, v in classifier.state_dict().items() if k in own)


def test_efficientnets_of_efficientnet_pytorch(tmp_path):
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed, number, last = {}, -1, None
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    others |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    for name, tensor in theirs.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            number, last = (number + 1, parts[1:3]) if parts[1:3] != last else (number, last)
            layer = (first if number == 0 else others)[parts[3]]
            renamed[f"_blocks.{number}.{layer}.{parts[4]}"] = tensor
        else:
            renamed[f"{outer.get(parts[0], '_fc')}.{parts[1]}"] = tensor
    converted = weights.convert_state_dict(renamed)
    assert converted.keys() == theirs.keys()
    assert all(torch.equal(converted[k], theirs[k]) for k in theirs)
    torch.save(renamed, tmp_path / "lite0.pth")
    report = ca.load_pretrained(ca.create_model("siam_lite0_ca"), f"backbone:{tmp_path / 'lite0.pth'}")
    assert not report.missing


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"neck": "concat"}, ValueError, "neck='concat' is not one of dw_corr, pixel_corr, cross_attention"),
        ({"crop": 5}, TypeError, "crop=5 is for the necks dw_corr, pixel_corr, dcf, not for 'cross_att"),
        ({"neck": "dw_corr", "depth": 4}, TypeError, "depth=4 is for the necks cross_attention"),
        ({"neck": "dw_corr", "crop": 4}, ValueError, "crop=4 must be an odd number"),
        ({"depth": 1}, ValueError, "depth=1 must be at least 2"),
        ({"heads": 3}, ValueError, "dim=16 must be divisible by heads=3"),
        ({"levels": ()}, ValueError, "names no level"),
        ({"levels": (7,)}, ValueError, r"level 7 is not one of 0\.\.4"),
        ({"levels": ("S3B6",)}, ValueError, "level 'S3B6' is not one of"),
        ({"backbone": "test_efficentnet"}, ValueError, "Near: test_efficientnet"),
        ({"backbone": "sbt_test_cls"}, ValueError, "gives no features of single images"),
        ({"embedded": True}, ValueError, "embedded=True needs a backbone with two inputs"),
        ({"backbone": "sbt_test", "levels": ("S3B9",)}, ValueError, "has the blocks B1 to B4"),
        ({"backbone": "sbt_test", "levels": ("layer3",)}, ValueError, "or a block such as S3B6"),
        ({"neck": "dcf", "update_rate": 0.0}, ValueError, "update_rate=0.0 above 0"),
        ({"dimension": 3}, TypeError, "Unknown argument 'dimension'"),
        ({"num_classes": 3}, TypeError, "num_classes"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ca.create_model("siam_test", **{"lateral": None, **arguments}, device="meta")


@torch.inference_mode()
def test_bad_input():
    net, other = network("pixel_corr").eval(), network("dw_corr").eval()
    template, search = images()
    with pytest.raises(ValueError, match="The template features are 2 x 2; pixel_corr needs 3 x 3"):
        net.encode_template(template[:, :, :32, :32])
    with pytest.raises(ValueError, match="comes from another network"):
        network().eval()(other.encode_template(template), search)
    with pytest.raises(ValueError, match="search is 31 x 128 px"):
        net(template, search[:, :, :31])
    state = network().eval().encode_template(template)
    assert network().join_templates([state, state])[0].shape == (1, 8, 4, 16)
    with pytest.raises(NotImplementedError, match="takes one template"):
        net.join_templates([net.encode_template(template)] * 2)


def test_layer_groups_and_checkpointing():
    net = network(keys="both")
    groups = timm.models.group_parameters(net, net.group_matcher(), reverse=True)
    assert groups["extractor.conv_stem.weight"] == 0 < groups["necks.0.adjust.weight"]
    assert set(groups) == {name for name, _ in net.named_parameters()}
    gradients = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(*images()).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_tower_head_measures_from_the_middle_of_a_location():
    head = TowerHead(4, layers=1)
    head.box[-1].weight.zero_()
    output = head(torch.randn(2, 4, 2, 3))
    assert output.logits.shape == (2, 2, 2, 3) and len(head.cls) == 2
    expected = torch.tensor([[[x, y, 0.25, 0.25] for x in (1 / 6, 3 / 6, 5 / 6)] for y in (1 / 4, 3 / 4)])
    torch.testing.assert_close(output.boxes[1].permute(1, 2, 0), expected)
    before = output.logits[:, 0] - output.logits[:, 1]
    head.calibrate(2.0, 0.5)
    logits = head(torch.zeros(1, 4, 1, 1)).logits
    head.calibrate(0.5, -0.25)
    torch.testing.assert_close(
        logits[:, 0] - logits[:, 1],
        2 * (lambda o: o[:, 0] - o[:, 1])(head(torch.zeros(1, 4, 1, 1)).logits) + 0.5,
    )
    assert before.shape == (2, 2, 3)


def test_the_tracker_updates_the_filters_of_targets_that_are_not_lost():
    model = network("dcf", "siam_test_track", update_interval=2, update_rate=0.25)
    session = InferenceSession(model.eval())
    frame = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    tracker = Tracker(session, TrackerConfig(lost_threshold=0))
    tracker.init(frame, [(30, 30, 20, 20), (80, 50, 25, 30)])
    start = session._state
    tracker.update(frame)
    assert all(torch.equal(a, b) for a, b in zip(session._state, start))  # every second frame
    tracker.update(frame)
    boxes = tracker._boxes
    second = Tracker(InferenceSession(model), TrackerConfig())
    second.init(frame, boxes)
    for actual, old, new in zip(session._state, start, second.session._state, strict=True):
        torch.testing.assert_close(actual, torch.lerp(old, new, 0.25))
    with torch.inference_mode():
        session.update_template(torch.zeros(2, 3, 64, 64), [False, True])
    assert torch.equal(session._state[0][0], torch.lerp(start[0], second.session._state[0], 0.25)[0])
    assert not torch.equal(session._state[0][1], torch.lerp(start[0], second.session._state[0], 0.25)[1])
    lost = Tracker(session, TrackerConfig(lost_threshold=1, redetect=False))
    lost.init(frame, (30, 30, 20, 20))
    start = session._state
    for _ in range(2):
        lost.update(frame)
    assert session._state is start
    with pytest.raises(RuntimeError, match="call set_template"):
        InferenceSession(model).update_template(torch.zeros(1, 3, 64, 64), [True])


def test_other_networks_are_not_updated():
    for net in (ca.create_model("sbt_test_track"), network("dw_corr"), network("dcf", **EMBEDDED)):
        state = net.encode_template(torch.zeros(1, 3, 64, 64))
        assert net.update_interval == 0
        with pytest.raises(NotImplementedError, match="has one template, which never changes"):
            net.update_template(state, state.map(torch.zeros_like))


def test_the_tables_are_what_the_code_counts():
    root = Path(__file__).resolve().parent.parent
    pattern = r"^\| (siam_\w+)" + r" \| ([\d.]+)" * 5 + r" \|"
    tables = [
        {name: cells for name, *cells in re.findall(pattern, (root / file).read_text(), re.MULTILINE)}
        for file in ("docs/zoo.md", "docs/siamese.md")
    ]
    names = {n for n in ca.list_models("siam_*") if not n.endswith("_track")} - {"siam_test"}
    assert tables[0] == tables[1] and set(tables[0]) == names
    for name, cells in tables[0].items():
        bare, track = network_and_tracker(name, whole=name == "siam_lite0_ca")
        counted = (bare.params / 1e6, bare.macs / 1e9, bare.cached_macs / 1e9)
        counted += (track.params / 1e6, track.cached_macs / 1e9)
        assert cells == [f"{figure:.2f}" for figure in counted]


def four_pairs(targets):
    """Pairs of two search images with one target or two each: of two, the template tells which is meant."""
    generator = torch.Generator().manual_seed(0)
    template = 0.1 * torch.randn(4, 3, 32, 32, generator=generator)
    search = 0.1 * torch.randn(2, 3, 64, 64, generator=generator).repeat_interleave(2, dim=0)
    colors = torch.tensor([[2.0, -2, -2], [-2, 2, -2]]).repeat(2, 1)[:, :, None, None]
    boxes = torch.tensor(
        [[0.3, 0.3, 0.3, 0.4], [0.7, 0.65, 0.4, 0.3], [0.3, 0.7, 0.3, 0.3], [0.7, 0.3, 0.3, 0.4]]
    )
    for i in range(4):
        template[i, :, 8:24, 8:24] += colors[i]
        for j in (i,) if targets == 1 else (i // 2 * 2, i // 2 * 2 + 1):
            cx, cy, w, h = (boxes[j] * 64).int().tolist()
            search[i, :, cy - h // 2 : cy + h // 2, cx - w // 2 : cx + w // 2] += colors[j]
    return template, search, boxes


@pytest.mark.parametrize(
    ("neck", "targets", "arguments", "lr", "steps"),
    [
        ("dw_corr", 2, {}, 3e-3, 45),
        ("pixel_corr", 2, {}, 3e-3, 45),
        ("cross_attention", 1, {"keys": "both"}, 3e-3, 60),  # two take hundreds of steps
        ("dcf", 1, {"levels": (2,), "lateral": None, "label_sigma": 0.4}, 5e-3, 60),
    ],
)
def test_four_pairs_are_overfitted_by_every_neck(neck, targets, arguments, lr, steps):
    model = network(neck, "siam_test_track", template_size=32, search_size=64, **arguments)
    template, search, boxes = four_pairs(targets)
    positive = torch.ones(4, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        output = model(template, search)
        optimizer.zero_grad()
        track_loss(output, boxes, positive, LossConfig()).total.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert not missing
    assert best_location_iou(output, boxes, positive) > 0.75  # of two, without the template at most 0.5
