"""Many videos, one after the other: reads the table of their targets, and tracks the targets of one video."""

import csv
import glob
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from correlation_aware._files import is_file_name, remove_leftovers
from correlation_aware.tracking.draw import draw_results
from correlation_aware.tracking.frame_source import FrameSource
from correlation_aware.tracking.live import LiveSource
from correlation_aware.tracking.results import ResultWriter
from correlation_aware.tracking.stream import FrameResults, Tracking
from correlation_aware.tracking.tracker import Tracker, TrackResult
from correlation_aware.tracking.video import VideoWriter, open_frames

__all__ = ["COLUMNS", "Job", "JobFailure", "JobResult", "JobTarget", "read_jobs", "track_job"]

COLUMNS = ("video", "frame", "x", "y", "w", "h")
OPTIONAL = ("id", "name")


@dataclass(frozen=True)
class JobTarget:
    """A target of a video.

    Attributes:
        id: Number of the target in the results.
        frame: Number of its first frame, from 0.
        box: x, y, w, h in pixels of that frame.
    """

    id: int
    frame: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Job:
    """A video and its targets, which are tracked together in one pass.

    Attributes:
        name: Name of the results.
        video: The video as the table names it.
        source: The same for `open_frames`.
        targets: Targets in the order of their first frames.
    """

    name: str
    video: str
    source: str
    targets: tuple[JobTarget, ...]

    def __str__(self) -> str:
        targets = (f"#{t.id} frame {t.frame} {','.join(f'{v:.12g}' for v in t.box)}" for t in self.targets)
        return " ".join((self.video, *targets))


@dataclass(frozen=True)
class JobResult:
    """A video whose results are written.

    Attributes:
        name: Name of the results.
        frames: Number of frames; 0 if the results existed.
        lost: Ids of the targets that are lost in the last frame.
        seconds: Duration of the work.
        notes: Warnings about the video.
    """

    name: str
    frames: int = 0
    lost: tuple[int, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobFailure:
    """A video that could not be tracked to its end; no file of it is written.

    Attributes:
        name: Name of the results.
        reason: Type and text of the error.
    """

    name: str
    reason: str

    @classmethod
    def of(cls, job: Job, error: BaseException) -> "JobFailure":
        """The failure of a video by an error."""
        return cls(job.name, f"{type(error).__name__}: {error}".rstrip(": "))


def read_jobs(path: str | Path) -> list[Job]:
    """Reads a table of targets in videos: CSV with a header, a line per target.

    The columns are `video` (a video file, folder or pattern of frames; relative paths start at the folder of
    the table), `frame` (number of the target's first frame, from 0), `x`, `y`, `w`, `h` (its box there, in
    pixels) and, optionally, `id` (number of the target in the results; by default the number of its line
    among those of the video, from 0) and `name` (name of the results; by default that of the video).

    Args:
        path: Path of the table.

    Returns:
        One job per video, in the order of their first lines.

    Raises:
        ValueError: Missing or unknown columns, an invalid value (the message has its line), two targets with
            one id, two videos with one name, or a table without lines.
        OSError: No such file.
    """
    path = Path(path)
    targets: dict[str, list[JobTarget]] = {}
    names: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, strict=True, skipinitialspace=True)
        try:
            _check_header(path, [name.strip() for name in table.fieldnames or ()])
            for row in table:
                where = f"{path}, line {table.line_num}"
                if not any(isinstance(value, list) or (value or "").strip() for value in row.values()):
                    continue  # blank, or only commas, as spreadsheets write empty rows
                if None in row or None in row.values():
                    raise ValueError(f"{where}: expected {len(table.fieldnames or ())} values, as the header")
                line = {key.strip(): value.strip() for key, value in row.items()}
                video = line["video"]
                if not video:
                    raise ValueError(f"{where}: video is empty; name a video file or a folder of frames")
                target = _parse_target(line, len(targets.setdefault(video, [])), where)
                if any(other.id == target.id for other in targets[video]):
                    raise ValueError(f"{where}: {video} has two targets with the id {target.id}")
                targets[video].append(target)
                name = line.get("name") or names.get(video) or _default_name(path.parent / video)
                if not is_file_name(name):
                    raise ValueError(
                        f"{where}: name {name!r} cannot name a file; choose one such as video_1 in a column "
                        "`name`"
                    )
                if names.setdefault(video, name) != name:
                    raise ValueError(f"{where}: {video} has two names, {names[video]} and {name}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a table in CSV and UTF-8: {error}") from error
    if not targets:
        raise ValueError(f"{path} has no line with a target below its header")
    _check_names(path, names)
    folder = path.absolute().parent
    return [
        Job(
            names[video],
            video,
            video if "://" in video else str(folder / video),
            tuple(sorted(of, key=lambda target: target.frame)),
        )
        for video, of in targets.items()
    ]


