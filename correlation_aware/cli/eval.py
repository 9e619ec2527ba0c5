"""`correlation-aware eval`: evaluate a tracker on annotated sequences and synthetic clips.

Its options --model, --weights, --device, --runtime, --decode and --redetect are those of `_common.py`.
"""

import difflib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from correlation_aware._deprecation import current_fields
from correlation_aware._extras import require
from correlation_aware.cli import eval_davis, eval_report
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
    parse_depth_range,
    track_progress,
)
from correlation_aware.cli.eval_run import (
    Evaluation,
    TrackerOptions,
    print_long_term,
    print_scores,
    run_benchmark,
)

if TYPE_CHECKING:
    from correlation_aware.evaluation.long_term import LongTermResult
    from correlation_aware.evaluation.one_pass import SequenceResult
    from correlation_aware.tracking.tracker import TrackerConfig

__all__ = ["app"]

TrackerText = Annotated[
    str | None,
    typer.Option(
        metavar="TRACKER",
        help="Another tracker instead of a model: still, opencv:csrt, opencv:kcf, opencv:mil, "
        "opencv:nano:BACKBONE,HEAD, opencv:vit:MODEL, nanotrack-v2:BACKBONE,HEAD, "
        "nanotrack-v3:BACKBONE,HEAD, or module:factory of a tracker with init and update.",
    ),
]
Sequences = Annotated[
    str | None, typer.Option(metavar="NAME,NAME", help="Sequences to evaluate; all by default.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for boxes and times, in the toolkit's `results` layout.")
]
Results = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of a tracker's files of boxes to score, instead of running a tracker."
    ),
]
Processes = Annotated[
    int, typer.Option(min=1, help="Number of processes that share the sequences; needs --output.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
]
Name = Annotated[
    str | None, typer.Option(help="Name of the tracker in results; by default that of the model.")
]

app = typer.Typer(help="Evaluate a tracker on annotated sequences.", no_args_is_help=True)

AVERAGES = """AO is the mean overlap of all frames after the first, SR0.50 and SR0.75 the
    fraction of frames above that overlap, AUC the area under the success
    curve. "average" weights every sequence equally, "all frames" every frame.
    Frames/s is the speed of the tracker without reading images."""
PLOTS = """AUC is the area under the success curve, P the fraction of frames with
    centers at most 20 px apart, Pnorm at most 0.2 widths and heights of the
    target. Frames without a visible target are left out."""
COMMANDS = {  # what is evaluated, layout and subsets of every benchmark
    "got10k": (
        "sequences in GOT-10k's layout, on whole frames",
        "val/list.txt in GOT-10k's layout",
        "val, train, or test without public annotations, for result files",
    ),
    "otb": ("OTB-100", "NAME/img and NAME/groundtruth_rect.txt", "all"),
    "lasot": ("LaSOT", "CLASS/NAME/img", "test, train, all"),
    "lasot_ext": ("LaSOT's extension", "CLASS/NAME", "all"),
    "uav123": ("UAV123", "anno/UAV123 and data_seq/UAV123", "UAV123, UAV20L"),
    "nfs": ("NFS", "NAME/30/NAME.txt and NAME/30/NAME", "30, 240"),
    "tnl2k": ("TNL2K", "NAME/imgs and NAME/groundtruth.txt", "all"),
    "trackingnet": ("TrackingNet's test set, for result files", "TEST/anno and TEST/frames", "TEST"),
}


@app.callback()
def group() -> None:
    """Evaluate a tracker on annotated sequences."""


def _add_command(key: str, title: str, layout: str, subsets: str) -> None:
    """Adds the command of a benchmark."""

    def command(
        root: Annotated[Path, typer.Argument(metavar="ROOT", help=f"Folder with {layout}.")],
        model: Model = None,
        weights: Weights = None,
        device: Device = None,
        runtime: Runtime = "auto",
        decode: Decode = "default",
        redetect: Redetect = None,
        tracker: TrackerText = None,
        name: Name = None,
        subset: Annotated[str | None, typer.Option(help=f"{subsets}; the first one by default.")] = None,
        sequences: Sequences = None,
        depth_range: DepthRange = None,
        output: Output = None,
        results: Results = None,
        processes: Processes = 1,
        as_json: Json = None,
    ) -> None:
        from correlation_aware.evaluation.benchmarks import BENCHMARKS

        run_benchmark(
            Evaluation(
                key,
                root,
                BENCHMARKS[key].subsets[0] if subset is None else subset,
                sequences.split(",") if sequences else None,
                TrackerOptions(model, weights, device, runtime, decode, tracker, name, redetect),
                parse_depth_range(depth_range),
                output,
            ),
            results,
            processes,
            as_json,
        )

    measures = AVERAGES if key == "got10k" else PLOTS
    command.__doc__ = f"""One-pass evaluation on {title}.

    {measures}

    A run with --output that was stopped goes on where it was.

    Exit codes: 0, 3 if a sequence failed (the table has the others), 1 error.
    """
    app.command(key)(command)


app.command()(eval_report.report)
app.command()(eval_davis.davis)
for _key, _facts in COMMANDS.items():
    _add_command(_key, *_facts)


@app.command()
def pack(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="got10k or trackingnet.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the benchmark.")],
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a tracker's files of boxes.")],
    output: Annotated[Path, typer.Option(help="File to write (.zip).")],
    subset: Annotated[str | None, typer.Option(help="Subset; by default the test set.")] = None,
) -> None:
    """Check files of boxes and pack them for the server of GOT-10k or TrackingNet.

    Lists all that the server would reject; then no file is written and the
    exit code is 1.
    """
    from correlation_aware._files import check_output_file
    from correlation_aware.evaluation.benchmarks import BENCHMARKS, open_benchmark
    from correlation_aware.evaluation.submission import find_faults
    from correlation_aware.evaluation.submission import pack as write

    servers = [key for key, protocol in BENCHMARKS.items() if protocol.hidden]
    if benchmark not in servers:
        raise ValueError(f"{benchmark} has no server to submit to; expected {' or '.join(servers)}")
    check_output_file(output, (".zip",))
    opened = open_benchmark(benchmark, root, subset or BENCHMARKS[benchmark].hidden[0])
    faults = find_faults(results, opened)
    if faults:
        for fault in faults:
            console.print(escape(fault))
        raise ValueError(f"The server would reject {results}: {len(faults)} faults, listed above.")
    files = write(results, opened, output)
    console.print(f"Wrote {escape(str(output))} with {len(files)} files of {len(opened.names)} sequences")


