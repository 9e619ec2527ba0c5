"""Tensors into models: prefixes, formats, values that are refused, and what a report says."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware.models import registry
from correlation_aware.weights import LoadReport, convert_state_dict, load_state_dict
from correlation_aware.weights.pretrained import load_pretrained


def equal(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    actual = model.state_dict()
    return actual.keys() == expected.keys() and all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.fixture
def tracker() -> dict[str, Tensor]:
    return ca.create_model("sbt_test_track").state_dict()


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "network.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.net.",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_prefixes(tmp_path: Path, tracker: dict[str, Tensor], prefix: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    prefixed = {prefix + name: tensor for name, tensor in tracker.items()}
    if suffix == ".safetensors":
        weights.write_state_dict(prefixed, path)
    else:
        torch.save({"state_dict": prefixed, "pytorch-lightning_version": "2.6"}, path)
    assert equal(ca.create_model("sbt_test_track", pretrained=path), tracker)


def test_a_prefix_that_not_all_names_have_stays(tracker: dict[str, Tensor]) -> None:
    names = {f"module.{name}": tensor for name, tensor in tracker.items()} | {"loss.weight": torch.ones(1)}
    assert list(convert_state_dict(names, own_names=tracker)) == list(names)
    with pytest.raises(ValueError, match="does not fit"):
        load_state_dict(ca.create_model("sbt_test_track"), names)


@pytest.mark.parametrize("key_format", ["auto", "correlation_aware"])
def test_a_prefix_of_the_models_own_names_stays(key_format: str) -> None:
    own = {"model.net.weight": 0, "model.bias": 0, "model.other": 0}
    tensors = {name: torch.ones(1) for name in own}
    assert list(convert_state_dict(tensors, key_format, own)) == list(own)
    some = {"model.net.weight": torch.ones(1), "model.extra": torch.ones(1)}  # one the model does not have
    assert list(convert_state_dict(some, key_format, own)) == list(some)
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    assert list(convert_state_dict(wrapped, key_format, own)) == list(own)


@pytest.mark.parametrize("key_format", ["auto", "pvt_v2"])
def test_prefixes_of_other_formats(key_format: str) -> None:
    theirs = timm.create_model("pvt_v2_b0", num_classes=3).state_dict()
    expected = convert_state_dict(theirs, "pvt_v2")
    actual = convert_state_dict({f"module.{name}": tensor for name, tensor in theirs.items()}, key_format)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture
def register_format(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Registers a format whose names begin with a prefix, and that removes it."""
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))

    def register(name: str, prefix: str) -> None:
        @registry.register_checkpoint_format(
            name, matches=lambda names: any(n.startswith(prefix) for n in names)
        )
        def convert(state_dict: Any) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}

    yield register


def test_a_format_of_a_plug_in(
    register_format: Callable[[str, str], None], tracker: dict[str, Tensor]
) -> None:
    register_format("acme", "acme_")
    assert "acme" in weights.format_names()
    theirs = {f"module.acme_{name}": tensor for name, tensor in tracker.items()}
    for arguments in ((), ("auto", tracker), ("acme",)):
        assert list(convert_state_dict(theirs, *arguments)) == list(tracker)


def test_several_formats_that_match(
    register_format: Callable[[str, str], None], tracker: dict[str, Tensor]
) -> None:
    register_format("wrong", "a")
    register_format("right", "acme_")
    theirs = {f"acme_{name}": tensor for name, tensor in tracker.items()}
    with pytest.raises(ValueError, match="several formats: name source='wrong' or 'right'"):
        convert_state_dict(theirs)
    assert list(convert_state_dict(theirs, own_names=tracker)) == list(tracker)


def test_own_names_are_own_whatever_format_they_resemble() -> None:
    own = {"patch_embed1.proj.weight": torch.ones(2, 3, 7, 7), "head.weight": torch.ones(3)}
    assert list(convert_state_dict(own, own_names=own)) == list(own)
    assert list(convert_state_dict(own)) != list(own)


