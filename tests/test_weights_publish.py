"""What is published loads again: pushes, manifest entries and model cards, against a Hub on this machine."""

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import COMMIT, Client, HubServer
from huggingface_hub import ModelCard
from torch import nn

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware._files import sha256_file
from correlation_aware.models import registry
from correlation_aware.publish import push
from correlation_aware.weights.card import LICENSES, model_card

RESULTS = [
    weights.Measurement("GOT-10k val", "AO", 0.671, "correlation-aware eval got10k ROOT"),
    weights.Measurement("GOT-10k val", "SR0.50", 0.8, "eval | tee log"),
    weights.Measurement("OTB 2015", "AUC", 66.2, "correlation-aware eval got10k OTB"),
]
KINDS = ("sbt_test_track", "sbt_test", "sbt_test_cls")


@pytest.fixture(scope="module")
def server() -> HubServer:
    return HubServer()


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(tmp_path_factory.mktemp("home"), server.endpoint)
    yield client
    client.close()


def save(folder: Path, name: str, **arguments: Any) -> nn.Module:
    """A model with random weights in `folder`, and images with its outputs for them in `expected.pt`."""
    model: Any = ca.create_model(name, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.pretrained_cfg.update(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    ca.save_pretrained(model, folder)
    cfg = model.pretrained_cfg
    sizes = [cfg["template_size"], cfg["input_size"]] if "template_size" in cfg else [cfg["input_size"]]
    images = [torch.rand(2, *size) for size in sizes]
    with torch.inference_mode():
        output = model(*images)
    torch.save((images, list(output) if isinstance(output, tuple) else [output]), folder / "expected.pt")
    return model


# In a client: compares `load()`'s output for the images with what was saved.
COMPARE = """
images, expected = torch.load(folder + "/expected.pt")
model = {}.eval()
with torch.inference_mode():
    actual = model(*images)
actual = list(actual) if isinstance(actual, tuple) else [actual]
same = len(actual) == len(expected) and all(map(torch.equal, actual, expected))
answer = same, model.pretrained_cfg["mean"]
"""


def entry_in(output: str) -> dict[str, Any]:
    text = output.partition("Entry for weights_manifest.json:")[2].partition("\nNothing was")[0]
    return json.loads(text)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bare", [False, True])
def test_a_push_loads_again(server: HubServer, client: Client, tmp_path: Path, name: str, bare: bool) -> None:
    repository = f"me/{name}-{bare}"
    save(tmp_path, name)
    file = tmp_path / "model.safetensors"
    common = [repository, f"{name}.v{int(bare)}", "--training", "On noise.", "--upload"]
    code, output = client.call("cli", "push", str(file if bare else tmp_path), *common)["ok"]
    assert code == 0 and "Uploaded" in output
    uploaded = {n.rpartition("/")[2] for n in server.files if n.startswith(f"{repository}/")}
    assert uploaded == {"README.md", "config.json", "model.safetensors"}

    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(entry_in(output)))
    entry = weights.load_manifest(manifest)[f"{name}.v{int(bare)}"]
    assert (entry.repository, entry.revision, entry.sha256) == (repository, COMMIT, sha256_file(file))
    mean = (0.485, 0.456, 0.406) if bare else (0.5, 0.4, 0.3)  # a bare file does not say it
    client.call("python", f"ca.register_weights({str(manifest)!r})")
    for load in (
        f"ca.create_model({entry.name!r}, pretrained=True)",
        f"ca.create_model({name!r}, pretrained={entry.tag!r})",
        f"ca.create_model('hf-hub:{repository}', pretrained=True)",
        f"ca.from_pretrained('hf-hub:{repository}@{COMMIT}')",
        f"timm.create_model('hf-hub:{repository}', pretrained=True)",
        f"timm.create_model({name!r}, pretrained=True, pretrained_cfg=dict(hf_hub_id={repository!r}))",
    ):
        answer = client.call("python", COMPARE.format(load), folder=str(tmp_path))
        expected = (0.485, 0.456, 0.406) if "cfg" in load else mean  # of the name's own description
        assert answer.get("ok", [answer])[0] == (True, expected), load


def test_a_half_precision_file_is_an_entry(tmp_path: Path) -> None:
    bundled = weights.load_manifest()["sbt_light_half_track.video"]
    plan = push(bundled.root / bundled.file, "me/it", "sbt_light_half_track", "v1", training="As it was.")
    assert plan.entry is not None and not plan.uploaded
    same = ("template_size", "search_size", "sha256", "bytes", "mean", "std", "license", "role", "key_format")
    assert all(getattr(plan.entry, key) == getattr(bundled, key) for key in same)
    assert plan.config["architecture"] == "sbt_light_half_track" and plan.config["model_args"] == {}
    assert plan.config["pretrained_cfg"]["search_factor"] == 4.0


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        (
            "sbt_test",
            "sbt_test_track",
            r"does not fit sbt_test_track\. Tensors: \d+ missing \(backbone\.stages",
        ),
        ("sbt_test_track", "sbt_test", r"\d+ missing \(stages\.0.*; \d+ unexpected \(backbone\.stages\.0"),
        (
            "sbt_test_track",
            "sbt_light_track",
            r"\d+ of another shape \(backbone\S+ \(32,\) for \(64,\)",
        ),
        ("sbt_test", "sbt_tset", "There is no model 'sbt_tset'. Near: sbt_test"),
    ],
)
def test_a_file_of_another_architecture_is_refused(
    tmp_path: Path, file: str, model: str, message: str
) -> None:
    ca.save_pretrained(ca.create_model(file), tmp_path)
    with pytest.raises(ValueError, match=message):
        push(tmp_path / "model.safetensors", "me/it", model, "v1", training="-", dry_run=False)


