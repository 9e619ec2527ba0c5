"""Several trackers on one benchmark: figures with intervals, comparisons, calibration and speed.

`report_page` writes it as a page, `report_tables` as JSON, CSV and LaTeX.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from correlation_aware._files import read_json
from correlation_aware.data.videos.sequences import Video
from correlation_aware.evaluation.attributes import read_attributes
from correlation_aware.evaluation.benchmarks import BENCHMARKS, Benchmark, open_benchmark
from correlation_aware.evaluation.bootstrap import Comparison, Interval, compare, intervals
from correlation_aware.evaluation.calibration import Reliability, reliability, scored_frames
from correlation_aware.evaluation.one_pass import (
    THRESHOLDS,
    Array,
    Scores,
    SequenceResult,
    center_errors,
    score,
)
from correlation_aware.evaluation.results import ResultFolder

__all__ = ["CURVES", "METRICS", "Pair", "Report", "Speed", "TrackerReport", "WorstFrame", "make_report"]

METRICS = {
    "ao": "AO",
    "sr50": "SR0.50",
    "sr75": "SR0.75",
    "auc": "AUC",
    "precision": "P",
    "normalized_precision": "Pnorm",
}
CURVES = {  # thresholds of the plots, those of the field's toolkits
    "success": THRESHOLDS,
    "precision": np.arange(51.0),
    "normalized_precision": np.linspace(0, 0.5, 51),
}


@dataclass(frozen=True)
class Speed:
    """Duration of `update`, without reading images.

    Attributes:
        fps: Frames per second, over all frames.
        median: Median duration in milliseconds.
        p95: 95th percentile of the duration in milliseconds.
    """

    fps: float
    median: float
    p95: float


@dataclass(frozen=True)
class WorstFrame:
    """The frame of a sequence with the lowest overlap, the first one of several.

    Attributes:
        sequence: Name of the sequence.
        index: Index of the frame, from 0.
        frames: Number of frames of the sequence.
        path: Path of the image.
        box: Box of the tracker, xywh in pixels.
        truth: Annotated box, xywh in pixels.
        overlap: IoU of the two.
        score: Score of the tracker; NaN if it has none.
    """

    sequence: str
    index: int
    frames: int
    path: Path
    box: tuple[float, ...]
    truth: tuple[float, ...]
    overlap: float
    score: float


@dataclass(frozen=True)
class TrackerReport:
    """Results of one tracker.

    Attributes:
        name: Name of the tracker.
        manifest: Manifest of its run, see `describe_run`; empty for files of others.
        scores: Figures by sequence.
        totals: Mean over sequences by metric.
        attributes: Mean of the main metric by attribute.
        curves: Values at the thresholds of `CURVES`, mean over sequences.
        calibration: Reliability of the scores; None without scores.
        speed: Speed; None without times.
        worst: Worst frames of the sequences with the lowest main metric.
    """

    name: str
    manifest: Mapping[str, Any]
    scores: Mapping[str, Scores]
    totals: Mapping[str, Interval]
    attributes: Mapping[str, Interval]
    curves: Mapping[str, Array]
    calibration: Reliability | None
    speed: Speed | None
    worst: Sequence[WorstFrame]


@dataclass(frozen=True)
class Pair:
    """Two trackers, the better one first, compared by the main metric."""

    better: str
    worse: str
    comparison: Comparison


@dataclass(frozen=True)
class Report:
    """Trackers on the same sequences of a benchmark, in the order of the main metric.

    Attributes:
        benchmark: Title of the benchmark.
        subset: Name of the subset.
        main: Key of `METRICS` that trackers are compared by: `ao` for GOT-10k, otherwise `auc`.
        sequences: Names of the sequences that all trackers have.
        left_out: Sequences that are not counted for any tracker, with the reason.
        attributes: Names of the sequences by attribute.
        attribute_source: Where the attributes are from.
        trackers: Results of the trackers, the best one first.
        pairs: Comparisons of any two of them.
        seed: Seed of the bootstrap.
    """

    benchmark: str
    subset: str
    main: str
    sequences: Sequence[str]
    left_out: Mapping[str, str]
    attributes: Mapping[str, Sequence[str]]
    attribute_source: str
    trackers: Sequence[TrackerReport]
    pairs: Sequence[Pair]
    seed: int


def make_report(
    folders: Sequence[str],
    benchmark: str | None = None,
    root: str | Path | None = None,
    subset: str | None = None,
    attributes: str | Path | None = None,
    worst: int = 4,
    seed: int = 0,
) -> Report:
    """Compares the results of trackers.

    Sequences without a result of every tracker are left out for all, so that all figures are of the same
    frames.

    Args:
        folders: Folders of results, `FOLDER/GOT-10k/TRACKER` of `eval --output` or those of others in the
            format of the toolkits; `NAME=FOLDER` sets the name of the tracker.
        benchmark: Key of `BENCHMARKS`; by default that of the manifests.
        root: Folder of the benchmark; by default that of the manifests.
        subset: Name of the subset; by default that of the manifests.
        attributes: Folder of files of attributes, see `read_attributes`.
        worst: Number of worst frames per tracker, each of another sequence.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Results of several benchmarks, names that are not unique, no common sequence, or missing
            arguments where there are no manifests.
        FileNotFoundError: No such folder, no results in it, or no dataset in `root`.
    """
    places = _named(folders)
    manifests = {name: _manifest(path) for name, path in places.items()}
    opened = _open(manifests, benchmark, root, subset)
    videos, results, left_out = _read(opened, places)
    main = "ao" if opened.protocol.folders else "auc"
    groups, source = read_attributes(opened, videos, attributes)
    names = list(videos)
    trackers = [
        _summarize(
            name, manifests[name], [results[name][n] for n in names], videos, main, groups, worst, seed
        )
        for name in places
    ]
    trackers.sort(key=lambda tracker: -tracker.totals[main].mean)
    pairs = []
    for i, better in enumerate(trackers):
        for worse in trackers[i + 1 :]:
            a, b = ([getattr(t.scores[name], main) for name in names] for t in (better, worse))
            pairs.append(Pair(better.name, worse.name, compare(a, b, seed)))
    title = opened.protocol.title
    return Report(title, opened.subset, main, names, left_out, groups, source, trackers, pairs, seed)


def _named(folders: Sequence[str]) -> dict[str, Path]:
    """Folders by the names of their trackers."""
    places: dict[str, Path] = {}
    for text in folders:
        name, equals, rest = text.partition("=")
        if not equals or Path(text).exists():
            name, rest = "", text
        path = Path(rest)
        state = "is a file" if path.is_file() else "has no results" if path.is_dir() else "does not exist"
        if not (any(path.glob("*.txt")) or any(path.glob("*/*_001.txt"))):
            raise FileNotFoundError(
                f"{path} {state}; expected the folder of a tracker's results, with NAME.txt or "
                "NAME/NAME_001.txt of every sequence, such as FOLDER/GOT-10k/TRACKER of eval --output FOLDER."
            )
        name = name or path.resolve().name
        if name in places:
            raise ValueError(f"Two trackers are named {name}: write one of them as another_name={path}.")
        places[name] = path
    if not places:
        raise ValueError("A report needs the folder of one tracker's results or more.")
    return places


def _manifest(path: Path) -> Mapping[str, Any]:
    path = path.resolve()
    file = path.with_name(f"{path.name}.json")
    if not file.is_file():
        return {}
    content = read_json(file)
    parts = ("run", "versions", "machine")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(part), Mapping) for part in parts):
        raise ValueError(f"{file} is not the manifest of a run: it has no {', '.join(parts)}.")
    return content


def _open(
    manifests: Mapping[str, Mapping[str, Any]],
    benchmark: str | None,
    root: str | Path | None,
    subset: str | None,
) -> Benchmark:
    """The benchmark of the arguments or, where they are None, of the manifests."""
    keys = {protocol.title: key for key, protocol in BENCHMARKS.items()}
    runs = {
        name: {
            "benchmark": keys.get(manifest["run"].get("benchmark")),
            "subset": manifest["run"].get("subset"),
            "root": manifest["machine"].get("root"),
        }
        for name, manifest in manifests.items()
        if manifest
    }
    values: dict[str, Any] = {"benchmark": benchmark, "root": root, "subset": subset}
    for part, value in values.items():
        known = {name: run[part] for name, run in runs.items() if run[part] is not None}
        if part != "root" and len({*known.values(), *([value] * (value is not None))}) > 1:
            texts = (f"{name} {text}" for name, text in known.items())
            raise ValueError(f"A report is on one {part}: {', '.join(texts)}; --{part} {value}.")
        values[part] = next(iter(known.values()), None) if value is None else value
    for part in ("benchmark", "root"):
        if values[part] is None:
            raise ValueError(
                f"The results have no manifest that says the {part}: name it with --{part}, such as "
                f"{'--benchmark got10k' if part == 'benchmark' else '--root datasets/GOT-10k'}."
            )
    if root is None and not Path(values["root"]).is_dir():
        raise FileNotFoundError(f"The dataset was in {values['root']}; name its folder with --root.")
    opened = open_benchmark(values["benchmark"], values["root"], values["subset"])
    if not opened.has_truth:
        raise ValueError(
            f"The annotations of {opened.protocol.title}'s subset {opened.subset} are not public."
        )
    return opened


def _read(
    benchmark: Benchmark, places: Mapping[str, Path]
) -> tuple[dict[str, Video], dict[str, dict[str, SequenceResult]], dict[str, str]]:
    """Sequences, results by tracker and sequence, and why the other sequences are left out."""
    folders = {name: ResultFolder.of_others(path, benchmark) for name, path in places.items()}
    videos: dict[str, Video] = {}
    results: dict[str, dict[str, SequenceResult]] = {name: {} for name in places}
    left_out: dict[str, str] = {}
    for sequence in benchmark.names:
        missing = [name for name, folder in folders.items() if not folder.files(sequence)[0].is_file()]
        if missing:
            left_out[sequence] = f"no result of {', '.join(missing)}"
            continue
        try:
            video = benchmark[sequence]
        except (OSError, ValueError) as error:
            left_out[sequence] = str(error)
            continue
        truth = np.where(video.visible[:, None], video.boxes, np.nan)
        read = {name: folder.read(sequence, video) for name, folder in folders.items()}
        for name, result in read.items():
            if not isinstance(result, SequenceResult):
                left_out[sequence] = f"{name}: {result.reason}"
            elif not result.ious.size:
                left_out[sequence] = "no frame to evaluate"
            else:  # GOT-10k does not measure precision; it is of interest all the same
                results[name][sequence] = replace(result, truth=truth)
        if sequence not in left_out:
            videos[sequence] = video
    if not videos:
        first = next(iter(left_out.items()), ("", "no sequences"))
        raise ValueError(
            f"The trackers have no sequence in common that can be measured; {first[0]}: {first[1]}."
        )
    return videos, results, left_out


def _summarize(
    name: str,
    manifest: Mapping[str, Any],
    results: Sequence[SequenceResult],
    videos: Mapping[str, Video],
    main: str,
    groups: Mapping[str, Sequence[str]],
    worst: int,
    seed: int,
) -> TrackerReport:
    scores = {result.name: score([result]) for result in results}
    table = np.array([[getattr(s, metric) for metric in METRICS] for s in scores.values()], float)
    totals = dict(zip(METRICS, intervals(table, seed)))
    by_attribute = {
        group: intervals(np.array([[getattr(scores[n], main)] for n in names]), seed)[0]
        for group, names in groups.items()
    }
    tracked = [replace(result, counts_first=False) for result in results]  # the first score is not its own
    has_scores = all(np.isfinite(result.scores).all() for result in tracked)
    has_scores = has_scores and any(result.evaluated.any() for result in tracked)
    lowest = sorted(results, key=lambda result: getattr(scores[result.name], main))[:worst]
    return TrackerReport(
        name,
        manifest,
        scores,
        totals,
        by_attribute,
        _curves(results),
        reliability(*scored_frames(tracked)) if has_scores else None,
        _speed(results),
        [_worst_frame(result, videos[result.name]) for result in lowest],
    )


def _curves(results: Sequence[SequenceResult]) -> dict[str, Array]:
    """Fraction of frames at every threshold, mean over sequences."""
    rows: dict[str, list[Array]] = {name: [] for name in CURVES}
    for result in results:
        assert result.truth is not None
        boxes, truth = result.boxes[result.evaluated], result.truth[result.evaluated]
        rows["success"].append((result.ious[:, None] > CURVES["success"]).mean(axis=0))
        for name in ("precision", "normalized_precision"):
            errors = center_errors(boxes, truth, normalized=name != "precision")
            rows[name].append((errors[:, None] <= CURVES[name]).mean(axis=0))
    return {name: np.mean(values, axis=0) for name, values in rows.items()}


def _speed(results: Sequence[SequenceResult]) -> Speed | None:
    """Speed over all updates; None if a sequence has no times."""
    if not all(len(result.seconds) == len(result.boxes) for result in results):
        return None
    updates = np.concatenate([result.seconds[1:] for result in results])
    if not updates.size or not updates.sum() > 0:
        return None
    median, p95 = 1e3 * np.quantile(updates, (0.5, 0.95))
    return Speed(float(updates.size / updates.sum()), float(median), float(p95))


def _worst_frame(result: SequenceResult, video: Video) -> WorstFrame:
    assert result.overlaps is not None
    index = int(np.argmin(np.where(result.evaluated, result.overlaps, np.inf)))
    return WorstFrame(
        result.name,
        index,
        len(video.frames),
        Path(str(video.frames[index])),
        tuple(map(float, result.boxes[index])),
        tuple(map(float, video.boxes[index])),
        float(result.overlaps[index]),
        float(result.scores[index]),
    )
