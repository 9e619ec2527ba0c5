"""`correlation-aware track`: track targets in a video, a folder of frames or a camera stream.

Its options --model, --weights, --device, --runtime, --decode and --redetect are those of `_common.py`.
"""

import time
from collections import defaultdict, deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware._files import is_stdout
from correlation_aware.cli._common import (
    Decode,
    DepthRange,
    Device,
    Model,
    Redetect,
    Runtime,
    Weights,
    console,
    load_tracker,
    parse_box,
    parse_depth_range,
    progress_bar,
)
from correlation_aware.cli._signals import interrupt, stopped_by_signals

if TYPE_CHECKING:  # imported inside functions instead, so that --help starts fast
    from correlation_aware.tracking.frame_source import Frame
    from correlation_aware.tracking.stream import FrameResults, Tracking
    from correlation_aware.tracking.tracker import TrackResult

__all__ = ["track"]

EXIT_LOST, EXIT_INTERRUPTED = 3, 130

Box = tuple[float, float, float, float]
Trails = dict[int, "deque[tuple[float, float]]"]  # latest centers by target


def track(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, a folder of frames, a pattern such as 'frames/left_*.png', a camera's index, "
            "or the address of a stream (rtsp://...).",
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Box of a target in the first frame, in pixels. Repeat for more targets.",
        ),
    ] = None,
    select: Annotated[
        bool, typer.Option("--select", help="Draw the boxes with the mouse; needs a screen.")
    ] = False,
    model: Model = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Video to write, with boxes drawn (.mp4).")] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Boxes to write: .csv, .jsonl, .json (COCO), or see --format.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of --boxes: csv, jsonl, mot, got10k or coco.")
    ] = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    redetect: Redetect = None,
    start: Annotated[
        str, typer.Option(metavar="FRAME|TIME", help="First frame: its number from 0, or 12.5s, or 1:20.")
    ] = "0",
    every: Annotated[int, typer.Option(min=1, help="Step from each frame to the next one.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of frames.")] = None,
    trail: Annotated[
        int, typer.Option(min=0, metavar="N", help="Draw the path of the last N frames in --output.")
    ] = 0,
    score_map: Annotated[
        bool, typer.Option("--score-map", help="Draw the score map over the search region in --output.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Show the frames in a window; q ends it.")] = False,
    depth_range: DepthRange = None,
) -> None:
    """Track one or more targets in a video.

    Frames are numbered from 0, also with --start; --box is in the first frame
    that is tracked. Targets are numbered from 0 in the order of --box. The
    table has the columns frame, target, x, y, w, h, score, lost, time (in
    seconds). Output files appear when they are complete; Ctrl-C completes
    them.

    Exit codes: 0 no target is lost in the last frame, 3 a target is lost
    there, 1 error, such as a wrong --box or --runtime (no file is written), 2
    an unknown or missing option, 130 Ctrl-C, SIGTERM or SIGHUP (the files have
    the frames until then).
    """
    targets = [parse_box(text) for text in box or ()]
    if not targets and not select:
        raise typer.BadParameter(
            "give --box X,Y,W,H for each target, or --select to draw them with the mouse"
        )
    if targets and select:
        raise ValueError("--box and --select exclude each other: leave out one of them")
    if format and not boxes:
        raise ValueError(f"--format {format} has no effect without --boxes FILE")
    if trail and not (output or show):
        raise ValueError(f"--trail {trail} has no effect without --output FILE or --show")
    if score_map and not (output or show):
        raise ValueError("--score-map has no effect without --output FILE or --show")
    _check_paths(source, output, boxes)
    replaced = [path for path in (output, boxes) if path is not None and path.is_file()]
    console.stderr = boxes is not None and is_stdout(boxes)  # the standard output is for the boxes alone
    depth = parse_depth_range(depth_range)
    from correlation_aware.tracking.draw import draw_results, draw_score_maps
    from correlation_aware.tracking.results import ResultWriter
    from correlation_aware.tracking.stream import Tracking
    from correlation_aware.tracking.video import VideoWriter, open_frames

    lost: dict[int, bool] = defaultdict(bool)
    seen: dict[int, int] = defaultdict(int)  # frames
    trails: Trails = defaultdict(lambda: deque(maxlen=trail + 1))
    interrupted, count, write_seconds = False, 0, 0.0
    with ExitStack() as stack:
        frames = stack.enter_context(open_frames(source, limit, depth, start=start, every=every))
        video = stack.enter_context(VideoWriter(output, frames.fps / every)) if output else None
        table = stack.enter_context(ResultWriter(boxes, format)) if boxes else None
        window = stack.enter_context(_Window(source)) if show or select else None
        tracker = load_tracker(model, weights, device, runtime, decode, redetect)
        tracking = Tracking(frames, tracker, targets or None)
        began = time.perf_counter()
        try:
            with stopped_by_signals(interrupt), progress_bar() as bar:
                task = bar.add_task("track", total=frames.length)
                for results in tracking:
                    if select and not count:
                        assert window is not None
                        results = _select_targets(window, tracking, results)
                    written = time.perf_counter()
                    count += 1
                    for result in results.targets:
                        x, y, w, h = result.box
                        trails[result.target].append((x + w / 2, y + h / 2))
                        seen[result.target] += not result.lost
                        if result.lost != lost[result.target]:
                            lost[result.target] = result.lost
                            number = result.target if len(results.targets) > 1 else None
                            _print_change(results.index, number, result)
                    if table is not None:
                        table.write(results)
                    if video is not None or show:
                        image = results.frame
                        if score_map and (response := tracker.response) is not None:
                            scores = response.scores.float().cpu().numpy()
                            image = draw_score_maps(image, zip(scores, response.crops))
                        image = draw_results(image, results.targets, trails if trail else None)
                        if video is not None:
                            video.write(image, results.time)
                        if show and window is not None and not window.show(image):
                            break
                    write_seconds += time.perf_counter() - written
                    bar.advance(task)
        except KeyboardInterrupt:
            interrupted = True
        total = time.perf_counter() - began
    if interrupted:
        console.print(f"[yellow]Stopped after {count} frames.[/]")
    elif limit is None and not show and frames.length is not None and count < 0.95 * frames.length:
        console.print(
            f"[yellow]The file ends after {count} of {frames.length} frames and may be incomplete.[/]"
        )
    if frames.dropped:
        console.print(f"{frames.dropped} frames came while the tracker was busy and were dropped")
    for result in results.targets if count else ():
        name = f"target #{result.target}" if len(results.targets) > 1 else "target"
        latest = ",".join(f"{value:.0f}" for value in result.box)
        console.print(f"{name}: seen in {seen[result.target]} of {count} frames, last box {latest}")
    _print_speed(tracking, count, total, write_seconds)
    for path in filter(None, (output, boxes)):
        older = ", in place of an older file" if path in replaced else ""
        console.print(f"Wrote {escape(str(path))}{older}")
    if video is not None and video.codec == "mp4v":
        console.print("Browsers do not play its codec, MPEG-4 Part 2; pip install av for H.264", style="dim")
    if interrupted or any(lost.values()):
        raise typer.Exit(EXIT_INTERRUPTED if interrupted else EXIT_LOST)


