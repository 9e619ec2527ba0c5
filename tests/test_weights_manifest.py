"""The manifest: the shipped one is right, and a wrong one says what is wrong."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware.weights import load_manifest, manifest, resolve_weights
from correlation_aware.weights.manifest import MANIFEST_PATH
from correlation_aware.weights.sources import tags_of

SHIPPED = load_manifest()
HUB: dict[str, Any] = {
    "source": "hub",
    "repository": "org/name",
    "file": "model.safetensors",
    "revision": "main",
    "license": "mit",
    "key_format": "sbt",
    "role": "model",
    "template_size": 128,
    "search_size": 256,
    "mean": [0.5, 0.5, 0.5],
    "std": [1, 1, 1],
    "training": "On GOT-10k.",
    "results": [
        {"dataset": "GOT-10k val", "metric": "AO", "value": 0.7, "command": "correlation-aware eval"}
    ],
    "notes": "The Hub's LFS hash is checked.",
}
DIGEST = "0123456789abcdef" * 4


def write(tmp_path: Path, **change: Any) -> Path:
    path = tmp_path / "manifest.json"
    fields = {key: value for key, value in (HUB | change).items() if value != "MISSING"}
    path.write_text(json.dumps({"sbt_base.got10k": fields}))
    return path


def test_shipped_formats_are_registered() -> None:
    assert {entry.key_format for entry in SHIPPED.values()} <= set(weights.format_names())


@pytest.mark.parametrize("name", [name for name, entry in SHIPPED.items() if entry.source == "bundled"])
def test_bundled_weights_load_and_are_what_the_entry_says(name: str) -> None:
    entry = SHIPPED[name]
    path = weights.fetch(entry)
    assert path.stat().st_size == entry.bytes and entry.bytes < 8 * 2**20 and entry.role == "model"
    weights.check_finite(weights.read_state_dict(path), name)
    model = ca.create_model(name, pretrained=True)
    assert model.model_args == {}  # the name says it all
    assert model.pretrained_cfg["tag"] == entry.tag
    assert model.pretrained_cfg["input_size"][-1] == entry.search_size
    assert model.pretrained_cfg["template_size"][-1] == entry.template_size
    again = timm.create_model(name, pretrained=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
    assert all(result.command for result in entry.results)


@pytest.mark.parametrize("name", [name for name, entry in SHIPPED.items() if entry.source == "hub"])
def test_hub_entry_fits_its_model(name: str) -> None:
    """Shapes only: the Hub's file has the parameters of timm's model of the same name."""
    entry = SHIPPED[name]
    assert entry.name == name and entry.role in ("model", "starting_point")
    assert entry.repository is not None
    organisation, _, repository = entry.repository.partition("/")
    assert organisation == "timm"
    with torch.device("meta"):
        theirs = timm.create_model(repository.partition(".")[0])
        ours = ca.create_model(entry.model)
    converted = weights.convert_state_dict(theirs.state_dict(), entry.key_format)
    report = weights.load_state_dict(ours, converted, partial=entry.role == "starting_point")
    fresh = {key.rpartition(".blocks.")[2].split(".")[0] for key in report.missing}
    assert fresh == ({"2", "3", "4", "5"} if entry.model == "sbt_light_pvtv2" else set())
    assert (entry.mean, entry.std) == (theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])
    assert entry.input_size == theirs.pretrained_cfg["input_size"][-1]
    assert entry.license == theirs.pretrained_cfg["license"]


def test_shipped_file_is_linked_and_round_trips() -> None:
    top = MANIFEST_PATH.parents[1] / "weights_manifest.json"
    if top.exists():  # a checkout, not an installed package
        assert top.resolve() == MANIFEST_PATH.resolve()
    raw = json.loads(MANIFEST_PATH.read_text())
    assert list(raw) == list(SHIPPED)
    for name, entry in SHIPPED.items():
        assert {k: v for k, v in raw[name].items() if v not in (None, [])} == json.loads(
            json.dumps(entry.to_json())
        )


def test_the_cached_manifest_cannot_be_spoilt() -> None:
    load_manifest().clear()
    assert load_manifest() == SHIPPED


def test_reads_every_field(tmp_path: Path) -> None:
    entry = load_manifest(write(tmp_path, sha256=DIGEST, bytes=3))["sbt_base.got10k"]
    assert (entry.model, entry.tag, entry.sha256, entry.bytes) == ("sbt_base", "got10k", DIGEST, 3)
    assert entry.mean == (0.5, 0.5, 0.5)
    assert entry.results[0].value == 0.7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"sha265": DIGEST},
            r"sbt_base.got10k: unknown key 'sha265'; did you mean 'sha256'\? Allowed: .*license",
        ),
        ({"license": "MISSING"}, "sbt_base.got10k: missing 'license'. Needed: .*training"),
        ({"license": ""}, "license='' must be a text"),
        ({"source": "ftp"}, "source='ftp' must be one of hub, bundled, url"),
        ({"key_format": ""}, "key_format='' must be a text that is not empty"),
        ({"role": 1}, "role=1 must be one of"),
        ({"file": "../secret"}, "file='../secret' must be a relative path"),
        ({"file": "/etc/passwd"}, "must be a relative path"),
        ({"repository": "name"}, "repository='name' must be organisation/name"),
        ({"repository": None}, "repository=None must be given, since source='hub'"),
        ({"revision": None}, "revision=None must be given"),
        ({"url": "https://x.org/a"}, "url=.* must be left out"),
        ({"url": "ftp://x.org/a"}, "url=.* must be an http"),
        ({"source": "url"}, "url=None must be given, since source='url'"),
        (
            {"source": "bundled", "repository": None, "revision": None},
            "sha256=None must be given, since source='b",
        ),
        ({"sha256": DIGEST.upper()}, "sha256=.* must be 64 lower-case"),
        ({"bytes": 0}, "bytes=0 must be a whole number above 0"),
        ({"bytes": True}, "bytes=True must be a whole number above 0"),
        ({"search_size": 2.5}, "search_size=2.5 must be a whole number"),
        ({"search_size": None}, "search_size=None must be given with template_size"),
        ({"mean": [0.5]}, r"mean=\(0.5,\) must be three numbers"),
        ({"std": "imagenet"}, "std='imagenet' must be three numbers"),
        ({"notes": ""}, "notes='' must be a word on the Hub's LFS hash"),
        ({"results": {}}, "results={} must be a list"),
        ({"results": [3]}, r"results\[0\] must be an object"),
        ({"results": [{"metrics": 1}]}, r"results\[0\]: unknown key 'metrics'; did you mean 'metric'"),
        ({"results": [{**HUB["results"][0], "value": "high"}]}, "value='high' must be a number"),
        (
            {"results": [{**HUB["results"][0], "value": float("nan")}]},
            "value=nan must be a number, and finite",
        ),
        ({"results": [{**HUB["results"][0], "command": ""}]}, "command='' must be a text"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_manifest(write(tmp_path, **change))
    assert "sbt_base.got10k" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a weights manifest"),
        ("[]", "must be an object"),
        ('{"a.b": 1}', "Weights a.b must be an object, not 1"),
        ('{"a.b": {}, "a.b": {}}', "a.b is listed twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_manifest(tmp_path / "manifest.json")


def test_weights_of_a_model_that_does_not_exist_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("_registered", "_registered_from", "_reported"):
        monkeypatch.setattr(manifest, table, type(getattr(manifest, table))(getattr(manifest, table)))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"sbt_bse.got10k": HUB, "sbt_base.got10k": HUB}))
    ca.register_weights(path)
    with pytest.warns(RuntimeWarning, match=r"sbt_bse\.got10k of .*manifest\.json .*Near: sbt_base"):
        entries = load_manifest()
    assert set(entries) == {*SHIPPED, "sbt_base.got10k"}
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        assert "got10k" in tags_of("sbt_base")
        with pytest.raises(ValueError, match="No weights are known for 'sbt_bse"):
            resolve_weights("sbt_bse.got10k")


@pytest.mark.parametrize("name", ["sbt_base", ".b"])
def test_a_name_is_model_dot_tag(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({name: HUB}))
    with pytest.raises(ValueError, match="must be a text that is not empty"):
        load_manifest(tmp_path / "manifest.json")


def test_names_of_entries() -> None:
    assert resolve_weights("sbt_large_pvtv2.in1k") == resolve_weights("sbt_large_pvtv2")
    with pytest.raises(ValueError, match=r"'sbt_larg_pvtv2'.*sbt_large_pvtv2.in1k.*weights list"):
        resolve_weights("sbt_larg_pvtv2")
    with pytest.raises(ValueError, match=r"Tags of sbt_base: in1k\."):
        resolve_weights("sbt_base.in22k")


@pytest.mark.parametrize(
    ("text", "hint"),
    [("none/nowhere", "write 'hf-hub:none/nowhere'"), ("none.ckpt", ""), ("a/b/none.PTH", "")],
)
def test_absent_files(text: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no weights file '{text}'.") as caught:
        resolve_weights(text)
    assert hint in str(caught.value) and (bool(hint) == ("hf-hub:" in str(caught.value)))
