"""The commands of `correlation-aware eval` for benchmarks: track or read boxes, score, print and write."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from correlation_aware._files import is_file_name
from correlation_aware.cli._common import console, figure_table, load_tracker, print_wide, track_progress
from correlation_aware.cli.eval_processes import Place, launcher_place, started, use_share

if TYPE_CHECKING:
    from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure
    from correlation_aware.evaluation.one_pass import Scores, SequenceResult
    from correlation_aware.evaluation.results import ResultFolder
    from correlation_aware.evaluation.trackers import NamedTracker
    from correlation_aware.tracking.tracker import Tracker

__all__ = [
    "Evaluation",
    "Json",
    "Sequences",
    "TrackerOptions",
    "check_measured",
    "check_name",
    "collect",
    "exit_if_failed",
    "print_scores",
    "run_benchmark",
]

T = TypeVar("T")

Sequences = Annotated[
    str | None, typer.Option(metavar="NAME,NAME", help="Sequences to evaluate; all by default.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write all results to.")
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


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: the same in all processes that share it.

    Attributes:
        key: Key of the benchmark.
        root: Folder of the benchmark.
        subset: Subset of the benchmark.
        sequences: Names of the sequences, None for all.
        options: Options of the tracker.
        depth_range: Values of 16-bit or float images that become 0 and 255.
        output: Folder of the results, None for none.
    """

    key: str
    root: Path
    subset: str
    sequences: Sequence[str] | None
    options: TrackerOptions
    depth_range: tuple[float, float] | None
    output: Path | None

    def open(self) -> "tuple[Benchmark, list[str]]":
        """The benchmark and the names of the sequences to evaluate."""
        from correlation_aware.evaluation.benchmarks import open_benchmark

        benchmark = open_benchmark(self.key, self.root, self.subset)
        return benchmark, benchmark.select(self.sequences)

    def share(
        self, benchmark: "Benchmark", place: Place, divide_threads: bool
    ) -> "tuple[NamedTracker, ResultFolder, list[str]]":
        """The tracker of a process, the folder of the results of all, and the finished sequences.

        Args:
            benchmark: The benchmark, open.
            place: Place of the process.
            divide_threads: Whether the process has a share of PyTorch's threads.
        """
        from correlation_aware.evaluation.results import ResultFolder, describe_run

        assert self.output is not None
        device = use_share(place, self.options.device, divide_threads)
        options = self.options if self.options.tracker else replace(self.options, device=device)
        about = options.load()
        folder = ResultFolder(self.output, benchmark, about.name)
        settings = {**about.settings, "depth_range": self.depth_range}
        run = describe_run(benchmark, about.name, about.sha256, settings, about.device, place.count)
        return about, folder, folder.start(run)


def run_benchmark(
    evaluation: Evaluation, results: Path | None = None, processes: int = 1, as_json: Path | None = None
) -> None:
    """Evaluates a tracker, or files of results, on a benchmark.

    Args:
        evaluation: What is evaluated.
        results: Folder of files of boxes to score, instead of running a tracker.
        processes: Number of processes.
        as_json: File for all scores.

    Raises:
        ValueError: Options that exclude each other, or no sequence that can be evaluated.
        typer.Exit: A sequence failed.
    """
    from correlation_aware._files import check_output_file, check_output_folder
    from correlation_aware.evaluation.benchmarks import evaluate
    from correlation_aware.evaluation.results import ResultFolder

    output, place = evaluation.output, launcher_place()
    _check(evaluation, results, processes, as_json, place)
    if output is not None:
        check_output_folder(output)
    if as_json is not None:
        check_output_file(as_json)
    benchmark, names = evaluation.open()
    outcomes: Iterable[SequenceResult | SequenceFailure]
    if results is not None:
        folder = ResultFolder.of_others(results, benchmark)
        title, outcomes = (str(results), ""), map(folder.read, names)
    else:
        if output is None:
            about = evaluation.options.load()
            outcomes = evaluate(about.tracker, benchmark, names, evaluation.depth_range)
        else:
            processes = min(processes, len(names))
            first = Place(0, processes) if processes > 1 else place
            about, folder, finished = evaluation.share(benchmark, first, processes > 1)
            outcomes = folder.evaluate(about.tracker, names, evaluation.depth_range, wait=first.rank == 0)
            if done := len(set(names) & set(finished)):
                console.print(f"{done} of {len(names)} sequences are finished in {escape(str(folder.path))}")
            processes = processes if len(names) > done else 1
        title = about.name, about.weights
        _warn_of_training_data(about, evaluation, names)
    with started(processes, _work, (evaluation,)):
        measured, failed = collect(outcomes, len(names))
    if place.rank > 0:
        return  # the first process has the results of all
    check_measured(measured, failed)
    measured.sort(key=lambda result: names.index(result.name))
    if benchmark.has_truth:
        _report(measured, failed, title, as_json)
    if output is not None:
        console.print(f"Wrote {escape(str(folder.path))}")
    exit_if_failed(failed, len(names))


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


