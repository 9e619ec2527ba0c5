"""Folders of results: a run that is killed goes on where it was, and two runs are never mixed."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from test_evaluation import write_sequence
from typer.testing import CliRunner

from correlation_aware.cli import app, eval_processes
from correlation_aware.cli import eval as cli_eval
from correlation_aware.cli._common import console
from correlation_aware.evaluation import results as results_module
from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure, open_benchmark
from correlation_aware.evaluation.results import ResultFolder, describe_run, hash_files
from correlation_aware.weights.files import hash_state_dict

NAMES = [f"s{i}" for i in range(5)]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")


@pytest.fixture
def drawn_benchmark(tmp_path: Path) -> Benchmark:
    for i, name in enumerate(NAMES):
        write_sequence(tmp_path / "data" / "val" / name, [(i + j, i + 1, 12, 9) for j in range(4)])
    (tmp_path / "data" / "val" / "list.txt").write_text("\n".join(NAMES))
    return open_benchmark("got10k", tmp_path / "data")


class Logs:
    """Moves the box by a third of a pixel per frame, and logs every start in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def init(self, frame, box):
        self.box = np.array(box)
        with self.log.open("a") as file:
            file.write(f"s{int(box[0])}\n")

    def update(self, frame):
        self.box[0] += 1 / 3
        return self.box


def run(folder: ResultFolder, log: Path) -> list:
    manifest = describe_run(folder.benchmark, "logs", "", {"pause": 0})
    folder.start(manifest)
    return list(folder.evaluate(Logs(log)))


def fork(target, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=target, args=args, daemon=True)
    process.start()
    return process


def end_of(process: multiprocessing.Process) -> int:
    """Exit code of a process, negative if a signal ended it."""
    process.join()
    return process.exitcode


def contents(folder: ResultFolder) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.path.rglob("s*_001.txt"))}


def test_a_finished_sequence_is_read_and_not_tracked_again(drawn_benchmark, tmp_path):
    folder = ResultFolder(tmp_path / "out", drawn_benchmark, "logs")
    folder.start(describe_run(drawn_benchmark, "logs", "", {"pause": 0}))
    first = list(folder.evaluate(Logs(tmp_path / "log"), NAMES[:2]))
    again = run(folder, tmp_path / "log")
    assert (tmp_path / "log").read_text().split() == NAMES
    assert [result.name for result in again] == NAMES
    for before, after in zip(first, again):
        assert np.array_equal(before.boxes, after.boxes) and np.array_equal(before.ious, after.ious)
        assert np.array_equal(before.seconds, after.seconds)
    (folder.path / "s1" / "s1_001.txt").write_text("1,2,3\n")  # damaged by something else
    failure = run(folder, tmp_path / "log")[1]
    assert isinstance(failure, SequenceFailure) and "s1_001.txt has 3 numbers per line" in failure.reason


@needs_fork
def test_kill_9_loses_no_finished_sequence(drawn_benchmark, tmp_path):
    """A process is killed at 20 random moments: at the n-th call of a function, Python's or C's.

    Calls are counted instead of time, so that the moments are the same on any machine.
    """
    whole = ResultFolder(tmp_path / "whole", drawn_benchmark, "logs")
    calls = itertools.count()
    sys.setprofile(lambda *_: next(calls))
    run(whole, tmp_path / "log_of_whole")
    sys.setprofile(None)
    calls_per_sequence = next(calls) // len(NAMES)

    def dies(folder, log, after):
        left = itertools.count(after, -1)
        sys.setprofile(lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL))
        run(folder, log)

    rng, kills, rounds = random.Random(0), 0, 0
    while kills < 20:
        rounds += 1
        folder, log = (
            ResultFolder(tmp_path / f"out{rounds}", drawn_benchmark, "logs"),
            tmp_path / f"log{rounds}",
        )
        before: dict[str, str] = {}
        exitcode, kills_before = None, kills
        while exitcode != 0:
            after = rng.randrange(1, int(1.5 * calls_per_sequence)) if kills < 20 else 10**9
            exitcode = end_of(fork(dies, folder, log, after))
            kills += exitcode != 0
            assert exitcode in (0, -signal.SIGKILL)
            now = contents(folder)
            assert before.items() <= now.items()
            assert now.items() <= contents(whole).items()  # complete, or not there
            before = now
        assert contents(folder) == contents(whole)
        assert not [path for path in folder.path.rglob(".*") if path.is_file()]
        starts = log.read_text().split()
        assert len(starts) <= len(NAMES) + kills - kills_before  # each kill repeats one sequence at most


@needs_fork
def test_the_claim_of_a_killed_process_is_taken_over(drawn_benchmark, tmp_path):
    """Of two processes each tracks what the other one has not claimed; then one is killed."""
    whole = ResultFolder(tmp_path / "whole", drawn_benchmark, "logs")
    run(whole, tmp_path / "log_of_whole")
    folder, log = ResultFolder(tmp_path / "out", drawn_benchmark, "logs"), tmp_path / "log"
    folder.start(describe_run(drawn_benchmark, "logs", "", {"pause": 0}))
    started = multiprocessing.get_context("fork").Event()

    class Stops(Logs):
        def init(self, frame, box):
            super().init(frame, box)
            if box[0] == 1:
                started.set()
                signal.pause()

    process = fork(lambda: list(folder.evaluate(Stops(log))))
    started.wait()
    assert [result.name for result in folder.evaluate(Logs(log), wait=False)] == ["s0", "s2", "s3", "s4"]
    results = folder.evaluate(Logs(log))
    assert [next(results).name for _ in range(4)] == ["s0", "s2", "s3", "s4"]
    os.kill(process.pid, signal.SIGKILL)
    assert end_of(process) == -signal.SIGKILL and (folder.path / ".s1.claim").is_file()
    assert [result.name for result in results] == ["s1"]  # without the kill it would wait
    assert log.read_text().split() == ["s0", "s1", "s2", "s3", "s4", "s1"]
    assert contents(folder) == contents(whole) and not list(folder.path.glob(".*"))


