"""Ctrl-C and SIGTERM as a request to stop, for commands that save what they have."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupt", "stopped_by_signals"]


@contextmanager
def stopped_by_signals(request_stop: Callable[[], object]) -> Iterator[None]:
    """The first SIGINT or SIGTERM inside the block asks for an end; a second one acts immediately.

    Args:
        request_stop: Function that makes the work end at the next occasion, such as `Trainer.request_stop`.
    """

    def stop(number: int, frame: object) -> None:
        request_stop()
        for name, handler in before.items():
            signal.signal(name, handler)

    before: dict[signal.Signals, Any] = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.signal(name, stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def interrupt() -> None:
    """Raises KeyboardInterrupt: as `request_stop` it makes SIGTERM the same as Ctrl-C."""
    raise KeyboardInterrupt