def test_a_checkpoint_is_converted_only_if_more_of_its_names_fit_then() -> None:
    """A vision transformer has `patch_embed.proj` as PVTv2 has, and perhaps a name more than the model."""
    own = {"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "blocks.0.norm1.weight": 0}
    checkpoint = {name: torch.zeros(2) for name in [*own, "cls_token"]}
    assert weights.convert_state_dict(checkpoint, own_names=own).keys() == checkpoint.keys()
    tracker = [f"backbone.{name}" for name in own]
    assert weights.convert_state_dict(checkpoint, own_names=tracker).keys() == checkpoint.keys()


def test_a_network_with_a_part_called_backbone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.neck = nn.Linear(2, 2), nn.Linear(2, 2)

    class Tracker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = Net(), nn.Linear(2, 2)

    net, tracker = Net(), Tracker()
    converted = weights.convert_state_dict(net.state_dict(), own_names=tracker.state_dict())
    report = weights.load_state_dict(tracker, converted, partial=True)
    assert len(report.loaded) == 4 and report.missing == ("head.weight", "head.bias")
    assert torch.equal(tracker.backbone.backbone.weight, net.backbone.weight)
    converted = weights.convert_state_dict(Tracker().state_dict(), own_names=net.state_dict())
    assert len(weights.load_state_dict(net, converted).loaded) == 4


def test_unknown_names_list_the_formats() -> None:
    with pytest.raises(
        ValueError, match=r"\(a, b, c, \.\.\.\) belong to no known format: sbt, pvt_v2"
    ) as caught:
        convert_state_dict(dict.fromkeys("abcd", torch.ones(1)))
    assert "--format" in str(caught.value) and "--model" in str(caught.value)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


GOOD = {"weight": torch.ones(2), "steps": torch.tensor(5), "mask": torch.tensor([0.0, -torch.inf])}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_converted(dtype: torch.dtype) -> None:
    model = Small()
    load_state_dict(
        model, GOOD | {"weight": torch.ones(2, dtype=dtype), "steps": torch.tensor(7, dtype=torch.int32)}
    )
    assert model.weight.dtype == torch.float32 and model.weight.tolist() == [1, 1] and model.steps == 7


@pytest.mark.parametrize(
    ("name", "tensor", "error", "message"),
    [
        (
            "weight",
            torch.ones(2, dtype=torch.int64),
            ValueError,
            "'weight' has whole numbers .*int64.*real ones",
        ),
        ("weight", torch.ones(2, dtype=torch.bool), ValueError, "'weight' has boolean numbers"),
        ("weight", torch.ones(2, dtype=torch.complex64), ValueError, "'weight' has complex numbers"),
        ("steps", torch.tensor(1.5), ValueError, "'steps' has real numbers .*the model whole ones"),
        ("weight", torch.tensor([1, torch.nan]), RuntimeError, "'weight' has numbers that are not finite"),
        ("weight", torch.tensor([1, torch.inf]), RuntimeError, "'weight' has numbers that are not finite"),
        (
            "mask",
            torch.tensor([torch.nan, -torch.inf]),
            RuntimeError,
            "'mask' has numbers that are not finite",
        ),
        (
            "mask",
            torch.tensor([-torch.inf, -torch.inf]),
            RuntimeError,
            "'mask' has numbers that are not finite",
        ),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_values_that_would_do_harm_are_refused(
    name: str, tensor: Tensor, error: type[Exception], message: str, partial: bool
) -> None:
    model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=f"somewhere: {message}"):
        load_state_dict(model, GOOD | {name: tensor}, partial, "somewhere")
    assert equal(model, before)
    load_state_dict(model, GOOD)
    assert equal(model, GOOD)


def test_the_file_is_named(tmp_path: Path) -> None:
    model = ca.create_model("sbt_test")
    tensors = model.state_dict() | {"stages.0.embed.proj.bias": torch.full((16,), torch.nan)}
    weights.write_state_dict(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(
        RuntimeError, match=r"nan\.safetensors: 'stages\.0\.embed\.proj\.bias' has numbers that are not"
    ):
        load_pretrained(model, tmp_path / "nan.safetensors")
    weights.write_state_dict({"stages.0.embed.proj.bias": torch.ones(3)}, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"small\.safetensors does not fit SBT, .*\(3,\) for \(16,\)"):
        load_pretrained(model, tmp_path / "small.safetensors")


def test_a_report_and_its_former_names() -> None:
    report = LoadReport(("stages.0.blocks.1.a", "stages.0.blocks.3.a"), ("head.w", "head.b"), ())
    assert str(report) == "tensors: 2 loaded (stages.0: blocks 1-3); 2 unexpected (head); 0 missing"
    for old, new in (("taken", "loaded"), ("left", "unexpected"), ("fresh", "missing")):
        with pytest.warns(DeprecationWarning, match=f"LoadReport.{old} is called {new} now") as caught:
            assert getattr(report, old) == getattr(report, new)
        assert caught[0].filename == __file__


def test_names_of_blocks_that_are_no_numbers() -> None:
    assert str(LoadReport(("a.blocks.attn.weight",), (), ())).startswith("tensors: 1 loaded (a.blocks.attn)")


def save(model: nn.Module, folder: Path) -> tuple[Any, Any, list[Tensor]]:
    """Saves a model, and returns its configuration, images for it, and its output."""
    ca.save_pretrained(model, folder)
    cfg: Any = model.pretrained_cfg
    sizes = [cfg["template_size"], cfg["input_size"]] if "template_size" in cfg else [cfg["input_size"]]
    images = [torch.rand(1, *size) for size in sizes]
    with torch.inference_mode():
        return cfg, images, model.eval()(*images)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sbt_test_cls", {"num_classes": 0}),
        ("sbt_test_cls", {"num_classes": 7, "in_chans": 4}),
        ("sbt_test", {"in_chans": 1}),
        ("sbt_test", {"in_chans": 5, "strides": (4, 2, 2), "search_factor": 5.0}),
        ("sbt_test_track", {"in_chans": 1, "head": "cell", "search_size": 64}),
    ],
)
def test_arguments_survive_saving(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    cfg, images, expected = save(ca.create_model(name, **arguments), tmp_path)
    assert cfg["input_size"][0] == arguments.get("in_chans", 3) == len(cfg["mean"]) == len(cfg["std"])
    for again in (ca.from_pretrained(tmp_path), timm.create_model(f"local-dir:{tmp_path}", pretrained=True)):
        with torch.inference_mode():
            torch.testing.assert_close(again.eval()(*images), expected, rtol=0, atol=0)
        assert again.pretrained_cfg == {**cfg, "tag": None, "hf_hub_id": None}


def test_resetting_to_no_classifier_survives_saving(tmp_path: Path) -> None:
    model: Any = ca.create_model("sbt_test_cls")
    model.reset_classifier(0)
    _, images, expected = save(model, tmp_path)
    again: Any = ca.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(again(*images), expected) and again.num_classes == 0 and expected.shape == (1, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_survive_saving(tmp_path: Path, dtype: torch.dtype) -> None:
    model = ca.create_model("sbt_test", dtype=dtype)
    ca.save_pretrained(model, tmp_path)
    saved = weights.read_state_dict(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert equal(ca.from_pretrained(tmp_path, dtype=dtype), model.state_dict())
    again = ca.from_pretrained(tmp_path)
    assert equal(again, {name: tensor.float() for name, tensor in saved.items()})
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}


def test_other_channels_and_classes_than_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ca.create_model("sbt_test_cls", num_classes=5)
    ca.save_pretrained(model, tmp_path)
    with caplog.at_level(logging.INFO, "correlation_aware"):
        again = ca.create_model(tmp_path, pretrained=True, in_chans=1, num_classes=2)
    assert "2 missing (head)" in caplog.text
    expected = model.state_dict()
    different = [
        k for k, v in again.state_dict().items() if k.startswith("head.") or not torch.equal(v, expected[k])
    ]
    assert different == ["stages.0.embed.proj.weight", "head.weight", "head.bias"]
    conv = "stages.0.embed.proj.weight"
    assert torch.equal(again.state_dict()[conv], expected[conv].sum(1, keepdim=True))


def test_another_number_of_classes_excuses_nothing_else(tmp_path: Path) -> None:
    tensors = ca.create_model("sbt_test_cls", num_classes=5).state_dict()
    tensors.pop("stages.1.norm.weight")
    weights.write_state_dict(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(stages\.1\.norm\)"):
        ca.create_model("sbt_test_cls", pretrained=tmp_path / "w.safetensors")


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    model: Any = ca.create_model("sbt_test")
    model.model_args = {"sizes": object()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        ca.save_pretrained(model, tmp_path / "a")
    with pytest.raises(ValueError, match="not a complete model of create_model"):
        ca.save_pretrained(ca.create_model("sbt_test", features_only=True), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
