"""One name, one network: what names, tags and sources of weights mean, for us and for timm."""

import json
import logging
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import correlation_aware as ca
from correlation_aware.models.heads import CellHead, MixerHead
from correlation_aware.weights.manifest import RENAMED

BUNDLED = ("sbt_light_cell_track.video", "sbt_light_half_track.video")


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.fixture
def shifted(tmp_path):
    """A file with every tensor of the bundled default weights, less one."""
    state_dict = ca.create_model(BUNDLED[0], pretrained=True).state_dict()
    path = tmp_path / "mine.safetensors"
    save_file({name: tensor - 1 for name, tensor in state_dict.items()}, path)
    return path, {name: tensor - 1 for name, tensor in state_dict.items()}


@pytest.mark.parametrize("name", BUNDLED)
def test_weights_do_not_change_the_network(name):
    bare = name.partition(".")[0]
    networks = [
        ca.create_model(bare, device="meta"),
        ca.create_model(name, device="meta"),
        ca.create_model(name, pretrained=True),
        timm.create_model(name),
    ]
    assert all(shapes(net) == shapes(networks[0]) and net.sizes == networks[0].sizes for net in networks)
    assert all(isinstance(net.head, CellHead) for net in networks)
    described = [{k: v for k, v in net.pretrained_cfg.items() if k != "tag"} for net in networks[:2]]
    assert described[0] == described[1]


def test_sizes_of_the_half_tracker_are_in_its_name():
    sizes = ca.create_model("sbt_light_half_track", device="meta").sizes
    assert (sizes.template_size, sizes.search_size) == (64, 128)
    assert isinstance(ca.create_model("sbt_light_track", device="meta").head, MixerHead)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    "name", ["sbt_light_cell_track.nonsense", "sbt_light_track.nonsense", "sbt_base.in1K"]
)
def test_an_unknown_tag_raises_everywhere(name, pretrained):
    architecture, _, tag = name.partition(".")
    message = f"{architecture} has no weights with the tag '{tag}'"
    for create in (ca.create_model, timm.create_model):
        with pytest.raises(ValueError, match=message):
            create(name, pretrained=pretrained)
    with pytest.raises(ValueError, match=message):
        ca.create_tracker(name)


def test_an_unknown_tag_lists_the_known():
    with pytest.raises(ValueError, match=r"Its tags: in1k\."):
        ca.create_model("sbt_base.nonsense")
    with pytest.raises(ValueError, match="Tags of sbt_light_half_track: video"):
        ca.create_model("sbt_light_half_track", pretrained="half")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_say_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"'{old}' is called '{new}' now") as caught:
        model = ca.create_model(old, pretrained=True)
    assert {warning.filename for warning in caught} == {__file__}  # the user's line, so that Python shows it
    expected = ca.create_model(new, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))
    architecture, _, tag = old.partition(".")
    with pytest.warns(DeprecationWarning):
        assert shapes(ca.create_model(architecture, pretrained=tag)) == shapes(expected)


def test_a_name_without_a_tag_is_one_network_whatever_weights_it_had():
    """`sbt_light_track` had the bundled weights of what is `sbt_light_cell_track` now, another network."""
    with pytest.raises(
        ValueError, match=r"former weights are sbt_light_cell_track\.video and sbt_light_half"
    ):
        ca.create_model("sbt_light_track", pretrained=True)
    with pytest.warns(RuntimeWarning, match="sbt_light_track has random weights"):
        assert isinstance(ca.create_tracker("sbt_light_track").model.head, MixerHead)
    with pytest.warns(DeprecationWarning, match="sbt_light_half_track"):
        assert ca.create_tracker("sbt_light_cell_track", pretrained="half").weights_name == BUNDLED[1]


@pytest.mark.parametrize("source", ["video", "sbt_light_cell_track.video", "sbt_light_cell_track"])
def test_a_bare_tag_means_the_same_everywhere(source):
    model = ca.create_model("sbt_light_cell_track", device="cpu")
    ca.load_pretrained(model, source)
    again = ca.create_model("sbt_light_cell_track", pretrained=source)
    assert (
        model.weights_name
        == again.weights_name
        == ca.create_tracker("sbt_light_cell_track", pretrained=source).weights_name
        == BUNDLED[0]
    )