@app.command()
def clips(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders or tar shards of photographs.")
    ],
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    decode: Decode = "default",
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
    as_json: Json = None,
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
    from correlation_aware.tracking.tracker import Tracker, decode_config

    configs = _grid(sweep or [], decode_config(decode))
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
    print_scores(dict(sorted(rows.items(), key=lambda row: -row[1].ao)), {}, "settings", {"CE": errors})
    if plot is not None:
        title = f"{tracker.weights_name}, {count} synthetic clips"
        plot_reliability(next(iter(calibrations.values())), plot, title)
        console.print(f"Wrote {escape(str(plot))}")
    if as_json is not None:
        settings = {n: {**asdict(s), "calibration_error": calibrations[n].error} for n, s in rows.items()}
        about = {"tracker": tracker.name, "weights": tracker.weights_name, "clips": count, "seed": seed}
        write_text(json.dumps({**about, "settings": settings}, indent=2) + "\n", as_json)
        console.print(f"Wrote {escape(str(as_json))}")


@app.command()
def longterm(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders or tar shards of photographs.")
    ],
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips.")] = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Values of a field of TrackerConfig; redetect=0,1 by default. Repeat for a grid.",
        ),
    ] = None,
    as_json: Json = None,
) -> None:
    """Evaluate on synthetic clips in which the target goes out of sight.

    In 150 frames it leaves the frame and is covered by an object, and returns
    elsewhere; a recolored copy of it and another object stay. F is VOT's
    F-score for long-term tracking at its best threshold of the score, P and R
    are precision and recall there. "again" is the share of returns after
    which the target is found within 25 frames, "elsewhere" the share of
    clips that end on something else. "cost" is the time per frame over that
    of the first row; "if lost" is that of frames with a lost target.
    """
    from correlation_aware._files import check_output_file, write_text
    from correlation_aware.evaluation.long_term import LONG_TERM_CLIPS, long_term_scores, track_clip
    from correlation_aware.evaluation.synthetic import make_clips
    from correlation_aware.runtime.session import InferenceSession
    from correlation_aware.tracking.tracker import Tracker, decode_config

    configs = _grid(sweep or ["redetect=0,1"], decode_config(decode))
    if as_json is not None:
        check_output_file(as_json)
    tracker = load_tracker(model, weights, device, runtime)
    trackers = {
        name: Tracker(InferenceSession(tracker.model, runtime=tracker.session.runtime), config)
        for name, config in configs.items()
    }
    results: dict[str, list[LongTermResult]] = {name: [] for name in trackers}
    clips = make_clips(dict.fromkeys(sources, 1.0), count, seed, LONG_TERM_CLIPS)
    for clip in track_progress(clips, count, "clips"):
        for name, configured in trackers.items():
            results[name].append(track_clip(configured, clip))
    rows = {name: long_term_scores(of_config) for name, of_config in results.items()}
    print_long_term(rows)
    if as_json is not None:
        settings = {name: asdict(scores) for name, scores in rows.items()}
        about = {"tracker": tracker.name, "weights": tracker.weights_name, "clips": count, "seed": seed}
        write_text(json.dumps({**about, "settings": settings}, indent=2) + "\n", as_json)
        console.print(f"Wrote {escape(str(as_json))}")


def _grid(sweep: Sequence[str], default: "TrackerConfig") -> dict[str, "TrackerConfig"]:
    """Configurations of all combinations of the values, by labels such as `window_weight=0.2 margin=5`."""
    known = {
        name: type(value) if isinstance(value, int) else float
        for name, value in vars(default).items()
        if not isinstance(value, str)
    }
    axes: list[list[tuple[str, Any]]] = []
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
    grid = {
        " ".join(f"{name}={value:g}" for name, value in choice) or "default": replace(default, **dict(choice))
        for choice in itertools.product(*axes)
    }
    for name in (name for axis in axes for name, _ in axis):
        if name.startswith("redetect_") and not any(config.redetect for config in grid.values()):
            raise ValueError(f"--sweep {name}=... has no effect without --sweep redetect=1: add it")
    return grid
