"""`correlation-aware track`: track targets in a video, a folder of frames or a camera stream.

Its options --model, --weights, --device, --runtime and --decode are those of `_common.py`.
"""

import csv
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import (
    Clock,
    Decode,
    DepthRange,
    Device,
    Model,
    Runtime,
    Weights,
    console,
    follow,
    load_tracker,
    parse_depth_range,
    progress_bar,
)

if TYPE_CHECKING:  # imported inside functions instead, so that --help starts fast
    from correlation_aware.tracking.tracker import Tracker, TrackResult

__all__ = ["track"]

COLUMNS = ("frame", "target", "x", "y", "w", "h", "score", "lost")
EXIT_LOST, EXIT_INTERRUPTED = 3, 130


def track(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A video file, a folder of frames, or a camera's index.")
    ],
    box: Annotated[
        list[str],
        typer.Option(
            metavar="X,Y,W,H", help="Box of a target in the first frame, in pixels. Repeat for more targets."
        ),
    ],
    model: Model = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Video to write, with boxes drawn (.mp4).")] = None,
    boxes: Annotated[Path | None, typer.Option(help="Table of the boxes to write (CSV).")] = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of frames.")] = None,
    depth_range: DepthRange = None,
) -> None:
    """Track one or more targets in a video.

    Frames are numbered from 0, the frame of --box; targets are numbered from
    0 in the order of --box. The table has the columns frame, target, x, y, w,
    h, score, lost. Output files appear when they are complete; Ctrl-C
    completes them.

    Exit codes: 0 no target is lost in the last frame, 3 a target is lost
    there, 1 error, such as a wrong --box or --runtime (no file is written), 2
    an unknown or missing option, 130 Ctrl-C.
    """
    targets = [_parse_box(text) for text in box]
    _check_paths(source, output, boxes)
    depth = parse_depth_range(depth_range)
    from correlation_aware._files import atomic_path
    from correlation_aware.tracking.draw import draw_result, target_color
    from correlation_aware.tracking.video import VideoWriter, open_frames

    clock, lost, interrupted = Clock(), [False] * len(targets), False
    with ExitStack() as stack:
        frames = stack.enter_context(open_frames(source, limit, depth))
        video = stack.enter_context(VideoWriter(output, frames.fps)) if output else None
        rows = None
        if boxes:
            file = stack.enter_context(atomic_path(boxes))
            rows = csv.writer(stack.enter_context(file.open("w", newline="", encoding="utf-8")))
            rows.writerow(COLUMNS)
        tracker = load_tracker(model, weights, device, runtime, decode)
        try:
            with progress_bar() as bar:
                task = bar.add_task("track", total=frames.length)
                for index, (frame, results) in enumerate(follow(tracker, frames, targets, clock)):
                    started = time.perf_counter()
                    for i, result in enumerate(results):
                        if result.lost != lost[i]:
                            lost[i] = result.lost
                            _print_change(index, i if len(results) > 1 else None, result)
                        if rows is not None:
                            values = (f"{value:.3f}" for value in result.box)
                            rows.writerow((index, i, *values, f"{result.score:.4f}", int(result.lost)))
                        if video is not None:
                            label = f"#{i}" if len(results) > 1 else None
                            frame = draw_result(frame, result, label, target_color(i))
                    if video is not None:
                        video.write(frame)
                    clock.write += time.perf_counter() - started
                    bar.advance(task)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        console.print(f"[yellow]Stopped by Ctrl-C after {clock.frames} frames.[/]")
    elif limit is None and frames.length is not None and clock.frames < 0.95 * frames.length:
        console.print(
            f"[yellow]The file ends after {clock.frames} of {frames.length} frames and may be incomplete.[/]"
        )
    _print_speed(tracker, clock)
    for path in filter(None, (output, boxes)):
        console.print(f"Wrote {escape(str(path))}")
    if interrupted or any(lost):
        raise typer.Exit(EXIT_INTERRUPTED if interrupted else EXIT_LOST)


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--box {text!r} is not x,y,w,h: four numbers in pixels, such as 120,80,64,48"
        ) from None
    return x, y, w, h


def _check_paths(source: str, output: Path | None, boxes: Path | None) -> None:
    paths = [path.resolve() for path in (Path(source), output, boxes) if path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError("SOURCE, --output and --boxes must be different files")


def _print_change(index: int, target: int | None, result: "TrackResult") -> None:
    name = "target" if target is None else f"target #{target}"
    state = "[red]lost[/]" if result.lost else "[green]found again[/]"
    console.print(f"frame {index}: {name} {state} (score {result.score:.2f})")


def _print_speed(tracker: "Tracker", clock: Clock) -> None:
    """Prints frames per second and the time of each stage of a tracked frame."""
    timings = tracker.timings
    tracked = max(1, timings.frames)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "ms/frame", "frames/s alone"):
        table.add_column(title, justify="right" if title else "left")
    stages = (
        ("decode", clock.decode / max(1, clock.frames)),
        ("crop", timings.crop / tracked),
        ("model", timings.model / tracked),
        ("post", timings.post / tracked),
        ("draw, write", clock.write / max(1, clock.frames)),
    )
    for name, seconds in stages:
        if seconds > 1e-5:  # a stage that is not used takes no time
            table.add_row(name, f"{1e3 * seconds:.2f}", f"{1 / seconds:.0f}")
    speed = clock.frames / clock.total if clock.total else 0.0
    console.print(f"{clock.frames} frames in {clock.total:.1f} s: [bold]{speed:.1f} frames/s[/]")
    console.print(table)
