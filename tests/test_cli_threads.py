"""Commands take no more threads than other programs leave cores free."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from correlation_aware.cli import _threads
from correlation_aware.cli._common import load_tracker

# user, nice, system, idle, iowait, irq, softirq, steal, of all cores together
STAT = "cpu  9 9 9 9 9 9 9 9 0 0\n"
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A system of 4 cores, whose files say how busy they were in a second, with a load and a quota."""
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "PROC", tmp_path)
    monkeypatch.setattr(_threads, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "self").mkdir()

    def write(counts: list[str]) -> None:
        lines = [f"cpu{core} {count} 0 0\n" for core, count in enumerate(counts)]
        (tmp_path / "stat").write_text(STAT + "".join(lines) + "intr 5 6\n")

    def describe(busy: list[float], load: float = 0.0, allowed: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        write(["100 0 50 1000 30 0 0 7"] * 4)
        ticks = os.sysconf("SC_CLK_TCK")
        after = [f"{100 + int(b * ticks)} 0 50 {1000 + int((1 - b) * ticks)} 30 0 0 7" for b in busy]
        clock = iter([10.0, 11.0])
        fake = SimpleNamespace(sleep=lambda seconds: write(after), perf_counter=lambda: next(clock))
        monkeypatch.setattr(_threads, "time", fake)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed), raising=False)
        torch.set_num_threads(len(allowed))

    yield describe
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "busy, load, allowed, expected",
    [
        ([0, 0, 0, 0], 0.0, (0, 1, 2, 3), 4),
        ([0.1, 0, 0.2, 0], 3.9, (0, 1, 2, 3), 4),  # the load of a program that has ended
        ([1, 1, 0, 0], 0.1, (0, 1, 2, 3), 2),  # of programs that have just begun
        ([0.9, 1, 1, 1], 3.9, (0, 1, 2, 3), 1),
        ([1, 1, 1, 1], 3.9, (0, 1, 2, 3), 1),
        ([0, 0, 0, 0], 4.1, (0, 1, 2, 3), 1),
        ([1, 1, 0, 0], 2.0, (2, 3), 2),  # only these cores may be used
        ([0, 0, 1, 1], 2.0, (2, 3), 1),
    ],
)
def test_threads_are_those_of_free_cores(machine: Machine, capsys, busy, load, allowed, expected) -> None:
    machine(busy, load, allowed)
    load_tracker("sbt_test_track", "random")
    assert torch.get_num_threads() == expected
    error = capsys.readouterr().err
    assert ("of them free" in error) == (expected < len(allowed))
    if expected < len(allowed):
        assert f": {expected} thread" in error and f"OMP_NUM_THREADS={len(allowed)} takes" in error


def test_a_number_of_the_user_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([1, 1, 1, 1], 9.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    _threads.spare_busy_cores()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    "group, file, text, expected",
    [
        ("0::/", "cpu.max", "150000 100000\n", 1.5),
        ("0::/", "cpu.max", "max 100000\n", float("inf")),
        ("0::/user.slice/job.scope", "user.slice/job.scope/cpu.max", "200000 100000\n", 2.0),
        ("0::/user.slice/job.scope", "user.slice/cpu.max", "300000 100000\n", 3.0),
        ("4:cpu:/", "cpu/cpu.cfs_quota_us", "50000\n", 0.5),
        ("4:cpu:/", "cpu/cpu.cfs_quota_us", "-1\n", float("inf")),
    ],
)
def test_the_quota_of_a_container(machine: Machine, tmp_path: Path, group, file, text, expected) -> None:
    machine([0, 0, 0, 0])
    path = tmp_path / "cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.with_name("cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "self" / "cgroup").write_text(f"12:memory:/x\n{group}\n")
    assert _threads.cpu_quota() == expected
    _threads.spare_busy_cores()
    assert torch.get_num_threads() == max(1, min(4, round(min(expected, 4))))


def test_a_system_without_these_files(machine: Machine, tmp_path: Path) -> None:
    machine([1, 1, 1, 1])
    _threads.time.sleep = lambda seconds: None
    (tmp_path / "stat").unlink()
    _threads.spare_busy_cores()
    assert torch.get_num_threads() == 4
