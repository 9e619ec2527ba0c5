"""`correlation-aware bench`: speed on this machine, compared with baselines and with its peak rates.

Its option --device is that of `_common.py`.
"""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from correlation_aware.cli._common import WEIGHTS_HELP, Device, console
from correlation_aware.cli.bench_report import Benchmark, as_ms, parse_counts, print_case, print_table

if TYPE_CHECKING:  # imported inside functions instead, so that --help starts fast
    from correlation_aware.bench.bench_operations import OperationRow
    from correlation_aware.bench.contenders import Skipped

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Dtypes = Annotated[
    str, typer.Option("--dtype", metavar="NAME,...", help="Dtypes: float32, bfloat16, float16.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of CPU threads; PyTorch's by default.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="Total time of the timed calls of each row.")]
Weights = Annotated[
    str | None,
    typer.Option(help=f"{WEIGHTS_HELP}; by default bundled weights, else random ones."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
]
Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="Names of two-input models.")]


@app.callback()
def group() -> None:
    """Measure speed on this machine.

    Everything that is compared is timed in one process, in alternation. Each
    command checks its arguments, prints hardware and versions, and measures
    the peak rates of the machine: bandwidth of a copy and rate of a matrix
    product.
    """


@app.command()
def machine(
    device: Device = None, dtype: Dtypes = "float32,bfloat16", threads: Threads = None, as_json: Json = None
) -> None:
    """Print hardware, versions, bandwidth of a copy and rate of a matrix product."""
    run = Benchmark("machine", device, dtype, threads, as_json)
    run.measure()
    run.write({})
    run.finish()


@app.command()
def model(
    models: Models,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes: pairs per call.")] = "1",
    dtype: Dtypes = "float32",
    contenders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="reference, reference-compile, reference-max-autotune, and the runtimes with or without "
            "-triton for the kernels; wildcards allowed. By default all; on a CPU reference, eager, compile "
            "(which compiles for minutes), onnx and openvino.",
        ),
    ] = None,
    contender: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Your own code to time, in float32 or @DTYPE. Repeatable."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME[@DTYPE]", help="Baseline of the speedups; by default the first row."),
    ] = None,
    sequences: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder in GOT-10k's layout, to compare outputs on real crops."),
    ] = None,
    encoded: Annotated[
        bool, typer.Option(help="At the first batch size, also time calls that encode the template.")
    ] = True,
    search_size: Annotated[
        str | None,
        typer.Option(metavar="PX,...", help="Sizes of the search image; by default the model's."),
    ] = None,
    weights: Weights = None,
    seconds: Seconds = 3.0,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Time whole networks: latency and throughput of every implementation.

    "cached": the template is encoded before, as in tracking. "p99": 99th
    percentile of the call times. "pairs/s": throughput of queued calls.
    "roofline": fraction of the speed that the machine's peak rates allow.
    "differs": largest difference of an output to the float32 reference,
    relative to the largest value. "argmax": images whose score map has its
    maximum at the reference's location.

    FUNCTION(model) of --contender gets a copy of the model and returns a
    callable (template, search); docs/performance.md has an example.
    """
    from correlation_aware.bench.bench_models import bench_model, check_model
    from correlation_aware.bench.contenders import (
        REFERENCE,
        contender_names,
        find_contenders,
        load_contender,
    )
    from correlation_aware.evaluation.benchmarks import open_benchmark

    more = [spec.partition("@")[2] for spec in contender or ()]
    run = Benchmark("model", device, dtype, threads, as_json, more)
    names = find_contenders(contenders.split(",")) if contenders else contender_names()
    if contenders is None and run.device.type == "cpu":
        names = [n for n in names if not n.startswith(f"{REFERENCE}-") and not n.endswith("-triton")]
    others = [load_contender(spec)[0] for spec in contender or ()]
    if against is not None and against.partition("@")[0] not in (*names, *others):
        raise ValueError(f"--against {against!r} is not among {', '.join((*others, *names))}.")
    batches = parse_counts("--batch", batch)
    sizes = [None] if search_size is None else parse_counts("--search-size", search_size)
    for name in models:
        check_model(name, weights)
    if sequences is not None:
        open_benchmark("got10k", sequences)
    run.measure()
    cases = []
    for name, size in itertools.product(models, sizes):
        for case in bench_model(
            name,
            batches,
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
            run.write({"cases": cases})
    run.finish()


@app.command()
def train(
    models: Models,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per step.")] = 64,
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
    """Time a training step: forward and backward, float32 weights, autocast to --dtype."""
    from correlation_aware.bench.bench_models import check_model
    from correlation_aware.bench.bench_training import CONTENDERS, bench_training
    from correlation_aware.bench.contenders import check_contenders
    from correlation_aware.bench.machine import dtype_name

    run = Benchmark("train", device, dtype, threads, as_json)
    names = contenders.split(",")
    check_contenders(names, CONTENDERS)
    for name in models:
        check_model(name)
    run.measure()
    cases = []
    for name in models:
        for t in run.dtypes:
            rows, skipped = bench_training(name, batch, run.device, t, names, seconds)
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
            cases.append(
                {"model": name, "batch": batch, "dtype": dtype_name(t), "rows": [asdict(r) for r in rows]}
            )
            run.write({"cases": cases})
    run.finish()


@app.command("ops")
def operations(
    models: Models,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes: pairs per call.")] = "1",
    dtype: Dtypes = "float32",
    contenders: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="reference, reference-compile, triton."),
    ] = "reference,reference-compile,triton",
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward.")] = False,
    seconds: Seconds = 0.3,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Time every operation alone, at the shapes of a model with a cached template.

    On a GPU this is the time on the device, without launch overhead. The last
    lines of a model are sums over all calls of a forward pass.
    """
    from correlation_aware.bench.bench_models import check_model
    from correlation_aware.bench.bench_operations import CONTENDERS, bench_operation, count_calls
    from correlation_aware.bench.contenders import check_contenders
    from correlation_aware.bench.machine import dtype_name

    run = Benchmark("ops", device, dtype, threads, as_json)
    names = contenders.split(",")
    check_contenders(names, CONTENDERS)
    batches = parse_counts("--batch", batch)
    for name in models:
        check_model(name)
    run.measure()
    cases = []
    for name, count, t in itertools.product(models, batches, run.dtypes):
        rows: list[OperationRow] = []
        skipped: dict[tuple[str, str], Skipped] = {}
        for operands, calls in count_calls(name, count).items():
            timed, not_run = bench_operation(
                operands, calls, run.device, t, run.ceilings[t], names, backward, seconds
            )
            rows += timed
            skipped |= {(contender.name, contender.reason): contender for contender in not_run}
        cells = [
            (
                row.operation,
                row.shapes,
                str(row.calls),
                row.contender,
                f"{1e3 * row.milliseconds:.1f}",
                "" if row.speedup is None else f"{row.speedup:.2f}x",
                "" if row.roofline_share is None else f"{100 * row.roofline_share:.1f} %",
                f"{row.difference:.1e}",
            )
            for row in rows
        ]
        totals = {n: sum(r.calls * r.milliseconds for r in rows if r.contender == n) for n in names}
        cells += [
            ("all", "", "", n, f"{1e3 * total:.1f}", "", "", "") for n, total in totals.items() if total
        ]
        title = f"{name}, batch {count}, {dtype_name(t)}, {'forward and backward' if backward else 'forward'}"
        headings = ("", "shapes", "calls", "contender", "us", "speed", "roofline", "differs")
        print_table(title, headings, cells, skipped.values())
        cases.append(
            {"model": name, "batch": count, "dtype": dtype_name(t), "rows": [asdict(r) for r in rows]}
        )
        run.write({"backward": backward, "cases": cases})
    run.finish()


