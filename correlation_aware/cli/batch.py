"""`correlation-aware batch`: track targets in many videos, with several processes or on a Ray cluster.

Its options --model, --weights, --device, --runtime, --decode, --redetect and --depth-range are those of
`_common.py`.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from correlation_aware.cli._common import (
    Decode,
    DepthRange,
    Device,
    Model,
    Redetect,
    Runtime,
    Weights,
    console,
    parse_depth_range,
    track_progress,
)
from correlation_aware.cli._signals import interrupt, stopped_by_signals
from correlation_aware.cli.eval_common import TrackerOptions, exit_if_failed
from correlation_aware.cli.eval_processes import Place, started, use_share

if TYPE_CHECKING:
    from correlation_aware.evaluation.trackers import NamedTracker
    from correlation_aware.tracking.batch import Job, JobFailure, JobResult

__all__ = ["Batch", "Worker", "batch"]

EXIT_INTERRUPTED = 130
SUFFIXES = {"csv": ".csv", "jsonl": ".jsonl", "coco": ".json", "mot": ".txt", "got10k": ".txt"}


def batch(
    jobs: Annotated[
        Path,
        typer.Argument(
            metavar="JOBS.csv",
            help="Table with a line per target: video,frame,x,y,w,h and, optionally, id and name.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Folder of the results: boxes/, videos/ and batch.json.")
    ],
    model: Model = None,
    weights: Weights = None,
    format: Annotated[
        str, typer.Option(help="Format of the boxes: csv, jsonl, mot, got10k or coco, as of `track`.")
    ] = "csv",
    video: Annotated[
        bool, typer.Option("--video", help="Write videos too, with boxes drawn (.mp4).")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes that share the videos.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run the processes on a Ray cluster: its address, auto, or local to start one here.",
        ),
    ] = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    redetect: Redetect = None,
    depth_range: DepthRange = None,
) -> None:
    """Track targets in many videos.

    A line of JOBS.csv is a target: its video (a file, a folder or a pattern of
    frames, from the folder of JOBS.csv), its first frame (a number from 0), its
    box there in pixels, and its number in the results. The targets of one video
    are tracked together in one pass. Results appear when a video is finished;
    the same command again goes on where an earlier one was stopped or killed.

    Exit codes: 0 all videos are finished, 3 a video could not be tracked (it is
    named, and the others are finished), 1 error, such as a wrong line of
    JOBS.csv or results of another run in OUTPUT, 2 an unknown or missing
    option, 130 Ctrl-C.
    """
    from correlation_aware._files import check_output_folder
    from correlation_aware.tracking.batch import JobFailure, read_jobs

    if format not in SUFFIXES:
        raise ValueError(f"--format {format} is not one of {', '.join(SUFFIXES)}")
    work = Batch(
        tuple(read_jobs(jobs)),
        output,
        TrackerOptions(model, weights, device, runtime, decode, redetect=redetect),
        format,
        video,
        parse_depth_range(depth_range),
    )
    several = [job.name for job in work.jobs if len(job.targets) > 1]
    if format == "got10k" and several:
        raise ValueError(f"--format got10k is for one target, and {several[0]} has more: use csv or mot")
    check_output_folder(output)
    failed: dict[str, str] = {}
    count = len(work.jobs)
    try:
        with stopped_by_signals(interrupt):
            for outcome in track_progress(_outcomes(work, processes, ray), count, "videos"):
                if isinstance(outcome, JobFailure):
                    failed[outcome.name] = outcome.reason
                    console.print(f"[red]{escape(outcome.name)} failed:[/] {escape(outcome.reason)}")
    except KeyboardInterrupt:
        done = len(work.finished())
        console.print(f"[yellow]Stopped: {done} of {count} videos are finished; the same command goes on.[/]")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(f"Wrote {escape(str(output))}: {count - len(failed)} of {count} videos")
    exit_if_failed(failed, count, "videos")


@dataclass(frozen=True)
class Batch:
    """What is tracked: the same in all processes that share it.

    Attributes:
        jobs: Videos and their targets.
        output: Folder of the results.
        options: Options of the tracker.
        format: Format of the boxes.
        video: Whether videos are written too.
        depth_range: Values of 16-bit or float images that become 0 and 255.
    """

    jobs: "tuple[Job, ...]"
    output: Path
    options: TrackerOptions
    format: str
    video: bool
    depth_range: tuple[float, float] | None

    @property
    def names(self) -> list[str]:
        """Names of the videos."""
        return [job.name for job in self.jobs]

    def boxes(self, name: str) -> Path:
        """File of the boxes of a video; where it exists, the video is finished."""
        return self.output / "boxes" / f"{name}{SUFFIXES[self.format]}"

    def finished(self) -> list[str]:
        """Names of the finished videos."""
        return [name for name in self.names if self.boxes(name).is_file()]

    def start(self, about: "NamedTracker", processes: int) -> None:
        """Makes the folders and writes the manifest of the run, or compares it with the one that exists.

        Raises:
            ValueError: Results of another run.
        """
        from correlation_aware.evaluation.shared_run import make_manifest, start_run

        run = {"tracker": about.name, "weights_sha256": about.sha256, **about.settings}
        run |= {"format": self.format, "video": self.video, "depth_range": self.depth_range}
        manifest = make_manifest(run, about.device, processes=processes)
        manifest["jobs"] = {job.name: str(job) for job in self.jobs}
        advice = "Choose another OUTPUT"
        start_run(self.output / "boxes", self.output / "batch.json", manifest, advice)
        if self.video:
            (self.output / "videos").mkdir(exist_ok=True)


class Worker:
    """A process's share of a batch: a tracker, and the videos that no other process has claimed.

    Args:
        batch: What is tracked.
        place: Place of the process.
        divide_threads: Whether the process has a share of PyTorch's threads.
    """

    def __init__(self, batch: Batch, place: Place, divide_threads: bool) -> None:
        import torch

        from correlation_aware.evaluation.trackers import NamedTracker

        self.batch = batch
        self.jobs = {job.name: job for job in batch.jobs}
        device = use_share(place, batch.options.device, divide_threads)
        torch.manual_seed(0)  # the same random weights in all processes and runs
        self.tracker = replace(batch.options, device=device).load_model()
        batch.start(NamedTracker.of_model(self.tracker), place.count)
        if done := len(batch.finished()):
            console.print(f"{done} of {len(self.jobs)} videos are finished in {escape(str(batch.output))}")

    def track(self, name: str) -> "JobResult | JobFailure | None":
        """Tracks a video if it is not finished; None if another process tracks it."""
        from correlation_aware.evaluation.shared_run import finish
        from correlation_aware.tracking.batch import JobFailure, JobResult, track_job

        batch, boxes, job = self.batch, self.batch.boxes(name), self.jobs[name]
        video = batch.output / "videos" / f"{name}.mp4" if batch.video else None

        def work() -> JobResult | JobFailure:
            try:
                return track_job(job, self.tracker, boxes, batch.format, video, batch.depth_range)
            except Exception as error:  # the other videos go on
                return JobFailure.of(job, error)

        return finish(boxes.parent, name, boxes, work, lambda: JobResult(name))


def _outcomes(batch: Batch, processes: int, ray: str | None) -> "Iterator[JobResult | JobFailure]":
    """Tracks through all videos, by one process or several; prints what is to be known of each."""
    if ray is not None:
        from correlation_aware.cli.batch_ray import outcomes_of_cluster

        yield from _printed(outcomes_of_cluster(batch, processes, ray))
        return
    from correlation_aware.evaluation.shared_run import work_through

    processes = min(processes, len(batch.jobs))
    worker = Worker(batch, Place(0, processes), processes > 1)
    with started(processes if len(batch.finished()) < len(batch.jobs) else 1, _work, (batch,)):
        outcomes: Iterator[JobResult | JobFailure] = work_through(batch.names, worker.track, wait=True)
        yield from _printed(outcomes)


def _work(place: Place, batch: Batch) -> None:
    """What a process does beside the first one; it ends with the first one, however that ends."""
    from correlation_aware.evaluation.shared_run import work_through
    from correlation_aware.tracking.batch import JobFailure

    worker = Worker(batch, place, divide_threads=True)
    console.quiet = False
    parent = multiprocessing.parent_process()
    outcomes: Iterator[JobResult | JobFailure] = work_through(batch.names, worker.track, wait=False)
    # the first process tries failed videos again, and reports them
    for _ in _printed(outcome for outcome in outcomes if not isinstance(outcome, JobFailure)):
        if parent is not None and not parent.is_alive():
            return


def _printed(outcomes: "Iterable[JobResult | JobFailure]") -> "Iterator[JobResult | JobFailure]":
    """The outcomes; a line is printed for each video that was tracked, and for each of its warnings."""
    from correlation_aware.tracking.batch import JobResult

    for outcome in outcomes:
        if isinstance(outcome, JobResult) and outcome.frames:
            speed = outcome.frames / max(outcome.seconds, 1e-9)
            lost = f", lost at the end: {_numbers(outcome.lost)}" if outcome.lost else ""
            text = f"{outcome.name}: {outcome.frames} frames, {speed:.1f} frames/s{lost}"
            console.print(escape(text))
            for note in outcome.notes:
                console.print(f"[yellow]{escape(f'{outcome.name}: {note}')}[/]")
        yield outcome


def _numbers(ids: Sequence[int]) -> str:
    return ", ".join(f"#{number}" for number in ids)
