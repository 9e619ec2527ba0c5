"""`correlation-aware bench`: how fast it is here, against what, and against what the machine could do."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from correlation_aware.cli._common import Device, console
from correlation_aware.cli.bench_report import Run, as_ms, dtype_name, parse_counts, print_case, print_table

if TYPE_CHECKING:  # otherwise imported where they are used, so that --help is quick
    from correlation_aware.bench.bench_operations import OperationRow
    from correlation_aware.bench.contenders import Skipped

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Dtypes = Annotated[str, typer.Option("--dtype", metavar="NAME,...", help="float32, bfloat16, float16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of a CPU; PyTorch's choice by default.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="Of timed calls for each row.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "--pretrained",
        help="Tag or file, or `random`; by default those that need no download, else random ones.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of two-input models.")]


@app.callback()
def group() -> None:
    """Measure speed on this machine.

    All that is compared is timed in one run, in turns. Each command prints the
    hardware and the versions, and measures the ceilings of the machine: how
    fast it copies, and how fast it multiplies matrices.
    """


@app.command()
def machine(
    device: Device = None, dtype: Dtypes = "float32,bfloat16", threads: Threads = None, as_json: Json = None
) -> None:
    """Hardware, versions, bandwidth of a copy and rate of a matrix product."""
    Run("machine", device, dtype, threads).write(as_json, {})


@app.command()
def model(
    models: Models,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Pairs a call.")] = "1",
    dtype: Dtypes = "float32",
    contenders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="reference, reference-compile, reference-max-autotune and the runtimes, -triton for the "
            "kernels; wildcards allowed. All by default, on a CPU without compiled references and kernels.",
        ),
    ] = None,
    contender: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Other code to time, in float32 or as FUNCTION@DTYPE. Repeatable."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@DTYPE]",
            help="Whose time is 1x; by default the first row's.",
        ),
    ] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder in GOT-10k's layout: compare outputs on real crops."),
    ] = None,
    encoded: Annotated[
        bool, typer.Option(help="At the first batch size, also time calls that encode the template.")
    ] = True,
    search_size: Annotated[
        str | None,
        typer.Option(metavar="PX,...", help="Sides of the search picture; by default the model's."),
    ] = None,
    weights: Weights = None,
    seconds: Seconds = 3.0,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Networks: latency and throughput, by who runs them.

    "cached": the template is encoded before, as in tracking. "p99": 99 of 100
    calls took no longer. "pairs/s": nobody waits between calls. "roofline":
    the share of what the machine's ceilings allow. "differs": the largest
    difference of an output to the float32 reference, relative to the largest
    number. "argmax": pictures whose best cell is the reference's.

    FUNCTION(model) of --contender is given a copy of the model, and returns a
    callable (template, search); docs/performance.md has an example.
    """
    from correlation_aware.bench.bench_models import bench_model
    from correlation_aware.bench.contenders import REFERENCE, contender_names

    run = Run("model", device, dtype, threads, [spec.partition("@")[2] for spec in contender or ()])
    names = contenders.split(",") if contenders else contender_names()
    if contenders is None and run.device.type == "cpu":
        names = [n for n in names if not n.startswith(f"{REFERENCE}-") and not n.endswith("-triton")]
    cases = []
    sizes = [None] if search_size is None else parse_counts("--search-size", search_size)
    for name, size in itertools.product(models, sizes):
        for case in bench_model(
            name,
            parse_counts("--batch", batch),
            run.device,
            run.dtypes,
            names,
            ceilings=run.ceilings,
            weights=weights,
            search_size=size,
            others=contender or (),
            against=against,
            sequences=sequences,
            encoded=encoded,
            seconds=seconds,
        ):
            print_case(case)
            cases.append(asdict(case))
            run.write(as_json, {"cases": cases})


@app.command()
def train(
    models: Models,
    batch: Annotated[int, typer.Option(min=1, help="Pairs a step.")] = 64,
    dtype: Dtypes = "bfloat16",
    contenders: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="reference, reference-compile, eager, eager-triton, compile-triton."
        ),
    ] = "reference,eager",
    seconds: Seconds = 5.0,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """A training step: forward and backward, weights in float32, products in --dtype."""
    from correlation_aware.bench.bench_training import bench_training

    run = Run("train", device, dtype, threads)
    found = []
    for name in models:
        for t in run.dtypes:
            rows, skipped = bench_training(name, batch, run.device, t, contenders.split(","), seconds)
            title = f"{name}, forward and backward of {batch} pairs, {dtype_name(t)}"
            cells = [
                (
                    row.contender,
                    as_ms(row.times.median),
                    as_ms(row.times.p99),
                    f"{row.pairs_per_second:.1f}",
                    f"{row.speedup:.2f}x",
                    f"{row.difference:.1e}",
                )
                for row in rows
            ]
            print_table(title, ("", "ms", "p99", "pairs/s", "speed", "gradients differ"), cells, skipped)
            found.append(
                {"model": name, "batch": batch, "dtype": dtype_name(t), "rows": [asdict(r) for r in rows]}
            )
            run.write(as_json, {"cases": found})