def test_a_backbone_takes_its_part_of_a_trackers_checkpoint():
    net = ca.create_model("sbt_light", pretrained="sbt_light_cell_track.video")
    expected = ca.create_model("sbt_light_cell_track", pretrained=True).backbone
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), expected.state_dict().values()))


def test_a_head_that_stays_fresh_is_a_warning_that_names_its_tensors(caplog):
    model = ca.create_model("sbt_light_track")
    with caplog.at_level(logging.WARNING, "correlation_aware"):
        ca.load_pretrained(model, BUNDLED[0], partial=True)
    assert "head.cls.spatial.0.weight" in caplog.text and "does not fit sbt_light_track" in caplog.text


@pytest.mark.parametrize("create", [ca.create_model, timm.create_model])
@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize("key", ["file", "state_dict"])
def test_a_file_of_ones_own_is_loaded_in_place_of_the_known_weights(shifted, create, argument, key):
    path, expected = shifted
    cfg = {key: str(path) if key == "file" else expected, "mean": (0.5, 0.5, 0.5), "std": [0.2, 0.2, 0.2]}
    model = create("sbt_light_cell_track", pretrained=True, **{argument: cfg})
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) and model.pretrained_cfg["std"] == (0.2, 0.2, 0.2)
    assert model.weights_name != BUNDLED[0]


def test_a_file_that_does_not_exist_is_an_error():
    for create in (ca.create_model, timm.create_model):
        with pytest.raises(FileNotFoundError, match=r"no weights file '/nonexistent\.safetensors'"):
            create("sbt_base", pretrained=True, pretrained_cfg_overlay={"file": "/nonexistent.safetensors"})


def test_an_overlay_cannot_contradict_the_network():
    with pytest.raises(ValueError, match=r"input_size=\(3, 64, 64\), but the model has \(3, 256, 256\)"):
        ca.create_model("sbt_light", pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    model = ca.create_model(
        "sbt_test_cls", pretrained_cfg_overlay={"input_size": (3, 64, 64), "crop_pct": 1.0}
    )
    assert model.pretrained_cfg["input_size"] == (3, 64, 64) and model.pretrained_cfg["crop_pct"] == 1.0


@pytest.mark.parametrize("name", ["sbt_test", "sbt_test_track", "sbt_test_cls"])
@pytest.mark.parametrize("features_only", [False, True])
def test_the_description_is_true_for_the_model(name, features_only):
    if features_only and name.endswith("_track"):
        return
    model = ca.create_model(name, features_only=features_only)
    cfg = model.pretrained_cfg
    first = model.get_submodule(cfg["first_conv"])
    assert isinstance(first, torch.nn.Conv2d) and first.in_channels == cfg["input_size"][0] == 3
    if name.endswith("_cls"):
        assert (
            cfg["input_size"] == (3, 224, 224)
            and cfg["interpolation"] == "bicubic"
            and cfg["crop_pct"] == 0.9
        )
        assert (
            features_only or model.get_submodule(cfg["classifier"]).out_features == cfg["num_classes"] == 1000
        )
    else:
        assert cfg["input_size"] == (3, 128, 128) and cfg["template_size"] == (3, 64, 64)
        assert cfg["num_classes"] == 0 and cfg["classifier"] is None


def test_timms_registry_says_the_same_as_the_model():
    for name in ("sbt_large_pvtv2_cls.in1k", "sbt_light_half_track.video", "sbt_base"):
        listed = timm.models.get_pretrained_cfg(name)
        model = ca.create_model(name, device="meta")
        keys = ("input_size", "interpolation", "crop_pct", "num_classes", "mean", "std")
        for key in (*keys, "first_conv", "classifier") if "_cls" in name else keys:
            assert getattr(listed, key) == model.pretrained_cfg[key], (name, key)


def test_resetting_the_classifier_survives_saving(tmp_path):
    model = ca.create_model("sbt_test_cls").eval()
    model.reset_classifier(5)
    ca.save_pretrained(model, tmp_path)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image)
        for again in (
            ca.from_pretrained(tmp_path),
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        ):
            assert torch.equal(again.eval()(image), expected) and expected.shape == (1, 5)


