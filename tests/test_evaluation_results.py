"""Folders of results: a run that is killed goes on where it was, and two runs are never mixed."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from test_evaluation import write_sequence
from typer.testing import CliRunner

from correlation_aware.cli import eval as cli_eval
from correlation_aware.evaluation import results as results_module
from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure, open_benchmark
from correlation_aware.evaluation.results import ResultFolder, describe_run, hash_files
from correlation_aware.weights.files import hash_state_dict

NAMES = [f"s{i}" for i in range(5)]
PAUSE = 0.02  # seconds per frame; a run has 15, so that two kills within 7 come before its end


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    for i, name in enumerate(NAMES):
        write_sequence(tmp_path / "data" / "val" / name, [(i + j, i + 1, 12, 9) for j in range(4)])
    (tmp_path / "data" / "val" / "list.txt").write_text("\n".join(NAMES))
    return open_benchmark("got10k", tmp_path / "data")


class Logs:
    """Moves the box by a third of a pixel per frame, and logs every start in a file."""

    def __init__(self, log: Path, pause: float = 0.0) -> None:
        self.log, self.pause = log, pause

    def init(self, frame, box):
        self.box = np.array(box)
        with self.log.open("a") as file:
            file.write(f"s{int(box[0])}\n")

    def update(self, frame):
        time.sleep(self.pause)
        self.box[0] += 1 / 3
        return self.box


def run(folder: ResultFolder, log: Path, pause: float = 0.0) -> list:
    manifest = describe_run(folder.benchmark, "logs", "", {"pause": 0})
    finished = folder.start(manifest)
    return list(folder.evaluate(Logs(log, pause), None, finished))


def contents(folder: ResultFolder) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.path.rglob("s*_001.txt"))}


def test_a_finished_sequence_is_read_and_not_tracked_again(benchmark, tmp_path):
    folder = ResultFolder(tmp_path / "out", benchmark, "logs")
    manifest = describe_run(benchmark, "logs", "", {"pause": 0})
    first = list(folder.evaluate(Logs(tmp_path / "log"), NAMES[:2], folder.start(manifest)))
    again = run(folder, tmp_path / "log")
    assert (tmp_path / "log").read_text().split() == NAMES
    assert [result.name for result in again] == NAMES
    for before, after in zip(first, again):
        assert np.array_equal(before.boxes, after.boxes) and np.array_equal(before.ious, after.ious)
        assert np.array_equal(before.seconds, after.seconds)
    (folder.path / "s1" / "s1_001.txt").write_text("1,2,3\n")  # damaged by something else
    failure = run(folder, tmp_path / "log")[1]
    assert isinstance(failure, SequenceFailure) and "s1_001.txt has 3 numbers per line" in failure.reason


def run_until(seconds: float, *arguments) -> None:
    """`run`, which the timer of the process ends without notice, as kill -9 does; 0 for no timer."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    run(*arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_kill_9_loses_no_finished_sequence(benchmark, tmp_path):
    """A process is killed at random moments until it has come to the end.

    By its own timer, so that it is not further than its pauses allow, however slow the machine is.
    """
    whole = ResultFolder(tmp_path / "whole", benchmark, "logs")
    run(whole, tmp_path / "log_of_whole")
    folder, log = ResultFolder(tmp_path / "out", benchmark, "logs"), tmp_path / "log"
    rng, kills = random.Random(0), 0
    before: dict[str, str] = {}
    while True:
        arguments = rng.uniform(0.005, 7 * PAUSE) if kills < 5 else 0, folder, log, PAUSE
        process = multiprocessing.get_context("fork").Process(target=run_until, args=arguments)
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGALRM
        kills += 1
        after = contents(folder)
        assert before.items() <= after.items()
        assert after.items() <= contents(whole).items()  # complete, or not there
        before = after
    assert kills >= 2
    assert contents(folder) == contents(whole)
    starts = log.read_text().split() if log.is_file() else []
    assert len(starts) <= len(NAMES) + kills  # each kill repeats one sequence at most


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
@pytest.mark.parametrize("file", ["s2_time.txt", "s2_001.txt", "logs.json"])
def test_kill_9_in_the_middle_of_a_file(benchmark, tmp_path, monkeypatch, file):
    """The process dies when half of a file is written: the file does not exist, and its rest is removed."""
    folder = ResultFolder(tmp_path / "out", benchmark, "logs")

    def dies(path, *args, **kwargs):
        if str(path).endswith(file):
            Path(path).write_text("1.0,2.")
            os.kill(os.getpid(), signal.SIGKILL)
        return saves(path, *args, **kwargs)

    def child():
        results_module.np.savetxt = dies
        Path.write_text = lambda path, text, **kwargs: dies_of_text(path, text)
        run(folder, tmp_path / "log")

    def dies_of_text(path, text):
        if str(path).endswith(file):
            path.write_bytes(text[:20].encode())
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(text.encode())

    saves = np.savetxt
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert file not in [path.name for path in (tmp_path / "out").rglob("*")]
    assert len(run(folder, tmp_path / "log")) == len(NAMES)
    starts = (tmp_path / "log").read_text().split()
    assert starts == ([*NAMES[:3], *NAMES[2:]] if file != "logs.json" else NAMES)
    assert not [path for path in folder.path.rglob(".*") if path.is_file()]


