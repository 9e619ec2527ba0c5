"""`correlation-aware eval`: evaluate a tracker on annotated sequences and synthetic clips.

Its options --model, --weights, --device, --runtime, --decode and --redetect are those of `_common.py`.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from correlation_aware.cli import eval_clips, eval_davis, eval_report
from correlation_aware.cli._common import (
    Decode,
    DepthRange,
    Device,
    Model,
    Redetect,
    Runtime,
    Weights,
    console,
    parse_depth_range,
)
from correlation_aware.cli.eval_common import Json, Sequences, TrackerOptions, TrackerText
from correlation_aware.cli.eval_run import Evaluation, run_benchmark

__all__ = ["app"]

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


app.command()(eval_clips.clips)
app.command()(eval_clips.longterm)
