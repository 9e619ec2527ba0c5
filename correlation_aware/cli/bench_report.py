"""Shared parts of the benchmark commands: machine and peak rates, tables, JSON reports."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import console, print_wide

if TYPE_CHECKING:
    import torch

    from correlation_aware.bench.bench_models import Case, Row
    from correlation_aware.bench.contenders import Skipped
    from correlation_aware.bench.machine import Ceilings, Machine

__all__ = ["Benchmark", "as_ms", "parse_counts", "parse_dtype", "print_case", "print_table"]


class Benchmark:
    """A benchmark on one device: checks its options, describes the machine, writes the report.

    Args:
        command: Name of the command.
        device: PyTorch device; None for a GPU if there is one.
        dtypes: Comma-separated names of dtypes.
        threads: Number of CPU threads; None for PyTorch's default.
        report: JSON file to write; None for none.
        more: Names of further dtypes whose peak rates are needed.

    Attributes:
        device: Device.
        dtypes: Dtypes.
        machine: Hardware and versions, from `measure`.
        ceilings: Peak rates by dtype, from `measure`.

    Raises:
        ValueError: An unknown dtype, or a device that cannot be timed.
        RuntimeError: A GPU that is not available.
        OSError: The folder of the report does not exist or is not writable.
    """

    def __init__(
        self,
        command: str,
        device: str | None,
        dtypes: str,
        threads: int | None,
        report: Path | None = None,
        more: Iterable[str] = (),
    ) -> None:
        import torch

        from correlation_aware._devices import as_device
        from correlation_aware._files import check_output_file

        if threads is not None:
            torch.set_num_threads(threads)
        self.command, self.report, self.written = command, report, False
        self.device = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {device} cannot be timed; use cpu or cuda.")
        self.dtypes = [parse_dtype(name) for name in dtypes.split(",")]
        self.machine: Machine | None = None
        self.ceilings: dict[torch.dtype, Ceilings] = {}
        self._needed = dict.fromkeys([*self.dtypes, *(parse_dtype(name or "float32") for name in more)])
        if report is not None:
            check_output_file(report)

    def measure(self) -> None:
        """Prints the machine, measures its peak rates and prints them; check all arguments before."""
        from correlation_aware.bench.machine import describe, dtype_name, measure_ceilings

        self.machine = describe(self.device)
        console.print(_describe(self.machine))
        for t in self._needed:
            ceilings = self.ceilings[t] = measure_ceilings(self.device, t)
            console.print(
                f"{dtype_name(t)}: copy bandwidth {ceilings.bytes_per_second / 1e9:.1f} GB/s, "
                f"matrix product {ceilings.flops_per_second / 1e9:.0f} GFLOP/s"
            )

    def write(self, results: dict[str, Any]) -> None:
        """Writes machine, peak rates and results so far to the JSON file, atomically, if there is one."""
        if self.report is None:
            return
        from correlation_aware._files import write_text
        from correlation_aware.bench.machine import dtype_name

        content = {
            "benchmark": self.command,
            "command": ["correlation-aware", *sys.argv[1:]],
            "machine": asdict(self.machine) if self.machine else None,
            "ceilings": {dtype_name(t): asdict(ceilings) for t, ceilings in self.ceilings.items()},
            **results,
        }
        write_text(json.dumps(content, indent=2, default=dtype_name) + "\n", self.report)
        self.written = True

    def finish(self) -> None:
        """Prints the name of the report, if one was written."""
        if self.written:
            console.print(f"Wrote {escape(str(self.report))}")


def _describe(machine: "Machine") -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    cpu = f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, load {machine.load:.1f}"
    return f"{machine.device}: [bold]{escape(machine.gpu or cpu)}[/]\n{escape(versions)}"


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], skipped: Iterable["Skipped"]
) -> None:
    """Prints a table, and below it the skipped contenders with the reasons."""
    from correlation_aware.bench.machine import dtype_name

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        left = i == 0 or heading in ("dtype", "template", "runtime", "shapes", "contender")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(f"\n[bold]{escape(title)}[/]")
    print_wide(table)
    for contender in skipped:
        console.print(
            f"[yellow]skipped {escape(contender.name)} {dtype_name(contender.dtype)}:[/] "
            f"{escape(contender.reason)}",
            style="dim",
        )


def print_case(case: "Case") -> None:
    """Prints the results of a model at one batch size."""
    moved_bytes = next(iter(case.bytes.values()))
    title = (
        f"{case.model}, batch {case.batch}, {case.search_size} px: "
        f"{case.profile.params / 1e6:.2f} M parameters, "
        f"{case.profile.macs / 1e9:.2f} GMACs per pair, {case.profile.cached_macs / 1e9:.2f} cached, "
        f"{moved_bytes / 1e6:.1f} MB per call ({next(iter(case.bytes))}); weights {case.weights}; "
        f"outputs compared on {case.images} images"
    )
    headings = ("", "dtype", "template", "ms", "p99", "pairs/s", "speed", "roofline", "differs", "argmax")
    print_table(title, headings, [_format_row(row) for row in case.rows], case.skipped)
    console.print(f"1x is {case.against}", style="dim")


def _format_row(row: "Row") -> Sequence[str]:
    return (
        row.contender,
        row.dtype,
        row.template,
        as_ms(row.times.median),
        as_ms(row.times.p99),
        f"{row.pairs_per_second:.1f}",
        f"{row.speedup:.2f}x",
        f"{100 * row.roofline_share:.1f} %",
        "" if row.difference is None else f"{row.difference:.1e}",
        "" if row.argmax_kept is None else f"{100 * row.argmax_kept:.0f} %",
    )


def as_ms(milliseconds: float) -> str:
    """Milliseconds with three decimals below 10, else with one."""
    return f"{milliseconds:.3f}" if milliseconds < 10 else f"{milliseconds:.1f}"


def parse_counts(option: str, text: str) -> list[int]:
    """Parses `1,8,64` to [1, 8, 64].

    Raises:
        ValueError: Not positive integers; the message names the option.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"{option} {text!r} is not N,N,... with integers of at least 1.")
    return counts


def parse_dtype(name: str) -> "torch.dtype":
    """Parses `bfloat16` to `torch.bfloat16`.

    Raises:
        ValueError: A dtype that benchmarks do not support.
    """
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"--dtype {name!r} is not one of {', '.join(dtypes)}.")
    return dtypes[name]