def _check(
    evaluation: Evaluation, results: Path | None, processes: int, as_json: Path | None, place: Place
) -> None:
    """Refuses options that exclude each other or have no effect."""
    from correlation_aware.evaluation.benchmarks import BENCHMARKS

    subset, output, options = evaluation.subset, evaluation.output, evaluation.options
    if subset in BENCHMARKS[evaluation.key].hidden and output is None and results is None:
        raise ValueError(
            f"The annotations of {subset} are not public: name a folder for the boxes with --output"
        )
    if subset in BENCHMARKS[evaluation.key].hidden and as_json is not None:
        raise ValueError(
            f"--json has no effect with --subset {subset}: without annotations nothing is measured"
        )
    if max(processes, place.count) > 1 and output is None:
        raise ValueError("Several processes share their results through a folder: name one with --output")
    if processes > 1 and place.count > 1:
        raise ValueError(f"--processes {processes}: the launcher has started {place.count} processes already")
    if results is not None:
        values: dict[str, object] = {"--tracker": options.tracker, "--name": options.name}
        values |= {"--depth-range": evaluation.depth_range, "--output": output}
        unused = options.of_a_model() + [option for option, value in values.items() if value is not None]
        if unused:
            raise ValueError(
                f"{', '.join(unused)}: no effect with --results, whose boxes are read from files"
            )


def _work(place: Place, evaluation: Evaluation) -> None:
    """What a process does beside the first one: it tracks sequences that no other process has claimed."""
    benchmark, names = evaluation.open()
    about, folder, _ = evaluation.share(benchmark, place, divide_threads=True)
    for _ in folder.evaluate(about.tracker, names, evaluation.depth_range, wait=False):
        pass


def _warn_of_training_data(about: "NamedTracker", evaluation: Evaluation, names: Sequence[str]) -> None:
    """Prints a warning if the model was trained on sequences of the benchmark."""
    from correlation_aware.data.videos.subsets import shorten
    from correlation_aware.data.videos.training_data import trained_videos

    trained = trained_videos(about.training_data, evaluation.key, evaluation.subset, names)
    if trained:
        console.print(
            f"[yellow]{len(trained)} of {len(names)} sequences are training data of {escape(about.weights)} "
            f"({escape(shorten(trained))}): the figures are not those of a test.[/]"
        )


def _report(
    measured: Sequence["SequenceResult"], failed: dict[str, str], title: tuple[str, str], as_json: Path | None
) -> None:
    """Prints the scores and writes them to the file of --json; `title` is tracker and weights."""
    from correlation_aware._files import write_text
    from correlation_aware.evaluation.one_pass import average, score

    rows = {result.name: score([result]) for result in measured if result.ious.size}
    totals = {"average": average(measured), "all frames": score(measured)}
    print_scores(rows, totals)
    if as_json is not None:
        report = {
            **dict(zip(("tracker", "weights"), title)),
            **{name.replace(" ", "_"): asdict(scores) for name, scores in totals.items()},
            "sequences": {name: asdict(scores) for name, scores in rows.items()},
            "failed": failed,
        }
        write_text(json.dumps(report, indent=2) + "\n", as_json)
        console.print(f"Wrote {escape(str(as_json))}")


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
