"""Every model of the registry forwards, trains, exports, survives saving, and names bad input."""

import math

import pytest
import timm
import torch

import correlation_aware as ca
from correlation_aware.models.heads import CellHead, CenterHead, CornerHead
from correlation_aware.models.registry import register_model
from correlation_aware.models.sbt import SBTConfig

NAMES = ca.list_models()
FEATURE_NETS = [n for n in NAMES if not n.endswith(("_track", "_cls"))]


def images(template=(1, 3, 64, 64), search=(1, 3, 128, 128), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(template, generator=generator), torch.randn(search, generator=generator)


def small(name, **overrides):
    """The named model, for images small enough to be quick; of large families with few and thin blocks.

    Networks of SBT have all their blocks, but thin ones: other tests have their widths (test_golden.py,
    test_pvtv2.py, and the shapes of `test_timm_creates_the_same_model`).
    """
    torch.manual_seed(0)
    smaller = {} if name.endswith("_cls") else dict(zip(("template_size", "search_size"), sides(name)))
    if name.startswith("sbt_") and "_test" not in name:
        smaller["dims"] = (16, 32, 80, 128) if name.endswith("_cls") else (16, 32, 80)
    if name.startswith("supersbt"):
        smaller |= {"dim": 64, "heads": 2, "depths": (1, 1, 2)}
    if name.startswith("onestream_vit"):
        smaller |= {"dim": 48, "heads": 3, "depth": 2}
        smaller |= {"elimination_blocks": (1,)} if "_ce" in name else {}
    model = ca.create_model(name, **smaller, **overrides)
    for module in model.modules():  # timm's residual branches end with a norm of weight 0
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    return model


def sides(name):
    return (64, 128) if "two_scales" in name else (32, 64)


def inputs(name, batch=1):
    pair = images(*((batch, 3, side, side) for side in sides(name)))
    return pair[1:] if name.endswith("_cls") else pair


def tensors(output):
    return list(output) if isinstance(output, tuple) else [output]


def test_the_zoo_has_the_published_names():
    bases = [f"sbt_{size}" for size in ("light", "small", "base", "large")]
    bases += [f"sbt_{size}_pvtv2" for size in ("light", "small", "base", "large", "huge")] + ["sbt_test"]
    names = [f"{b}{kind}" for b in bases for kind in ("", "_track", "_cls")]
    adapted = [f"sbt_small_{tracker}" for tracker in ("stark", "siamfcpp", "stm")] + ["sbt_base_dimp"]
    names += [*adapted, "sbt_light_cell_track", "sbt_light_half_track"]
    successors = [f"supersbt_{size}" for size in ("light", "small", "base", "base_2temp", "test")]
    names += [f"{successor}{kind}" for successor in successors for kind in ("", "_track")]
    vits = [f"onestream_vit_{s}_{v}" for s in ("tiny", "small", "base") for v in ("256", "256_ce", "384_ce")]
    vits += ["onestream_vit_test", "onestream_vit_test_ce"]
    names += [f"{vit}{kind}" for vit in vits for kind in ("", "_track")]
    siamese = [f"siam_{b}_{neck}" for b in ("resnet50", "sbt_base") for neck in ("dw", "ca", "dcf")]
    siamese += ["siam_lite0_ca", "siam_lite0_ca_two_scales", "siam_test"]
    names += [f"{network}{kind}" for network in siamese for kind in ("", "_track")]
    assert sorted(NAMES) == sorted([*names, "siam_lite0_ca_half_track"])


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_a_gradient_in_every_parameter(name):
    model = small(name)
    outputs = tensors(model(*inputs(name)))
    assert all(o.is_contiguous() for o in outputs if o.ndim == 4 and not name.endswith("_track"))
    sum(o.square().mean() for o in outputs).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_save_and_load_round_trip(name, tmp_path):
    model = small(name).eval()
    ca.save_pretrained(model, tmp_path / "model")
    again = ca.from_pretrained(tmp_path / "model").eval()
    for a, b in zip(tensors(model(*inputs(name))), tensors(again(*inputs(name)))):
        assert torch.equal(a, b)
    assert again.pretrained_cfg["architecture"] == name
    assert again.model_args == model.model_args


@pytest.mark.parametrize("name", NAMES)
def test_timm_creates_the_same_model(name):
    assert name in timm.list_models(name)
    with torch.device("meta"):
        theirs = timm.create_model(name)
    ours = ca.create_model(name, device="meta")
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }


