"""The report as one page of HTML that needs no other file and no network."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from correlation_aware._files import write_text
from correlation_aware._version import __version__
from correlation_aware.evaluation.bootstrap import FEWEST, RESAMPLES, Interval
from correlation_aware.evaluation.calibration import HIT
from correlation_aware.evaluation.one_pass import NORMALIZED_PRECISION, PRECISION
from correlation_aware.evaluation.report import CURVES, METRICS, Pair, Report, TrackerReport, WorstFrame
from correlation_aware.evaluation.report_plots import line_sample, plot_curves, plot_frame, plot_scores, style

__all__ = ["write_page"]

MEANINGS = {
    "ao": "mean overlap (IoU)",
    "sr50": "fraction of frames with an overlap above 0.5",
    "sr75": "fraction of frames with an overlap above 0.75",
    "auc": "area under the success curve",
    "precision": f"fraction of frames with centers at most {PRECISION:.0f} px apart",
    "normalized_precision": f"fraction of frames with centers at most {NORMALIZED_PRECISION} widths and "
    "heights of the target apart",
}
TEXTS = ("against", "machine", "reading", "value")  # headings of columns of text
FEW_PAIRS = 6  # more pairs are listed by sequence in a part of their own that is closed at first
TEXT_CLASS = ' class="text"'
PLOTS = {
    "success": ("Success", "overlap threshold", "fraction of frames above", "auc"),
    "precision": ("Precision", "distance of centers (px)", "fraction of frames within", "precision"),
    "normalized_precision": (
        "Normalized precision",
        "distance of centers (sizes of the target)",
        "fraction of frames within",
        "normalized_precision",
    ),
}


def write_page(report: Report, path: str | Path) -> None:
    """Writes the report as a page.

    Worst frames whose image cannot be read are listed without it.

    Args:
        report: Report.
        path: Path of the HTML file; it appears when it is complete.
    """
    template = files("correlation_aware.evaluation").joinpath("report.html").read_text("utf-8")
    title = escape(f"{report.benchmark} {report.subset}: {_count(len(report.trackers), 'tracker')}")
    head, tail = template.replace("@TITLE@", title).split("@BODY@")
    write_text(head + _body(report, title) + tail, path)


def _body(report: Report, title: str) -> str:
    sections = {
        "overall": ("All sequences", _overall(report)),
        "plots": ("Plots", _plots(report)),
        "pairs": ("Pairs of trackers", _pairs(report)),
        "sequences": ("Sequences", _sequences(report)),
        "attributes": ("Attributes", _attributes(report)),
        "worst": ("Worst frames", _worst(report)),
        "calibration": ("Scores", _calibration(report)),
        "speed": ("Speed", _speed(report)),
        "runs": ("Runs", _runs(report)),
    }
    shown = {key: part for key, part in sections.items() if part[1]}
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, (name, _) in shown.items())
    frames = sum(s.frames for s in report.trackers[0].scores.values())
    facts = f"{_count(len(report.sequences), 'sequence')}, {frames} evaluated frames per tracker, one pass"
    parts = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{name}</h2>{content}</section>'
        for key, (name, content) in shown.items()
    )
    return (
        f'<header><h1>{title}</h1><p class="soft">{facts}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main id="main">{_caution(report)}{_left_out(report)}{parts}</main>'
        f"<footer>correlation_aware {escape(__version__)}. Intervals: {RESAMPLES} resamples of the "
        f"sequences, seed {report.seed}; none for fewer than {FEWEST} sequences.</footer>"
    )


def _caution(report: Report) -> str:
    """What a difference on this number of sequences means, with numbers."""
    count, metric = len(report.sequences), METRICS[report.main]
    if count < FEWEST:
        return (
            f'<p class="note">{_count(count, "sequence")} of the {FEWEST} that an interval needs: the '
            "figures do not say which tracker is better on others.</p>"
        )
    if not report.pairs:
        return ""
    width = statistics.median(
        (p.comparison.difference.high - p.comparison.difference.low) / 2 for p in report.pairs
    )
    clear = sum(pair.comparison.is_clear for pair in report.pairs)
    closest = min(report.pairs, key=lambda pair: abs(pair.comparison.difference.mean))
    text = (
        f"<strong>A difference on {count} sequences means little unless it is large.</strong> With other "
        f"sequences of the same kind, a difference of two of these trackers in {metric} would move by about "
        f"±{width:.3f} (95 %). The interval excludes 0 for {clear} of {_count(len(report.pairs), 'pair')}. "
        f"The closest pair: {_sentence(closest, count)}"
    )
    return f'<p class="note">{text}</p>'


def _sentence(pair: Pair, count: int) -> str:
    c = pair.comparison
    needed = f" About {c.needed} sequences with this difference and spread would separate them." * (
        not c.is_clear and c.needed > count
    )
    return (
        f"{escape(pair.better)} is ahead of {escape(pair.worse)} by {c.difference.mean:.3f}, interval "
        f"{_bounds(c.difference)}; in {100 * c.reversed:.0f} % of the resamples it is not ahead.{needed}"
    )


def _left_out(report: Report) -> str:
    if not report.left_out:
        return ""
    items = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in report.left_out.items())
    counted = _count(len(report.left_out), "sequence")
    return (
        f'<details class="note"><summary>{counted} left out for all trackers</summary><ul>{items}</ul>'
        "</details>"
    )


def _overall(report: Report) -> str:
    best = {m: max(t.totals[m].mean for t in report.trackers) for m in METRICS}
    rows = [
        [
            _name(i, tracker.name),
            *(_interval(tracker.totals[m], tracker.totals[m].mean == best[m]) for m in METRICS),
        ]
        for i, tracker in enumerate(report.trackers)
    ]
    meanings = "; ".join(f"{METRICS[m]}: {MEANINGS[m]}" for m in METRICS)
    caption = "Mean over sequences, each with equal weight; below it the 95 % interval. Bold: highest."
    table = _table(caption, ["tracker", *METRICS.values()], rows, descending=range(1, 7))
    return f'{table}<p class="soft">{meanings}.</p>'


def _plots(report: Report) -> str:
    figures = []
    for key, (title, xlabel, ylabel, metric) in PLOTS.items():
        values = (f"{t.name} {METRICS[metric]} {t.totals[metric].mean:.3f}" for t in report.trackers)
        text = f"{title} plot. {'; '.join(values)}"
        plot = plot_curves([t.curves[key] for t in report.trackers], CURVES[key], xlabel, ylabel, text)
        figures.append(f"<figure><h3>{title}</h3>{plot}</figure>")
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-of="{i}">{line_sample(i)}'
        f"{escape(t.name)}</button></li>"
        for i, t in enumerate(report.trackers)
    )
    legend = f'<ul class="legend" aria-label="Trackers in the plots">{buttons}</ul>'
    return f'{legend}<div class="plots">{"".join(figures)}</div><p class="soft">Mean over sequences.</p>'


def _pairs(report: Report) -> str:
    if not report.pairs:
        return ""
    rows = []
    for pair in report.pairs:
        c = pair.comparison
        needed = f"; about {c.needed} sequences needed" * (c.needed > len(report.sequences))
        reading = "clear" if c.is_clear else f"not clear{needed}"
        rows.append(
            [
                _text(pair.better),
                _cell(_breakable(pair.worse), pair.worse, "text name"),
                _interval(c.difference, signed=True),
                _cell(f"{c.wins} / {c.ties} / {c.losses}", c.wins - c.losses),
                _cell(f"{100 * c.reversed:.1f} %", c.reversed),
                _cell(reading, reading, "text wrap"),
            ]
        )
    heads = ["tracker", "against", "difference", "won / equal / lost", "reversed", "reading"]
    metric = METRICS[report.main]
    caption = (
        f"Difference in {metric} on the same sequences, with the 95 % interval of the paired bootstrap. "
        "Reversed: resamples in which the first tracker is not ahead. No correction for the number of pairs."
    )
    scores = {tracker.name: tracker.scores for tracker in report.trackers}
    details = []
    for pair in report.pairs:
        lines = []
        for name in report.sequences:
            a, b = (getattr(scores[tracker][name], report.main) for tracker in (pair.better, pair.worse))
            lines.append([_text(name), _number(a), _number(b), _cell(f"{a - b:+.3f}", a - b)])
        lines.sort(key=lambda line: line[-1])
        names = ["sequence", _breakable(pair.better), _breakable(pair.worse), "difference"]
        table = _table(f"{metric} by sequence", names, lines, descending=range(1, 4))
        title = f"{escape(pair.better)} against {escape(pair.worse)}, by sequence"
        details.append(f"<details><summary>{title}</summary>{table}</details>")
    by_sequence = "".join(details)
    if len(details) > FEW_PAIRS:
        by_sequence = f"<details><summary>Every pair by sequence</summary>{by_sequence}</details>"
    return _table(caption, heads, rows, descending=(2, 3)) + by_sequence


def _sequences(report: Report) -> str:
    rows = []
    for name in report.sequences:
        values = [getattr(tracker.scores[name], report.main) for tracker in report.trackers]
        frames = report.trackers[0].scores[name].frames
        cells = [_number(value, value == max(values)) for value in values]
        rows.append([_text(name), _cell(str(frames), frames), *cells])
    caption = f"{METRICS[report.main]} by sequence. Bold: highest."
    names = [_breakable(tracker.name) for tracker in report.trackers]
    return _table(caption, ["sequence", "frames", *names], rows, descending=range(1, 2 + len(names)))


def _attributes(report: Report) -> str:
    if not report.attributes:
        return ""
    rows = []
    for attribute, sequences in report.attributes.items():
        values = [tracker.attributes[attribute] for tracker in report.trackers]
        best = max(value.mean for value in values)
        cells = [_interval(value, value.mean == best) for value in values]
        rows.append([_text(attribute), _cell(str(len(sequences)), len(sequences)), *cells])
    caption = (
        f"{METRICS[report.main]} on the sequences with an attribute, and its 95 % interval. Attributes "
        f"{escape(report.attribute_source)}."
    )
    names = [_breakable(tracker.name) for tracker in report.trackers]
    return _table(caption, ["attribute", "sequences", *names], rows, descending=range(1, 2 + len(names)))


def _worst(report: Report) -> str:
    groups = []
    for i, tracker in enumerate(report.trackers):
        depth = tracker.manifest.get("run", {}).get("depth_range")
        figures = "".join(_frame(frame, i, tracker.name, depth) for frame in tracker.worst)
        color, _ = style(i)
        key = f'<span class="key" style="color: {color}; border-top-style: dashed"></span>'
        groups.append(
            f'<h3>{key} {escape(tracker.name)}</h3><div class="frames">{figures}</div>' * bool(figures)
        )
    text = (
        f"Of the sequences with the lowest {METRICS[report.main]}, the frame with the lowest overlap, the "
        "first one of several. White: annotation; dashed in the color of the tracker: its box."
    )
    return f"<p>{text}</p>{''.join(groups)}" if any(groups) else ""


def _frame(frame: WorstFrame, index: int, tracker: str, depth: Any) -> str:
    place = f"{frame.sequence}, frame {frame.index + 1} of {frame.frames}"
    score = f", score {frame.score:.2f}" if math.isfinite(frame.score) else ""
    caption = f"{escape(place)}: overlap {frame.overlap:.2f}{score}"
    boxes = (", ".join(f"{value:.0f}" for value in box) for box in (frame.truth, frame.box))
    truth, box = boxes
    text = f"{place}. Annotated box x, y, w, h: {truth}. Box of {tracker}: {box}."
    try:
        image = plot_frame(frame, index, text, depth)
    except (OSError, ValueError):
        image = f'<p class="soft">The image cannot be read. {escape(text)}</p>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _calibration(report: Report) -> str:
    figures = []
    for i, tracker in enumerate(report.trackers):
        if (result := tracker.calibration) is None:
            continue
        bins = "; ".join(
            f"score {s:.2f}: {a:.2f}" for s, a in zip(result.score, result.accuracy) if math.isfinite(s)
        )
        text = f"Fraction of correct boxes of {tracker.name} by score. {bins}."
        caption = f"calibration error {result.error:.3f}, {int(result.count.sum())} frames"
        figures.append(
            f"<figure><h3>{escape(tracker.name)}</h3>{plot_scores(result, i, text)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    without = [tracker.name for tracker in report.trackers if tracker.calibration is None]
    note = f'<p class="soft">Without scores in their results: {escape(", ".join(without))}.</p>' * bool(
        without
    )
    text = (
        f"A box is correct if its overlap is above {HIT}. On the dashed diagonal a score is the probability "
        "of a correct box; the error is the mean distance from it. Gray: number of frames per bin."
    )
    return (f'<p>{text}</p><div class="plots">{"".join(figures)}</div>' if figures else "") + note


def _speed(report: Report) -> str:
    rows, machines = [], set()
    for i, tracker in enumerate(report.trackers):
        if tracker.speed is None:
            continue
        machine = tracker.manifest.get("machine", {})
        processor = machine.get("gpu") or machine.get("processor") or ""
        machines.add((processor, machine.get("threads")))
        speed = tracker.speed
        cells = [_cell(f"{speed.fps:.1f}", speed.fps)]
        cells += [_cell(f"{value:.2f}", value) for value in (speed.median, speed.p95)]
        threads = f", {machine['threads']} threads" if "threads" in machine else ""
        load = f", load {machine['load']:.1f} at the start" if "load" in machine else ""
        place = f"{processor}{threads}{load}" if processor else "unknown"
        rows.append([_name(i, tracker.name), *cells, _cell(escape(place), place, "text wrap")])
    if not rows:
        return ""
    doubt = " The machines differ or are unknown: the figures are not comparable." * (
        len(machines) > 1 or ("", None) in machines
    )
    caption = f"Duration of the tracker without reading images.{doubt}"
    heads = ["tracker", "frames/s", "median ms", "95th percentile ms", "machine"]
    return _table(caption, heads, rows, descending=(1,))


def _runs(report: Report) -> str:
    parts = []
    for tracker in report.trackers:
        if not tracker.manifest:
            parts.append(
                f"<h3>{escape(tracker.name)}</h3><p>Files of boxes without a manifest of their run.</p>"
            )
            continue
        rows = [[_text(key), _cell(escape(value), value, "text wrap")] for key, value in _facts(tracker)]
        table = _table("Settings, weights, versions and machine of the run", ["key", "value"], rows)
        parts.append(f"<details><summary>{escape(tracker.name)}</summary>{table}</details>")
    return "".join(parts)


def _facts(tracker: TrackerReport) -> Iterator[tuple[str, str]]:
    for part in ("run", "versions", "machine"):
        for key, value in tracker.manifest[part].items():
            if key == "root":  # where the dataset is on the machine
                continue
            if isinstance(value, Mapping):
                yield from ((f"{key} {name}", _plain(inner)) for name, inner in value.items())
            else:
                yield key, _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[tuple[Any, str]]],
    descending: Iterable[int] = (),
) -> str:
    """A table whose columns can be sorted; cells are a value to sort by and an element.

    Args:
        caption: Caption.
        heads: Headings, escaped.
        rows: Cells.
        descending: Columns that are sorted with the highest value first.
    """
    first = set(descending)
    columns = "".join(
        f'<th scope="col" aria-sort="none" data-first="{"descending" if i in first else "ascending"}"'
        f"{TEXT_CLASS * (head in TEXTS)}>"
        f'<button type="button">{head}</button></th>'
        for i, head in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(element for _, element in row)}</tr>" for row in rows)
    label = caption.partition(". ")[0]
    return (
        f'<p class="caption">{caption}</p>'
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table aria-label="{label}">'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, value: Any, kind: str = "") -> tuple[Any, str]:
    """A cell of escaped text."""
    attribute = f' class="{kind}"' if kind else ""
    shown = "" if isinstance(value, float) and math.isnan(value) else str(value)
    return value, f'<td{attribute} data-value="{escape(shown)}">{text}</td>'


def _text(text: str) -> tuple[str, str]:
    """The first cell of a row."""
    return text, f'<th scope="row">{_breakable(text)}</th>'


def _breakable(name: str) -> str:
    """An escaped name that may be broken after `_`, `-`, `.` and `/`."""
    return re.sub("([_./-])(?=.)", r"\1<wbr>", escape(name))


def _name(index: int, name: str) -> tuple[str, str]:
    """The first cell of a row of a tracker, with its line in the plots."""
    sample = f'<span class="sample">{line_sample(index)}</span>'
    return name, f'<th scope="row" data-value="{escape(name)}">{sample} {_breakable(name)}</th>'


def _number(value: float, is_best: bool = False) -> tuple[float, str]:
    return _cell(f"{value:.3f}", value, "best" if is_best else "")


def _interval(interval: Interval, is_best: bool = False, signed: bool = False) -> tuple[float, str]:
    mean = f"{interval.mean:+.3f}" if signed else f"{interval.mean:.3f}"
    text = f"{mean}<small>{_bounds(interval)}</small>"
    return _cell(text, interval.mean, "best" if is_best else "")


def _bounds(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
