"""Folders of results in the text format of the got10k toolkit, with a manifest of the run beside them.

`FOLDER/GOT-10k/TRACKER/NAME/NAME_001.txt`, `NAME_time.txt` and `NAME_score.txt`; of benchmarks without a
folder per sequence `FOLDER/OTB/TRACKER/NAME.txt`, `times/NAME_time.txt` and `scores/NAME_score.txt`. Scores
are written if the tracker has some. The manifest is `FOLDER/OTB/TRACKER.json`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from correlation_aware._files import atomic_path, read_text, remove_leftovers, sha256_file
from correlation_aware.data.videos.sequences import Video
from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure, evaluate, score_boxes
from correlation_aware.evaluation.one_pass import Array, OnePassTracker, SequenceResult
from correlation_aware.evaluation.shared_run import finish, make_manifest, start_run, work_through

__all__ = ["ResultFolder", "describe_run", "hash_files", "read_boxes_and_times"]

OTHER_FOLDER = "Choose another --output or --name"  # advice where two runs would be mixed


class Dataset(Protocol):
    """What the manifest of a run says about its dataset."""

    @property
    def title(self) -> str: ...

    @property
    def subset(self) -> str: ...

    @property
    def root(self) -> Path: ...


class ResultFolder:
    """The results of one run of a tracker on a benchmark.

    A sequence is finished when its file of boxes exists, which is written last and at once; a run that was
    stopped at any moment goes on with the unfinished sequences. Several processes may work on one run: each
    sequence is tracked by the process that locks its file `.NAME.claim`, and the operating system unlocks the
    files of a process that is killed.

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
        start_run(self.path, self.manifest, run, OTHER_FOLDER)
        return [name for name in self.benchmark.names if self.files(name)[0].is_file()]

    def evaluate(
        self,
        tracker: OnePassTracker,
        sequences: Sequence[str] | None = None,
        depth_range: tuple[float, float] | None = None,
        wait: bool = True,
    ) -> Iterator[SequenceResult | SequenceFailure]:
        """Tracks through the sequences that are not finished, and writes and yields the results of all.

        Args:
            tracker: Tracker.
            sequences: Names of the sequences; all by default.
            depth_range: See `evaluate`.
            wait: Whether to wait for the sequences that other processes track, and to yield them too.

        Yields:
            The result of each sequence, or why it has none, in the order in which they are finished.
        """
        names = self.benchmark.select(sequences)
        outcomes: Iterator[SequenceResult | SequenceFailure] = work_through(
            names, lambda name: self._result(name, tracker, depth_range), wait
        )
        yield from outcomes

    def _result(
        self, name: str, tracker: OnePassTracker, depth_range: tuple[float, float] | None
    ) -> SequenceResult | SequenceFailure | None:
        """The result of a sequence, tracked if it is not finished; None if another process tracks it."""

        def work() -> SequenceResult | SequenceFailure:
            (outcome,) = evaluate(tracker, self.benchmark, [name], depth_range)
            if isinstance(outcome, SequenceResult):
                self.write(outcome)
            return outcome

        self.path.mkdir(parents=True, exist_ok=True)
        return finish(self.path, name, self.files(name)[0], work, lambda: self.read(name))

    def write(self, result: SequenceResult) -> Path:
        """Writes times and scores, then boxes, each file at once; returns the path of the boxes."""
        boxes, times, scores = self.files(result.name)
        scored = np.isfinite(result.scores[1:]).all()  # the first one is not the tracker's
        for path in (boxes, times, scores) if scored else (boxes, times):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
        _save(times, result.seconds[:, None], "%.8f")
        if scored:
            _save(scores, result.scores[:, None], "%.6f")
        _save(boxes, result.boxes, "%.3f")
        return boxes

    def read(self, name: str, video: Video | None = None) -> SequenceResult | SequenceFailure:
        """The result of a finished sequence, or why its files cannot be read.

        Args:
            name: Name of the sequence.
            video: The sequence, if it is open already.
        """
        boxes, times, scores = self.files(name)
        try:
            video = self.benchmark[name] if video is None else video
            values = read_boxes_and_times(boxes, times)
            known = _load(scores)[:, 0] if scores.is_file() else None
            return score_boxes(self.benchmark, name, video, *values, known)
        except (OSError, ValueError) as error:
            return SequenceFailure(name, f"{boxes}: {error}")

    def files(self, name: str) -> tuple[Path, Path, Path]:
        """Paths of the boxes, times and scores of a sequence."""
        if self.benchmark.protocol.folders and not (self.path / f"{name}.txt").is_file():
            folder = self.path / name
            return folder / f"{name}_001.txt", folder / f"{name}_time.txt", folder / f"{name}_score.txt"
        times, scores = self.path / "times", self.path / "scores"
        return self.path / f"{name}.txt", times / f"{name}_time.txt", scores / f"{name}_score.txt"


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
    benchmark: Dataset,
    tracker: str,
    weights: str,
    settings: Mapping[str, Any],
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, Any]:
    """The manifest of a run: what its boxes depend on, and the machine that its times depend on.

    Args:
        benchmark: Benchmark.
        tracker: Name of the tracker.
        weights: SHA-256 of the weights, or "".
        settings: Settings of the tracker and of the run.
        device: Device of the tracker.
        processes: Number of processes that share the work.
    """
    run = {
        "benchmark": benchmark.title,
        "subset": benchmark.subset,
        "tracker": tracker,
        "weights_sha256": weights,
        **settings,
    }
    return make_manifest(run, device, processes=processes, root=str(benchmark.root.absolute()))


def hash_files(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the contents of files, in their order: 64 hexadecimal digits."""
    return hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest()


def _save(path: Path, table: Array, form: str) -> None:
    with atomic_path(path) as temporary:
        np.savetxt(temporary, table, fmt=form, delimiter=",")


def _load(path: Path) -> Array:
    text = read_text(path).translate(str.maketrans(",;\t", "   "))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        return np.array([[float(word) for word in line] for line in lines]).reshape(len(lines), -1)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error