@pytest.mark.parametrize("name", ["sbt_test_cls", "sbt_test_track"])
def test_the_normalization_of_a_saved_model_is_restored(name, tmp_path):
    model = ca.create_model(name)
    model.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="nearest")
    ca.save_pretrained(model, tmp_path)
    for again in (
        ca.create_model(tmp_path),
        ca.from_pretrained(tmp_path),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        timm.create_model(f"local-dir:{tmp_path}"),
    ):
        cfg = again.pretrained_cfg
        assert cfg["mean"] == (0.5, 0.5, 0.5) and cfg["std"] == (0.25, 0.25, 0.25)
        assert cfg["interpolation"] == "nearest"


def test_a_model_of_ones_own_is_not_announced_as_the_bundled_one(tmp_path):
    model = ca.create_model(BUNDLED[0], pretrained=True)
    ca.save_pretrained(model, tmp_path)
    assert ca.create_tracker(tmp_path).weights_name == str(tmp_path)
    assert ca.create_tracker(ca.create_model("sbt_test_track")).weights_name == "random"
    by_hand = ca.TrackModel.build(ca.create_model("sbt_test"), "cell")
    assert ca.create_tracker(by_hand).weights_name == "unknown"
    saved = ca.save_pretrained(ca.create_model("sbt_test"), tmp_path / "features")
    levels = ca.create_model("sbt_test", pretrained=saved, features_only=True)
    assert levels.weights_name == str(saved)


