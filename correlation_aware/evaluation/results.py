"""Folders of results in the text format of the got10k toolkit, with a manifest of the run beside them.

`FOLDER/GOT-10k/TRACKER/NAME/NAME_001.txt` and `NAME_time.txt`; of benchmarks without a folder per sequence
`FOLDER/OTB/TRACKER/NAME.txt` and `times/NAME_time.txt`. The manifest is `FOLDER/OTB/TRACKER.json`.
"""

import glob
import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from correlation_aware._files import atomic_path, check_output_folder, read_json, sha256_file, write_text
from correlation_aware.bench.machine import describe
from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure, evaluate, score_boxes
from correlation_aware.evaluation.one_pass import Array, OnePassTracker, SequenceResult

__all__ = ["ResultFolder", "describe_run", "hash_files", "read_boxes_and_times"]


class ResultFolder:
    """The results of one run of a tracker on a benchmark.

    A sequence is finished when its file of boxes exists, which is written last and at once; a run that was
    stopped at any moment goes on with the unfinished sequences.

    Args:
        folder: Folder of all results.
        benchmark: Benchmark.
        tracker: Name of the tracker.
    """

    def __init__(self, folder: str | Path, benchmark: Benchmark, tracker: str) -> None:
        self.benchmark = benchmark
        self.path = Path(folder) / benchmark.protocol.title / tracker
        self.manifest = self.path.with_name(f"{tracker}.json")

    @classmethod
    def of_others(cls, folder: str | Path, benchmark: Benchmark) -> "ResultFolder":
        """The files of results of one tracker, `NAME/NAME_001.txt` or `NAME.txt` directly in a folder.

        Raises:
            FileNotFoundError: No such folder.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        results = cls(folder, benchmark, "")
        results.path = Path(folder)
        return results

    def start(self, run: Mapping[str, Any]) -> list[str]:
        """Writes the manifest, or compares it with that of the run that is in the folder.

        Args:
            run: Manifest of `describe_run`.

        Returns:
            Names of the finished sequences.

        Raises:
            ValueError: Results of another run, or without a manifest.
        """
        check_output_folder(self.path)
        if self.manifest.is_file():
            self._compare(read_json(self.manifest), run)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} has results of an unknown run: there is no manifest {self.manifest.name}. "
                "Choose another --output or --name, or move them away."
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps(run, indent=2) + "\n", self.manifest)
        return [name for name in self.benchmark.names if self.files(name)[0].is_file()]

    def _compare(self, before: Any, run: Mapping[str, Any]) -> None:
        former, now = (
            {
                f"{part} {key}": value
                for part in ("run", "versions")
                for key, value in content.get(part, {}).items()
            }
            if isinstance(content, Mapping)
            else {}
            for content in (before, run)
        )
        changed = [key for key in {**former, **now} if former.get(key) != now.get(key)]
        if changed:
            details = "; ".join(f"{key}: {former.get(key)} there, {now.get(key)} now" for key in changed)
            raise ValueError(
                f"{self.path} has results of another run ({details}). Choose another --output or --name, or "
                f"remove the folder and {self.manifest}."
            )

    def evaluate(
        self,
        tracker: OnePassTracker,
        sequences: Sequence[str] | None = None,
        finished: Container[str] = (),
        depth_range: tuple[float, float] | None = None,
    ) -> Iterator[SequenceResult | SequenceFailure]:
        """Tracks through the sequences that are not finished, and writes and yields the results of all.

        Args:
            tracker: Tracker.
            sequences: Names of the sequences; all by default.
            finished: Names of `start`.
            depth_range: See `evaluate`.
        """
        for name in self.benchmark.select(sequences):
            if name in finished:
                yield self.read(name)
                continue
            for result in evaluate(tracker, self.benchmark, [name], depth_range):
                if isinstance(result, SequenceResult):
                    self.write(result)
                yield result

    def write(self, result: SequenceResult) -> Path:
        """Writes times, then boxes, each file at once; returns the path of the boxes."""
        boxes, times = self.files(result.name)
        for path in (boxes, times):
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f".????????.{glob.escape(path.name)}"):  # of a killed process
                leftover.unlink()
        _save(times, result.seconds[:, None], "%.8f")
        _save(boxes, result.boxes, "%.3f")
        return boxes

    def read(self, name: str) -> SequenceResult | SequenceFailure:
        """The result of a finished sequence, or why its files cannot be read."""
        try:
            return score_boxes(self.benchmark, name, *read_boxes_and_times(*self.files(name)))
        except (OSError, ValueError) as error:
            return SequenceFailure(name, f"{self.files(name)[0]}: {error}")

    def files(self, name: str) -> tuple[Path, Path]:
        """Paths of the boxes and times of a sequence."""
        if self.benchmark.protocol.folders and not (self.path / f"{name}.txt").is_file():
            return self.path / name / f"{name}_001.txt", self.path / name / f"{name}_time.txt"
        return self.path / f"{name}.txt", self.path / "times" / f"{name}_time.txt"


def read_boxes_and_times(boxes: Path, times: Path | None = None) -> tuple[Array, Array]:
    """Reads a file of boxes, and one of times if there is one.

    Numbers are separated by commas, semicolons, tabs or blanks. Of several repetitions in a file of times the
    first one is read.

    Returns:
        (N, 4) xywh in pixels, and (N,) seconds, empty without such a file.

    Raises:
        OSError: No such file.
        ValueError: Not a table of numbers.
    """
    table = _load(boxes)
    if table.shape[1] != 4:
        raise ValueError(f"{boxes} has {table.shape[1]} numbers per line; x, y, w, h are expected")
    return table, _load(times)[:, 0] if times is not None and times.is_file() else np.empty(0)


def describe_run(
    benchmark: Benchmark, tracker: str, weights: str, settings: Mapping[str, Any], device: str = "cpu"
) -> dict[str, Any]:
    """The manifest of a run: what its boxes depend on, and the machine that its times depend on.

    Args:
        benchmark: Benchmark.
        tracker: Name of the tracker.
        weights: SHA-256 of the weights, or "".
        settings: Settings of the tracker and of the run.
        device: Device of the tracker.
    """
    machine = asdict(describe(torch.device(device)))
    versions = {**machine.pop("versions"), "numpy": np.__version__, "opencv": cv2.__version__}
    run = {
        "benchmark": benchmark.protocol.title,
        "subset": benchmark.subset,
        "tracker": tracker,
        "weights_sha256": weights,
        **settings,
        "device": device.partition(":")[0],
    }
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = {"run": run, "versions": versions, "machine": {**machine, "started": started}}
    return dict(json.loads(json.dumps(manifest)))  # as it is read again


def hash_files(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the contents of files, in their order: 64 hexadecimal digits."""
    return hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest()


def _save(path: Path, table: Array, form: str) -> None:
    with atomic_path(path) as temporary:
        np.savetxt(temporary, table, fmt=form, delimiter=",")


def _load(path: Path) -> Array:
    text = path.read_text("utf-8-sig").translate(str.maketrans(",;\t", "   "))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        return np.array([[float(word) for word in line] for line in lines]).reshape(len(lines), -1)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error
