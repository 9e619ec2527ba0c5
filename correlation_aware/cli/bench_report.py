"""What all benchmark commands begin and end with: the machine and its ceilings, tables, and a report."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import console

if TYPE_CHECKING:
    import torch

    from correlation_aware.bench.bench_models import Case, Row
    from correlation_aware.bench.contenders import Skipped
    from correlation_aware.bench.machine import Ceilings

__all__ = ["Run", "as_ms", "dtype_name", "parse_counts", "parse_dtype", "print_case", "print_table"]


class Run:
    """A benchmark on one device: prints the machine, measures its ceilings, writes the report.

    Args:
        part: Name of the command.
        device: By default a GPU if any.
        dtypes: Names, with commas between them.
        threads: Of a CPU; PyTorch's choice by default.
        more: Names of further dtypes whose ceilings are needed.

    Raises:
        ValueError: An unknown dtype, or a device that cannot be timed.
    """

    def __init__(
        self, part: str, device: str | None, dtypes: str, threads: int | None, more: Iterable[str] = ()
    ) -> None:
        import torch

        from correlation_aware.bench.machine import describe, measure_ceilings

        if threads is not None:
            torch.set_num_threads(threads)
        self.part, self.written = part, False
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {device} cannot be timed; cpu and cuda can.")
        self.dtypes = [parse_dtype(name) for name in dtypes.split(",")]
        self.machine = describe(self.device)
        console.print(_described(self.machine))
        needed = dict.fromkeys([*self.dtypes, *(parse_dtype(name or "float32") for name in more)])
        self.ceilings: dict[torch.dtype, Ceilings] = {t: measure_ceilings(self.device, t) for t in needed}
        for t, found in self.ceilings.items():
            console.print(
                f"{dtype_name(t)}: copies {found.bytes_per_second / 1e9:.1f} GB/s, "
                f"multiplies {found.flops_per_second / 1e9:.0f} GFLOP/s"
            )

    def write(self, path: Path | None, figures: dict[str, Any]) -> None:
        """Writes the report, whole or not at all."""
        if path is None:
            return
        from correlation_aware._files import write_text

        report = {
            "benchmark": self.part,
            "command": ["correlation-aware", *sys.argv[1:]],
            "machine": asdict(self.machine),
            "ceilings": {dtype_name(t): asdict(found) for t, found in self.ceilings.items()},
            **figures,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(report, indent=2, default=dtype_name) + "\n", path)
        if not self.written:
            console.print(f"Figures so far are in {escape(str(path))}")
        self.written = True


def _described(found: Any) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    hardware = (
        found.gpu or f"{found.processor}, {found.cores} cores, {found.threads} threads, load {found.load:.1f}"
    )
    return f"{found.device}: [bold]{escape(hardware)}[/]\n{escape(versions)}"


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], skipped: Iterable["Skipped"]
) -> None:
    """Prints rows, and below them what could not run and why."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        left = i == 0 or heading in ("dtype", "template", "runtime", "shapes", "form")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(f"\n[bold]{escape(title)}[/]")
    Console(width=None if console.is_terminal else 120, highlight=False).print(table)
    for out in skipped:
        console.print(
            f"[yellow]without {escape(out.name)} {dtype_name(out.dtype)}:[/] {escape(out.reason)}",
            style="dim",
        )


def print_case(case: "Case") -> None:
    """Prints a model at one batch size."""
    weights = next(iter(case.bytes.values()))
    title = (
        f"{case.model}, batch {case.batch}, {case.search_size} px: "
        f"{case.profile.params / 1e6:.2f} M parameters, "
        f"{case.profile.macs / 1e9:.2f} GMACs a pair, {case.profile.cached_macs / 1e9:.2f} cached, "
        f"{weights / 1e6:.1f} MB a call ({next(iter(case.bytes))}); weights {case.weights}; "
        f"outputs compared on {case.pictures} pictures"
    )
    headings = ("", "dtype", "template", "ms", "p99", "pairs/s", "speed", "roofline", "differs", "argmax")
    print_table(title, headings, [_cells(row) for row in case.rows], case.skipped)
    console.print(f"1x is {case.against}", style="dim")


def _cells(row: "Row") -> Sequence[str]:
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
    """Four digits, as far as they mean something."""
    return f"{milliseconds:.3f}" if milliseconds < 10 else f"{milliseconds:.1f}"


def parse_counts(option: str, text: str) -> list[int]:
    """`1,8,64` -> [1, 8, 64]; a ValueError that names the option for anything else."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"{option} {text!r} is not N,N,... with whole numbers of at least 1.")
    return counts


def parse_dtype(name: str) -> "torch.dtype":
    """`bfloat16` -> `torch.bfloat16`; a ValueError for what cannot be timed."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"--dtype {name!r} is not one of {', '.join(known)}.")
    return known[name]


def dtype_name(dtype: Any) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")
