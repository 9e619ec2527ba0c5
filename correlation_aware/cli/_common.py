"""What the commands share: options, the console, progress bars, and the loop that follows targets."""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

if TYPE_CHECKING:  # otherwise imported where they are used, so that --help is quick
    from correlation_aware.tracking.tracker import Tracker, TrackResult
    from correlation_aware.tracking.video import Frame, FrameSource

__all__ = [
    "Clock",
    "Device",
    "Model",
    "Runtime",
    "Weights",
    "console",
    "follow",
    "load_tracker",
    "progress_bar",
    "show_renames",
    "track_progress",
]

Model = Annotated[str | None, typer.Option(help="A `_track` model, instead of the default one.")]
Weights = Annotated[
    str | None, typer.Option("--weights", "--pretrained", help="Tag or file of trained weights, or `random`.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if any.")]
Runtime = Annotated[
    str, typer.Option(help="eager, compile, cudagraph, onnx or openvino; the last two are quick on a CPU.")
]

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Clock:
    """Seconds, summed over the frames so far.

    Attributes:
        decode: Waiting for frames.
        write: Drawing and writing results.
        total: From the first frame on.
        frames: Number of frames, the first included.
    """

    decode: float = 0.0
    write: float = 0.0
    total: float = 0.0
    frames: int = 0


@contextmanager
def show_renames() -> Iterator[None]:
    """Prints the deprecation of a former name in yellow, once each, on stderr; Python would hide it."""
    with warnings.catch_warnings():
        show_others, shown = warnings.showwarning, set()

        def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            text = str(message)
            if not issubclass(category, DeprecationWarning) or "the old name goes" not in text:
                show_others(message, category, *args, **kwargs)
            elif text not in shown:
                shown.add(text)
                Console(stderr=True, highlight=False, soft_wrap=True).print(f"[yellow]{escape(text)}[/]")

        warnings.filterwarnings("always", ".*the old name goes", DeprecationWarning)
        warnings.showwarning = show
        yield


def load_tracker(
    model: str | None, weights: str | None = None, device: str | None = None, runtime: str = "auto"
) -> "Tracker":
    """Creates a tracker and prints what it is; random weights are announced in yellow."""
    from correlation_aware import create_tracker

    with warnings.catch_warnings():  # said below, in colour
        warnings.filterwarnings("ignore", ".*random weights", RuntimeWarning)
        tracker = create_tracker(
            model,
            pretrained=False if weights == "random" else weights,
            device=device,
            runtime=runtime,  # type: ignore[arg-type]
        )
    if tracker.weights_name == "random":
        advice = "'correlation-aware weights list' names trained ones"
        console.print(f"[yellow]The weights of {tracker.name} are random: it will not track ({advice}).[/]")
    else:
        console.print(f"{tracker.name} with the weights {escape(tracker.weights_name)}")
    return tracker


def follow(
    tracker: "Tracker", frames: "FrameSource", boxes: Sequence[Sequence[float]], clock: Clock
) -> Iterator[tuple["Frame", list["TrackResult"]]]:
    """Gives every frame with one result a target. The first frame's are the boxes themselves, with score 1.

    Args:
        tracker: It is started on the first frame.
        frames: At least one frame.
        boxes: x, y, w, h of every target in the first frame.
        clock: Counts along.
    """
    from correlation_aware.tracking.tracker import TrackResult

    started = before = time.perf_counter()
    for frame in frames:
        clock.decode += time.perf_counter() - before
        if clock.frames == 0:
            tracker.init(frame, boxes)
            results = [TrackResult((x, y, w, h), score=1.0, lost=False) for x, y, w, h in boxes]
        else:
            found = tracker.update(frame)
            results = found if isinstance(found, list) else [found]
        clock.frames += 1
        yield frame, results
        before = time.perf_counter()
        clock.total = before - started


def progress_bar(unit: str = "frames") -> Progress:
    """A bar with units done and time left, on a terminal only; it goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit},"))
    left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=True, disable=not console.is_terminal)


def track_progress(things: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Yields them under a bar."""
    with progress_bar(unit) as bar:
        yield from bar.track(things, total=total, description="track")