@pytest.mark.parametrize("arguments", [{"head": "cell"}, {"depths": (1, 1, 5)}])
def test_a_file_that_needs_arguments_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    ca.save_pretrained(ca.create_model("sbt_test_track", **arguments), tmp_path)
    with pytest.raises(
        ValueError, match=r"does not fit sbt_test_track.* or push a folder of save_pretrained"
    ):
        push(tmp_path / "model.safetensors", "me/it", "sbt_test_track", "v1", training="-")


def test_foreign_names_are_refused_with_the_command_that_renames_them(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = ca.create_model("sbt_test").state_dict()
    weights.write_state_dict({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(
        ValueError, match=f"weights convert {path} NEW.safetensors --model sbt_test` renames them"
    ):
        push(path, "me/it", "sbt_test", "v1", training="-")


@pytest.mark.parametrize(
    ("name", "arguments", "offered"),
    [
        ("sbt_test_track", {"head": "cell"}, False),
        ("sbt_test", {"search_factor": 5.0}, False),
        ("sbt_test", {"search_size": 160}, False),
        ("sbt_test", {"cross_blocks": ((), (), (0,))}, False),  # the same tensors, another network
        ("sbt_test", {"in_chans": 1}, False),
        ("sbt_test_cls", {"num_classes": 5}, False),
        ("sbt_test_cls", {"num_classes": 1000}, True),
        ("sbt_test", {"drop_path_rate": 0.1}, True),
    ],
)
def test_an_entry_needs_the_network_of_its_name(
    tmp_path: Path, name: str, arguments: dict[str, Any], offered: bool
) -> None:
    ca.save_pretrained(ca.create_model(name, **arguments), tmp_path)
    plan = push(tmp_path, "me/it", name, "v1", training="-")
    assert (plan.entry is not None) == offered == (not plan.no_entry)
    assert plan.config["model_args"] == arguments
    if not offered:
        assert "register an architecture name" in plan.no_entry


@pytest.mark.parametrize(
    ("arguments", "offered"), [({}, True), ({"output_stride": 16}, True), ({"output_stride": 8}, False)]
)
def test_a_network_of_another_family(
    acme: None, tmp_path: Path, arguments: dict[str, int], offered: bool
) -> None:
    model = ca.create_model("acme", **arguments)
    plan = push(ca.save_pretrained(model, tmp_path), "me/it", "acme", "v1", training="-")
    assert (plan.entry is not None) == offered
    assert not plan.entry or (plan.entry.template_size, plan.entry.search_size) == (64, 128)
    assert (
        "2203.01666" not in plan.card and "A family of networks as a stranger's package has it" in plan.card
    )
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "own.pth")
    again = ca.create_model("acme", pretrained=tmp_path / "own.pth", **arguments).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("sbt_test", "", "'sbt_test' has no tag: publish it as 'model.tag', such as 'sbt_test.v1'"),
        ("sbt_test", "a b", "'a b' is not a tag of letters, digits, - and _"),
        ("sbt_test", "a.b", r"'a\.b' is not a tag"),
        ("sbt_base", "in1k", r"sbt_base\.in1k is in the manifest already: hub weights\. Use another tag"),
    ],
)
def test_a_tag_is_checked(tmp_path: Path, name: str, tag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        push(tmp_path, "me/it", name, tag, training="-")


def test_a_folder_without_an_entry_is_published_all_the_same(client: Client, tmp_path: Path) -> None:
    save(tmp_path, "sbt_test_track", head="cell", template_size=32)
    arguments = ["me/cell", "sbt_test_track.v9", "--training", "On noise.", "--upload"]
    code, output = client.call("cli", "push", str(tmp_path), *arguments)["ok"]
    assert code == 0 and "Entry for weights_manifest.json:" not in output
    assert (
        "No entry for weights_manifest.json. An entry's name alone fixes the network, but the model" in output
    )
    assert "head='cell', template_size=32" in output
    load = COMPARE.format("ca.create_model('hf-hub:me/cell', pretrained=True)")
    assert client.call("python", load, folder=str(tmp_path))["ok"][0] == (True, (0.5, 0.4, 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repository": "it"}, "'it' is not the name of a repository"),
        ({"tag": ""}, r"'sbt_test' has no tag: publish it as 'model\.tag'"),
        (
            {"license": "GPL whatever"},
            r"license='GPL whatever' is not an identifier .* Near: gpl, gpl-2\.0, gpl-3\.0",
        ),
        ({"license": "Apache-2.0"}, r"Near: apache-2\.0\. Use 'other'"),
        ({"model": "sbt_test_track"}, r"config\.json is of 'sbt_test', not of 'sbt_test_track'"),
    ],
)
def test_mistakes(tmp_path: Path, change: dict[str, str], message: str) -> None:
    ca.save_pretrained(ca.create_model("sbt_test"), tmp_path)
    arguments = {"repository": "me/it", "model": "sbt_test", "tag": "v1", "training": "-"} | change
    with pytest.raises(ValueError, match=message):
        push(tmp_path, **arguments)  # type: ignore[arg-type]


def test_values_and_absent_files(tmp_path: Path) -> None:
    folder = ca.save_pretrained(ca.create_model("sbt_test"), tmp_path / "a")
    tensors = weights.read_state_dict(folder / "model.safetensors")
    tensors["stages.0.embed.proj.bias"][0] = torch.nan
    weights.write_state_dict(tensors, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"not finite, 'stages\.0\.embed\.proj\.bias' among them"):
        push(folder, "me/it", "sbt_test", "v1", training="-")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*model\.safetensors"):
        push(folder, "me/it", "sbt_test", "v1", training="-")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        push(folder, "me/it", "sbt_test", "v1", training="-")


def usage(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("name", KINDS)
def test_the_card_of_a_push(tmp_path: Path, name: str) -> None:
    ca.save_pretrained(ca.create_model(name), tmp_path)
    plan = push(tmp_path, "me/it", name, "v1", training="On noise.", license="mit", results=RESULTS)
    card = ModelCard(plan.card)
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "correlation_aware"
    assert "arxiv:2203.01666" in data["tags"]
    task = {
        "sbt_test_track": None,
        "sbt_test": "image-feature-extraction",
        "sbt_test_cls": "image-classification",
    }
    assert data.get("pipeline_tag") == task[name]
    assert data["model-index"][0]["name"] == f"{name}.v1"
    results: Any = card.data.eval_results
    assert [(r.dataset_name, r.metric_name, r.metric_value) for r in results] == [
        (r.dataset, r.metric, r.value) for r in RESULTS
    ]
    assert {r.task_type for r in results} == {task[name] or "visual-object-tracking"}
    assert "| GOT-10k val | SR0.50 | 0.8 | `eval \\| tee log` |" in card.text
    assert "`Correlation-Aware Deep Tracking`" in card.text
    assert "On noise." in card.text and str(plan.entry and plan.entry.sha256) in card.text
    assert ("create_tracker" in usage(plan.card)) == (name == "sbt_test_track")
    assert "hf-hub:me/it" in usage(plan.card)
    images = {
        k: torch.rand(1, 3, *((64, 64) if k == "template" else (128, 128))) for k in ("template", "search")
    }
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    names = images | {"image": images["search"], "frame": frame, "next_frame": frame, "box": (10, 10, 30, 30)}
    exec(usage(plan.card).replace("hf-hub:me/it", str(tmp_path)), names)
    assert names.get("result") or names.get("logits") is not None or names.get("features") is not None


def test_the_card_of_a_saved_folder(tmp_path: Path) -> None:
    model = ca.create_model("sbt_test_track")
    text = (ca.save_pretrained(model, tmp_path) / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict().keys() == {
        "library_name",
        "tags",
    }  # no license and no results that nobody named
    assert 'ca.create_tracker("path/to/this/folder")' in text and "# sbt_test_track\n" in text
    (tmp_path / "README.md").write_text("Mine.")
    ca.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine."


def test_the_card_of_bundled_weights_has_their_license() -> None:
    model = ca.create_model("sbt_light_cell_track", pretrained=True)
    assert ModelCard(model_card(model)).data.license == "apache-2.0"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A model of somebody's package, with the docstring of its module."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    module = types.ModuleType(
        "acme_nets.fast",
        "Acme, a fast family.\n\nPaper: Fast - https://arxiv.org/pdf/2401.12743\n\nNot this.",
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def acme_fast(**kwargs: Any) -> ca.TwoInputModel:
        return registry.registered_models()["sbt_test"](**kwargs)

    acme_fast.__module__ = module.__name__
    registry._MODELS["acme_fast"] = acme_fast
    yield "acme_fast"


def test_the_card_of_a_plug_in_says_its_own_paper(fast: str) -> None:
    text = model_card(ca.create_model(fast))
    assert "Acme, a fast family." in text and "Paper: Fast - https://arxiv.org/pdf/2401.12743" in text
    assert "plug-in package `acme_nets`" in text and "Not this." not in text
    assert "SBT" not in text and "2203.01666" not in text and "arxiv:2401.12743" in ModelCard(text).data.tags


def test_licenses_are_identifiers() -> None:
    assert {entry.license for entry in weights.load_manifest().values()} <= LICENSES
    assert {"apache-2.0", "mit", "cc-by-nc-4.0", "other"} <= LICENSES
    assert all(re.fullmatch(r"[a-z0-9.+-]+", name) for name in LICENSES)
