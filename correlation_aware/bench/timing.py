"""Timing of calls: implementations are called in alternation after a warm-up, and medians are compared."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

__all__ = ["Call", "CapturedCalls", "Times", "milliseconds", "synchronize", "time_interleaved"]

Name = TypeVar("Name")
Call = Callable[[int], object]  # the argument is the number of the call, which selects one of several inputs

ROUNDS = 10  # rounds over all contenders, so that other load on the machine affects all of them equally
WARM_UP = 3  # untimed calls before the first round


@dataclass(frozen=True)
class Times:
    """Call times of one contender, in milliseconds.

    Attributes:
        median: Median time from a call to its result, by the host's clock.
        best: Time of the fastest call, the least disturbed by other processes.
        p99: 99th percentile; the maximum of fewer than 100 calls.
        queued: Mean time per call when calls are queued without waiting for results; on a CPU the mean time.
        calls: Number of timed calls.
    """

    median: float
    best: float
    p99: float
    queued: float
    calls: int


def synchronize(device: torch.device) -> None:
    """Waits for the kernels launched on a GPU; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(
    calls: Mapping[Name, Call],
    device: torch.device,
    seconds: float = 3.0,
    before: Callable[[Name], object] = lambda name: None,
) -> dict[Name, Times]:
    """Times contenders in alternation, in `ROUNDS` rounds; the first call of every round is not timed.

    Args:
        calls: Functions to time, by name.
        device: Device of the calls; a GPU is synchronized after every call.
        seconds: Total time of the timed calls of each contender.
        before: Function called with the name before each contender's part of a round, untimed.
    """
    spent: dict[Name, list[float]] = {name: [] for name in calls}
    queued: dict[Name, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        before(name)
        for i in range(WARM_UP):
            call(i)
        synchronize(device)
    with _gc_disabled():
        for _ in range(ROUNDS):
            for name, call in calls.items():
                before(name)
                call(0)
                synchronize(device)
                times = _time_for(call, device, seconds / ROUNDS, len(spent[name]))
                spent[name] += times
                queued[name].append(
                    _time_queued(call, device, len(times))
                    if device.type == "cuda"
                    else sum(times) / len(times)
                )
    return {name: _times(spent[name], queued[name]) for name in calls}


def milliseconds(call: Call, device: torch.device, repeats: int = 10) -> float:
    """Milliseconds of the fastest of several calls."""
    call(0)
    times = []
    for i in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call(i)
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


class CapturedCalls:
    """Calls captured in a CUDA graph and timed between two events on the GPU.

    This excludes launch overhead, which is most of the host time of a short call.

    Args:
        call: Function to capture, after a warm-up.
        count: Number of calls in the graph.

    Raises:
        RuntimeError: The call cannot be captured.
    """

    def __init__(self, call: Call, count: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(WARM_UP):
                call(i)
        torch.cuda.current_stream().wait_stream(stream)
        self.count = count
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(count):
                call(i)

    def milliseconds(self) -> float:
        """Milliseconds per call, in a replay right after another one."""
        self.graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.count


def _time_for(call: Call, device: torch.device, seconds: float, first: int) -> list[float]:
    """Milliseconds of each call, for `seconds` or one call; `first` is the number of the first call."""
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(first + len(times))
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _time_queued(call: Call, device: torch.device, count: int) -> float:
    """Milliseconds per call when only the last of `count` calls is waited for."""
    start = time.perf_counter()
    for i in range(count):
        call(i)
    synchronize(device)
    return 1e3 * (time.perf_counter() - start) / count


def _times(spent: list[float], queued: list[float]) -> Times:
    ordered = sorted(spent)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return Times(statistics.median(ordered), ordered[0], p99, statistics.median(queued), len(ordered))


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disables Python's garbage collector inside the block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
