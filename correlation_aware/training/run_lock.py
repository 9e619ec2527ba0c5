"""One run at a time in a folder."""

import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["describe_holder", "run_lock"]

NAME = "run.lock"

_logger = logging.getLogger(__name__)


@contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Yields whether no other process has the lock of a folder, and keeps it inside the block.

    The operating system holds the lock, on the file `run.lock`: it ends with the process, however that ends,
    and a file that a killed process left is no obstacle. Worker processes do not inherit it. On Windows,
    which has no such locks, it is always free.

    Args:
        folder: Folder of a run, created if it does not exist.
    """
    if sys.platform == "win32":
        yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _acquire(path)
    if file is None:
        yield False
        return
    facts = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.write(file, json.dumps(facts).encode())
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before the lock ends, so that the file is not another run's
        os.close(file)


def _acquire(path: Path) -> int | None:
    """Descriptor of the locked, empty file; None if another process has the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(file)
                return None
            _logger.warning("%s cannot be locked (%s): start no other run in its folder.", path, error)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            os.ftruncate(file, 0)
            return file
        os.close(file)  # the run that had the lock has just removed its file


def describe_holder(folder: Path) -> str:
    """The process that has the lock, as far as its file tells."""
    try:
        facts = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return f"process {facts['process']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
