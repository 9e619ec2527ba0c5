"""PyTorch's threads by the cores that other programs leave free. Threads that wait for cores are slow."""

import os
import time
from multiprocessing import parent_process
from pathlib import Path

from correlation_aware.cli._messages import error_console

__all__ = ["cpu_quota", "free_cores", "spare_busy_cores"]

SECONDS = 0.25  # to watch the other programs; the system counts in hundredths
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def spare_busy_cores() -> None:
    """Takes no more threads than there are free cores, and says so. A number in OMP_NUM_THREADS stays.

    One thread is taken where the load average is above the number of cores, too. Processes that a command has
    started share the cores by their number already.
    """
    import torch

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or threads == 1 or parent_process() is not None:
        return
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    free = cores - load if load > cores else min(free_cores(), cpu_quota())
    fewer = max(1, round(min(free, threads)))
    if fewer < threads:
        torch.set_num_threads(fewer)
        error_console.print(
            f"{cores} cores, {max(0.0, free):.1f} of them free: {fewer} thread{'s' * (fewer > 1)}. "
            f"OMP_NUM_THREADS={threads} takes {threads}."
        )


def free_cores() -> float:
    """Number of this process's cores that nobody uses while it waits; infinity where that is unknown."""
    before, began = _busy_seconds(), time.perf_counter()
    time.sleep(SECONDS)
    after, seconds = _busy_seconds(), time.perf_counter() - began
    if not before or before.keys() != after.keys():
        return float("inf")
    return len(after) - sum(after[core] - before[core] for core in after) / seconds


def cpu_quota() -> float:
    """Number of cores whose time a container may use, from its control group; infinity without a limit."""
    quotas = [float("inf")]
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    group = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = CGROUP / group.strip("/")
    files = [part / "cpu.max" for part in (folder, *folder.parents)]
    for file in [*files, CGROUP / "cpu" / "cpu.cfs_quota_us"]:  # of versions 2 and 1 of control groups
        try:
            quota, *period = file.read_text().split()  # such as "150000 100000" or "max 100000"
            if quota not in ("max", "-1"):
                if not period:
                    period = [file.with_name("cpu.cfs_period_us").read_text()]
                quotas.append(int(quota) / int(period[0]))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(quotas)


def _busy_seconds() -> dict[int, float]:
    """Seconds since the start of the system that each core of this process was in use; {} if unknown."""
    try:
        lines = (PROC / "stat").read_text().splitlines()
        ticks = {
            int(name[3:]): [int(field) for field in fields[:8]]
            for name, *fields in map(str.split, lines)
            if name.startswith("cpu") and name != "cpu"
        }
        # user, nice, system, idle, iowait, irq, softirq, steal
        busy = {core: sum(ticks[core]) - sum(ticks[core][3:5]) for core in os.sched_getaffinity(0)}
        return {core: count / os.sysconf("SC_CLK_TCK") for core, count in busy.items()}
    except (AttributeError, OSError, ValueError, KeyError):  # another system, or other cores than ours
        return {}