def track_job(
    job: Job,
    tracker: Tracker,
    boxes: Path,
    format: str,
    video: Path | None = None,
    depth_range: tuple[float, float] | None = None,
) -> JobResult:
    """Tracks the targets of a video in one pass and writes the results, whole or not at all.

    The file of boxes is completed last: where it exists, the video is finished.

    Args:
        job: Video and targets.
        tracker: Tracker; its earlier targets are replaced.
        boxes: File of results to write.
        format: Format of the results, one of `FORMATS` of `results.py`.
        video: Video to write, with boxes drawn; by default none.
        depth_range: Values of 16-bit or float images that become 0 and 255, see `open_frames`.

    Raises:
        ValueError: A video that cannot be read, an invalid box, or a target that starts after the end.
        OSError: No such video, or results that cannot be written.
    """
    for path in filter(None, (boxes, video)):
        remove_leftovers(path)
    began, count = time.perf_counter(), 0
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        frames = stack.enter_context(open_frames(job.source, None, depth_range, start=job.targets[0].frame))
        if isinstance(frames, LiveSource):
            raise ValueError(f"{job.video} is a live stream, which has no end; use the command track for it")
        table = stack.enter_context(ResultWriter(boxes, format))
        drawing = stack.enter_context(VideoWriter(video, frames.fps)) if video is not None else None
        results: FrameResults | None = None
        for results in _track(job, frames, tracker):
            count += 1
            table.write(results)
            if drawing is not None:
                drawing.write(draw_results(results.frame, results.targets), results.time)
        if late := [target for target in job.targets if target.frame > frames.index]:
            raise ValueError(
                f"target {late[0].id} starts in frame {late[0].frame}, and the last frame is {frames.index}"
            )
        notes = [str(warning.message) for warning in caught]
        if frames.length is not None and count < 0.95 * frames.length:
            notes.append(f"the file ends after {count} of {frames.length} frames and may be incomplete")
    lost = tuple(result.target for result in results.targets if result.lost) if results else ()
    return JobResult(job.name, count, lost, time.perf_counter() - began, tuple(dict.fromkeys(notes)))


def _track(job: Job, frames: FrameSource, tracker: Tracker) -> Iterator[FrameResults]:
    """Results with the ids of the job; a target joins in its first frame."""
    begun = [target for target in job.targets if target.frame == job.targets[0].frame]
    tracking = Tracking(frames, tracker, [target.box for target in begun])
    for results in tracking:
        targets = [replace(result, target=begun[result.target].id) for result in results.targets]
        new = [target for target in job.targets[len(begun) :] if target.frame == results.index]
        if new:
            tracking.add([target.box for target in new])
            targets += [TrackResult(target.box, 1.0, False, target.id) for target in new]
            begun += new
        yield replace(results, targets=tuple(targets))


def _check_header(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    unknown = [name for name in names if name not in COLUMNS + OPTIONAL]
    if missing or unknown or len(set(names)) < len(names):
        problem = (
            f"no column {', '.join(missing)}"
            if missing
            else f"unknown columns {', '.join(map(repr, unknown))}"
            if unknown
            else "a column twice"
        )
        raise ValueError(
            f"{path} has {problem} in its header {','.join(names)!r}; expected {','.join(COLUMNS)}, and "
            f"optionally {' and '.join(OPTIONAL)}, separated by commas"
        )


def _parse_target(line: Mapping[str, str], default_id: int, where: str) -> JobTarget:
    numbers = {"frame": line["frame"], "id": line.get("id") or str(default_id)}
    for column, text in numbers.items():
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ValueError(f"{where}: {column} {text[:100]!r} is not a number such as 0, 1, 2")
    try:
        x, y, w, h = (float(line[column]) for column in "xywh")
    except ValueError:
        x = y = w = h = math.nan
    if not (math.isfinite(x + y + w + h) and w > 0 and h > 0):
        box = ",".join(line[column] for column in "xywh")
        raise ValueError(f"{where}: the box {box!r} is not x,y,w,h in pixels, such as 120,80,64,48")
    return JobTarget(int(numbers["id"]), int(numbers["frame"]), (x, y, w, h))


def _default_name(video: Path) -> str:
    """Name of a folder, name of a file without suffix, or, for a pattern, that of its folder."""
    if glob.has_magic(video.name):
        return video.parent.name or "frames"
    return video.name if video.is_dir() else video.stem


def _check_names(path: Path, names: Mapping[str, str]) -> None:
    videos: dict[str, str] = {}
    for video, name in names.items():
        other = videos.setdefault(name.casefold(), video)  # some disks do not tell A from a
        if other != video:
            raise ValueError(
                f"{path}: the results of {other} and {video} would have the name {name}; give each video one "
                "of its own in a column `name`"
            )
