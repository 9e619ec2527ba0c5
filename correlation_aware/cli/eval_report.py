"""`correlation-aware eval report`: compare the results of several trackers."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import console

__all__ = ["report"]


def report(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS...",
            help="Folders of trackers' results, such as results/GOT-10k/*/; NAME=FOLDER sets a name.",
        ),
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Page to write (.html).")] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write.")
    ] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="CSV file to write.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="LaTeX table to write (.tex).")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Benchmark of results without a manifest, such as got10k.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; by default where it was in the run.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of results without a manifest.")] = None,
    attributes: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the toolkit's files of attributes.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Number of worst frames per tracker.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare the results of trackers on one benchmark.

    Figures are means over the sequences that all trackers have, with 95 %
    intervals of the bootstrap over sequences. The page also has plots, pairs
    of trackers, attributes, worst frames, calibration of scores and speed; it
    needs no other file.
    """
    from correlation_aware._files import check_output_file
    from correlation_aware.evaluation.report import METRICS, make_report
    from correlation_aware.evaluation.report_page import write_page
    from correlation_aware.evaluation.report_tables import write_csv, write_json, write_latex

    outputs = (
        (html, write_page, (".html", ".htm")),
        (as_json, write_json, ()),
        (as_csv, write_csv, (".csv",)),
        (latex, write_latex, (".tex",)),
    )
    for path, _, suffixes in outputs:
        if path is not None:
            check_output_file(path, suffixes)
    made = make_report(results, benchmark, root, subset, attributes, worst, seed)
    for name, reason in made.left_out.items():
        console.print(f"[yellow]{escape(name)} is left out:[/] {escape(reason)}")
    title = f"{made.benchmark} {made.subset}, {len(made.sequences)} sequences"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("tracker", overflow="fold")
    for heading in METRICS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for tracker in made.trackers:
        table.add_row(escape(tracker.name), *(f"{tracker.totals[metric].mean:.3f}" for metric in METRICS))
    console.print(table)
    for pair in made.pairs:
        c = pair.comparison
        reading = "clear" if c.is_clear else "not clear"
        low, high = c.difference.low, c.difference.high
        bounds = "too few sequences for an interval" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
        console.print(
            f"{escape(pair.better)} - {escape(pair.worse)}: {METRICS[made.main]} {c.difference.mean:+.3f} "
            f"({bounds}), {c.wins} won, {c.ties} equal, {c.losses} lost: {reading}"
        )
    for path, write, _ in outputs:
        if path is not None:
            write(made, path)
            console.print(f"Wrote {escape(str(path))}")
