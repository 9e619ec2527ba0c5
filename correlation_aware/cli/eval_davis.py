"""`correlation-aware eval davis`: video object segmentation, from the first mask on."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from correlation_aware._extras import require
from correlation_aware.cli._common import console, figure_table, print_wide
from correlation_aware.cli.eval_common import (
    Json,
    Sequences,
    check_measured,
    check_name,
    collect,
    exit_if_failed,
)

if TYPE_CHECKING:
    from correlation_aware.evaluation.benchmarks import SequenceFailure
    from correlation_aware.evaluation.davis import MaskResult
    from correlation_aware.evaluation.segmenters import NamedSegmenter

__all__ = ["davis"]


def davis(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")
    ],
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="still (the first mask in every frame), stm-ca (with a checkout of seoungwugoh/STM on "
            "PYTHONPATH), or module:factory of an object with init(frame, mask) and update(frame).",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of masks, NAME/00000.png, to score instead of a run."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of stm-ca: checkpoint of an STM_CA, or `random`, the default.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Of stm-ca: network of the encoders; sbt_small_stm by default.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Of stm-ca: frame, the first frame, or crop, the object in it; frame by default."),
    ] = None,
    memory_every: Annotated[
        int | None, typer.Option(min=1, help="Of stm-ca: frames between two in the memory; 5 by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tracker in results.")] = None,
    subset: Annotated[
        str, typer.Option(help="List of names in ImageSets, without .txt; DAVIS-2016 has 480p/val.")
    ] = "2017/val",
    resolution: Annotated[str, typer.Option(help="Folder in JPEGImages and Annotations.")] = "480p",
    sequences: Sequences = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for masks: DAVIS/NAME/SEQUENCE/00000.png.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="own, or vos-benchmark: the package of this name, with the same figures.")
    ] = "own",
    as_json: Json = None,
) -> None:
    """Video object segmentation on DAVIS, or sequences in its layout.

    J is the region similarity (IoU), F the boundary accuracy, J&F their mean,
    of every object of the first mask, in percent. "all" weights every object
    equally. The first and the last annotated frame are not measured.

    A run with --output that was stopped goes on where it was.

    Exit codes: 0, 3 if a sequence failed (the table has the others), 1 error.
    """
    from correlation_aware._files import check_output_file, file_lock
    from correlation_aware.evaluation.davis import METRICS, Davis
    from correlation_aware.evaluation.mask_results import MaskFolder, evaluate, read_results
    from correlation_aware.evaluation.results import describe_run

    options = {"network": network, "weights": weights, "template": template, "memory_every": memory_every}
    _check(tracker, results, options, name, output)
    if metric not in METRICS:
        raise ValueError(f"--metric {metric}: expected {' or '.join(METRICS)}")
    if metric == "vos-benchmark":
        require("vos_benchmark.evaluator")
    if as_json is not None:
        check_output_file(as_json)
    dataset = Davis(root, subset, resolution)
    names = dataset.select(sequences.split(",") if sequences else None)
    folder, about = None, None
    outcomes: Iterator[MaskResult | SequenceFailure]
    if results is not None:
        if not results.is_dir():
            raise FileNotFoundError(f"There is no folder {results}.")
        outcomes = read_results(MaskFolder(results), dataset, names, metric)
    else:
        assert tracker is not None
        about = _load(tracker, options)
        if output is not None:
            label = name or about.name
            settings = {**about.settings, "resolution": resolution}
            run = describe_run(dataset, label, about.sha256, settings, about.device)
            folder = MaskFolder.start(output, label, run)
            if done := sum(map(folder.is_finished, names)):
                console.print(f"{done} of {len(names)} sequences are finished in {escape(str(folder.path))}")
        outcomes = evaluate(about.segmenter, dataset, names, metric, folder)
    lock: Any = nullcontext(True) if folder is None else file_lock(folder.path / ".run.lock")
    with lock as is_free:
        if not is_free:
            assert folder is not None
            raise ValueError(f"Another process writes to {folder.path}: wait, or choose another --name.")
        measured, failed = collect(outcomes, len(names))
    check_measured(measured, failed)
    for result in measured:
        if result.late:
            late = ", ".join(map(str, result.late))
            text = f"{result.name}: labels {late} are not in the first mask and not measured"
            console.print(f"[yellow]{escape(text)}[/]")
    totals = _print(measured)
    if folder is not None:
        console.print(f"Wrote {escape(str(folder.path))}")
    if as_json is not None:
        title = str(results) if about is None else name or about.name
        weights_name = "" if about is None else about.weights
        _write(
            measured, failed, totals, {"tracker": title, "weights": weights_name, "metric": metric}, as_json
        )
        console.print(f"Wrote {escape(str(as_json))}")
    exit_if_failed(failed, len(names))


def _check(
    tracker: str | None,
    results: Path | None,
    options: dict[str, Any],
    name: str | None,
    output: Path | None,
) -> None:
    """Refuses options that exclude each other or have no effect."""
    if (tracker is None) == (results is None):
        raise ValueError("Name either --tracker, such as still, or --results, a folder of masks")
    used = [f"--{key.replace('_', '-')}" for key, value in options.items() if value is not None]
    if results is not None:
        used += [option for option, value in (("--name", name), ("--output", output)) if value is not None]
        if used:
            raise ValueError(f"{', '.join(used)}: no effect with --results, whose masks are read from files")
    elif used and tracker != "stm-ca":
        raise ValueError(f"{', '.join(used)}: only for --tracker stm-ca")
    check_name(name)


def _load(tracker: str, options: dict[str, Any]) -> "NamedSegmenter":
    """The segmenter; a yellow line warns of random weights."""
    from correlation_aware.evaluation.segmenters import StmOptions, create_segmenter

    chosen = {key: value for key, value in options.items() if value is not None}
    about = create_segmenter(tracker, StmOptions(**chosen))
    if about.weights == "random":
        console.print(f"[yellow]The weights of {about.name} are random: its masks mean nothing.[/]")
    else:
        console.print(f"{escape(about.name)} {escape(about.weights)}".strip())
    return about


def _means(results: Sequence["MaskResult"]) -> dict[str, float]:
    """J, F and J&F in percent, over objects."""
    j = 100 * _mean(value for result in results for value in result.j.mean(axis=0))
    f = 100 * _mean(value for result in results for value in result.f.mean(axis=0))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def _mean(values: Iterable[Any]) -> float:
    collected = [float(value) for value in values]
    return sum(collected) / len(collected)


def _print(measured: Sequence["MaskResult"]) -> dict[str, float]:
    """Prints a row per sequence and one for all; returns the figures of all."""
    table = figure_table(("sequence", "objects", "frames", "J&F", "J", "F", "frames/s"))
    for result in measured:
        figures = [f"{value:.1f}" for value in _means([result]).values()]
        seconds = result.seconds.sum()
        speed = f"{len(result.seconds) / seconds:.2f}" if seconds else "-"
        table.add_row(escape(result.name), str(len(result.objects)), str(len(result.j)), *figures, speed)
    totals = _means(measured)
    table.add_section()
    objects, frames = (
        sum(len(part) for part in parts) for parts in zip(*((r.objects, r.j) for r in measured))
    )
    figures = [f"{value:.1f}" for value in totals.values()]
    table.add_row("all", str(objects), str(frames), *figures, "", style="bold")
    print_wide(table)
    return totals


def _write(
    measured: Sequence["MaskResult"],
    failed: dict[str, str],
    totals: dict[str, float],
    about: dict[str, Any],
    path: Path,
) -> None:
    from correlation_aware._files import write_text

    rows = {
        result.name: {
            **_means([result]),
            "objects": {
                str(label): {"J": 100 * result.j[:, i].mean(), "F": 100 * result.f[:, i].mean()}
                for i, label in enumerate(result.objects)
            },
            "not_measured": list(result.late),
        }
        for result in measured
    }
    report = {**about, "all": totals, "sequences": rows, "failed": failed}
    write_text(json.dumps(report, indent=2) + "\n", path)