class _Window:
    """A window of OpenCV, where the installed OpenCV has windows and there is a screen."""

    def __init__(self, title: str) -> None:
        import cv2

        self.title = f"{title} - correlation-aware"
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise RuntimeError(
                "OpenCV cannot open a window: there is no screen, or opencv-python-headless is installed, "
                "which has no windows: pip uninstall opencv-python-headless && pip install opencv-python"
            ) from error

    def show(self, frame: "Frame") -> bool:
        """Shows a frame; False if the user has pressed q or Escape."""
        import cv2

        cv2.imshow(self.title, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)

    def select(self, frame: "Frame") -> list[Box]:
        """Boxes that the user draws: Enter takes each, Escape ends."""
        import cv2

        chosen = cv2.selectROIs(self.title, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), printNotice=False)
        return [(float(x), float(y), float(w), float(h)) for x, y, w, h in chosen]

    def __enter__(self) -> "_Window":
        return self

    def __exit__(self, *error: object) -> None:
        import cv2

        cv2.destroyWindow(self.title)


def _select_targets(window: _Window, tracking: "Tracking", results: "FrameResults") -> "FrameResults":
    """Lets the user draw the targets in the first frame; the results with them."""
    from dataclasses import replace

    from correlation_aware.tracking.tracker import TrackResult

    console.print("Draw a box and press Enter, for each target; then press Escape.")
    boxes = window.select(results.frame)
    if not boxes:
        raise ValueError("no box was drawn; draw one and press Enter, or use --box X,Y,W,H")
    numbers = tracking.add(boxes)
    return replace(results, targets=tuple(TrackResult(box, 1.0, False, n) for box, n in zip(boxes, numbers)))


def _check_paths(source: str, output: Path | None, boxes: Path | None) -> None:
    paths = [path.resolve() for path in (Path(source), output, boxes) if path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError("SOURCE, --output and --boxes must be different files")


def _print_change(index: int, target: int | None, result: "TrackResult") -> None:
    name = "target" if target is None else f"target #{target}"
    state = "[red]lost[/]" if result.lost else "[green]found again[/]"
    console.print(f"frame {index}: {name} {state} (score {result.score:.2f})")


def _print_speed(tracking: "Tracking", count: int, total: float, write_seconds: float) -> None:
    """Prints frames per second and the time of each stage of a tracked frame."""
    timings = tracking.tracker.timings
    tracked, count = max(1, timings.frames), max(1, count)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "ms per frame"):
        table.add_column(title, justify="right" if title else "left")
    stages = (
        ("read the frame", tracking.decode_seconds / count),
        ("crop", timings.crop / tracked),
        ("network", timings.model / tracked),
        ("choose the box", timings.post / tracked),
        ("draw and write", write_seconds / count),
    )
    for name, seconds in stages:
        if seconds > 1e-5:  # a stage that is not used takes no time
            table.add_row(name, f"{1e3 * seconds:.2f}")
    speed = count / total if total else 0.0
    console.print(f"{count} frames in {total:.1f} s: [bold]{speed:.1f} frames/s[/]")
    console.print(table)
