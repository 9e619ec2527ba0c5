"""Ctrl-C, SIGTERM and SIGHUP as a request to stop, for commands that save what they have."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["exit_by_signals", "interrupt", "stopped_by_signals"]

# of `kill`, and of a terminal that is closed, which Windows does not have
ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def exit_by_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the process as an exception does: temporary files are removed.

    What is ignored stays so, such as SIGHUP under `nohup`.
    """
    default = [name for name in ENDINGS if signal.getsignal(name) == signal.SIG_DFL]
    for name in default:
        signal.signal(name, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for name in default:
            signal.signal(name, signal.SIG_DFL)


@contextmanager
def stopped_by_signals(request_stop: Callable[[], object]) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP inside the block asks for an end; a second one acts immediately.

    Args:
        request_stop: Function that makes the work end at the next occasion, such as `Trainer.request_stop`.
    """

    def stop(number: int, frame: object) -> None:
        request_stop()
        for name, handler in before.items():
            signal.signal(name, handler)

    before: dict[signal.Signals, Any] = {}
    for name in (signal.SIGINT, *ENDINGS):
        if name in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(name) != signal.SIG_IGN:  # nohup
            before[name] = signal.signal(name, stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def interrupt() -> None:
    """Raises KeyboardInterrupt: as `request_stop` it makes the other signals the same as Ctrl-C."""
    raise KeyboardInterrupt
