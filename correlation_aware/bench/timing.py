"""How calls are timed: they take turns, on a warm machine, and medians are compared."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

__all__ = ["Call", "Captured", "Times", "milliseconds", "synchronize", "take_turns"]

Name = TypeVar("Name")
Call = Callable[[int], object]  # is given the number of the call, to take one of several inputs

ROUNDS = 10  # turns of each contender; whatever else the machine does hits all of them alike
WARM_UP = 3  # calls before anything is timed


@dataclass(frozen=True)
class Times:
    """What the calls of one contender took.

    Attributes:
        median: Milliseconds from a call to its result, by the host's clock.
        best: The fastest call, which other processes disturbed least.
        p99: 99 of 100 calls took no longer; the longest where there were fewer calls.
        queued: Milliseconds a call where nobody waits for the result before the next call. On a CPU the mean.
        calls: Number of timed calls behind `median` and `p99`.
    """

    median: float
    best: float
    p99: float
    queued: float
    calls: int


def synchronize(device: torch.device) -> None:
    """Waits for what was launched on a GPU; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    calls: Mapping[Name, Call],
    device: torch.device,
    seconds: float = 3.0,
    before: Callable[[Name], object] = lambda name: None,
) -> dict[Name, Times]:
    """Times calls in turns of a tenth of `seconds` each, the first call of a turn left out.

    Args:
        calls: By name.
        device: Where they work; a GPU is waited for.
        seconds: For each of them.
        before: Is told whose turn begins, outside of the timing.
    """
    spent: dict[Name, list[float]] = {name: [] for name in calls}
    queued: dict[Name, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        before(name)
        for i in range(WARM_UP):
            call(i)
        synchronize(device)
    with _no_collection():
        for _ in range(ROUNDS):
            for name, call in calls.items():
                before(name)
                call(0)
                synchronize(device)
                times = _turn(call, device, seconds / ROUNDS, len(spent[name]))
                spent[name] += times
                queued[name].append(
                    _queue(call, device, len(times)) if device.type == "cuda" else sum(times) / len(times)
                )
    return {name: _times(spent[name], queued[name]) for name in calls}


def milliseconds(call: Call, device: torch.device, repeats: int = 10) -> float:
    """Time of the fastest of several calls."""
    call(0)
    times = []
    for i in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call(i)
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


class Captured:
    """Calls in a CUDA graph, timed between two events on the GPU.

    Launching is left out, which for a short call is most of what the host's clock sees.

    Args:
        call: What can be captured; it is warmed up here.
        count: Calls in the graph.

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
        """Of a call, in a replay that follows another one."""
        self.graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.count


def _turn(call: Call, device: torch.device, seconds: float, first: int) -> list[float]:
    """Milliseconds of each call until the time is over."""
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(first + len(times))
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _queue(call: Call, device: torch.device, count: int) -> float:
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
def _no_collection() -> Iterator[None]:
    """Python collects no garbage meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