def test_timm_loads_what_we_save(tmp_path):
    model = small("sbt_test_track").eval()
    ca.save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pair = inputs("sbt_test_track")
    with torch.inference_mode():
        assert torch.equal(model(*pair).boxes, again(*pair).boxes)


@pytest.mark.parametrize("name", FEATURE_NETS)
@torch.inference_mode()
def test_a_cached_template_gives_the_same_numbers(name):
    net = small(name).eval()
    template, search = inputs(name)
    state = net.encode_template(template)
    assert torch.equal(net(state, search), net(template, search))
    z, x = net.forward_features(template, search)
    # the last block runs on both streams here, on the search alone there
    torch.testing.assert_close(x, net(template, search), rtol=0, atol=2e-6)  # LayerNorm's, so up to about 4
    stride = net.feature_info.reduction()[-1]
    coarse = name in ("sbt_small_stark", "sbt_small_stm", "sbt_base_dimp") or name.startswith(
        ("supersbt", "onestream_vit")
    )
    assert stride == (16 if coarse else 8)
    height, side = (length // stride for length in sides(name))
    assert z.shape[1:] == (net.num_features, net.templates * height, height)
    assert x.shape[1:] == (net.num_features, side, side)


@pytest.mark.parametrize("name", ["sbt_test", "sbt_test_track", "sbt_small_stm"])
def test_the_output_stride_is_an_argument(name):
    for stride in (8, 16):
        net = ca.create_model(name, output_stride=stride, device="meta")
        assert net.feature_info.reduction() == [4, 8, stride]
    with pytest.raises(ValueError, match="output_stride=32 is not one of 8, 16"):
        ca.create_model(name, output_stride=32, device="meta")
    assert ca.create_model(name, strides=(4, 2, 2), output_stride=16, device="meta").model_args == {
        "strides": (4, 2, 2),
        "output_stride": 16,
    }
    with pytest.raises(ValueError, match=r"strides=\(4, 2, 1\) have the output stride 8, not output_"):
        ca.create_model(name, strides=(4, 2, 1), output_stride=16, device="meta")
    with pytest.raises(TypeError, match="'output_stride'"):
        ca.create_model("sbt_test_cls", output_stride=16)


@pytest.mark.parametrize("overrides", [{}, {"cross_blocks": ((), (0,), (1, 3))}, {"stage_norms": True}])
@torch.inference_mode()
def test_a_template_correlated_with_itself(overrides):
    net = small("sbt_test", **overrides).eval()
    template, _ = inputs("sbt_test", batch=2)
    features = net.forward_template(template, net.encode_template(template))
    assert torch.equal(features, net.forward_template(template))
    # one stream here, a pack of two there: sums of other lengths
    torch.testing.assert_close(features, net(template, template), rtol=0, atol=1e-6)
    assert features.is_contiguous()


@pytest.mark.parametrize("attention", ["spatial_reduction", "global", "pooled"])  # more in test_attention.py
@pytest.mark.parametrize("position", ["conv", "absolute", "none"])
@pytest.mark.parametrize("patch_embed", ["overlap", "patchify"])
def test_every_choice_of_the_study_runs_and_trains(attention, position, patch_embed):
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", attention=attention, position=position, patch_embed=patch_embed)
    x = net(*images())
    assert x.shape == (1, 32, 16, 16)
    x.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.no_weight_decay() == (
        {f"stages.{i}.pos_embed" for i in range(3)} if position == "absolute" else set()
    )


@pytest.mark.parametrize(
    ("template", "search", "expected"),
    [
        ((32, 32), (32, 32), (4, 4)),  # the smallest
        ((64, 96), (128, 160), (16, 20)),  # not square
        ((65, 71), (131, 127), (17, 16)),  # divisible by nothing; padded strided convolutions round up
        ((160, 160), (64, 64), (8, 8)),  # template larger than search
    ],
)
@torch.inference_mode()
def test_any_size(template, search, expected):
    net = ca.create_model("sbt_test").eval()
    pair = images((1, 3, *template), (1, 3, *search))
    x = net(*pair)
    assert x.shape[2:] == expected
    assert torch.equal(net(net.encode_template(pair[0]), pair[1]), x)


@pytest.mark.parametrize(("templates", "searches"), [(1, 3), (3, 1), (3, 3)])
@torch.inference_mode()
def test_one_template_many_searches_and_the_other_way_round(templates, searches):
    net = ca.create_model("sbt_test").eval()
    template, search = images((templates, 3, 64, 64), (searches, 3, 128, 128))
    pairs = [(template[i % templates, None], search[i % searches, None]) for i in range(3)]
    expected = torch.cat([net(z, x) for z, x in pairs])
    for first in (template, net.encode_template(template)):
        torch.testing.assert_close(
            net(first, search), expected, rtol=0, atol=1e-5
        )  # another batch, another blocking


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@torch.inference_mode()
def test_half_precision(dtype, tolerance):
    """Features have unit variance; 8 and 11 bits of mantissa through six blocks leave this error."""
    net = ca.create_model("sbt_test").eval()
    template, search = images()
    expected = net(template, search)
    x = net.to(dtype)(template.to(dtype), search.to(dtype))
    assert x.dtype == dtype
    assert (x.float() - expected).abs().max() < tolerance
    found = ca.create_model("sbt_test_track").eval().to(dtype)(template.to(dtype), search.to(dtype))
    assert found.scores.dtype == found.boxes.dtype == torch.float32  # to be compared between cells


@torch.inference_mode()
def test_channels_last_pictures_and_weights():
    net = ca.create_model("sbt_test").eval()
    template, search = images()
    expected = net(template, search)
    to = {"memory_format": torch.channels_last}
    x = net.to(**to)(template.to(**to), search.to(**to))
    assert x.is_contiguous()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_meta_device_and_dtype():
    net = ca.create_model("sbt_large", device="meta", dtype=torch.float16)
    x = net(*(p.to("meta", torch.float16) for p in images()))
    assert x.shape == (1, 320, 16, 16) and x.is_meta and x.dtype == torch.float16


def test_features_only():
    net = ca.create_model("sbt_test", features_only=True, out_indices=(0, 1, 2)).eval()
    template, search = images()
    features = net(template, search)
    assert [f.shape[1:] for f in features] == [(16, 32, 32), (32, 16, 16), (32, 16, 16)]
    assert net.feature_info.channels() == [16, 32, 32] and net.feature_info.reduction() == [4, 8, 8]
    assert all(f.is_contiguous() for f in features)
    for a, b in zip(net(net.encode_template(template), search), features):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    again = timm.create_model("sbt_test", features_only=True, out_indices=(-1,)).eval()
    assert again(template, search)[0].shape[1:] == (32, 16, 16)


def test_features_only_prunes_later_stages():
    crosses = ((), (0,), (1, 3))
    net = ca.create_model("sbt_test", cross_blocks=crosses, features_only=True, out_indices=(1,))
    features = net(*images())
    features[0].square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    outputs = []
    net.model.stages[-1].register_forward_hook(lambda m, i, output: outputs.append(output))
    net(*images())
    assert isinstance(outputs[-1], torch.Tensor)  # the template's stream ends with the last EoC-CA block kept
    with pytest.raises(ValueError, match="before the first EoC-CA block"):
        ca.create_model("sbt_test", features_only=True, out_indices=(0,))
    with pytest.raises(ValueError, match=r"out_indices=\(3,\)"):
        ca.create_model("sbt_test", features_only=True, out_indices=(3,))


def test_strides_for_trackers_that_want_stride_16():
    net = ca.create_model("sbt_test", strides=(4, 2, 2))
    assert net(*images()).shape == (1, 32, 8, 8)
    assert net.feature_info.reduction() == [4, 8, 16]
    track = ca.create_model("sbt_test_track", strides=[4, 2, 2])
    assert track(*images()).scores.shape == (1, 8, 8)


def test_classifier_surface():
    model = ca.create_model("sbt_test_cls", num_classes=7, drop_rate=0.1).eval()
    image = images()[1]
    assert model(image).shape == (1, 7) and model.get_classifier().out_features == 7
    assert model.forward_head(model.forward_features(image), pre_logits=True).shape == (1, 32)
    assert model.head_hidden_size == model.num_features == 32
    model.reset_classifier(3)
    assert model(image).shape == (1, 3)
    model.reset_classifier(0)
    assert model(image).shape == (1, 32)
    assert [fi["reduction"] for fi in model.feature_info.info] == [4, 8, 16, 32]
    net = ca.create_model("sbt_test")
    net.reset_classifier(0)
    with pytest.raises(ValueError, match="_cls"):
        net.reset_classifier(10)


def test_a_new_classifier_is_like_its_network():
    model = ca.create_model("sbt_test_cls").eval().to(torch.float64)
    model.reset_classifier(4)
    assert model.num_classes == 4 and model.head.weight.dtype == torch.float64 and not model.head.training
    model.train().to("meta").reset_classifier(2)
    assert model.head.weight.is_meta and model.head.training


def test_pooling_of_the_classifier():
    image = images()[1]
    model = ca.create_model("sbt_test_cls", num_classes=0, global_pool="").eval()
    features = model.forward_features(image)
    assert torch.equal(model(image), features) and features.shape == (1, 32, 4, 4)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(image), features.mean(dim=(2, 3)))
    model.reset_classifier(5)
    assert model.global_pool == "avg" and model(image).shape == (1, 5)
    with pytest.raises(ValueError, match="global_pool='max' must be 'avg', or ''"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match="global_pool='max' must be 'avg', or ''"):
        ca.create_model("sbt_test_cls", global_pool="max")
    assert model.global_pool == "avg" and model.num_classes == 5
    model.reset_classifier(5, "")
    with pytest.raises(ValueError, match=r"reset_classifier\(5, 'avg'\)"):
        model(image)


