"""The report as JSON, CSV and LaTeX."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from correlation_aware._files import write_text
from correlation_aware.evaluation.bootstrap import RESAMPLES, Interval
from correlation_aware.evaluation.report import CURVES, METRICS, Report, TrackerReport

__all__ = ["write_csv", "write_json", "write_latex"]

COLUMNS = ("tracker", "kind", "name", "metric", "value", "low", "high", "sequences")
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def write_json(report: Report, path: str | Path) -> None:
    """Writes the whole report but the images; unknown numbers are null."""
    content = {
        "benchmark": report.benchmark,
        "subset": report.subset,
        "main": report.main,
        "sequences": list(report.sequences),
        "left_out": dict(report.left_out),
        "attributes": dict(report.attributes),
        "attribute_source": report.attribute_source,
        "bootstrap": {"resamples": RESAMPLES, "seed": report.seed},
        "thresholds": {name: values.tolist() for name, values in CURVES.items()},
        "trackers": {tracker.name: _tracker(tracker) for tracker in report.trackers},
        "pairs": [
            {
                "better": pair.better,
                "worse": pair.worse,
                **asdict(pair.comparison),
                "clear": pair.comparison.is_clear,
            }
            for pair in report.pairs
        ],
    }
    write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", path)


def write_csv(report: Report, path: str | Path) -> None:
    """Writes a line per tracker, metric and kind of mean: all sequences, an attribute, or one sequence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for tracker in report.trackers:
        for kind, name, metric, interval, count in _lines(report, tracker):
            numbers = (interval.mean, interval.low, interval.high)
            shown = ("" if math.isnan(number) else f"{number:.6f}" for number in numbers)
            writer.writerow((tracker.name, kind, name, metric, *shown, count))
    write_text(text.getvalue(), path)


def write_latex(report: Report, path: str | Path) -> None:
    """Writes the means over all sequences as a table for the package booktabs, the highest ones bold."""
    best = {metric: max(tracker.totals[metric].mean for tracker in report.trackers) for metric in METRICS}
    lines = [
        f"% {report.benchmark} {report.subset}, {len(report.sequences)} sequences; brackets: 95 % intervals",
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(METRICS)}}}",
        r"\toprule",
        " & ".join(["tracker", *METRICS.values()]) + r" \\",
        r"\midrule",
    ]
    for tracker in report.trackers:
        cells, bounds = [_latex(tracker.name)], [""]
        for metric in METRICS:
            interval = tracker.totals[metric]
            mean = f"{interval.mean:.3f}"
            cells.append(rf"\textbf{{{mean}}}" if interval.mean == best[metric] else mean)
            known = not math.isnan(interval.low)
            bounds.append(rf"{{\scriptsize [{interval.low:.3f}, {interval.high:.3f}]}}" if known else "")
        lines += [" & ".join(cells) + r" \\", " & ".join(bounds) + r" \\"]
    lines += [r"\bottomrule", r"\end{tabular}"]
    write_text("\n".join(lines) + "\n", path)


def _lines(report: Report, tracker: TrackerReport) -> Iterator[tuple[str, str, str, Interval, int]]:
    for metric, interval in tracker.totals.items():
        yield "all", "", metric, interval, len(report.sequences)
    for attribute, interval in tracker.attributes.items():
        yield "attribute", attribute, report.main, interval, len(report.attributes[attribute])
    for name, scores in tracker.scores.items():
        for metric in METRICS:
            yield "sequence", name, metric, Interval(getattr(scores, metric), math.nan, math.nan), 1


def _tracker(tracker: TrackerReport) -> dict[str, Any]:
    content: dict[str, Any] = {
        "totals": {metric: asdict(interval) for metric, interval in tracker.totals.items()},
        "attributes": {name: asdict(interval) for name, interval in tracker.attributes.items()},
        "sequences": {name: asdict(scores) for name, scores in tracker.scores.items()},
        "curves": {name: values.tolist() for name, values in tracker.curves.items()},
        "speed": asdict(tracker.speed) if tracker.speed is not None else None,
        "calibration": None,
        "worst": [{k: v for k, v in asdict(frame).items() if k != "path"} for frame in tracker.worst],
        "manifest": {part: dict(values) for part, values in tracker.manifest.items()},
    }
    if (result := tracker.calibration) is not None:
        arrays = {name: getattr(result, name).tolist() for name in ("score", "accuracy", "count")}
        content["calibration"] = {**arrays, "error": result.error}
    content["manifest"].get("machine", {}).pop("root", None)  # where the dataset is on the machine
    return content


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _latex(text: str) -> str:
    return re.sub(r"[\\~^]|[&%$#_{}]", lambda match: SPECIAL.get(match[0], f"\\{match[0]}"), text)
