"""Analyzed photographs on disk: read once, and mapped into the memory of every process that uses them.

The pages of a mapped file are shared between processes, and the operating system can drop them, so that more
photographs than fit into memory can be used.
"""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware._files import IMAGE_SUFFIXES, file_lock, read_json, walk_files, write_text
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.shard_files import ShardFile, expand_shards
from correlation_aware.weights.files import read_state_dict, write_state_dict

__all__ = ["Write", "cached"]

VERSION = 1  # of the files and of the analysis
PIXELS, TABLE, FACTS = "pixels.bin", "table.safetensors", "facts.json"

Write = Callable[[NDArray[np.int32]], object]
Analyze = Callable[[list[int], Write], dict[str, Tensor]]

_log = logging.getLogger(__name__)


def cached(
    sources: Mapping[str, float],
    max_side: int,
    errors: ErrorBudget,
    folder: str | Path,
    analyze: Analyze,
) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Photographs of a cache, which are analyzed first if it does not have them.

    The cache knows the photographs by the names, sizes and times of their files, shards of a web server by
    their URL alone. Of several processes one analyzes them, and the others wait. A cache is never deleted.

    Args:
        sources: Folders or tar shards.
        max_side: Longest side in pixels.
        errors: What is left out, in this process or in the one that analyzed them.
        folder: Folder of caches, created if it does not exist.
        analyze: Function that analyzes all photographs, see `pool.analyze`; it takes a list for the number of
            photographs of every source, and the function that takes their pixels.

    Returns:
        Pixels (P,) int32 as a mapped file, the table, and the number of photographs of every source.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: See `read_stills`; RuntimeError also for a damaged cache.
    """
    key = hashlib.sha256("\n".join(_fingerprint(sources, max_side)).encode()).hexdigest()[:20]
    path = Path(folder) / f"stills-{key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = False
    if not path.is_dir():
        with file_lock(path.with_suffix(".lock"), wait=True):
            if is_new := not path.is_dir():
                for leftover in path.parent.glob(f".????????.{path.name}"):  # of processes that were killed
                    shutil.rmtree(leftover, ignore_errors=True)
                _log.info("Analyzing photographs, once, into %s", path)
                _write(path, errors, analyze)
    facts = read_json(path / FACTS)
    if not is_new:  # another process counted them
        errors.files += facts["files"]
        for name, reason in facts["damaged"].items():
            errors.add(name, reason)
    count = (path / PIXELS).stat().st_size // 4
    if count != facts.get("pixels", count):
        raise RuntimeError(
            f"{path} is damaged: {count} of {facts['pixels']} pixels. Remove it, to make it again."
        )
    pixels = torch.from_file(str(path / PIXELS), shared=False, size=count, dtype=torch.int32)
    return pixels, read_state_dict(path / TABLE), facts["counts"]


def _write(path: Path, errors: ErrorBudget, analyze: Analyze) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    temporary.mkdir()
    try:
        before, files, counts = set(errors.damaged), errors.files, list[int]()
        with (temporary / PIXELS).open("wb") as file:
            table = analyze(counts, lambda pixels: file.write(pixels.tobytes()))
        write_state_dict(table, temporary / TABLE)
        damaged = {name: reason for name, reason in errors.damaged.items() if name not in before}
        size = (temporary / PIXELS).stat().st_size // 4
        facts = {"counts": counts, "damaged": damaged, "files": errors.files - files, "pixels": size}
        write_text(json.dumps(facts), temporary / FACTS)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fingerprint(sources: Mapping[str, float], max_side: int) -> Iterator[str]:
    yield f"{VERSION} {max_side}"
    for source in sources:
        yield source
        folder = Path(source)
        if folder.is_dir():
            files = [path for path in walk_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        else:
            shards = [shard for shard in map(ShardFile, expand_shards(source)) if not shard.is_remote]
            files = [Path(shard.location.removeprefix("file:")) for shard in shards]
        for path in files:
            if path.exists():  # broken links and missing shards are errors of the reader
                facts = path.stat()
                yield f"{path} {facts.st_size} {facts.st_mtime_ns}"
