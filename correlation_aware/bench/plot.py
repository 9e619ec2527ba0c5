"""Plots of the reports of `correlation-aware bench --json`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from correlation_aware._extras import require
from correlation_aware._files import PLOT_SUFFIXES, atomic_path, check_output_file, read_json

__all__ = ["plot_reports", "read_report"]

# quantity that varies in a report: labels of the x and y axes
PANELS = {
    "model": ("", "ms per call"),
    "batch": ("pairs per call", "ms per pair"),
    "search_size": ("size of the search image, px", "ms per call"),
    "targets": ("targets", "ms per frame"),
}


def read_report(path: str | Path) -> dict[str, Any]:
    """Reads a report of `bench model --json` or `bench tracker --json`.

    Raises:
        ValueError: Another file; the message names it.
    """
    report = read_json(path)
    benchmark = report.get("benchmark") if isinstance(report, dict) else None
    if benchmark is None:
        raise ValueError(f"{path} is not a report of `bench model --json` or `bench tracker --json`.")
    if benchmark not in ("model", "tracker"):
        raise ValueError(
            f"{path} is a report of `bench {benchmark}`, which has no plot; those of `bench model` and "
            "`bench tracker` have."
        )
    return dict(report)


def plot_reports(reports: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plots a panel for each quantity that varies: model, batch size, search image size, number of targets.

    Times are medians with a cached template, or with an encoded one for contenders that cannot cache it.

    Args:
        reports: Reports of `read_report`.
        path: Image file to write; its suffix, one of `PLOT_SUFFIXES`, sets the format.

    Raises:
        ValueError: A report in which nothing varies, or another suffix.
        ModuleNotFoundError: matplotlib is not installed; the message has the command to install it.
    """
    check_output_file(path, PLOT_SUFFIXES)
    panels: dict[str, dict[str, list[tuple[Any, float]]]] = {}
    for report in reports:
        points = list(_points(report))
        if not points:
            raise ValueError(
                f"Nothing varies in the report of {' '.join(report['command'])!r}: run it with several "
                "models, batch sizes, search sizes or numbers of targets."
            )
        for panel, series, x, y in points:
            panels.setdefault(panel, {}).setdefault(series, []).append((x, y))
    (figures,) = require("matplotlib.figure")
    names = dict.fromkeys(series for panel in panels.values() for series in panel)
    colors = {name: f"C{number % 10}" for number, name in enumerate(names)}
    figure = figures.Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for number, panel in enumerate((name for name in PANELS if name in panels), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        style = "o" if panel == "model" else "o-"
        for name, line in panels[panel].items():
            axes.plot(*zip(*line), style, markersize=4, linewidth=1.2, color=colors[name])
        x_label, y_label = PANELS[panel]
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        axes.set_xticks(list(dict.fromkeys(x for line in panels[panel].values() for x, _ in line)))
        axes.tick_params(axis="x", labelsize=8, labelrotation=20 if panel == "model" else 0)
        axes.grid(alpha=0.3)
    handles = {name: axes.plot([], [], "o-", color=colors[name])[0] for name in names}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _points(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, float]]:
    """Panel, series, x and y of every point of a report."""
    if report["benchmark"] == "tracker":
        if len({row["targets"] for row in report["rows"]}) > 1:
            for row in report["rows"]:
                series = f"{row['runtime']} {row['dtype']}"
                yield "targets", series, row["targets"], 1e3 / row["frames_per_second"]
        return
    cases = report["cases"]
    sizes = {
        axis: list(dict.fromkeys(case[axis] for case in cases)) for axis in ("model", "batch", "search_size")
    }
    for axis in (axis for axis, values in sizes.items() if len(values) > 1):
        for case in cases:
            fixed = (other for other in ("batch", "search_size") if other != axis)
            if any(case[other] != sizes[other][0] for other in fixed):
                continue
            name_model = axis != "model" and len(sizes["model"]) > 1
            cached = {row["contender"] for row in case["rows"] if row["template"] == "cached"}
            for row in case["rows"]:
                if row["template"] == "cached" or row["contender"] not in cached:
                    series = f"{case['model']} " * name_model + f"{row['contender']} {row['dtype']}"
                    pairs = case["batch"] if axis == "batch" else 1
                    yield axis, series, case[axis], row["times"]["median"] / pairs
