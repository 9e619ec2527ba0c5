"""Checkpoints are folders that appear whole and vanish whole, whenever the process dies."""

import os
import re
import shutil
from pathlib import Path

__all__ = ["clean", "latest", "prune", "publish", "temporary"]

NAME = re.compile(r"step-(\d{8,})")
UNFINISHED = ".writing-"  # a checkpoint on its way in
CONDEMNED = ".removing-"  # a checkpoint on its way out


def temporary(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it is published; not created."""
    return folder / f"{UNFINISHED}{step:08d}"


def publish(folder: Path, step: int) -> Path:
    """Gives the checkpoint at `temporary` its name, in one step."""
    final = folder / f"step-{step:08d}"
    os.replace(temporary(folder, step), final)
    return final


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = _whole(folder)
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints; at least one stays."""
    for path in _whole(folder)[: -max(1, keep)]:
        _remove(path)


def clean(folder: Path) -> None:
    """Removes what a process that died left half written or half removed."""
    for path in folder.glob(".*-*"):
        if path.name.startswith((UNFINISHED, CONDEMNED)):
            shutil.rmtree(path, ignore_errors=True)


def _whole(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _remove(path: Path) -> None:
    condemned = path.with_name(f"{CONDEMNED}{path.name}")
    os.replace(path, condemned)
    shutil.rmtree(condemned)
