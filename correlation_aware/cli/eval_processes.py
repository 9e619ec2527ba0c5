"""Processes of one evaluation or batch: those of --processes, and those of a launcher such as torchrun."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from correlation_aware.cli._common import console

__all__ = ["Place", "launcher_place", "started", "use_share"]

START_METHOD = "spawn"  # forked processes cannot use a GPU


@dataclass(frozen=True)
class Place:
    """The place of a process among all of an evaluation.

    Attributes:
        rank: Number of the process, from 0; the first one prints the table.
        count: Number of processes.
        local: Number of the process on its machine, which sets its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0


def launcher_place() -> Place:
    """The place that torchrun or `accelerate launch` gives this process; the only one without them."""
    words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not (words[0].isdecimal() and words[1].isdecimal()):
        return Place()
    return Place(int(words[0]), int(words[1]), int(words[2]) if words[2].isdecimal() else 0)


def use_share(place: Place, device: str | None, divide_threads: bool) -> str | None:
    """Prepares this process for its share of the work, quiet unless it is the first one.

    Args:
        place: Place of the process.
        device: Device of the command line.
        divide_threads: Whether to use a share of PyTorch's threads; launchers set the number themselves.

    Returns:
        The device of this process: one of the GPUs, if none is named.
    """
    import torch

    console.quiet = place.rank > 0
    if divide_threads:
        torch.set_num_threads(max(1, torch.get_num_threads() // place.count))
    if place.count > 1 and device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{place.local % torch.cuda.device_count()}"
    return device


@contextmanager
def started(count: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[None]:
    """Runs processes 1 to `count` - 1 beside the block, and waits for them at its end.

    A process that ends early is reported; if the block raises, such as by Ctrl-C, all are ended.

    Args:
        count: Number of processes, with this one.
        work: Function of a module, called with the place of its process and the arguments.
        arguments: Other arguments; they have to be picklable.

    Raises:
        ValueError: On Windows, where processes cannot claim their work.
    """
    if count > 1 and sys.platform == "win32":
        raise ValueError("--processes has no effect on Windows, where work cannot be claimed")
    context = multiprocessing.get_context(START_METHOD)
    places = [Place(rank, count, rank) for rank in range(1, count)]
    others = [context.Process(target=work, args=(place, *arguments), daemon=True) for place in places]  # type: ignore[attr-defined]
    with _ignored_interrupts():
        for process in others:
            process.start()
    try:
        yield
        for process in others:
            process.join()
    finally:
        for process in others:
            process.terminate()
    codes = [str(process.exitcode) for process in others if process.exitcode]
    if codes:
        text = f"{len(codes)} of {count} processes ended early, exit code {', '.join(codes)}"
        console.print(f"[yellow]{text}; the others did their work.[/]")


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which the terminal sends to all: the first one ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
