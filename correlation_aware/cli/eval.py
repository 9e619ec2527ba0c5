"""`correlation-aware eval`: measure a tracker on annotated sequences."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from correlation_aware.cli.track import console, load_tracker

if TYPE_CHECKING:
    from correlation_aware.evaluation.got10k import Scores, SequenceResult

__all__ = ["app"]

app = typer.Typer(help="Measure a tracker on annotated sequences.", no_args_is_help=True)

HEADINGS = ("sequence", "frames", "AO", "SR0.50", "SR0.75", "AUC", "frames/s")


@app.callback()
def group() -> None:
    """Measure a tracker on annotated sequences."""


@app.command()
def got10k(
    root: Annotated[Path, typer.Argument(help="Folder in GOT-10k's layout; it holds val/list.txt.")],
    model: Annotated[str | None, typer.Option(help="A `_track` model, instead of the default one.")] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "--pretrained", help="Tag or file of trained weights, or `random`."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if any.")
    ] = None,
    subset: Annotated[
        str, typer.Option(help="val, train or test; the truth of test is withheld: files only.")
    ] = "val",
    sequences: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Only these; all by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for boxes and times, laid out as the toolkit's `results`.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")
    ] = None,
) -> None:
    """One pass over sequences in GOT-10k's layout, whole frames.

    AO is the mean overlap of all frames after the first, SR0.50 and SR0.75 the
    share of frames above that overlap, AUC the area under the success curve.
    "average" counts every sequence alike, "all frames" every frame. Frames
    a second count the tracker alone, without reading pictures.
    """
    from correlation_aware.evaluation.got10k import average, evaluate, open_dataset, score, write_results
    from correlation_aware.weights import write_text

    if subset not in ("train", "val", "test"):
        raise ValueError(f"--subset {subset} is not one of val, train, test")
    if subset == "test" and output is None:
        raise ValueError("The truth of test is withheld: name a folder for the boxes with --output")
    dataset = open_dataset(root, subset)  # type: ignore[arg-type]
    names = sequences.split(",") if sequences else None
    tracker = load_tracker(model, weights, device)
    results: list[SequenceResult] = []
    with _progress() as bar:
        task = bar.add_task("evaluate", total=len(names or dataset.seq_names))
        for result in evaluate(tracker, dataset, names):
            if output is not None:
                write_results(output, tracker.name, result)
            results.append(result)
            bar.advance(task)
    if subset != "test":
        rows = {result.name: score([result]) for result in results if result.ious.size}
        totals = {"average": average(results), "all frames": score(results)}
        _print_table(rows, totals)
        if as_json is not None:
            figures = _figures(tracker.name, str(tracker.weights), rows, totals)
            write_text(json.dumps(figures, indent=2) + "\n", as_json)
            console.print(f"Wrote {escape(str(as_json))}")
    if output is not None:
        console.print(f"Wrote {escape(str(output / 'GOT-10k' / tracker.name))}")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("sequences,"))
    left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=True, disable=not console.is_terminal)


def _print_table(rows: dict[str, "Scores"], totals: dict[str, "Scores"]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in HEADINGS:
        table.add_column(title, justify="left" if title == "sequence" else "right", no_wrap=True)
    for name, scores in rows.items():
        table.add_row(escape(name), *_cells(scores))
    table.add_section()
    for name, scores in totals.items():
        table.add_row(name, *_cells(scores), style="bold")
    Console(width=None if console.is_terminal else 120, highlight=False).print(table)


def _cells(s: "Scores") -> Sequence[str]:
    figures = (f"{value:.3f}" for value in (s.ao, s.sr50, s.sr75, s.auc))
    return (str(s.frames), *figures, f"{s.fps:.1f}")


def _figures(
    tracker: str, weights: str, rows: dict[str, "Scores"], totals: dict[str, "Scores"]
) -> dict[str, Any]:
    return {
        "tracker": tracker,
        "weights": weights,
        **{name.replace(" ", "_"): asdict(scores) for name, scores in totals.items()},
        "sequences": {name: asdict(scores) for name, scores in rows.items()},
    }
