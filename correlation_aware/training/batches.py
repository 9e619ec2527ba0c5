"""Batches of pairs for the trainer: made in its process, in a thread, or in worker processes."""

import math
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from correlation_aware.data.error_budget import ErrorBudget, Fault
from correlation_aware.data.pairs import PairBatch, PairSource

__all__ = ["PairBatches"]


class PairBatches:
    """Batches of pairs for the trainer, see `Source`.

    Args:
        pairs: Source whose batch n depends only on n.
        batch_size: Pairs per batch of `pairs`.
        ahead: Whether to prepare the next batch in a thread, while a GPU trains on the current one.
        workers: Processes that prepare batches, two each in advance, on the CPU; 0 for none.
        errors: What `pairs` leaves out, to which the processes report.
        start: How processes start: `fork`, which shares photographs in memory, or `spawn`, for a process that
            has used its GPU or threads of PyTorch before; the default is `fork` on Linux.
    """

    def __init__(
        self,
        pairs: PairSource,
        batch_size: int,
        ahead: bool = False,
        workers: int = 0,
        errors: ErrorBudget | None = None,
        start: Literal["fork", "spawn"] | None = None,
    ) -> None:
        # forked processes share the photographs in memory
        self.start = start or ("fork" if sys.platform == "linux" else None)
        self.pairs, self.batch_size, self.ahead, self.workers = pairs, batch_size, ahead, workers
        self.errors = errors or ErrorBudget()

    def batches(self, start: int, stride: int) -> Iterator[PairBatch]:
        """See `Source.batches`."""
        if self.workers:
            yield from self._from_processes(start, stride)
        numbers = count(start, stride)
        if not self.ahead:
            for number in numbers:
                with _one_thread():
                    batch = self.pairs.batch(number)
                yield batch
        with ThreadPoolExecutor(max_workers=1) as thread:
            pending = thread.submit(self.pairs.batch, next(numbers))
            for number in numbers:
                batch = pending.result()
                pending = thread.submit(self.pairs.batch, number)
                yield batch

    def _from_processes(self, start: int, stride: int) -> Iterator[PairBatch]:
        """All batches, in order, from a pool of processes."""
        self.errors.take_new()
        loader = DataLoader(
            _Reported(self.pairs, self.errors),
            batch_size=None,
            sampler=_Numbers(start, stride),
            num_workers=self.workers,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            multiprocessing_context=self.start,
            generator=torch.Generator(),  # else the loader draws from the generator of the run
        )
        # OpenCV's threads do not survive a fork: a worker that sets or uses them waits for ever
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        loaded = iter(loader)  # starts the processes
        cv2.setNumThreads(threads)
        for batch, faults in loaded:
            self.errors.merge(faults)
            yield batch


class _Reported(Dataset[Any]):
    """Batch by number, with what was left out on the way."""

    def __init__(self, pairs: PairSource, errors: ErrorBudget) -> None:
        self.pairs, self.errors = pairs, errors

    def __getitem__(self, number: int) -> tuple[PairBatch, list[Fault]]:
        return self.pairs.batch(number), self.errors.take_new()


class _Numbers(Sampler[int]):
    """`start`, `start + stride`, ... without end."""

    def __init__(self, start: int, stride: int) -> None:
        self.start, self.stride = start, stride

    def __iter__(self) -> Iterator[int]:
        return count(self.start, self.stride)


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(number: int) -> None:
    """What is left out is limited and logged by the training process, which also handles the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    info = get_worker_info()
    assert info is not None
    errors: ErrorBudget = info.dataset.errors  # type: ignore[attr-defined]
    errors.quiet, errors.limit = True, math.inf


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs PyTorch with one thread: more threads slow down the many small operations of a batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
