"""`correlation-aware vot`: a tracker in the VOT toolkit, with boxes or masks.

Its options --model, --weights, --device, --runtime, --decode and --redetect are those of `_common.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import Decode, Device, Model, Redetect, Runtime, Weights, console
from correlation_aware.cli.eval_common import TrackerOptions, TrackerText

__all__ = ["app"]

STACK_OF_BOXES, STACK_OF_MASKS = "vot2022/shorttermbox", "vot2022/shortterm"
ANALYSIS = "correlation_aware"  # name of the file of measures in a workspace's `analysis` folder

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the workspace.")]
Masks = Annotated[bool, typer.Option("--masks", help="Report masks instead of boxes.")]
RefinerText = Annotated[
    str | None,
    typer.Option(
        metavar="REFINER",
        help="What makes masks from boxes, with --masks: grabcut (the default), or module:factory of an "
        "object with refine(frame, box).",
    ),
]

app = typer.Typer(help="Measure a tracker with the VOT toolkit.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure a tracker with the VOT toolkit: EAO, accuracy, robustness."""


@app.command()
def workspace(
    folder: Folder,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    redetect: Redetect = None,
    tracker: TrackerText = None,
    name: Annotated[
        str | None, typer.Option(help="Identifier of the tracker in the workspace; by default its name.")
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option(
            help="Stack of experiments by name or as a YAML file; vot2022/shorttermbox by default, "
            "vot2022/shortterm with --masks."
        ),
    ] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the sequences with list.txt; by default `sequences` in the workspace, into which "
            "the toolkit downloads those of the stack.",
        ),
    ] = None,
    masks: Masks = False,
    refiner: RefinerText = None,
) -> None:
    """Make a workspace of the VOT toolkit with a tracker, or add a tracker to one.

    Writes config.yaml and trackers.ini, whose entry starts the tracker with
    this Python, in the current folder, under TraX. The toolkit need not be
    installed for that.
    """
    from correlation_aware.evaluation.refiners import create_refiner
    from correlation_aware.evaluation.vot import add_tracker, check_identifier, find_stack, write_config

    if name is not None:
        check_identifier(name)
    options = TrackerOptions(model, weights, device, runtime, decode, tracker, redetect=redetect)
    refiner = _refiner(masks, refiner)
    if refiner is not None:
        create_refiner(refiner)
    stack = None if stack is None else find_stack(stack)
    loaded = options.load().name  # what cannot be loaded here cannot be loaded by the toolkit
    identifier = name or re.sub(r"[^a-zA-Z0-9_-]", "_", loaded) + ("_masks" if masks else "")
    command = [sys.executable, "-m", "correlation_aware", "vot", "serve", "--folder", os.getcwd()]
    words = {
        "--model": model if model is not None or tracker is not None else loaded,  # the default may change
        "--weights": weights,
        "--device": device,
        "--runtime": None if runtime == "auto" else runtime,
        "--decode": None if decode == "default" else decode,
        "--tracker": tracker,
        "--refiner": refiner,
    }
    for option, value in words.items():
        command += [] if value is None else [option, value]
    command += ["--masks"] if masks else []
    command += [] if redetect is None else ["--redetect" if redetect else "--no-redetect"]
    is_new = write_config(folder, stack, sequences, STACK_OF_MASKS if masks else STACK_OF_BOXES)
    is_added = add_tracker(folder, identifier, command)
    console.print(f"{'Wrote' if is_new else 'Kept'} {escape(str(folder / 'config.yaml'))}")
    verb = "Added to" if is_added else "Already in"
    console.print(f"{verb} {escape(str(folder / 'trackers.ini'))}: {identifier}")
    console.print(f"Next: correlation-aware vot test {escape(str(folder))} {identifier}")
    console.print(f"Then: correlation-aware vot run {escape(str(folder))} {identifier}")


@app.command()
def test(
    folder: Folder,
    tracker: Annotated[
        str | None,
        typer.Argument(metavar="[TRACKER]", help="Tracker; the only one of the workspace if left out."),
    ] = None,
) -> None:
    """Run `vot test`: the tracker on a synthetic sequence of the toolkit."""
    names = _trackers(folder, [tracker] if tracker else None)
    if len(names) > 1:
        raise ValueError(f"{folder} has several trackers, name one: {', '.join(names)}")
    _toolkit("--registry", str(folder), "test", names[0])


@app.command()
def run(
    folder: Folder,
    trackers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TRACKER]...", help="Trackers; all of the workspace if left out."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Repeat finished sequences too.")] = False,
) -> None:
    """Run `vot evaluate` and `vot analysis`, and print EAO, accuracy and robustness.

    Downloads the sequences of the stack if the workspace has none. A run that
    was stopped goes on where it was.
    """
    from correlation_aware.evaluation.vot import read_measures

    names, place = _trackers(folder, trackers), ("--workspace", str(folder))
    file = folder / "analysis" / f"{ANALYSIS}.json"
    file.unlink(missing_ok=True)
    _toolkit("evaluate", *place, *(["--force"] if force else []), *names)
    _toolkit("analysis", *place, "--name", ANALYSIS, *names)
    if not file.is_file():
        raise RuntimeError("The toolkit did not complete the run; its messages above say why.")
    measures = read_measures(file)
    columns = list(dict.fromkeys(column for row in measures.values() for column in row))
    table = Table("experiment", "tracker")
    for column in columns:
        table.add_column(column, justify="right")
    for (experiment, name), row in measures.items():
        table.add_row(experiment, name, *(f"{row[key]:.3f}" if key in row else "" for key in columns))
    console.print(table)
    console.print(f"Wrote {escape(str(file))}")


@app.command()
def serve(
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Current folder of the tracker: relative paths and modules are there."
        ),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    redetect: Redetect = None,
    tracker: TrackerText = None,
    masks: Masks = False,
    refiner: RefinerText = None,
) -> None:
    """Answer a TraX client, as the toolkit starts it: the command in trackers.ini."""
    from correlation_aware.evaluation.refiners import create_refiner
    from correlation_aware.evaluation.trax import serve as serve_trax

    if folder is not None:
        os.chdir(folder)
    options = TrackerOptions(model, weights, device, runtime, decode, tracker, redetect=redetect)
    chosen = _refiner(masks, refiner)
    serve_trax(
        lambda: options.load().tracker,
        tracker or model or "correlation_aware",
        None if chosen is None else lambda: create_refiner(chosen),
    )


def _refiner(masks: bool, refiner: str | None) -> str | None:
    """The refiner that the options choose; None for boxes."""
    if refiner is not None and not masks:
        raise ValueError("--refiner has no effect without --masks")
    return (refiner or "grabcut") if masks else None


def _trackers(folder: Path, trackers: list[str] | None) -> list[str]:
    """The chosen trackers of a workspace, all of them by default."""
    from correlation_aware.evaluation.vot import tracker_names

    known = tracker_names(folder)
    unknown = [name for name in trackers or [] if name not in known]
    if unknown:
        raise ValueError(f"{folder} has no tracker {', '.join(unknown)}; it has {', '.join(known)}")
    return trackers or known


def _toolkit(*arguments: str) -> None:
    """Runs the command `vot` of the toolkit; its messages go to the terminal."""
    from correlation_aware.evaluation.vot import require_toolkit, toolkit_hint

    require_toolkit()
    code = subprocess.run([sys.executable, "-m", "vot", *arguments]).returncode
    if code:
        raise RuntimeError(
            f"vot {' '.join(arguments)} ended with exit code {code}; its messages are above.{toolkit_hint()}"
        )
