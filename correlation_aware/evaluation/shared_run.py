"""A run whose results are in a folder: its manifest, and the items that its processes claim.

The manifest says what the results depend on, so that two runs are not mixed; a run that was stopped goes on
with the items without results.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from correlation_aware._files import check_output_folder, file_lock, read_json, write_text
from correlation_aware.bench.machine import describe

__all__ = ["POLL", "finish", "make_manifest", "start_run", "work_through"]

POLL = 0.2  # seconds between two looks at the items of other processes
COMPARED = ("run", "versions", "jobs")  # parts of a manifest that results depend on
LISTED = 5  # differences in a message

T = TypeVar("T")


def make_manifest(run: Mapping[str, Any], device: str, **machine: Any) -> dict[str, Any]:
    """The manifest of a run: what its results depend on, and the machine that its times depend on.

    Args:
        run: Settings of the run.
        device: Device of the tracker.
        machine: More about the machine and the start; it is not compared.
    """
    about = asdict(describe(torch.device(device)))
    versions = {**about.pop("versions"), "numpy": np.__version__, "opencv": cv2.__version__}
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    run = {**run, "device": device.partition(":")[0]}
    manifest = {"run": run, "versions": versions, "machine": {**about, "started": started, **machine}}
    return dict(json.loads(json.dumps(manifest)))  # as it is read again


def start_run(folder: Path, manifest: Path, content: Mapping[str, Any], advice: str) -> None:
    """Writes the manifest of a run and makes its folder, or compares it with that of an earlier start.

    Args:
        folder: Folder of the results.
        manifest: File of the manifest, in the folder above.
        content: Manifest of `make_manifest`.
        advice: How to keep two runs apart, for messages.

    Raises:
        ValueError: Results of another run, or without a manifest.
    """
    check_output_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f".{folder.name}.lock"), wait=True):
        if manifest.is_file():
            changed = _differences(read_json(manifest), content)
            if changed:
                more = f"; {len(changed) - LISTED} more" if len(changed) > LISTED else ""
                raise ValueError(
                    f"{folder} has results of another run ({'; '.join(changed[:LISTED])}{more}). {advice}, "
                    f"or remove the folder and {manifest}."
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} has results of an unknown run: there is no manifest {manifest.name}. {advice}, "
                "or move them away."
            )
        else:
            folder.mkdir(exist_ok=True)
            write_text(json.dumps(content, indent=2) + "\n", manifest)


def finish(folder: Path, name: str, result: Path, work: Callable[[], T], read: Callable[[], T]) -> T | None:
    """The outcome of an item, which one process works on at a time.

    Args:
        folder: Folder of the results.
        name: Name of the item.
        result: File whose existence says that the item is finished.
        work: Function that works on the item, writes `result` and returns the outcome.
        read: Function that returns the outcome of a finished item.

    Returns:
        The outcome; None if another process works on the item.
    """
    claim = folder / f".{name}.claim"
    if not result.is_file():
        with file_lock(claim, text=f"{socket.gethostname()} {os.getpid()}\n") as is_free:
            if not is_free:
                return None
            if not result.is_file():  # it may have been finished just before
                return work()
    claim.unlink(missing_ok=True)  # of a process that was killed when it had finished
    return read()


def work_through(names: Sequence[str], work: Callable[[str], T | None], wait: bool) -> Iterator[T]:
    """Works on the items that no other process has claimed.

    Args:
        names: Names of the items.
        work: Function from a name to the outcome; None if another process works on the item.
        wait: Whether to wait for the items of other processes, and to yield their outcomes too.

    Yields:
        The outcomes, in the order in which the items are finished.
    """
    pending = list(names)
    while pending:
        claimed = []
        for name in pending:
            outcome = work(name)
            if outcome is None:
                claimed.append(name)
            else:
                yield outcome
        if claimed == pending:
            time.sleep(POLL)
        pending = claimed if wait else []


def _differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    former, current = (
        {
            f"{name} {key}": value
            for name in COMPARED
            if isinstance(content, Mapping) and isinstance(part := content.get(name), Mapping)
            for key, value in part.items()
        }
        for content in (before, now)
    )
    keys = [key for key in {**former, **current} if former.get(key) != current.get(key)]
    return [f"{key}: {former.get(key)} there, {current.get(key)} now" for key in keys]
