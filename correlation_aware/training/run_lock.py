"""One run at a time in a folder."""

import json
import os
import socket
import time
from contextlib import AbstractContextManager
from pathlib import Path

from correlation_aware._files import file_lock

__all__ = ["describe_holder", "run_lock"]

NAME = "run.lock"


def run_lock(folder: Path) -> AbstractContextManager[bool]:
    """Context that yields whether no other process trains in a folder, and locks it; see `file_lock`.

    Args:
        folder: Folder of a run, created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
    return file_lock(folder / NAME, text=json.dumps(facts))


def describe_holder(folder: Path) -> str:
    """The process that has the lock, as far as its file tells."""
    try:
        facts = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return f"process {facts['process']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
