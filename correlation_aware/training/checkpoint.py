"""Atomic checkpoint folders: created and deleted by renaming, so that a crash never leaves a partial one."""

import os
import re
import shutil
from pathlib import Path

__all__ = ["clean", "complete", "latest", "prune", "publish", "publish_best", "set_aside", "temporary"]

NAME = re.compile(r"step-(\d{8,})")
BEST = "best"  # folder of the weights with the best validation
WRITING = ".writing-"  # prefix of a checkpoint that is not complete yet
REMOVING = ".removing-"  # prefix of a checkpoint that is being deleted


def temporary(folder: Path, step: int) -> Path:
    """Path at which a checkpoint is written before `publish` renames it; not created here."""
    return folder / f"{WRITING}{step:08d}"


def publish(folder: Path, step: int) -> Path:
    """Renames the complete checkpoint at `temporary` to its final name and returns the new path."""
    final = folder / f"step-{step:08d}"
    os.replace(temporary(folder, step), final)
    return final


def publish_best(folder: Path, step: int) -> None:
    """Renames the weights at `temporary` to `best`; older ones are deleted."""
    if (folder / BEST).exists():
        _remove(folder / BEST)
    os.replace(temporary(folder, step), folder / BEST)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, None without one."""
    checkpoints = complete(folder)
    return checkpoints[-1] if checkpoints else None


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints; at least one is kept."""
    for path in complete(folder)[: -max(1, keep)]:
        _remove(path)


def clean(folder: Path) -> None:
    """Deletes what a crashed process left partly written or partly deleted."""
    for path in folder.glob(".*-*"):
        if path.name.startswith((WRITING, REMOVING)):
            shutil.rmtree(path, ignore_errors=True)


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints by step, the newest last."""
    if not folder.is_dir():
        return []
    steps = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(steps)]


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint to `damaged-step-...`, so that it is not resumed from again."""
    target = path.with_name(f"damaged-{path.name}")
    if target.exists():
        _remove(target)
    os.replace(path, target)


def _remove(path: Path) -> None:
    removing = path.with_name(f"{REMOVING}{path.name}")
    os.replace(path, removing)
    shutil.rmtree(removing)
