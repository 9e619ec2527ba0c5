"""`correlation-aware eval`: evaluate a tracker on annotated sequences and synthetic clips."""

import difflib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from correlation_aware._deprecation import current_fields
from correlation_aware._extras import require
from correlation_aware.cli._common import (
    Device,
    Model,
    Runtime,
    Weights,
    console,
    load_tracker,
    track_progress,
)

if TYPE_CHECKING:
    from correlation_aware.evaluation.one_pass import Scores, SequenceResult
    from correlation_aware.evaluation.trackers import NamedTracker
    from correlation_aware.tracking.tracker import TrackerConfig

__all__ = ["app"]

Tracker = Annotated[
    str | None,
    typer.Option(
        metavar="TRACKER",
        help="Another tracker instead of a model: still, opencv:csrt, opencv:kcf, opencv:mil, "
        "opencv:nano:BACKBONE,HEAD, opencv:vit:MODEL, nanotrack-v2:BACKBONE,HEAD, "
        "nanotrack-v3:BACKBONE,HEAD, or module:factory of a tracker with init and update.",
    ),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the tracker in results; by default that of the model.")
]

app = typer.Typer(help="Evaluate a tracker on annotated sequences.", no_args_is_help=True)

HEADINGS = ("frames", "AO", "SR0.50", "SR0.75", "AUC", "frames/s")


@app.callback()
def group() -> None:
    """Evaluate a tracker on annotated sequences."""


@app.command()
def got10k(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder in GOT-10k's layout, with val/list.txt.")
    ],
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    tracker: Tracker = None,
    name: Name = None,
    subset: Annotated[
        str, typer.Option(help="val, train or test; test has no public annotations: result files only.")
    ] = "val",
    sequences: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Sequences to evaluate; all by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for boxes and times, in the toolkit's `results` layout.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
    ] = None,
) -> None:
    """One-pass evaluation on sequences in GOT-10k's layout, on whole frames.

    AO is the mean overlap of all frames after the first, SR0.50 and SR0.75 the
    fraction of frames above that overlap, AUC the area under the success
    curve. "average" weights every sequence equally, "all frames" every frame.
    Frames/s is the speed of the tracker without reading images.
    """
    from correlation_aware._files import check_output_file, check_output_folder, write_text
    from correlation_aware.evaluation.got10k import evaluate, open_dataset, write_results
    from correlation_aware.evaluation.one_pass import average, score

    if subset not in ("train", "val", "test"):
        raise ValueError(f"--subset {subset} is not one of val, train, test")
    if subset == "test" and output is None:
        raise ValueError("The annotations of test are not public: name a folder for the boxes with --output")
    if subset == "test" and as_json is not None:
        raise ValueError("--json has no effect with --subset test: without annotations there are no measures")
    if output is not None:
        check_output_folder(output)
    if as_json is not None:
        check_output_file(as_json)
    dataset = open_dataset(root, subset)  # type: ignore[arg-type]
    names = sequences.split(",") if sequences else None
    about = _load(tracker, name, model, weights, device, runtime)
    results: list[SequenceResult] = []
    sequence_count = len(names or dataset.seq_names)
    for result in track_progress(evaluate(about.tracker, dataset, names), sequence_count, "sequences"):
        if output is not None:
            write_results(output, about.name, result)
        results.append(result)
    if subset != "test":
        rows = {result.name: score([result]) for result in results if result.ious.size}
        totals = {"average": average(results), "all frames": score(results)}
        _print_table(rows, totals)
        if as_json is not None:
            report = _report(about.name, about.weights, rows, totals)
            write_text(json.dumps(report, indent=2) + "\n", as_json)
            console.print(f"Wrote {escape(str(as_json))}")
    if output is not None:
        console.print(f"Wrote {escape(str(output / 'GOT-10k' / about.name))}")


