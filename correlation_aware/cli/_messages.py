"""Warnings and log records of the library on the terminal, in yellow from warnings on."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

__all__ = ["PipeConsole", "error_console", "print_messages"]

PACKAGE = Path(__file__).parent.parent
FORMER_NAME = "; the old name "  # in every warning about a renamed name or field


class PipeConsole(Console):
    """A console whose reader may go, as in `| head`: the command completes its files without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        stream = sys.stderr if self.stderr else sys.stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what Python still has to write


error_console = PipeConsole(stderr=True, highlight=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(self.console, self.format(record), record.levelno >= logging.WARNING)


@contextmanager
def print_messages(console: Console | None, level: int = logging.WARNING) -> Iterator[None]:
    """Prints the library's warnings and log records inside the block; restores logger and filters at its end.

    Warnings of this package, and those of its former names, which Python hides by default, are printed once
    per text. Warnings of other packages are left to Python.

    Args:
        console: Console to print on; None prints nothing, for all but the first of several processes.
        level: Lowest level of the log records to print; `correlation_aware.runtime` prints INFO in any case.
    """
    logger = logging.getLogger("correlation_aware")
    before = logger.handlers, logger.level, logger.propagate
    printed: set[str] = set()
    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = str(message)
        if FORMER_NAME not in text and not Path(filename).is_relative_to(PACKAGE):
            show_others(message, category, filename, lineno, file, line)
        elif console is not None and text not in printed:
            printed.add(text)
            _print(console, text, is_warning=True)

    runtime = logging.getLogger("correlation_aware.runtime")  # says what takes long, such as an export
    before_runtime = runtime.level
    runtime.setLevel(min(level, logging.INFO))
    logger.handlers = [logging.NullHandler() if console is None else _ConsoleHandler(console)]
    logger.setLevel(level)
    logger.propagate = False  # a handler of the root logger would print records a second time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", f".*{FORMER_NAME}", DeprecationWarning)
            warnings.showwarning = show
            yield
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])
        runtime.setLevel(before_runtime)


def _print(console: Console, text: str, is_warning: bool) -> None:
    console.print(text, style="yellow" if is_warning else None, markup=False, highlight=False)
