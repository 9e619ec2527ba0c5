"""Options, console and progress bars that several commands share."""

import math
import re
import warnings
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from correlation_aware.cli._messages import PipeConsole
from correlation_aware.cli._threads import spare_busy_cores
from correlation_aware.runtime import RUNTIMES

T = TypeVar("T")

if TYPE_CHECKING:  # imported inside functions instead, so that --help starts fast
    from correlation_aware.tracking.tracker import Tracker

__all__ = [
    "WEIGHTS_HELP",
    "Command",
    "Decode",
    "DepthRange",
    "Device",
    "Model",
    "Redetect",
    "Runtime",
    "Weights",
    "console",
    "figure_table",
    "load_tracker",
    "parse_box",
    "parse_depth_range",
    "parse_numbers",
    "print_wide",
    "progress_bar",
    "track_progress",
]

# former spellings of options, which still work and are not shown in the help
FORMER_OPTIONS = {
    "--forms": "--contenders",
    "--out": "--output",
    "--pretrained": "--weights",
    "-o": "--output",
}
WEIGHTS_HELP = "Weights: tag of the model, model.tag, file, folder, hf-hub:organisation/name, or `random`"

Model = Annotated[
    str | None,
    typer.Option(
        help="Name of a `_track` model, folder or hf-hub:organisation/name; by default "
        "siam_lite0_ca_two_scales_track."
    ),
]
Weights = Annotated[str | None, typer.Option(help=f"{WEIGHTS_HELP}; by default the model's default weights.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
Runtime = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(RUNTIMES)}; onnx and openvino are fast on a CPU. onnx:FOLDER/MODEL.int8 runs "
        "files of `correlation-aware export`."
    ),
]

Decode = Annotated[
    str,
    typer.Option(
        help="Choice of the box: default, paper (highest score, its box, nothing else), or released (the "
        "authors' code: with a window)."
    ),
]

Redetect = Annotated[
    bool | None,
    typer.Option(
        "--redetect/--no-redetect",
        help="Search the whole frame for a lost target, whose box stays until it is found again; on by "
        "default, off with --decode paper and released.",
    ),
]

DepthRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Values of 16-bit or float images that become black and white, such as 0,4095.",
    ),
]


console = PipeConsole(highlight=False, soft_wrap=True)


class Command(TyperCommand):
    """A command that also takes the former spellings of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for parameter in self.params for name in parameter.opts}
        words = [_current_spelling(word, names) for word in args]
        if "--box" in words:
            numbers = words[words.index("--box") + 1 :][:4]
            if len(numbers) == 4 and all(re.fullmatch(r"[\d.]+,?", number) for number in numbers):
                box = ",".join(number.rstrip(",") for number in numbers)
                raise typer.BadParameter(f"a box is one word: --box {box}", param_hint="--box")
        return super().parse_args(ctx, words)


def _current_spelling(word: str, names: Container[str]) -> str:
    option, equals, value = word.partition("=")
    current = FORMER_OPTIONS.get(option)
    return word if option in names or current not in names else f"{current}{equals}{value}"


def load_tracker(
    model: str | None,
    weights: str | None = None,
    device: str | None = None,
    runtime: str = "auto",
    decode: str = "default",
    redetect: bool | None = None,
) -> "Tracker":
    """Creates a tracker and prints its model and weights; a yellow line warns of random weights.

    Args:
        model: Name of a `_track` model or folder of a model; None for the default model.
        weights: Tag or file of weights, or `random`; None for the model's default weights.
        device: PyTorch device; None for a GPU if there is one.
        runtime: Runtime of `InferenceSession`; `onnx:PATH` and `openvino:PATH` run exported files.
        decode: Choice of the box, see `create_tracker`.
        redetect: Whether to search for a lost target, see `TrackerConfig`; None for that of `decode`.
    """
    from correlation_aware.tracking.tracker import create_tracker, decode_config

    config = decode_config(decode)
    if redetect is not None:
        config = replace(config, redetect=redetect)
    spare_busy_cores()
    runtime, colon, exported = runtime.partition(":")
    with warnings.catch_warnings():  # replaced by the yellow line below
        warnings.filterwarnings("ignore", ".*random weights", RuntimeWarning)
        tracker = create_tracker(
            model,
            pretrained=False if weights == "random" else weights,
            device=device,
            runtime=runtime,  # type: ignore[arg-type]
            exported=exported if colon else None,
            config=config,
        )
    if tracker.weights_name == "random":
        advice = "'correlation-aware weights list' names trained ones"
        console.print(f"[yellow]The weights of {tracker.name} are random: it will not track ({advice}).[/]")
    else:
        console.print(f"{tracker.name} with the weights {escape(tracker.weights_name)}")
    return tracker


def parse_numbers(text: str, option: str, form: str, example: str) -> tuple[float, ...]:
    """The numbers of an option, separated by commas.

    Args:
        text: Value of the option.
        option: Name of the option for messages.
        form: Names of the numbers, such as `x,y`.
        example: A valid value for messages.

    Raises:
        ValueError: Something else than one number for each name.
    """
    count = form.count(",") + 1
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        names = {2: "two", 4: "four", 5: "five"}
        raise ValueError(
            f"{option} {text!r} is not {form}: {names[count]} numbers in pixels, such as {example}"
        )
    return numbers


def parse_box(text: str) -> tuple[float, float, float, float]:
    """The box of --box.

    Raises:
        ValueError: Not four numbers.
    """
    x, y, w, h = parse_numbers(text, "--box", "x,y,w,h", "120,80,64,48")
    return x, y, w, h


def parse_depth_range(text: str | None) -> tuple[float, float] | None:
    """The two numbers of --depth-range.

    Raises:
        ValueError: Not two finite numbers of which the second is larger.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--depth-range {text!r} is not LOW,HIGH: two numbers, such as 0,4095")
    return low, high


def figure_table(titles: Iterable[str]) -> Table:
    """An empty table with names in its first column and figures in the others, none of them folded."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    return table


def print_wide(table: Table) -> None:
    """Prints a table: as wide as the terminal, and with 120 columns into a pipe or file."""
    PipeConsole(width=None if console.is_terminal else 120, highlight=False).print(table)


def progress_bar(unit: str = "frames") -> Progress:
    """A progress bar with the number of completed units and the remaining time.

    It is shown on a terminal only, and removed when done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit},"))
    remaining = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *remaining, console=console, transient=True, disable=not console.is_terminal)


def track_progress(items: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """Yields the items and shows a progress bar."""
    with progress_bar(unit) as bar:
        yield from bar.track(items, total=total, description="track")