@app.command()
def clips(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders or tar shards of photographs.")
    ],
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips.")] = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Values of a field of TrackerConfig, such as window_weight=0.2,0.4. Repeat for a grid.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reliability diagram of the score to write (PNG).")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
    ] = None,
) -> None:
    """Evaluate on synthetic clips with exact boxes, made from photographs.

    For choosing a tracker's settings and checking the calibration of its
    score without using a benchmark. The photographs should not be training
    data. --sweep prints a row for each combination of settings. CE is the
    expected calibration error: the mean difference of the score and the
    fraction of right boxes.
    """
    from correlation_aware._files import PLOT_SUFFIXES, check_output_file, write_text
    from correlation_aware.evaluation.calibration import plot_reliability, reliability, scored_frames
    from correlation_aware.evaluation.one_pass import average
    from correlation_aware.evaluation.synthetic import evaluate_clip, make_clips
    from correlation_aware.runtime.session import InferenceSession
    from correlation_aware.tracking.tracker import Tracker, TrackerConfig

    configs = _grid(sweep or [], TrackerConfig())
    if plot is not None and len(configs) > 1:
        raise ValueError(
            "--plot shows one combination of settings: leave out --sweep, or use one value per field"
        )
    if plot is not None:
        require("matplotlib.figure")
        check_output_file(plot, PLOT_SUFFIXES)
    if as_json is not None:
        check_output_file(as_json)
    tracker = load_tracker(model, weights, device)
    trackers = {name: Tracker(InferenceSession(tracker.model), config) for name, config in configs.items()}
    results: dict[str, list[SequenceResult]] = {name: [] for name in trackers}
    generated = make_clips(dict.fromkeys(sources, 1.0), count, seed)
    for number, clip in enumerate(track_progress(generated, count, "clips")):
        for name, configured in trackers.items():
            results[name].append(evaluate_clip(configured, clip, f"clip {number}"))
    rows = {name: average(of_config) for name, of_config in results.items()}
    calibrations = {name: reliability(*scored_frames(of_config)) for name, of_config in results.items()}
    errors = {name: f"{calibrations[name].error:.3f}" for name in rows}
    _print_table(dict(sorted(rows.items(), key=lambda row: -row[1].ao)), {}, "settings", {"CE": errors})
    if plot is not None:
        title = f"{tracker.weights_name}, {count} synthetic clips"
        plot_reliability(next(iter(calibrations.values())), plot, title)
        console.print(f"Wrote {escape(str(plot))}")
    if as_json is not None:
        settings = {n: {**asdict(s), "calibration_error": calibrations[n].error} for n, s in rows.items()}
        about = {"tracker": tracker.name, "weights": tracker.weights_name, "clips": count, "seed": seed}
        write_text(json.dumps({**about, "settings": settings}, indent=2) + "\n", as_json)
        console.print(f"Wrote {escape(str(as_json))}")


def _load(
    tracker: str | None,
    name: str | None,
    model: str | None,
    weights: str | None,
    device: str | None,
    runtime: str,
) -> "NamedTracker":
    """The tracker of the options, under the name for its results."""
    from correlation_aware.evaluation.trackers import NamedTracker, create_baseline

    if name is not None and (not name or name[0] == "." or set(name) & set('/\\:*?"<>|')):
        raise ValueError(f"--name {name!r} has to be the name of a folder, such as my_tracker")
    if tracker is None:
        own = load_tracker(model, weights, device, runtime)
        return NamedTracker(name or own.name, own, str(own.weights_name))
    options = {"--model": model, "--weights": weights, "--device": device}
    unused = [option for option, value in options.items() if value is not None]
    unused += ["--runtime"] * (runtime != "auto")
    if unused:
        raise ValueError(f"{', '.join(unused)}: no effect with --tracker, which is used instead of a model")
    about = create_baseline(tracker)
    console.print(f"{escape(about.name)} {escape(about.weights)}".strip())
    return replace(about, name=name or about.name)


def _grid(sweep: Sequence[str], default: "TrackerConfig") -> dict[str, "TrackerConfig"]:
    """Configurations of all combinations of the values, by labels such as `window_weight=0.2 margin=5`."""
    known = {f.name: bool if isinstance(getattr(default, f.name), bool) else float for f in fields(default)}
    axes = []
    for text in sweep:
        name, _, values = text.partition("=")
        (name,) = current_fields(type(default), {name: values})
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2) or known
            raise ValueError(f"--sweep {text!r}: there is no setting {name!r}. Near: {', '.join(near)}.")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(
                f"--sweep {text!r} is not NAME=V,V,... with numbers, 0 and 1 for no, yes"
            ) from None
        axes.append([(name, known[name](number)) for number in numbers])
    return {
        " ".join(f"{name}={value:g}" for name, value in choice) or "default": replace(default, **dict(choice))
        for choice in itertools.product(*axes)
    }


def _print_table(
    rows: dict[str, "Scores"],
    totals: dict[str, "Scores"],
    subject: str = "sequence",
    more: dict[str, dict[str, str]] | None = None,
) -> None:
    """Prints a table with a row per item; `more` maps titles of further columns to their values by row."""
    table, more = Table(box=None, padding=(0, 2, 0, 0)), more or {}
    for title in (subject, *HEADINGS, *more):
        table.add_column(title, justify="left" if title == subject else "right", no_wrap=True)
    for name, scores in rows.items():
        table.add_row(escape(name), *_format_scores(scores), *(column[name] for column in more.values()))
    table.add_section()
    for name, scores in totals.items():
        table.add_row(name, *_format_scores(scores), style="bold")
    Console(width=None if console.is_terminal else 120, highlight=False).print(table)


def _format_scores(s: "Scores") -> Sequence[str]:
    values = (f"{value:.3f}" for value in (s.ao, s.sr50, s.sr75, s.auc))
    return (str(s.frames), *values, f"{s.fps:.1f}")


def _report(
    tracker: str, weights: str, rows: dict[str, "Scores"], totals: dict[str, "Scores"]
) -> dict[str, Any]:
    return {
        "tracker": tracker,
        "weights": weights,
        **{name.replace(" ", "_"): asdict(scores) for name, scores in totals.items()},
        "sequences": {name: asdict(scores) for name, scores in rows.items()},
    }
