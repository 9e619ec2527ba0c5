"""The benchmarks: timing, peak rates, comparison of contenders with the reference, and the commands."""

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from acme_family import MaskedNet
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.bench import bench_operations, machine, timing
from correlation_aware.bench.bench_models import bench_model, load
from correlation_aware.bench.bench_operations import bench_operation, count_calls
from correlation_aware.bench.bench_tracking import bench_tracker
from correlation_aware.bench.bench_training import bench_training
from correlation_aware.bench.contenders import Skipped, contender_names, make_contenders, outputs
from correlation_aware.bench.inputs import random_pairs, real_pairs
from correlation_aware.bench.machine import Ceilings, describe, measure_ceilings
from correlation_aware.bench.plot import plot_reports
from correlation_aware.bench.timing import time_interleaved
from correlation_aware.cli import app
from correlation_aware.demo_clip import draw_clip
from correlation_aware.ops import get_backend
from correlation_aware.runtime.session import InferenceSession

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
CEILINGS = {torch.float32: Ceilings(1e10, 1e11), torch.bfloat16: Ceilings(1e10, 1e11)}
OTHERS = """
def same(model):
    return model

def halved(model):
    return lambda template, search: [t / 2 for t in model(template, search)[1:]]

def silent(model):
    return lambda template, search: None

def broken(model):
    return lambda template, search: 1 / 0
"""


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    """Interpreted kernels would run for minutes; without the interpreter they raise that they need a GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def others(tmp_path, monkeypatch):
    """A module outside the package with contenders."""
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "others", raising=False)


@pytest.fixture
def small_ceilings(monkeypatch):
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(machine, "MATRIX_SIZE", {"cpu": 64})


def bench(*contenders, **arguments):
    arguments = {
        "batches": [1],
        "dtypes": [torch.float32],
        "seconds": 0.02,
        "ceilings": CEILINGS,
        **arguments,
    }
    return list(bench_model("sbt_test_track", device=CPU, contenders=contenders, **arguments))


def test_calls_are_timed_in_alternation():
    numbers = {"fast": [], "slow": []}

    def call(name, seconds):
        return lambda i: (numbers[name].append(i), time.sleep(seconds))

    turns = []
    times = time_interleaved(
        {"fast": call("fast", 0.001), "slow": call("slow", 0.004)}, CPU, 0.1, turns.append
    )
    assert 1 <= times["fast"].best <= times["fast"].median <= times["fast"].p99  # milliseconds
    assert times["slow"].median >= 4 and times["slow"].queued >= 4
    assert turns[2:] == ["fast", "slow"] * timing.ROUNDS and turns[:2] == ["fast", "slow"]
    assert times["fast"].calls == len(numbers["fast"]) - timing.WARM_UP - timing.ROUNDS
    assert max(numbers["fast"]) == times["fast"].calls - 1  # calls are numbered across rounds
    milliseconds = [float(i) for i in range(1, 201)]
    assert timing._times(milliseconds, milliseconds).p99 == 198


def test_ceilings(small_ceilings):
    measured = measure_ceilings(CPU, torch.bfloat16)
    assert measured.bytes_per_second > 0 and measured.flops_per_second > 0
    ceilings = Ceilings(bytes_per_second=1e9, flops_per_second=4e9)
    assert ceilings.milliseconds(macs=1e6, moved_bytes=1e6) == 1.0  # the products take 0.5 ms
    assert ceilings.milliseconds(macs=4e6, moved_bytes=1e6) == 2.0
    description = describe(CPU)
    assert description.processor and description.threads == 1
    assert description.versions["torch"] == torch.__version__


def test_contenders_of_a_model_are_compared_and_timed(others):
    specs = ["others:same", "others:halved", "others:silent", "others:same@bfloat16"]
    (case,) = bench("reference", "eager", others=specs, against="others:same@float32")
    rows = {(r.contender, r.dtype, r.template): r for r in case.rows}
    assert len(rows) == 2 + 1 + 1 + 2 + 2 + 2  # contenders without encode_template have no cached row
    assert rows["others:same", "float32", "cached"].speedup == 1
    assert rows["others:halved", "float32", "encoded"].difference == pytest.approx(0.5)
    assert rows["others:halved", "float32", "encoded"].argmax_kept == 1
    assert rows["others:silent", "float32", "encoded"].difference is None
    assert rows["eager", "float32", "cached"].difference < 1e-5  # float32 sums in another order
    assert 0 < rows["others:same", "bfloat16", "cached"].difference < 0.1
    for row in case.rows:
        assert row.roofline_share == pytest.approx(row.roofline / row.times.queued)
        assert row.pairs_per_second == pytest.approx(1e3 / row.times.queued)
    assert case.profile.cached_macs < case.profile.macs and case.weights == "random"
    assert case.bytes["float32"] == 2 * case.bytes["bfloat16"] > 4 * case.profile.params
    assert get_backend() == "auto"


def test_batch_sizes_and_skipped_contenders():
    first, second = bench("eager", "eager-triton", batches=[1, 3])
    assert [(r.contender, r.template) for r in first.rows] == [("eager", "cached"), ("eager", "encoded")]
    assert [(r.contender, r.template) for r in second.rows] == [("eager", "cached")]
    assert second.against == "eager float32" and second.rows[0].speedup == 1
    (skipped,) = second.skipped
    assert skipped.name == "eager-triton" and "on device=cpu" in skipped.reason
    assert second.images == "12 random" and second.search_size == 128
    (larger,) = bench("eager", search_size=192)
    assert larger.search_size == 192 and larger.profile.macs > 2 * first.profile.macs  # 2.25 times the area


def test_errors_of_a_user(others):
    with pytest.raises(ValueError, match="no contender 'tensorrt'; there are reference, "):
        bench("tensorrt")
    with pytest.raises(ValueError, match="is not module:function"):
        bench("eager", others=["others"])
    with pytest.raises(ValueError, match="has no function nothing"):
        bench("eager", others=["others:nothing"])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        bench("eager", others=["no_such_module:f"])
    with pytest.raises(ZeroDivisionError):  # an error of a named contender is raised, not skipped
        bench("eager", others=["others:broken"])
    with pytest.raises(ValueError, match="has one input"):
        load("sbt_test_cls")
    with pytest.raises(ValueError, match="no prediction head; use sbt_test_track"):
        list(bench_tracker("sbt_test", [1], CPU, [("eager", torch.float32)]))
    with pytest.raises(ValueError, match="no contender onnx; there are reference"):
        bench_training("sbt_test", 1, CPU, torch.float32, ["onnx"])


def test_default_weights_are_those_of_the_name_and_nothing_is_downloaded():
    assert load("sbt_light_cell_track")[1] == "sbt_light_cell_track.video"  # bundled
    assert load("sbt_light_half_track.video")[1] == "sbt_light_half_track.video"
    assert load("sbt_light_cell_track", "random")[1] == "random"
    assert load("sbt_light_track")[1] == "random"  # the weights with this former name have another head
    assert load("sbt_light_pvtv2")[1] == "random"  # has weights on the Hub


def test_contender_names():
    names = contender_names()
    assert {"reference", "reference-max-autotune", "eager", "onnx", "openvino", "eager-triton"} <= set(names)
    assert "onnx-triton" not in names


@pytest.mark.slow  # an export
def test_an_exported_runtime_competes(tmp_path, monkeypatch):
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path))
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    model = MaskedNet().eval()  # whose export is quick
    contenders = list(make_contenders(model, CPU, [torch.float32], ["onnx", "reference*"]))
    (onnx,) = (contender for contender in contenders if contender.name == "onnx")
    assert not isinstance(onnx, Skipped), onnx.reason
    ((template, search),) = random_pairs(model, 1, 1)
    actual = outputs(onnx.pair(template, search))
    with torch.no_grad():
        assert torch.allclose(actual[0], model(template, search), atol=1e-4)  # another order of sums
    assert [c.name for c in contenders][:3] == ["reference", "reference-compile", "reference-max-autotune"]


def test_real_crops(tmp_path):
    pytest.importorskip("got10k")
    folder = tmp_path / "val" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "val" / "list.txt").write_text("one\n")
    boxes = []
    for i, (frame, box) in enumerate(draw_clip(6, (96, 128))):
        cv2.imwrite(str(folder / f"{i + 1:08d}.jpg"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        boxes.append(box)
    np.savetxt(folder / "groundtruth.txt", boxes, delimiter=",")
    np.savetxt(folder / "absence.label", np.zeros(6), fmt="%d")
    np.savetxt(folder / "cover.label", np.full(6, 8), fmt="%d")
    np.savetxt(folder / "cut_by_image.label", np.zeros(6), fmt="%d")
    (folder / "meta_info.ini").write_text("[METAINFO]\nurl: none\n")
    model, _ = load("sbt_test_track")
    pairs = real_pairs(model, tmp_path)
    assert [(z.shape, x.shape) for z, x in pairs] == [((1, 3, 64, 64), (1, 3, 128, 128))] * 3
    assert pairs[0][0].std() > 0.1 and not torch.equal(pairs[0][1], pairs[1][1])
    (case,) = bench("eager", sequences=tmp_path)
    assert case.images == "3 real" and case.rows[0].argmax_kept == 1


def test_operations_have_the_shapes_of_the_model():
    calls = count_calls("sbt_test", batch=2)
    depth = sum(ca.create_model("sbt_test", device="meta").config.depths)
    totals = dict.fromkeys(bench_operations.OPERATIONS, 0)
    for operands, count in calls.items():
        totals[operands.name] += count
    assert totals["eoc_attention"] == totals["dwconv_gelu"] == totals["gather_patches"] == depth
    first = next(o for o in calls if o.name == "dwconv_gelu")
    assert str(first) == "2048x64"  # two search images of 32 x 32 tokens
    rows, skipped = bench_operation(
        first, calls[first], CPU, torch.bfloat16, CEILINGS[torch.bfloat16], ("reference", "triton"), seconds=0
    )
    (row,) = rows
    assert row.contender == "reference" and row.speedup == 1 and row.roofline_share > 0
    assert 0 < row.difference < 0.02  # bfloat16 against float64
    assert [s.name for s in skipped] == ["dwconv_gelu triton"]
    for operands in calls:  # gradients of every operation
        (row,), _ = bench_operation(
            operands, 1, CPU, torch.float32, CEILINGS[torch.float32], ("reference",), True, 0
        )
        assert row.roofline_share is None and row.difference < 1e-5  # float32 against float64


def test_training_and_tracker():
    rows, skipped = bench_training("sbt_test_track", 2, CPU, torch.float32, ("eager", "eager-triton"), 0)
    assert [r.contender for r in rows] == ["reference", "eager"] and rows[0].speedup == 1
    assert rows[1].difference < 1e-5  # the same operations, perhaps in another order
    assert [s.name for s in skipped] == ["eager-triton"]
    runtimes = [("eager", torch.float32), ("eager", torch.bfloat16), ("eager-triton", torch.float32)]
    results = list(bench_tracker("sbt_test_track", [1, 2], CPU, runtimes, size=(96, 128)))
    assert isinstance(results[0], Skipped) and results[0].name == "eager-triton"
    assert [[(r.targets, r.dtype) for r in rows] for rows in results[1:]] == [
        [(n, "float32"), (n, "bfloat16")] for n in (1, 2)
    ]
    row = results[2][0]
    assert min(row.crop, row.model, row.post) > 0
    assert row.targets_per_second == pytest.approx(2 * row.frames_per_second)


def test_frames_of_the_tracker_have_one_search_crop_per_target(monkeypatch):
    """Also with random weights, which lose their targets."""
    batches, call = [], InferenceSession.__call__

    def counting(session, search, templates=None):
        batches.append(len(search))
        return call(session, search, templates)

    monkeypatch.setattr(InferenceSession, "__call__", counting)
    rows = list(bench_tracker("sbt_test_track", [1, 2], CPU, [("eager", torch.float32)], size=(96, 128)))
    assert [row.targets for (row,) in rows] == [1, 2] and batches == sorted(batches)
    assert set(batches) == {1, 2}


def test_reports_are_plotted(tmp_path, small_ceilings):
    pytest.importorskip("matplotlib")

    def run(*words):
        return CliRunner().invoke(app, ["bench", *words])

    plot = ["plot", "--output", str(tmp_path / "plot.png")]
    timed = ["--device", "cpu", "--contenders", "eager", "--seconds", "0.01", "--no-encoded", "--json"]
    for name, varied in {
        "models": ["sbt_test", "sbt_test_track"],
        "batches": ["sbt_test", "--batch", "1,3"],
        "sizes": ["sbt_test", "--search-size", "64,96"],
        "nothing": ["sbt_test"],
    }.items():
        result = run("model", *varied, *timed, str(tmp_path / name))
        assert result.exit_code == 0, result.output
    tracked = {"runtime": "eager", "dtype": "float32", "frames_per_second": 20.0}
    rows = [tracked | {"targets": targets} for targets in (1, 2)]
    (tmp_path / "targets").write_text(json.dumps({"benchmark": "tracker", "command": [], "rows": rows}))
    result = run(*plot, *(str(tmp_path / name) for name in ("models", "batches", "sizes", "targets")))
    assert result.exit_code == 0, result.output
    height, width, _ = cv2.imread(str(tmp_path / "plot.png")).shape
    assert width == 4 * height  # four square panels

    with pytest.raises(ValueError, match="Nothing varies"):
        plot_reports([json.loads((tmp_path / "nothing").read_text())], tmp_path / "no.png")
    (tmp_path / "broken").write_text("{")
    assert "broken is not JSON" in str(run("plot", str(tmp_path / "broken"), "-o", "no.png").exception)
    assert not (tmp_path / "no.png").exists()


def test_the_commands(tmp_path, small_ceilings):
    def run(*words):
        return CliRunner().invoke(app, ["bench", *words])

    report = tmp_path / "out.json"
    common = ["--device", "cpu", "--seconds", "0.01", "--json", str(report)]
    words = ["sbt_test", "--contenders", "reference,eager", "--dtype", "float32,bfloat16", "--batch", "1,2"]
    result = run("model", *words, *common)
    assert result.exit_code == 0, result.output
    assert "p99" in result.output and "1x is reference float32" in result.output
    assert "copy bandwidth" in result.output and result.output.splitlines()[-1] == f"Wrote {report}"
    written = json.loads(report.read_text())
    assert written["machine"]["versions"]["torch"] == torch.__version__
    assert set(written["ceilings"]) == {"float32", "bfloat16"}
    assert [case["batch"] for case in written["cases"]] == [1, 2]
    assert written["cases"][0]["rows"][0]["times"]["median"] > 0
    for option in ("--contenders", "--forms"):  # the former name of the option works too
        result = run("ops", "sbt_test", option, "reference", *common)
        assert result.exit_code == 0 and "eoc_attention" in result.output, result.output
    result = run("train", "sbt_test", "--batch", "2", "--dtype", "float32", *common)
    assert result.exit_code == 0 and "gradients differ" in result.output, result.output
    result = run("machine", "--device", "cpu", "--json", str(report))
    assert result.exit_code == 0 and json.loads(report.read_text())["benchmark"] == "machine"
    for wrong, message in (
        (["--dtype", "int8"], "'int8' is not one of float32"),
        (["--batch", "0"], "is not N,N,..."),
        (["--device", "meta"], "cannot be timed"),
        (["--against", "eager-triton"], "'eager-triton' does not run on this machine"),
    ):
        result = run("model", "sbt_test", "--contenders", "eager,eager-triton", "--device", "cpu", *wrong)
        assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_targets_of_a_gpu(tmp_path):
    def row(contender, median, dtype="bfloat16", share=0.5):
        times = {"median": median}
        return {
            "contender": contender,
            "dtype": dtype,
            "template": "cached",
            "times": times,
            "speedup": 2.0,
            "roofline_share": share,
        }

    rows = [row("reference-max-autotune", 0.5), row("cudagraph-triton", 0.25), row("x:y", 2.5, "float32")]
    about = {"gpu": "a GPU", "versions": {}}
    model = {"machine": about, "cases": [{"model": "sbt_light_track", "batch": 1, "rows": rows}]}
    train = {"machine": about, "cases": [{"model": "sbt_light_track", "dtype": "bfloat16", "rows": rows}]}
    (tmp_path / "model_light.json").write_text(json.dumps(model))
    (tmp_path / "train_light.json").write_text(json.dumps(train))
    (tmp_path / "tests.status").write_text("1")
    script = ROOT / "benchmarks" / "gpu_targets.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "sbt_light_track: batch 1, template cached, ms <= 0.3 0.25 reached" in lines, done.stderr
    assert "sbt_light_track: batch 1 against --contender, float32 >= 12 10.00 MISSED" in lines
    assert "sbt_light_track: batch 1 against max-autotune >= 1.1 2.00 reached" in lines
    assert "sbt_light_track: training step against the reference >= 1.8 2.00 reached" in lines
    assert "sbt_base_track: batch 1, template cached, ms <= 0.6 -" in lines
    assert lines[-1].startswith("tests failed with exit code 1")


def test_python_m(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "bench", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("correlation_aware", run_name="__main__", alter_sys=True)
    assert end.value.code == 0 and "Measure speed" in capsys.readouterr().out
