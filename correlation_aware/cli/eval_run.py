"""The commands of `correlation-aware eval` for benchmarks: track or read boxes, score, print and write."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from correlation_aware.cli._common import console
from correlation_aware.cli.eval_common import (
    TrackerOptions,
    check_measured,
    collect,
    exit_if_failed,
    print_scores,
)
from correlation_aware.cli.eval_processes import Place, launcher_place, started, use_share

if TYPE_CHECKING:
    from correlation_aware.evaluation.benchmarks import Benchmark, SequenceFailure
    from correlation_aware.evaluation.one_pass import SequenceResult
    from correlation_aware.evaluation.results import ResultFolder
    from correlation_aware.evaluation.trackers import NamedTracker

__all__ = ["Evaluation", "run_benchmark"]


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