@app.command("ops")
def operations(
    models: Models,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Pairs a call.")] = "1",
    dtype: Dtypes = "float32",
    forms: Annotated[
        str, typer.Option(metavar="NAME,...", help="reference, reference-compile, triton.")
    ] = "reference,reference-compile,triton",
    backward: Annotated[bool, typer.Option("--backward", help="Forward and backward.")] = False,
    seconds: Seconds = 0.3,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Every operation of the blocks alone, at the shapes of a model with its template cached.

    On a GPU the time is that of the device, without launches. The last line
    of a model adds up what a forward pass calls.
    """
    from correlation_aware.bench.bench_operations import FORMS, bench_operation, calls_of

    chosen = forms.split(",")
    if unknown := set(chosen) - set(FORMS):
        raise ValueError(f"--forms {', '.join(sorted(unknown))} is not among {', '.join(FORMS)}.")
    run = Run("ops", device, dtype, threads)
    found = []
    for name, count, t in itertools.product(models, parse_counts("--batch", batch), run.dtypes):
        rows: list[OperationRow] = []
        skipped: dict[tuple[str, str], Skipped] = {}
        for operands, calls in calls_of(name, count).items():
            made, left = bench_operation(
                operands, calls, run.device, t, run.ceilings[t], chosen, backward, seconds
            )
            rows += made
            skipped |= {(out.name, out.reason): out for out in left}
        cells = [
            (
                row.operation,
                row.shapes,
                str(row.calls),
                row.form,
                f"{1e3 * row.milliseconds:.1f}",
                "" if row.speedup is None else f"{row.speedup:.2f}x",
                "" if row.roofline_share is None else f"{100 * row.roofline_share:.1f} %",
                f"{row.difference:.1e}",
            )
            for row in rows
        ]
        totals = {form: sum(r.calls * r.milliseconds for r in rows if r.form == form) for form in chosen}
        cells += [
            ("all", "", "", form, f"{1e3 * spent:.1f}", "", "", "") for form, spent in totals.items() if spent
        ]
        title = f"{name}, batch {count}, {dtype_name(t)}, {'forward and backward' if backward else 'forward'}"
        headings = ("", "shapes", "calls", "form", "us", "speed", "roofline", "differs")
        print_table(title, headings, cells, skipped.values())
        found.append(
            {"model": name, "batch": count, "dtype": dtype_name(t), "rows": [asdict(r) for r in rows]}
        )
        run.write(as_json, {"backward": backward, "cases": found})


@app.command()
def tracker(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A `_track` model.")] = "sbt_light_cell_track",
    targets: Annotated[str, typer.Option(metavar="N,...", help="Targets that share a frame.")] = "1,2,4,8",
    runtimes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of `track --runtime`, with -triton for the kernels; by default all but compile.",
        ),
    ] = None,
    dtype: Dtypes = "float32",
    weights: Weights = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Where a frame's time goes, and what more targets cost, in a clip that the package draws."""
    from correlation_aware.bench.bench_tracking import bench_tracker
    from correlation_aware.bench.contenders import Skipped
    from correlation_aware.runtime.session import RUNTIMES

    run = Run("tracker", device, dtype, threads)
    chosen = runtimes.split(",") if runtimes else [r for r in RUNTIMES if r not in ("auto", "compile")]
    pairs = [(runtime, t) for runtime in chosen for t in run.dtypes]
    rows: list[Any] = []
    skipped: list[Skipped] = []
    for found in bench_tracker(model, parse_counts("--targets", targets), run.device, pairs, weights):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            rows += found
    cells = [
        (
            str(row.targets),
            row.runtime,
            row.dtype,
            *(as_ms(part) for part in (row.crop, row.model, row.post)),
            f"{row.frames_per_second:.1f}",
            f"{row.targets_per_second:.1f}",
        )
        for row in rows
    ]
    headings = ("targets", "runtime", "dtype", "crop ms", "model ms", "post ms", "frames/s", "targets/s")
    print_table(f"{model}, ms a frame of 1280 x 720 px", headings, cells, skipped)
    run.write(as_json, {"model": model, "rows": [asdict(row) for row in rows]})


@app.command()
def plot(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", exists=True, dir_okay=False, help="Of `bench model` and `bench tracker`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
) -> None:
    """Draws reports: a panel for each of models, batch, search size and targets that varies in one."""
    from correlation_aware.bench.plot import plot_reports

    found = []
    for path in reports:
        try:
            found.append(dict(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a file of `bench --json`: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_reports(found, out)
    console.print(f"The plot is {escape(str(out))}")
