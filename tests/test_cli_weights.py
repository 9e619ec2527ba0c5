"""`correlation-aware weights` as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_server import Client, HubServer
from safetensors.torch import save
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware._files import sha256_file
from correlation_aware.cli import main
from correlation_aware.cli.weights import _verified_by, app
from correlation_aware.publish import push
from correlation_aware.weights.manifest import RENAMED


def run(*args: str) -> str:
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return ca.save_pretrained(ca.create_model("sbt_test"), tmp_path / "saved")


def test_list() -> None:
    manifest = weights.load_manifest()
    as_json = json.loads(run("list", "--json"))
    assert list(as_json) == list(manifest)
    assert as_json["sbt_large_pvtv2.in1k"]["repository"] == "timm/pvt_v2_b3.in1k"
    lines = run("list").splitlines()
    assert [line.split()[0] for line in lines[1 : len(manifest) + 1]] == list(manifest)
    assert max(map(len, lines)) < 95 and not any(" track" in line for line in lines)
    by_name = {line.split()[0]: line for line in lines if line}
    half, base = by_name["sbt_light_half_track.video"], by_name["sbt_base.in1k"]
    assert "bundled" in half and " model " in half and "64, 128" in half and "apache-2.0" in half
    assert "timm/pvt_v2_b5.in1k" in base and " part " in base and "224" in base


def test_verify_local_file(folder: Path) -> None:
    output = run("verify", str(folder / "model.safetensors"))
    assert run("verify", str(folder)) == output
    assert sha256_file(folder / "model.safetensors") in output and "all finite" in output
    assert "no entry of the manifest" in output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["verify", "sbt_bse"], "No weights are known for 'sbt_bse'. Near: sbt_base.in1k"),
        (["verify", "none.safetensors"], "There is no weights file 'none.safetensors'"),
        (["verify", "sbt_light_half_track.half"], "Tags of sbt_light_half_track: video"),
        (["verify", "nan.safetensors"], "nan.safetensors: 1 of 1 tensors are not finite, 'a'"),
        (["verify", "half.safetensors"], "is not a complete safetensors file"),
        (["download", "hf-hub:nonsense"], "is not the name of a repository"),
        (["download", "nan.safetensors"], "nan.safetensors is a local file"),
        (
            ["convert", "nan.safetensors", "new.safetensors"],
            "(a, ...) belong to no known format: sbt, pvt_v2",
        ),
        (["convert", "nan.safetensors", "new.safetensors", "--model", "sbt_test"], "does not fit SBT"),
        (
            ["convert", "nan.safetensors", "new.safetensors", "--model", "sbt_tset"],
            "There is no model 'sbt_tset'",
        ),
        (["convert", "nan.safetensors", "half.safetensors"], "half.safetensors exists"),
        (
            ["convert", "nan.safetensors", "new.safetensors", "--format", "timm"],
            "--format 'timm' is not one of auto, correlation_aware, sbt, pvt_v2",
        ),
        (["push", "none", "org/name", "sbt_test.v1", "--training", "None."], "There is no none"),
        (
            ["push", "pickle.pth", "org/name", "sbt_test.v1", "--training", "None."],
            "is not a .safetensors file",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights.write_state_dict({"a": torch.tensor([float("nan")])}, "nan.safetensors")
    Path("half.safetensors").write_bytes(b"half")
    Path("pickle.pth").write_bytes(b"")
    monkeypatch.setattr("sys.argv", ["correlation-aware", "weights", *args])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert caught.value.code == 1
    assert said in captured.err and "Traceback" not in captured.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "nan.safetensors", "pickle.pth"]


def test_convert(tmp_path: Path) -> None:
    theirs = timm.create_model("pvt_v2_b0", num_classes=3)
    source, target = tmp_path / "pvt.pth.tar", tmp_path / "ours.safetensors"
    torch.save({"state_dict": theirs.state_dict(), "epoch": 300}, source)
    output = run("convert", str(source), str(target))
    numbers = sum(p.numel() for p in theirs.parameters())
    assert f"{len(theirs.state_dict())} tensors, {numbers / 1e6:.3f} M numbers" in output
    assert sha256_file(target) in output
    report = weights.load_state_dict(
        ca.create_model("sbt_light_pvtv2"), weights.read_state_dict(target), partial=True
    )
    assert len(report.loaded) > 100
    with pytest.raises(FileExistsError, match="--force"):
        run("convert", str(source), str(target))
    run("convert", str(source), str(target), "--format", "pvt_v2", "--force")


def test_convert_a_checkpoint_of_a_model(tmp_path: Path) -> None:
    """Prefixes are removed, and the tensors are seen to fit."""
    model = ca.create_model("sbt_test_track")
    source, target = tmp_path / "run.ckpt", tmp_path / "ours.safetensors"
    torch.save({"state_dict": {f"net.{k}": v for k, v in model.state_dict().items()}}, source)
    run("convert", str(source), str(target), "--model", "sbt_test_track")
    assert weights.read_state_dict(target).keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"run\.ckpt does not fit SBTClassifier"):
        run("convert", str(source), str(target), "--model", "sbt_test_cls", "--force")


@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize("command", ["verify", "download"])
def test_former_names_are_said_in_a_line_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    new = RENAMED[name]
    monkeypatch.setattr("sys.argv", ["correlation-aware", "weights", command, name])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capfd.readouterr()
    assert not caught.value.code and f"{new}.safetensors" in captured.out
    expected = f"'{name}' is called '{new}' now; the old name will be removed after the next release.\n"
    assert captured.err == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (weights.WeightsSource("a", url="https://acme.org/net.pth"), "not verified, its address has no hash"),
        (weights.WeightsSource("a", url="https://acme.org/net-0123abcd.pth?x=1"), "as in its name"),
        (weights.WeightsSource("a", hub_file=("org/name", "net.pth", None)), "as in the Hub"),
        (weights.resolve_weights("sbt_light_half_track"), "as in the manifest"),
    ],
)
def test_what_a_file_was_compared_with(source: weights.WeightsSource, said: str) -> None:
    assert _verified_by(source) == said


def test_push_shows_and_sends_nothing(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    measured = {"dataset": "GOT-10k val", "metric": "AO", "value": 0.5, "command": "correlation-aware eval"}
    results.write_text(json.dumps([measured]))
    common = ["org/name", "sbt_test.v1", "--training", "On clips.", "--results", str(results)]
    output = run("push", str(folder), *common)
    assert "Would upload to https://huggingface.co/org/name" in output and "Nothing was uploaded" in output
    for part in ("license: apache-2.0", "library_name: correlation_aware", "pipeline_tag: ", "On clips."):
        assert part in output
    assert "| GOT-10k val | AO | 0.5 | `correlation-aware eval` |" in output
    entry = output.partition("Entry for weights_manifest.json:")[2].partition("Nothing")[0]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(entry)
    loaded = weights.load_manifest(manifest)["sbt_test.v1"]
    assert loaded.sha256 == sha256_file(folder / "model.safetensors")
    assert (loaded.template_size, loaded.search_size, loaded.input_size) == (64, 128, None)

    output = run("push", str(folder / "model.safetensors"), *common)
    assert json.loads(output.partition("weights_manifest.json:")[2].partition("Nothing")[0]) == json.loads(
        entry
    )
    with pytest.raises(ValueError, match="is of 'sbt_test', not of 'sbt_base'"):
        run("push", str(folder), "org/name", "sbt_base.v1", "--training", "None.")
    results.write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not JSON"):
        run("push", str(folder), *common)
    results.write_text('[{"dataset": "x"}]')
    with pytest.raises(ValueError, match=r"results.json\[0\]: missing 'metric'"):
        run("push", str(folder), *common)


def test_push_takes_the_statistics_of_the_configuration(tmp_path: Path) -> None:
    model = ca.create_model("sbt_test")
    model.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.125)}
    folder = ca.save_pretrained(model, tmp_path / "saved")
    plan = push(folder, "org/name", "sbt_test", "v1", training="On clips.")
    assert (plan.entry.mean, plan.entry.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.125))
    assert "mean 0.5, 0.4, 0.3 and std 0.2, 0.25, 0.125" in plan.card and not plan.uploaded


def test_download_and_verify_from_the_hub(tmp_path: Path, folder: Path) -> None:
    server = HubServer()
    server.files["timm/pvt_v2_b3.in1k/model.safetensors"] = save({"a": torch.ones(3)})
    server.files["org/name/config.json"] = (folder / "config.json").read_bytes()
    server.files["org/name/model.safetensors"] = (folder / "model.safetensors").read_bytes()
    client = Client(tmp_path / "home", server.endpoint)
    code, output = client.call("cli", "verify", "sbt_large_pvtv2")["ok"]
    assert code == 0 and "as in the Hub" in output and "1 tensors" in output and "all finite" in output
    code, output = client.call("cli", "download", "sbt_large_pvtv2", "--to", str(tmp_path / "to"))["ok"]
    copy = tmp_path / "to" / "sbt_large_pvtv2.in1k.safetensors"
    assert code == 0 and str(copy) in output and not copy.is_symlink()
    assert copy.read_bytes() == server.files["timm/pvt_v2_b3.in1k/model.safetensors"]
    code, output = client.call("cli", "download", "hf-hub:org/name", "--to", str(tmp_path / "to"))["ok"]
    assert (tmp_path / "to" / "org--name.safetensors").is_file()
    server.mode = "wrong"
    answer = client.call("cli", "verify", "hf-hub:org/name@main")
    assert "ok" in answer  # what is cached is right
    server.files["timm/pvt_v2_b4.in1k/model.safetensors"] = save({"a": torch.ones(4)})
    assert "RuntimeError" in client.call("cli", "verify", "sbt_huge_pvtv2")["error"]
    client.close()


def test_the_program_knows_the_models_of_the_weights() -> None:
    """In a process of its own: in this one the models are imported already."""
    command = [sys.executable, "-m", "correlation_aware", "weights"]
    environment = {**os.environ, "COLUMNS": "200"}
    listed, verified = (
        subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
        for words in (["list"], ["verify", "siam_lite0_ca_track.video"])
    )
    assert (listed.returncode, listed.stderr) == (0, "") and "siam_lite0_ca_track.video" in listed.stdout
    assert (verified.returncode, verified.stderr) == (0, "") and "as in the manifest" in verified.stdout