@app.command()
def tracker(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a `_track` model.")
    ] = "siam_lite0_ca_two_scales_track",
    targets: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of targets tracked at once.")
    ] = "1,2,4,8",
    runtimes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Runtimes of `track --runtime`, -triton for the kernels; by default all but compile.",
        ),
    ] = None,
    dtype: Dtypes = "float32",
    weights: Weights = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = None,
) -> None:
    """Time the stages of a tracked frame, for one and for more targets, on a generated clip.

    Lost targets are not searched for, as in `track --no-redetect`: a frame
    has one search crop for each target. `eval longterm` shows what the search
    costs.
    """
    from correlation_aware.bench.bench_models import check_model
    from correlation_aware.bench.bench_tracking import bench_tracker, check_runtimes
    from correlation_aware.bench.contenders import Skipped
    from correlation_aware.runtime import RUNTIMES
    from correlation_aware.tracking.tracker import check_tracker_name

    run = Benchmark("tracker", device, dtype, threads, as_json)
    names = runtimes.split(",") if runtimes else [r for r in RUNTIMES if r not in ("auto", "compile")]
    check_runtimes(names)
    check_tracker_name(model)
    check_model(model, weights)
    counts = parse_counts("--targets", targets)
    run.measure()
    pairs = [(runtime, t) for runtime in names for t in run.dtypes]
    rows: list[Any] = []
    skipped: list[Skipped] = []
    for result in bench_tracker(model, counts, run.device, pairs, weights):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            rows += result
    cells = [
        (
            str(row.targets),
            row.runtime,
            row.dtype,
            *(as_ms(stage) for stage in (row.crop, row.model, row.post)),
            f"{row.frames_per_second:.1f}",
            f"{row.targets_per_second:.1f}",
        )
        for row in rows
    ]
    headings = ("targets", "runtime", "dtype", "crop ms", "model ms", "post ms", "frames/s", "targets/s")
    print_table(f"{model}, ms per frame of 1280 x 720 px", headings, cells, skipped)
    if not rows:
        raise ValueError("No runtime can run on this machine; the reasons are above.")
    run.write({"model": model, "rows": [asdict(row) for row in rows]})
    run.finish()


@app.command()
def plot(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Reports of `bench model --json` and `bench tracker --json`.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Image file to write, such as a .png.")],
) -> None:
    """Plot reports: a panel for each of model, batch, search size and targets that varies."""
    from correlation_aware.bench.plot import plot_reports, read_report

    plot_reports([read_report(path) for path in reports], output)
    console.print(f"Wrote {escape(str(output))}")