def test_two_runs_are_not_mixed(benchmark, tmp_path):
    folder = ResultFolder(tmp_path, benchmark, "mine")
    manifest = describe_run(benchmark, "mine", "a" * 64, {"window": 0.4})
    folder.start(manifest)
    assert folder.start(manifest) == []
    other_machine = {**manifest, "machine": {"processor": "another"}}
    folder.start(other_machine)  # several machines may share a run
    for other, words in (
        (
            describe_run(benchmark, "mine", "b" * 64, {"window": 0.4}),
            r"run weights_sha256: a{64} there, b{64} now",
        ),
        (describe_run(benchmark, "mine", "a" * 64, {"window": 0.5}), r"run window: 0\.4 there, 0\.5 now"),
        (describe_run(benchmark, "mine", "a" * 64, {}), r"run window: 0\.4 there, None now"),
        (
            {**manifest, "versions": {**manifest["versions"], "torch": "0"}},
            r"versions torch: .* there, 0 now",
        ),
        (
            describe_run(replace(benchmark, subset="train"), "mine", "a" * 64, {"window": 0.4}),
            "run subset: val",
        ),
    ):
        with pytest.raises(
            ValueError, match=rf"results of another run \(.*{words}.*Choose another --output or"
        ):
            folder.start(other)
    folder.manifest.unlink()
    folder.start(manifest)
    (folder.path / "s0").mkdir()
    folder.manifest.unlink()
    with pytest.raises(ValueError, match=r"unknown run: there is no manifest mine\.json"):
        folder.start(manifest)


def test_the_hash_of_weights_is_that_of_their_values(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).bfloat16()
    before = hash_state_dict(net.state_dict())
    assert before == hash_state_dict(net.state_dict()) and len(before) == 64
    with torch.no_grad():
        net[0].bias[2] += 1
    assert hash_state_dict(net.state_dict()) != before
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("y")
    both = [tmp_path / "a", tmp_path / "b"]
    assert hash_files(both) == hash_files(map(str, both)) != hash_files(both[::-1])


def test_the_command_line_goes_on_and_refuses_to_mix(benchmark, tmp_path, monkeypatch):
    app = typer.Typer()
    app.add_typer(cli_eval.app, name="eval")
    monkeypatch.chdir(tmp_path)
    module = "import test_evaluation_results as t\nfrom pathlib import Path\n"
    Path("logged.py").write_text(f"{module}def make(): return t.Logs(Path('log'))\n")
    words = ["eval", "got10k", str(tmp_path / "data"), "--tracker", "logged:make", "--output", "out"]
    part = CliRunner().invoke(app, [*words, "--sequences", "s0,s3"])
    assert part.exit_code == 0, part.output
    whole = CliRunner().invoke(app, [*words, "--json", "whole.json"])
    assert "2 of 5 sequences are finished in out/GOT-10k/logged.make" in whole.output
    assert Path("log").read_text().split() == ["s0", "s3", "s1", "s2", "s4"]
    manifest = json.loads(Path("out/GOT-10k/logged.make.json").read_text())
    assert manifest["run"]["tracker"] == "logged:make" and manifest["run"]["device"] == "cpu"
    assert {"torch", "numpy", "opencv", "correlation_aware", "python"} <= set(manifest["versions"])
    assert {"processor", "started"} <= set(manifest["machine"])
    assert CliRunner().invoke(app, [*words[:-2], "--json", "one.json"]).exit_code == 0
    figures = [json.loads(Path(name).read_text())["sequences"] for name in ("whole.json", "one.json")]
    for name in NAMES:
        assert {**figures[0][name], "fps": 0} == {**figures[1][name], "fps": 0}
    Path("logged.py").write_text(f"{module}def make(): return t.Logs(Path('log'), 0.001)\n")  # its source
    sys.modules.pop("logged")
    other = CliRunner().invoke(app, words)
    assert "results of another run (run source: " in str(other.exception)
    sys.modules.pop("logged")