def test_names_of_the_zoo_come_before_folders(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("sbt_test", "sbt_light_half_track", "mine"):
        ca.save_pretrained(ca.create_model("sbt_test", strides=(4, 2, 2)), folder)
    Path("sbt_base").mkdir()  # empty
    for create in (ca.create_model, timm.create_model):
        assert create("sbt_test").feature_info.reduction() == [4, 8, 8]
        assert create("sbt_base").num_features == 320
    assert ca.from_pretrained("sbt_light_half_track").weights_name == BUNDLED[1]
    for place in (
        tmp_path / "here" / "sbt_test",
        "../here/sbt_test",
        "local-dir:sbt_test",
        "mine",
        Path("sbt_test"),
    ):
        assert ca.create_model(place).feature_info.reduction() == [4, 8, 16]
        assert ca.from_pretrained(place).weights_name.endswith(str(place).removeprefix("local-dir:"))


def test_weights_of_a_folder_named_like_weights_of_ours_are_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ca.create_model(BUNDLED[1], pretrained=True)
    with torch.no_grad():
        model.head.cls[2].bias += 1
    ca.save_pretrained(model, BUNDLED[1])
    again = ca.from_pretrained(f"local-dir:{BUNDLED[1]}")
    assert torch.equal(again.head.cls[2].bias, model.head.cls[2].bias)


HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def half(tmp_path):
    """A folder with a tracker whose images are normalized by 0.5 and 0.5."""
    cfg = {"mean": HALF, "std": HALF, "license": "mit"}
    model = ca.create_model("sbt_test_track", pretrained_cfg_overlay=cfg)
    return ca.save_pretrained(model, tmp_path / "half")


def test_the_normalization_comes_with_the_weights_by_every_way(half):
    loaded, features = ca.create_model("sbt_test_track"), ca.create_model("sbt_test")
    ca.load_pretrained(loaded, half)
    ca.load_pretrained(features, half)
    for model in (
        loaded,
        features,
        ca.create_model("sbt_test_track", half),
        ca.create_model("sbt_test_track", half / "model.safetensors"),
        ca.create_model("sbt_test_track", checkpoint_path=half),
        ca.create_model("sbt_test", half, features_only=True),
        ca.create_model("sbt_light_cell_track", pretrained_cfg_overlay={"mean": HALF, "std": HALF}),
    ):
        assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == HALF
    assert loaded.pretrained_cfg["license"] == "mit"
    gray = ca.create_model("sbt_test_track", half, in_chans=1)
    assert gray.pretrained_cfg["mean"] == (0.5,)
    other = ca.create_model(half, pretrained=True, pretrained_cfg_overlay={"std": (0.2, 0.3, 0.4)})
    assert (other.pretrained_cfg["mean"], other.pretrained_cfg["std"]) == (HALF, (0.2, 0.3, 0.4))


def test_other_weights_bring_their_own_description(half, tmp_path):
    model = ca.create_model(BUNDLED[0], pretrained=True)
    assert (model.pretrained_cfg["tag"], model.pretrained_cfg["license"]) == ("video", "apache-2.0")
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "mine.safetensors")
    ca.load_pretrained(model, tmp_path / "mine.safetensors")
    assert model.pretrained_cfg["tag"] is model.pretrained_cfg["license"] is None
    saved = ca.save_pretrained(ca.create_model("sbt_light_cell_track"), tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": HALF, "std": HALF}
    (saved / "config.json").write_text(json.dumps(config))
    assert ca.create_model(saved, pretrained=True).pretrained_cfg["mean"] == HALF
    again = ca.create_model(saved, pretrained="stills")  # a tag of the model in the folder
    assert again.pretrained_cfg["mean"] == (0.485, 0.456, 0.406) and again.weights_name == BUNDLED[0]


def test_the_backbone_of_a_bundled_tracker_is_named():
    with pytest.raises(ValueError, match=r"some: pretrained='sbt_light_cell_track\.video' loads its part"):
        ca.create_model("sbt_light", pretrained=True)
    assert ca.create_model("sbt_light", pretrained="sbt_light_cell_track.video").weights_name == BUNDLED[0]


def test_weights_for_another_size_are_a_warning(caplog, tmp_path):
    folder = ca.save_pretrained(ca.create_model("sbt_test_cls"), tmp_path / "classifier")
    with caplog.at_level(logging.WARNING, "correlation_aware"):
        ca.load_pretrained(ca.create_model("sbt_test"), folder, partial=True)
        assert "trained with" not in caplog.text, "a classifier's 224 px do not matter"
        ca.create_model("sbt_light_cell_track", pretrained=BUNDLED[1])
    assert "trained with search images of 128 px; this model is made for 256 px" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "names no architecture"),
        ({"architecture": ["sbt_test"]}, "names no architecture"),
        ({"model_args": [1]}, "model_args and pretrained_cfg must be objects"),
        ({"model_args": {"features_only": True}}, "model_args must not have features_only"),
        ({"model_args": {"pretrained": "hf-hub:me/net"}}, "model_args must not have pretrained"),
        ({"model_args": {"dims": [10**9] * 3}}, "more than the [0-9,]+ numbers that are possible here"),
        ({"model_args": {"depths": [10**9] * 3}}, r"depths=.*: more than 20,000 blocks"),
        ({"model_args": {"depths": [1, 1, math.inf]}}, r"depths=.*: more than 20,000 blocks"),
        ({"model_args": {"in_chans": 10**9}}, "more than the [0-9,]+ numbers"),
        ({"model_args": {"search_size": 10**6}}, "search_size=1000000 must be .* 1 to 4096"),
        ({"model_args": {"dims": "a"}}, r"dims='a' must be \(a whole number, \.\.\.\)"),
        ({"model_args": {"dims": [0, 0, 0]}}, r"does not make a sbt_test_track \(AssertionError"),
        ({"model_args": {"mlp_ratios": [4, math.nan, 4]}}, "mlp_ratios=.* must be"),
        ({"model_args": {"": 1}}, "Unknown argument"),
        ({"model_args": {"set_by_hand": {}}}, "must not have set_by_hand"),
        ({"pretrained_cfg": {"mean": [10**400] * 3}}, r"mean=\(1000"),
        ({"pretrained_cfg": {"license": {}}}, "license={} must be text or None"),
        ({"pretrained_cfg": {"search_factor": 5.0}}, r"search_factor=5\.0, but the model has 4\.0"),
        ({"pretrained_cfg": {"input_size": [3, 192, 192]}}, r"input_size=\(3, 192, 192\), but the model has"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, r"mean=\(0\.5, 0\.5\) must be one number for each of 3"),
        ({"pretrained_cfg": {"std": "abc"}}, "std='abc' must be one positive number for each of 3"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, r"std=\(0, 0, 0\) must be one positive number"),
    ],
)
def test_a_configuration_edited_by_hand_is_checked(half, change, message):
    config = json.loads((half / "config.json").read_text()) | change
    (half / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ca.create_model(half)


@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"meen": HALF}, "unknown field 'meen'. Near: mean"),
        ({"num_classes": 7}, "num_classes=7, but the model has 1000"),
        ({"std": (0.5, "x", 0.5)}, "must be one positive number for each of 3 channels"),
    ],
)
def test_a_wrong_description_raises(argument, cfg, message):
    with pytest.raises(ValueError, match=message):
        ca.create_model("sbt_test_cls", **{argument: cfg})