@torch.inference_mode()
def test_intermediate_features_of_the_classifier():
    model, image = ca.create_model("sbt_test_cls").eval(), images()[1]
    output, maps = model.forward_intermediates(image)
    assert torch.equal(output, model.forward_features(image)) and torch.equal(output, maps[-1])
    assert [m.shape[1:] for m in maps] == [(16, 32, 32), (32, 16, 16), (32, 8, 8), (32, 4, 4)]
    assert all(m.is_contiguous() for m in maps)
    for indices, expected in ((2, maps[2:]), ([0, -2], [maps[0], maps[2]])):
        chosen = model.forward_intermediates(image, indices, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(chosen, expected, strict=True))
    early, _ = model.forward_intermediates(image, [1], stop_early=True)
    assert torch.equal(early, maps[1])
    for arguments, message in (
        ({"indices": [4]}, r"indices=\[4\] must be levels in -4\.\.3"),
        ({"indices": 5}, "indices=5 must be"),
        ({"output_fmt": "NHWC"}, "'NHWC' must be 'NCHW'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.forward_intermediates(image, **arguments)


@torch.inference_mode()
def test_a_pruned_classifier_ends_at_the_last_level():
    image = images()[1]
    for indices, last, kept in (([0, -2], 2, [0, 2]), (1, 3, [3])):
        model = ca.create_model("sbt_test_cls").eval()
        expected = model.forward_intermediates(image, intermediates_only=True)[last]
        assert model.prune_intermediate_layers(indices) == kept
        assert len(model.stages) == last + 1 and isinstance(model.head, torch.nn.Identity)
        assert torch.equal(model(image), expected)
        model.reset_classifier(3, "avg")
        assert model(image).shape == (1, 3)
    model = ca.create_model("sbt_test_cls").eval()
    logits = model(image)
    model.prune_intermediate_layers([3], prune_head=False)
    assert torch.equal(model(image), logits)
    model.prune_intermediate_layers([0], prune_head=False)
    assert model.num_features == model.head_hidden_size == 16 and model.num_classes == 0


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for enable in (False, True):
        model = small("sbt_test_track")
        model.set_grad_checkpointing(enable)
        model.train()(*inputs("sbt_test_track", 2)).boxes.sum().backward()
        grads.append([p.grad for p in model.backbone.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradient_checkpointing_computes_blocks_again_in_the_backward_pass():
    calls = []
    model = small("sbt_test").train()
    model.stages[2].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        calls.clear()
        model(*inputs("sbt_test")).sum().backward()
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]


def test_a_classifier_drops_pooled_features_in_training_alone():
    model = small("sbt_test_cls", drop_rate=0.5)
    features = torch.ones(16, model.num_features, 2, 2)
    assert sorted(model.forward_head(features, pre_logits=True).unique().tolist()) == [0, 2]
    assert model.eval().forward_head(features, pre_logits=True).unique().tolist() == [1]


def test_drop_path_drops_samples_and_keeps_the_mean():
    from correlation_aware.models.eoc import DropPath

    torch.manual_seed(0)
    shapes = [(400, 2, 2), (400, 3, 1)]
    tokens = torch.ones(400 * 4 + 400 * 3, 5)
    out = DropPath(0.25)(tokens, shapes)
    template, search = out[:1600].view(400, 4, 5), out[1600:].view(400, 3, 5)
    for stream in (template, search):
        assert all(
            sample.unique().numel() == 1 for sample in stream
        )  # a sample is kept or dropped as a whole
        assert stream.mean().item() == pytest.approx(1, abs=0.08)  # 400 draws: standard error 0.03
    assert (template[:, 0, 0] != search[:, 0, 0]).any()  # the two streams are drawn apart
    assert DropPath(0.25).eval()(tokens, shapes) is tokens
    rates = [
        b.drop_path.rate for s in ca.create_model("sbt_test", drop_path_rate=0.5).stages for b in s.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@torch.inference_mode()
def test_export_and_trace(tmp_path):
    blocks = {"depths": (1, 1, 2), "cross_blocks": ((), (0,), (1,))}  # of every kind: the time is per block
    model = small("sbt_test_track", **blocks).eval()
    pair = inputs("sbt_test_track")
    expected = model(*pair)
    state = model.encode_template(pair[0])
    batch = torch.export.Dim("batch", min=1, max=8)
    twice = tuple(t.expand(2, -1, -1, -1).contiguous() for t in pair)
    program = torch.export.export(model, twice, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    torch.testing.assert_close(tuple(program.module()(*pair)), tuple(expected), rtol=0, atol=1e-6)
    torch.export.save(torch.export.export(model, (state, pair[1]), strict=False), tmp_path / "model.pt2")
    cached = torch.export.load(tmp_path / "model.pt2").module()(state, pair[1])
    torch.testing.assert_close(tuple(cached), tuple(expected), rtol=0, atol=1e-6)
    traced = torch.jit.trace(model, pair, check_trace=False)
    torch.testing.assert_close(tuple(traced(*pair)), tuple(expected), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_compiles_without_graph_breaks():
    model = small("sbt_test_track").eval()
    pair = inputs("sbt_test_track")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(tuple(compiled(*pair)), tuple(model(*pair)), rtol=0, atol=1e-6)


def test_bad_input_says_what_is_wrong():
    net = ca.create_model("sbt_test")
    template, search = images()
    with pytest.raises(ValueError, match="search is 31 x 128 px; each side must be at least 32"):
        net(template, search[:, :, :31])
    with pytest.raises(ValueError, match=r"template has shape \(3, 64, 64\)"):
        net(template[0], search)
    with pytest.raises(ValueError, match="must be equal, or one of them 1"):
        net(template.expand(2, -1, -1, -1), search.expand(3, -1, -1, -1))
    other = ca.create_model("sbt_light").encode_template(template)
    with pytest.raises(ValueError, match="comes from another network"):
        net(other, search)
    track = ca.create_model("sbt_test_track")
    with pytest.raises(ValueError, match="needs 16 x 16"):
        track(template, torch.cat([search, search], dim=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sbt_bas"}, "Near: sbt_base"),
        ({"name": "sbt_base", "depths": (3, 4)}, "must have 3 entries"),
        ({"name": "sbt_base", "heads": (1, 2, 3)}, "320 is not by 3"),
        ({"name": "sbt_base", "cross_blocks": ((), (), (10,))}, r"must be in 0\.\.9"),
        ({"name": "sbt_base", "cross_blocks": ((), (), ())}, "no EoC-CA block"),
        (
            {"name": "sbt_base", "attention": "window"},
            "is not one of spatial_reduction, depthwise_reduction, global, pooled",
        ),
        ({"name": "sbt_base_track", "features_only": True}, "Take 'sbt_base'"),
        ({"name": "sbt_base_cls", "cross_blocks": ((), (), (1,), ())}, "a classifier has one stream"),
        ({"name": "sbt_light", "pretrained": True}, "sbt_light"),
        ({"name": "sbt_light", "pretrained": "nothing.here"}, "nothing.here"),
    ],
)
def test_bad_arguments_name_the_near_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        ca.create_model(**arguments, device="meta")


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("sbt_base", "mlp_ratio", "Unknown argument 'mlp_ratio'. Near: mlp_ratios"),
        ("sbt_base", "num_classes", "num_classes=3 is for the classifiers"),
        ("sbt_base_track", "num_classes", "num_classes=3 is for the classifiers"),
        ("sbt_base_cls", "search_size", "Unknown argument 'search_size'"),
        ("sbt_base_cls", "head", "Unknown argument 'head'"),
        ("sbt_base", "head", "Unknown argument 'head'"),
    ],
)
def test_an_argument_of_no_effect_is_a_type_error(name, argument, message):
    for create in (ca.create_model, timm.create_model):
        with pytest.raises(TypeError, match=message):
            create(name, **{argument: 3})


def test_a_taken_name_cannot_be_registered_again():
    def resnet18():
        pass

    def sbt_base():
        pass

    with pytest.raises(ValueError, match="two models cannot share a name"):
        register_model(resnet18)
    with pytest.raises(ValueError, match=r"a model 'sbt_base' already, of correlation_aware\.models\.sbt"):
        register_model(sbt_base)


def test_a_trackers_checkpoint_fills_a_backbone_and_other_channels(tmp_path):
    track = small("sbt_test_track")
    ca.save_pretrained(track, tmp_path)
    net = ca.create_model("sbt_test")
    report = ca.load_pretrained(net, tmp_path, partial=True)
    assert not report.missing and all(name.startswith("head.") for name in report.unexpected)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, track.backbone.state_dict()[name])
    grey = ca.create_model(
        "sbt_test_track", pretrained=tmp_path / "model.safetensors", in_chans=1, search_size=64
    )
    weight = track.backbone.stages[0].embed.proj.weight
    torch.testing.assert_close(grey.backbone.stages[0].embed.proj.weight, weight.sum(dim=1, keepdim=True))


@torch.inference_mode()
def test_the_cell_head_works_at_any_size_and_boxes_hold_their_cell():
    model = small("sbt_test_track", head="cell").eval()
    template, search = images()
    for size in ((128, 128), (64, 96)):
        out = model(template, search[:, :, : size[0], : size[1]])
        h, w = size[0] // 8, size[1] // 8
        assert out.logits.shape == (1, 2, h, w) and out.scores.shape == (1, h, w)
        cx, cy, bw, bh = out.boxes[0]
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        assert ((cx - bw / 2 < x) & (x < cx + bw / 2) & (cy - bh / 2 < y) & (y < cy + bh / 2)).all()
        assert bw.mean().item() == pytest.approx(0.25, abs=0.1)  # what an untrained head expects
    with pytest.raises(ValueError, match="not one of mixer, mixer_paper, cell"):
        ca.create_model("sbt_test_track", head="anchor")


@torch.no_grad()
def test_the_center_head_adds_its_offset_to_the_corner_of_a_location():
    head = CenterHead(4, hidden=8).eval()
    for branch, bias in ((head.score, [1.5]), (head.offset, [0.25, 0.5]), (head.size, [-1.0, 20.0])):
        branch[-1].weight.zero_()
        branch[-1].bias.copy_(torch.tensor(bias))
    output = head(torch.randn(1, 4, 2, 5))
    assert output.logits.shape == (1, 2, 2, 5) and not output.logits[:, 1].any()
    torch.testing.assert_close(output.scores, torch.full((1, 2, 5), 1.5).sigmoid())
    cx, cy, w, h = output.boxes[0, :, 1, 3]
    assert [cx.item(), cy.item()] == pytest.approx([3.25 / 5, 1.5 / 2])
    assert [w.item(), h.item()] == pytest.approx([1 / (1 + math.e), 1 - 1e-4])  # the sigmoid is clamped


@torch.no_grad()
def test_the_corner_head_expects_one_box():
    head = CornerHead(4, hidden=32).eval()
    heat = {"top_left": torch.zeros(1, 1, 2, 4), "bottom_right": torch.full((1, 1, 2, 4), -1e9)}
    heat["top_left"][..., 0, 1], heat["top_left"][..., 1, 2] = math.log(7), math.log(3)  # of 7 + 3 + 6 * 1
    heat["bottom_right"][..., 1, 2], heat["bottom_right"][..., 1, 3] = 0.0, math.log(3)  # 1/4 and 3/4
    for name, values in heat.items():
        setattr(head, name, torch.nn.Identity())
        getattr(head, name).forward = lambda _, values=values: values
    output = head(torch.randn(1, 4, 2, 4))
    assert output.logits.shape == (1, 2, 2, 4) and not output.logits[:, 1].any()
    torch.testing.assert_close(output.scores, output.logits[:, 0].sigmoid())
    assert torch.equal(output.boxes, output.boxes[:, :, :1, :1].expand(-1, -1, 2, 4))
    x1, y1 = (2 * 0 + 8 * 1 + 4 * 2 + 2 * 3) / 16 / 4, 6 / 16 / 2  # location i of n is at i / n
    x2, y2 = (2 + 9) / 4 / 4, 1 / 2
    expected = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    assert output.boxes[0, :, 1, 3].tolist() == pytest.approx(expected)
    head.top_left, head.bottom_right = head.bottom_right, head.top_left  # swapped corners
    assert head(torch.randn(1, 4, 2, 4)).boxes[0, 2:, 0, 0].tolist() == pytest.approx([1e-4, 1e-4])
    sizes = head.train()(torch.randn(2, 4, 2, 4)).boxes[0, 2:, 0, 0].tolist()
    assert sizes == pytest.approx([x1 - x2, y1 - y2])  # so that they have a gradient


@torch.no_grad()
def test_the_cell_head_measures_from_the_middle_of_a_location():
    head = CellHead(4)
    head.box[2].weight.zero_()  # what is left is the bias: at the start every side is an eighth away
    boxes = head(torch.randn(1, 4, 2, 3)).boxes[0]
    expected = torch.tensor([[[x, y, 0.25, 0.25] for x in (1 / 6, 3 / 6, 5 / 6)] for y in (1 / 4, 3 / 4)])
    torch.testing.assert_close(boxes.permute(1, 2, 0), expected)
    left, top, right, bottom = 0.1, 0.2, 0.3, 0.4
    head.box[2].bias.copy_(torch.logit(torch.tensor([left, top, right, bottom])))
    box = head(torch.randn(1, 4, 1, 1)).boxes[0, :, 0, 0]
    torch.testing.assert_close(box, torch.tensor([0.6, 0.6, left + right, top + bottom]))


def test_the_config_is_frozen():
    with pytest.raises(AttributeError):
        SBTConfig().dims = (1, 2, 3)
