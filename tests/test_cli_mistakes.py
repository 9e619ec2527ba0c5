"""A user's mistake ends in one line with the next step, before anything is computed or downloaded."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from correlation_aware._devices import as_device
from correlation_aware.bench import bench_tracking, machine
from correlation_aware.cli import main
from correlation_aware.cli._common import FORMER_OPTIONS, WEIGHTS_HELP
from correlation_aware.runtime import RUNTIMES
from correlation_aware.tracking.tracker import create_tracker
from correlation_aware.weights import hub

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in a folder with a file and an empty folder: exit code, output, errors."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["correlation-aware", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    Path("notes.txt").write_text("{}")
    Path("ops.json").write_text('{"benchmark": "ops"}')
    Path("empty").mkdir()
    return call


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes, measurements and downloads fail the test."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("the work began before the mistake was reported")

    monkeypatch.setattr(torch.nn.Module, "__call__", fail)
    monkeypatch.setattr(machine, "measure_ceilings", fail)
    monkeypatch.setattr(hub, "hf_hub_download", fail)


MISTAKES = {
    "eval clips empty --json no/x.json": "the folder of no/x.json does not exist",
    "eval clips empty --plot no/x.png": "the folder of no/x.png does not exist",
    "eval clips empty --plot plot.txt": "plot.txt: the name of the file must end in .png",
    "eval clips nofolder --model sbt_test_track": "There is no folder or shard nofolder.",
    "eval longterm empty --json no/x.json": "the folder of no/x.json does not exist",
    "eval longterm nofolder --model sbt_test_track": "There is no folder or shard nofolder.",
    "eval longterm empty --sweep redetect=1 --sweep redetect_crops=1": "redetect_crops=1 must be at least 2",
    "eval got10k . --json no/x.json": "the folder of no/x.json does not exist",
    "eval got10k . --output notes.txt": "notes.txt is a file; the output must be a folder",
    "eval got10k . --subset test --output out --json x.json": "--json has no effect with --subset test",
    "eval got10k notes.txt": "notes.txt is a file; a folder in GOT-10k's layout is needed",
    "eval got10k nofolder": "nofolder does not exist; a folder in GOT-10k's layout is needed",
    "demo --model sbt_tset_track --output new": "There is no model 'sbt_tset_track'",
    "demo --model sbt_base --output new": "sbt_base has no prediction head; use sbt_base_track.",
    "demo --output notes.txt/new": "notes.txt is a file; the output must be a folder",
    "bench machine --json no/x.json": "the folder of no/x.json does not exist",
    "bench machine --device gpu": "device='gpu' is not one of cpu, cuda, cuda:N. PyTorch finds",
    "bench model sbt_test --batch 0": "--batch '0' is not N,N,...",
    "bench model sbt_tset": "There is no model 'sbt_tset'",
    "bench model sbt_test_cls": "sbt_test_cls has one input",
    "bench model sbt_test --weights nosuch": "No weights are known for 'nosuch'",
    "bench model sbt_test --contenders nosuch": "There is no contender 'nosuch'",
    "bench model sbt_test --contender nosuch:f": "no module nosuch in the current folder or on PYTHONPATH",
    "bench model sbt_test --contenders eager --against onnx": "--against 'onnx' is not among eager",
    "bench model sbt_test --sequences empty": "empty/val has neither a list.txt nor folders with",
    "bench train sbt_test --contenders onnx": "There is no contender onnx; there are reference",
    "bench train sbt_tset": "There is no model 'sbt_tset'",
    "bench ops sbt_test --contenders onnx": "There is no contender onnx; there are reference",
    "bench ops sbt_test --batch 0": "--batch '0' is not N,N,...",
    "bench tracker --runtimes trt": "--runtimes trt is not among auto, eager",
    "bench tracker sbt_base --runtimes eager": "sbt_base has no prediction head; use sbt_base_track.",
    "bench tracker --targets 0": "--targets '0' is not N,N,...",
    "bench plot ops.json --output x.png": "ops.json is a report of `bench ops`, which has no plot",
    "bench plot notes.txt --output x.png": "notes.txt is not a report of `bench model --json`",
    "bench plot ops.json --output x": "ops.json",
    "export sbt_test --weights random --output notes.txt": "notes.txt is a file; the output must be a folder",
    "weights download sbt_large_pvtv2 --to notes.txt": "notes.txt is a file; the output must be a folder",
    "weights verify empty": "The folder empty has no model.safetensors, which save_pretrained writes",
    "weights convert notes.txt no/x.safetensors": "the folder of no/x.safetensors does not exist",
    "train track --output notes.txt": "notes.txt is a file; the output must be a folder",
    "train track --output new --resume": "new has no run to resume: there is no new/config.yaml.",
    "train track --output new --config track_cpuu": "There is no configuration file track_cpuu. The package",
    "train track --output new --max-minutes nan": "--max-minutes nan is not a number of minutes",
    "train finetune --videos empty --output new --max-minutes -1": "--max-minutes -1.0 is not a number",
    "train classify --output notes.txt": "notes.txt is a file; the output must be a folder",
    "train calibrate empty --output notes.txt": "notes.txt is a file; the output must be a folder",
    "train pairs --output pairs.txt": "pairs.txt: the name of the file must end in",
    "train pairs --output no/x.png": "the folder of no/x.png does not exist",
    "train curves notes.txt": "notes.txt is not the folder of a run: it has no log.jsonl.",
    "train curves empty": "empty is not the folder of a run: it has no log.jsonl.",
    "train curves empty --output curves.txt": "curves.txt: the name of the file must end in",
    "models sbt_test --search-size 320": "--search-size 320 has no effect without --profile",
    "models sbt_ligth": "No model matches 'sbt_ligth'. Near: sbt_light",
    "models sbt_test --pretrained": "No model that matches 'sbt_test' has weights",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_reported_before_the_work(run: Run, no_work: None, command: str) -> None:
    pytest.importorskip("got10k")
    pytest.importorskip("matplotlib")
    code, _, error = run(*command.split())
    assert code == 1
    assert MISTAKES[command] in error and len(error.splitlines()) == 1, error
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "notes.txt", "ops.json"]


@pytest.mark.parametrize("name", ["sbt_base", "sbt_base_cls", "sbt_base_pvtv2.in1k"])
def test_a_model_without_a_head_is_refused_before_a_download(no_work: None, name: str) -> None:
    tracker = f"{name.partition('.')[0].removesuffix('_cls')}_track"
    with pytest.raises(ValueError, match=f"has no prediction head; use {tracker}"):
        create_tracker(name)
    with pytest.raises(ValueError, match="no prediction head; a tracker needs a `_track` model"):
        create_tracker("sbt_small_stark")


def test_devices() -> None:
    with pytest.raises(ValueError, match=r"device='gpu' is not one of cpu, cuda, cuda:N\. PyTorch"):
        create_tracker("sbt_test_track", pretrained=False, device="gpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(RuntimeError, match=f"device='{absent}' is not available: PyTorch finds"):
        create_tracker("sbt_test_track", pretrained=False, device=absent)
    assert as_device("cpu") == torch.device("cpu")


def test_no_runtime_that_runs_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(machine, "MATRIX_SIZE", {"cpu": 64})
    monkeypatch.setattr(bench_tracking, "LENGTH", 2)
    words = ("bench", "tracker", "sbt_test_track", "--runtimes", "eager-triton", "--device", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, output, error = run(*words, "--json", "x.json")
    assert code == 1 and "No runtime can run on this machine" in error
    assert "skipped eager-triton" in output and not Path("x.json").exists()


def test_help_names_every_runtime_and_no_former_option(run: Run) -> None:
    for words in (("track",), ("eval", "clips"), ("export",), ("bench", "plot"), ("bench", "ops")):
        code, output, _ = run(*words, "--help")
        assert code == 0
        assert not [option for option in FORMER_OPTIONS if re.search(rf"(?<![\w-]){option}\b", output)]
    text = " ".join(run("track", "--help")[1].replace("│", " ").split())
    assert ", ".join(RUNTIMES) in text and WEIGHTS_HELP in text


@pytest.mark.parametrize(
    "words, usage",
    [
        ("models", "[FILTER]"),
        ("eval clips", "SOURCE..."),
        ("eval longterm", "SOURCE..."),
        ("eval got10k", "ROOT"),
        ("weights verify", "NAME"),
        ("bench plot", "FILE..."),
    ],
)
def test_arguments_are_named_in_capitals(run: Run, words: str, usage: str) -> None:
    line = next(line for line in run(*words.split(), "--help")[1].splitlines() if "Usage" in line)
    arguments = line.split("[OPTIONS]")[1].strip()
    assert re.sub("[{}]", "", arguments) == usage  # some versions of typer add braces


def test_former_options_still_work(run: Run) -> None:
    for option in ("--pretrained", "--weights"):
        code, _, error = run("export", "sbt_test", option, "nosuch", "--output", "new")
        assert code == 1 and "No weights are known for 'nosuch'" in error
    for option in ("--out", "-o", "--output"):
        code, _, error = run("bench", "plot", "notes.txt", option, "x.png")
        assert code == 1 and "notes.txt is not a report" in error
    assert run("models", "sbt_light_cell_track", "--pretrained")[1] == "sbt_light_cell_track.video\n"


def test_models_are_listed_by_family_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("models", "*_test_track")[1].split()
    monkeypatch.setattr("correlation_aware.cli.models.sys.stdout.isatty", lambda: True)
    families = run("models", "*_test_track")[1].strip().split("\n\n")
    assert [family.splitlines()[0].rpartition("(")[2] for family in families] == [
        f"correlation_aware.models.{name})" for name in ("vit", "sbt", "siamese", "supersbt")
    ]
    assert sorted(line.strip() for family in families for line in family.splitlines()[1:]) == sorted(names)
    (line,) = run("models", "sbt_light_half_track")[1].strip().splitlines()[1:]
    assert line.split() == ["sbt_light_half_track", "weights:", "video"]


def test_the_error_of_an_offline_download_names_the_option(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    code, _, error = run("weights", "download", "sbt_large_pvtv2")
    assert code == 1 and "Unset HF_HUB_OFFLINE to download it" in error and "--weights of a command" in error