@pytest.mark.parametrize("source", ["pretrained", "checkpoint_path"])
def test_features_need_all_of_their_tensors(source, tmp_path):
    path = ca.save_pretrained(ca.create_model("sbt_test"), tmp_path) / "model.safetensors"
    net = ca.create_model("sbt_test", features_only=True, out_indices=(1, 2), **{source: path})
    assert net.weights_name == str(path)
    with pytest.raises(ValueError, match=r"does not fit SBT, tensors: .* missing"):
        ca.create_model("sbt_test", depths=(1, 1, 5), features_only=True, **{source: path})


def test_a_classifier_gives_its_features_with_weights(tmp_path):
    model = ca.create_model("sbt_test_cls").eval()
    ca.save_pretrained(model, tmp_path)
    image = torch.randn(1, 3, 64, 64)
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}}
    for net in (
        ca.create_model(tmp_path, pretrained=True, features_only=True),
        timm.create_model("sbt_test_cls", pretrained=True, features_only=True, **overlay),
    ):
        with torch.inference_mode():
            assert torch.equal(net.eval()(image)[-1], model.forward_features(image))
        with pytest.raises(ValueError, match="FeatureGetterNet is not a complete model"):
            ca.save_pretrained(net, tmp_path / "features")


def test_pooling_survives_saving(tmp_path):
    model = ca.create_model("sbt_test_cls")
    model.reset_classifier(0, "")
    again = ca.from_pretrained(ca.save_pretrained(model, tmp_path))
    assert again(torch.randn(1, 3, 64, 64)).shape == (1, 32, 2, 2)


def test_weights_need_a_device_with_numbers(half):
    with pytest.raises(ValueError, match="cannot be loaded on device='meta'"):
        ca.create_model(half, pretrained=True, device="meta")


def test_a_trackers_sizes_come_from_the_model_alone():
    model = ca.create_model("sbt_test_track")
    model.pretrained_cfg["search_factor"] = 9.0
    model.pretrained_cfg["input_size"] = (3, 512, 512)
    assert ca.create_tracker(model)._sizes == ca.Sizes(64, 128)
    with pytest.raises(AttributeError):
        model.sizes.search_factor = 9.0


def test_lists():
    assert ca.list_models("sbt_light_*_track") == [f"sbt_light_{n}_track" for n in ("cell", "half", "pvtv2")]
    assert ca.list_models("sbt_light_*_track", pretrained=True) == list(BUNDLED)
    assert ca.list_models(module="sbt") == timm.list_models(module="sbt") == ca.list_models("sbt*")
    assert ca.list_models(module="vit") == ca.list_models("onestream_vit*")
    assert ca.list_models(module="resnet") == []
    assert ca.list_models(["sbt_*test", "sbt*_light"]) == ["sbt_light", "sbt_test"]
    assert ca.list_models("sbt_test*", exclude_filters="*_cls") == ["sbt_test", "sbt_test_track"]
    assert timm.create_model("sbt_test", num_classes=0).num_classes == 0  # timm's tools pass it
    assert set(ca.list_models(pretrained=True)) == set(timm.list_models(["sbt*", "siam_*"], pretrained=True))


