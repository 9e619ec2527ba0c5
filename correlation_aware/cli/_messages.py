"""Warnings and log records of the library on the terminal: one line each, warnings in yellow."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

__all__ = ["error_console", "print_messages"]

PACKAGE = Path(__file__).parent.parent

error_console = Console(stderr=True, highlight=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(self.console, record.getMessage(), record.levelno >= logging.WARNING)


@contextmanager
def print_messages(console: Console | None, level: int = logging.WARNING) -> Iterator[None]:
    """Prints the library's warnings and log records inside the block; restores logger and filters at its end.

    The `warnings` of this package include `DeprecationWarning`, which Python hides by default; each text is
    printed once. Warnings of other packages are left to Python.

    Args:
        console: Console to print on; None prints nothing, for all but the first of several processes.
        level: Lowest level of the log records to print.
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
        if not Path(filename).is_relative_to(PACKAGE):
            show_others(message, category, filename, lineno, file, line)
        elif console is not None and str(message) not in printed:
            printed.add(str(message))
            _print(console, str(message), is_warning=True)

    logger.handlers = [logging.NullHandler() if console is None else _ConsoleHandler(console)]
    logger.setLevel(level)
    logger.propagate = False  # a handler of the root logger would print records a second time
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # python -W and PYTHONWARNINGS have priority
                warnings.filterwarnings("always", category=DeprecationWarning, module=r"correlation_aware\b")
            warnings.showwarning = show
            yield
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])


def _print(console: Console, text: str, is_warning: bool) -> None:
    prefix, style = ("warning: ", "yellow") if is_warning else ("", None)
    console.print(f"{prefix}{text}", style=style, markup=False, highlight=False)
