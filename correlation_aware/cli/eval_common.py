"""What `eval`, `batch` and `vot` share: options of a tracker, failures, the table of scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from correlation_aware._files import is_file_name
from correlation_aware.cli._common import console, figure_table, load_tracker, print_wide, track_progress

if TYPE_CHECKING:
    from correlation_aware.evaluation.benchmarks import SequenceFailure
    from correlation_aware.evaluation.one_pass import Scores
    from correlation_aware.evaluation.trackers import NamedTracker
    from correlation_aware.tracking.tracker import Tracker

__all__ = [
    "Json",
    "Sequences",
    "TrackerOptions",
    "TrackerText",
    "check_measured",
    "check_name",
    "collect",
    "exit_if_failed",
    "print_scores",
]

T = TypeVar("T")

Sequences = Annotated[
    str | None, typer.Option(metavar="NAME,NAME", help="Sequences to evaluate; all by default.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
]
TrackerText = Annotated[
    str | None,
    typer.Option(
        metavar="TRACKER",
        help="Another tracker instead of a model: still, opencv:csrt, opencv:kcf, opencv:mil, "
        "opencv:nano:BACKBONE,HEAD, opencv:vit:MODEL, nanotrack-v2:BACKBONE,HEAD, "
        "nanotrack-v3:BACKBONE,HEAD, or module:factory of a tracker with init and update.",
    ),
]

EXIT_FAILED = 3
HEADINGS = ("frames", "AO", "SR0.50", "SR0.75", "AUC", "frames/s")
PRECISIONS = ("P", "Pnorm")  # of the benchmarks that have them


def check_name(name: str | None) -> None:
    """Checks the value of --name.

    Raises:
        ValueError: Not the name of a folder.
    """
    if name is not None and not is_file_name(name):
        raise ValueError(f"--name {name!r} has to be the name of a folder, such as my_tracker")


@dataclass(frozen=True)
class TrackerOptions:
    """The options that choose a tracker, and the name for its results."""

    model: str | None
    weights: str | None
    device: str | None
    runtime: str
    decode: str
    tracker: str | None = None
    name: str | None = None
    redetect: bool | None = None

    def of_a_model(self) -> list[str]:
        """Those that were used and that only a model has."""
        values = {"--model": self.model, "--weights": self.weights, "--device": self.device}
        used = [option for option, value in values.items() if value is not None]
        used += ["--runtime"] * (self.runtime != "auto") + ["--decode"] * (self.decode != "default")
        return used + ["--redetect"] * (self.redetect is not None)

    def load_model(self) -> "Tracker":
        """The tracker of the model."""
        return load_tracker(self.model, self.weights, self.device, self.runtime, self.decode, self.redetect)

    def load(self) -> "NamedTracker":
        """The tracker, under the name for its results.

        Raises:
            ValueError: A name that is not that of a folder, or options of a model with `--tracker`.
        """
        from correlation_aware.evaluation.trackers import NamedTracker, create_baseline

        name = self.name
        check_name(name)
        if self.tracker is None:
            about = NamedTracker.of_model(self.load_model())
        else:
            if unused := self.of_a_model():
                raise ValueError(f"{', '.join(unused)}: no effect with --tracker, which replaces the model")
            about = create_baseline(self.tracker)
            console.print(f"{escape(about.name)} {escape(about.weights)}".strip())
        return replace(about, name=name or about.name)


def collect(outcomes: "Iterable[T | SequenceFailure]", count: int) -> tuple[list[T], dict[str, str]]:
    """Evaluates, and prints a line for each sequence that fails.

    Args:
        outcomes: Result or failure of each sequence.
        count: Number of sequences.

    Returns:
        The results, and the reasons of the failures by sequence.
    """
    from correlation_aware.evaluation.benchmarks import SequenceFailure

    measured: list[T] = []
    failed: dict[str, str] = {}
    for outcome in track_progress(outcomes, count, "sequences"):
        if isinstance(outcome, SequenceFailure):
            failed[outcome.name] = outcome.reason
            console.print(f"[red]{escape(outcome.name)} failed:[/] {escape(outcome.reason)}")
        else:
            measured.append(outcome)
    return measured, failed


def check_measured(measured: Sequence[object], failed: Mapping[str, str]) -> None:
    """Checks that not all sequences have failed.

    Raises:
        ValueError: No results.
    """
    if not measured:
        name, reason = next(iter(failed.items()), ("", "no sequences"))
        raise ValueError(f"None of {len(failed)} sequences could be evaluated; {name}: {reason}")


def exit_if_failed(failed: Iterable[str], count: int, unit: str = "sequences") -> None:
    """Prints what failed, if something did, and ends the command with `EXIT_FAILED`."""
    names = list(failed)
    if names:
        console.print(f"[red]{len(names)} of {count} {unit} failed: {escape(', '.join(names))}[/]")
        raise typer.Exit(EXIT_FAILED)


def print_scores(
    rows: dict[str, "Scores"],
    totals: dict[str, "Scores"],
    subject: str = "sequence",
    more: dict[str, dict[str, str]] | None = None,
) -> None:
    """Prints a table with a row per item.

    Args:
        rows: Scores by item.
        totals: Scores of the last rows.
        subject: Title of the first column.
        more: Values of further columns by row, by their titles.
    """
    every, more = {**rows, **totals}, dict(more or {})
    if all(scores.precision is not None for scores in every.values()):
        values = {name: (s.precision, s.normalized_precision) for name, s in every.items()}
        for i, title in enumerate(PRECISIONS):
            more[title] = {name: f"{pair[i]:.3f}" for name, pair in values.items()}
    table = figure_table((subject, *HEADINGS, *more))
    for name, scores in rows.items():
        table.add_row(escape(name), *_format_scores(scores), *(column[name] for column in more.values()))
    table.add_section()
    for name, scores in totals.items():
        further = (column.get(name, "") for column in more.values())
        table.add_row(name, *_format_scores(scores), *further, style="bold")
    print_wide(table)


def _format_scores(s: "Scores") -> Sequence[str]:
    values = (f"{value:.3f}" for value in (s.ao, s.sr50, s.sr75, s.auc))
    return (str(s.frames), *values, f"{s.fps:.1f}" if s.fps else "-")
