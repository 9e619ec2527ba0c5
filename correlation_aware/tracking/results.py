"""Writes results of tracking to files: CSV, JSON lines, and the formats of MOT, GOT-10k and COCO."""

import csv
import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from correlation_aware._files import atomic_path, is_device, open_device

if TYPE_CHECKING:
    from correlation_aware.tracking.stream import FrameResults

__all__ = ["COLUMNS", "FORMATS", "ResultWriter"]

COLUMNS = ("frame", "target", "x", "y", "w", "h", "score", "lost", "time")
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "coco"}  # of formats that a name tells


class ResultWriter:
    """Writes results to a file, which exists under its name only when it is complete.

    Use it in a `with` block: the file is removed when the block fails. A device or a pipe, such as
    /dev/stdout, gets the results frame by frame, until its reader closes it. The formats are

    - `csv`: a row per frame and target, with the columns `COLUMNS`;
    - `jsonl`: an object per frame: `{"frame": 0, "time": 0.0, "targets": [{"target": 0, "box": [x, y, w, h],
      "score": 1.0, "lost": false}]}`;
    - `mot`: MOTChallenge's rows `frame,id,x,y,w,h,score,-1,-1,-1`, where frames and ids count from 1; a lost
      target has no row;
    - `got10k`: a row `x,y,w,h` per frame, of one target;
    - `coco`: a list of detections with `image_id` (the frame), `category_id` 1, `bbox`, `score`, `track_id`.

    Args:
        path: Path of the file. Its folder must exist and be writable.
        format: One of `FORMATS`; by default `csv` for .csv, `jsonl` for .jsonl and `coco` for .json.

    Raises:
        ValueError: An unknown format, or none for another suffix.
        OSError: The folder does not exist or is not writable.
    """

    def __init__(self, path: str | Path, format: str | None = None) -> None:
        self.path = Path(path)
        format = format or SUFFIXES.get(self.path.suffix.lower())
        if format not in FORMATS:
            what = f"format={format!r} is unknown" if format else f"the name {path} tells no format"
            raise ValueError(f"{what}: use one of {', '.join(FORMATS)}, or a name in {', '.join(SUFFIXES)}")
        self._stack = ExitStack()
        text: dict[str, Any] = {"newline": "", "encoding": "utf-8"}
        if is_device(self.path):
            file = TextIOWrapper(open_device(self.path), **text, line_buffering=True)
        else:
            file = self._stack.enter_context(atomic_path(self.path)).open("w", **text)
        self._has_reader = True
        self._stack.enter_context(suppress(BrokenPipeError))  # of the last lines
        self._stack.callback(file.close)
        self._write, self._end = FORMATS[format](file)

    def write(self, results: "FrameResults") -> None:
        """Writes the results of one frame.

        Raises:
            ValueError: Several targets in the format `got10k`.
        """
        try:
            if self._has_reader:
                self._write(results)
        except BrokenPipeError:  # such as `head`, which has read enough
            self._has_reader = False

    def close(self) -> None:
        """Completes the file and moves it to its path."""
        self.__exit__(None, None, None)

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._has_reader:
            self._end()
        self._stack.__exit__(kind, error, trace)


Write = Callable[["FrameResults"], Any]
End = Callable[[], Any]


def _csv(file: TextIO) -> tuple[Write, End]:
    rows = csv.writer(file)
    rows.writerow(COLUMNS)

    def write(results: "FrameResults") -> None:
        for result in results.targets:
            box = (f"{value:.3f}" for value in result.box)
            score, time = f"{result.score:.4f}", f"{results.time:.4f}"
            rows.writerow((results.index, result.target, *box, score, int(result.lost), time))

    return write, lambda: None


def _jsonl(file: TextIO) -> tuple[Write, End]:
    def write(results: "FrameResults") -> None:
        targets = [
            {"target": r.target, "box": _rounded(r.box), "score": round(r.score, 4), "lost": r.lost}
            for r in results.targets
        ]
        line = {"frame": results.index, "time": round(results.time, 4), "targets": targets}
        file.write(json.dumps(line) + "\n")

    return write, lambda: None


def _mot(file: TextIO) -> tuple[Write, End]:
    def write(results: "FrameResults") -> None:
        for r in results.targets:
            if not r.lost:
                box = ",".join(f"{value:.3f}" for value in r.box)
                file.write(f"{results.index + 1},{r.target + 1},{box},{r.score:.4f},-1,-1,-1\n")

    return write, lambda: None


def _got10k(file: TextIO) -> tuple[Write, End]:
    def write(results: "FrameResults") -> None:
        if len(results.targets) != 1:
            raise ValueError(
                f"the format got10k is for one target, and there are {len(results.targets)}: use csv or mot"
            )
        file.write(",".join(f"{value:.3f}" for value in results.targets[0].box) + "\n")

    return write, lambda: None


def _coco(file: TextIO) -> tuple[Write, End]:
    separator = "["

    def write(results: "FrameResults") -> None:
        nonlocal separator
        for r in results.targets:
            box, score = _rounded(r.box), round(r.score, 4)
            row = {"image_id": results.index, "category_id": 1, "bbox": box, "score": score}
            file.write(separator + "\n" + json.dumps(row | {"track_id": r.target}))
            separator = ","

    return write, lambda: file.write("\n]\n" if separator == "," else "[]\n")


def _rounded(box: tuple[float, ...]) -> list[float]:
    return [round(value, 3) for value in box]


FORMATS = {"csv": _csv, "jsonl": _jsonl, "mot": _mot, "got10k": _got10k, "coco": _coco}