@needs_fork
def test_processes_share_the_sequences(drawn_benchmark, tmp_path, monkeypatch):
    """The same files and figures as of one process; each sequence is tracked once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_processes, "START_METHOD", "fork")  # starts faster
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    module = "import test_evaluation_results as t\nfrom pathlib import Path\n"
    Path("shared.py").write_text(f"{module}def make(): return t.Logs(Path('log'))\n")
    words = ["eval", "got10k", "data", "--tracker", "shared:make", "--json"]
    threads = torch.get_num_threads()

    def figures(*more):
        """Figures of all sequences without their speed, and the sequences that were tracked."""
        Path("log").write_text("")
        result = CliRunner().invoke(app, [*words, "r.json", *more])
        assert result.exit_code == 0, result.output + str(result.exception)
        rows = json.loads(Path("r.json").read_text())["sequences"]
        return [(name, {**row, "fps": 0}) for name, row in rows.items()], Path("log").read_text().split()

    try:
        one, starts = figures("--output", "one")
        assert starts == NAMES
        three, starts = figures("--output", "three", "--processes", "3")
        assert three == one and sorted(starts) == NAMES
        for more in ((), ("--processes", "2", "--output", "x")):
            monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
            monkeypatch.setenv("RANK", "1")
            error = str(CliRunner().invoke(app, [*words, "r.json", *more]).exception)
            assert ("has started 2 processes" if more else "name one with --output") in error
        second = CliRunner().invoke(app, [*words, "second.json", "--output", "two"])
        assert second.exit_code == 0 and not second.output and not Path("second.json").exists()
        monkeypatch.setenv("RANK", "0")
        assert figures("--output", "two") == (one, [])  # the second process has tracked all
        monkeypatch.delenv("WORLD_SIZE")
        error = str(CliRunner().invoke(app, [*words, "r.json", "--processes", "2"]).exception)
        assert "name one with --output" in error
    finally:
        torch.set_num_threads(threads)
        console.quiet = False
    texts = [
        [path.read_text() for path in sorted((tmp_path / name / "GOT-10k").rglob("s*_001.txt"))]
        for name in ("one", "two", "three")
    ]
    assert len(texts[0]) == len(NAMES) and texts[0] == texts[1] == texts[2]
    manifests = [json.loads(next(Path(name).rglob("*.json")).read_text()) for name in ("one", "two", "three")]
    assert [manifest["machine"]["processes"] for manifest in manifests] == [1, 2, 3]


@needs_fork
@pytest.mark.parametrize("file", ["s2_time.txt", "s2_001.txt", "logs.json"])
def test_kill_9_in_the_middle_of_a_file(drawn_benchmark, tmp_path, monkeypatch, file):
    """The process dies when half of a file is written: the file does not exist, and its rest is removed."""
    folder = ResultFolder(tmp_path / "out", drawn_benchmark, "logs")

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
    assert end_of(fork(child)) == -signal.SIGKILL
    assert file not in [path.name for path in (tmp_path / "out").rglob("*")]
    assert len(run(folder, tmp_path / "log")) == len(NAMES)
    starts = (tmp_path / "log").read_text().split()
    assert starts == ([*NAMES[:3], *NAMES[2:]] if file != "logs.json" else NAMES)
    assert not [path for path in folder.path.rglob(".*") if path.is_file()]


def test_two_runs_are_not_mixed(drawn_benchmark, tmp_path):
    folder = ResultFolder(tmp_path, drawn_benchmark, "mine")
    manifest = describe_run(drawn_benchmark, "mine", "a" * 64, {"window": 0.4})
    folder.start(manifest)
    assert folder.start(manifest) == []
    other_machine = {**manifest, "machine": {"processor": "another"}}
    folder.start(other_machine)  # several machines may share a run
    for other, words in (
        (
            describe_run(drawn_benchmark, "mine", "b" * 64, {"window": 0.4}),
            r"run weights_sha256: a{64} there, b{64} now",
        ),
        (
            describe_run(drawn_benchmark, "mine", "a" * 64, {"window": 0.5}),
            r"run window: 0\.4 there, 0\.5 now",
        ),
        (describe_run(drawn_benchmark, "mine", "a" * 64, {}), r"run window: 0\.4 there, None now"),
        (
            {**manifest, "versions": {**manifest["versions"], "torch": "0"}},
            r"versions torch: .* there, 0 now",
        ),
        (
            describe_run(replace(drawn_benchmark, subset="train"), "mine", "a" * 64, {"window": 0.4}),
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


def test_the_command_line_goes_on_and_refuses_to_mix(drawn_benchmark, tmp_path, monkeypatch):
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
    Path("logged.py").write_text(f"{module}def make(): return t.Logs(Path('log'))  # changed\n")
    sys.modules.pop("logged")
    other = CliRunner().invoke(app, words)
    assert "results of another run (run source: " in str(other.exception)
    sys.modules.pop("logged")