def test_nothing_warns_on_the_way_to_the_default_tracker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ca.create_tracker().weights_name == "siam_lite0_ca_two_scales_track.video"


def test_features_of_a_classifier():
    net = ca.create_model("sbt_test_cls", features_only=True)
    maps = net(torch.randn(1, 3, 64, 64))
    assert (
        len(ca.create_model("sbt_test_cls", features_only=True, out_indices=2)(torch.zeros(1, 3, 64, 64)))
        == 2
    )
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2] and net.feature_info.reduction() == [4, 8, 16, 32]


def test_features_only_models_train_like_others():
    net = ca.create_model("sbt_test", features_only=True, out_indices=(0, 1, 2), position="absolute")
    assert net.num_features == 32 and net.sizes == ca.Sizes(64, 128)
    net.set_grad_checkpointing(True)
    assert net.no_weight_decay() == {f"model.stages.{i}.pos_embed" for i in range(3)}
    names = dict(net.named_parameters())
    assert net.no_weight_decay() <= set(names)


def test_a_network_is_not_larger_than_its_weights(half):
    """A small repository cannot ask for memory: the network is refused before it has any."""
    config = json.loads((half / "config.json").read_text())
    config["model_args"] = {"dims": [320, 640, 3200], "heads": [1, 2, 5]}  # 1 GB
    (half / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json of .* the network has more than the [0-9,]+ numbers"):
        ca.from_pretrained(half)


def test_brackets_without_end_are_no_json(half):
    (half / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        ca.create_model(half)


@pytest.mark.parametrize("value", ["2", 2.0, np.float32(1), (0, 9), [], ("a",)])
def test_levels_that_are_no_numbers_are_refused(value):
    for name, levels in (("sbt_test", 3), ("sbt_test_cls", 4)):
        with pytest.raises(ValueError, match=rf"out_indices=.* must be levels in -{levels}\.\."):
            ca.create_model(name, features_only=True, out_indices=value)
    assert ca.create_model("sbt_test", features_only=True, out_indices=np.int64(2)).out_indices == (1, 2)


def test_dtypes_and_devices_have_names():
    model = ca.create_model("sbt_test", dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"dtype=torch\.int32 is not one of float32, float16"):
        ca.create_model("sbt_test", dtype=torch.int32)
    with pytest.raises(ValueError, match="device='gpu' is not one of cpu, cuda"):
        ca.create_model("sbt_test", device="gpu")


def test_every_name_can_be_built_without_memory():
    """As it is when a saved model is checked. One size of each kind; the others have the same layers."""
    for name in ca.list_models("*test*"):
        assert next(ca.create_model(name, device="meta").parameters()).is_meta


@pytest.mark.parametrize("name", ["./gone", "runs/gone.v2/weights", Path("gone")])
def test_a_folder_that_is_not_there_is_named_in_full(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"There is no model '{re.escape(str(name))}': no folder is there"
    for create in (ca.create_model, ca.create_tracker):
        with pytest.raises(ValueError, match=message):
            create(name)


def test_what_is_no_folder_of_a_model_is_told_from_it(tmp_path, monkeypatch):
    saved = ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "saved")
    file = saved / "model.safetensors"
    with pytest.raises(ValueError, match=rf"{file}' is a file; .* --weights.* such as {saved}\."):
        ca.create_tracker(file)
    monkeypatch.chdir(saved)
    with pytest.raises(ValueError, match=r"model 'model\.safetensors' is a file; .* such as \."):
        ca.create_model("model.safetensors")
    Path("sbt_test").write_text("a file named like a model")
    assert ca.create_model("sbt_test").num_features
    newest = tmp_path / "run" / "checkpoints" / "step-00000010" / "weights"
    for folder in (newest, newest.parent.with_name("step-00000009") / "weights"):
        folder.mkdir(parents=True)
    for arguments in ({}, {"pretrained": tmp_path / "run"}):
        name = "sbt_test_track" if arguments else tmp_path / "run"
        with pytest.raises(FileNotFoundError, match=rf"folder of a run, whose newest weights are {newest}\."):
            ca.create_tracker(name, **arguments)
