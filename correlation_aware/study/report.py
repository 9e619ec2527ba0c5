"""What a study shows: means with their spread over the seeds, and the paper's plots redrawn.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666,
Figures 1, 4, 8 and 10.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from correlation_aware._extras import require
from correlation_aware._files import atomic_path
from correlation_aware.models.sbt import BASE
from correlation_aware.study.settings import CLAIMS, Claim, Setting, table

__all__ = [
    "ClaimResult",
    "Placement",
    "Summary",
    "agreement",
    "check_claims",
    "placement",
    "plot_study",
    "summarize",
]

Result = Mapping[str, Any]
LABELS = {  # in the order of preference: the first that all results have is plotted by default
    "video_ao": "AO on sequences",
    "ao": "AO on synthetic clips",
    "pair_iou": "IoU on pairs",
}
# 97.5 % quantile of Student's distribution by degrees of freedom: half a 95 % interval in standard errors
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
SCORES = (*LABELS, "sr50", "sr75", "video_sr50", "video_sr75")


@dataclass(frozen=True)
class Summary:
    """A setting over its seeds.

    Attributes:
        setting: The setting.
        seeds: Seeds with a result.
        scores: Values of every seed by metric: `ao`, `sr50`, `sr75` on synthetic clips, with `video_` on
            sequences, and `pair_iou`.
        params: Parameters.
        macs: Multiply-accumulates of a pair.
        pairs_per_s: Mean speed of the training, with all that ran beside it.
    """

    setting: Setting
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    params: int
    macs: int
    pairs_per_s: float

    def mean(self, metric: str) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores[metric])

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds; NaN of a single one."""
        values = self.scores[metric]
        return statistics.stdev(values) if len(values) > 1 else math.nan


class Placement(NamedTuple):
    """Where the EoC-CA blocks of a setting are.

    Attributes:
        first: Number of the first one, counted from the first block of the network, from 1.
        number: Number of them.
        interval: Median number of EoC-SA blocks from one to the next.
    """

    first: int
    number: int
    interval: float


@dataclass(frozen=True)
class ClaimResult:
    """A sentence of the paper, measured.

    Attributes:
        claim: The sentence.
        differences: Better minus worse, of every seed that both settings have.
    """

    claim: Claim
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference over the seeds."""
        return statistics.fmean(self.differences)

    @property
    def margin(self) -> float:
        """Half the 95 % confidence interval of the mean, over the seeds; NaN of a single one."""
        n = len(self.differences)
        if n < 2:
            return math.nan
        return T_95[min(n - 1, len(T_95)) - 1] * statistics.stdev(self.differences) / math.sqrt(n)

    @property
    def verdict(self) -> str:
        """`supported`, `contradicted`, or `undecided` where the interval includes 0."""
        if not abs(self.mean) > self.margin:
            return "undecided"
        return "supported" if self.mean > 0 else "contradicted"


def check_claims(results: Sequence[Result], metric: str) -> list[ClaimResult]:
    """Measures the sentences of the paper on a table, of which both settings have a common seed.

    Pairs and their order are the same for both settings of a seed, so the differences are those of pairs of
    runs. The interval knows the spread over the seeds alone, not that over the sequences.

    Args:
        results: Results of one table.
        metric: Metric that all of them have.
    """
    scores = {(r["setting"], r["seed"]): float(r[metric]) for r in results}
    checked = []
    for claim in CLAIMS.get(results[0]["table"], ()):
        seeds = [seed for name, seed in scores if name == claim.better and (claim.worse, seed) in scores]
        differences = tuple(scores[claim.better, seed] - scores[claim.worse, seed] for seed in seeds)
        if differences:
            checked.append(ClaimResult(claim, differences))
    return checked


def placement(setting: Setting) -> Placement:
    """The placement of a setting on three stages of SBT."""
    depths = setting.overrides.get("depths", BASE.config.depths)
    blocks = setting.overrides.get("cross_blocks", BASE.config.cross_blocks)
    starts = [0, *itertools.accumulate(depths)]
    numbers = sorted(start + b + 1 for start, stage in zip(starts, blocks) for b in stage)
    gaps = [b - a - 1 for a, b in itertools.pairwise(numbers)]
    return Placement(numbers[0], len(numbers), statistics.median(gaps) if gaps else 0)


def summarize(results: Sequence[Result]) -> list[Summary]:
    """Groups the results of a folder by setting, in the order of the table."""
    settings = table(results[0]["table"])
    summaries = []
    for name, setting in settings.items():
        group = [r for r in results if r["setting"] == name]
        if not group:
            continue
        metrics = [key for key in group[0] if key in SCORES and all(key in r for r in group)]
        speeds = [r["pairs_per_s"] for r in group if r["pairs_per_s"]]
        summaries.append(
            Summary(
                setting,
                tuple(r["seed"] for r in group),
                {metric: tuple(r[metric] for r in group) for metric in metrics},
                group[0]["params"],
                group[0]["macs"],
                statistics.fmean(speeds) if speeds else math.nan,
            )
        )
    return summaries


def agreement(summaries: Sequence[Summary], metric: str) -> tuple[float, int]:
    """Rank correlation (Spearman) of a metric with the AO that the paper reports.

    Returns:
        The correlation, NaN for fewer than three settings, and the number of settings with a reported AO.
    """
    pairs = [(s.mean(metric), s.setting.reported.ao) for s in summaries if s.setting.reported.ao is not None]
    if len(pairs) < 3:
        return math.nan, len(pairs)
    ours, theirs = (_ranks(values) for values in zip(*pairs))
    return float(np.corrcoef(ours, theirs)[0, 1]), len(pairs)


def _ranks(values: Sequence[Any]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def metrics_of(results: Sequence[Result]) -> list[str]:
    """The metrics that all results have, the one that is plotted by default first.

    It is the AO on sequences, or without them on synthetic clips.
    """
    return [metric for metric in LABELS if all(metric in result for result in results)]


def check_metric(studies: Mapping[str, Sequence[Result]], metric: str | None = None) -> str:
    """A metric that all results of all studies have: the named one, or the first.

    Raises:
        ValueError: An unknown metric, or one that some results do not have.
    """
    common = metrics_of([result for study in studies.values() for result in study])
    if metric is None and common:
        return common[0]
    if metric in common:
        return metric
    if metric is None:
        owned = "; ".join(f"{name}: {', '.join(metrics_of(study))}" for name, study in studies.items())
        raise ValueError(f"The studies have no metric in common: {owned}.")
    raise ValueError(f"Not all results have the metric {metric!r}. All have: {', '.join(common)}.")


def plot_study(
    studies: Mapping[str, Sequence[Result]], folder: str | Path, metric: str | None = None
) -> list[Path]:
    """Draws the plots that the table of a study has.

    `scores.png`: AO, or another metric, of every setting and seed, beside the paper's; `size.png`: AO against
    parameters, the area of a circle being the multiply-accumulates (Fig. 1 and 10); `curves.png`: IoU in
    training (Fig. 8 c);
    `claims.png`: differences of pairs of settings that the paper has a sentence on;
    `placement.png`: AO against position, number and interval of EoC-CA blocks (Fig. 4 c, d, f);
    `pretrained_blocks.png`: AO against their number (Fig. 8 a). With two studies, one of which starts from
    pretrained weights, `scores.png` is Fig. 4 (e).

    Args:
        studies: Results of one folder or several by a name for the legend; all of one table.
        folder: Folder of the plots.
        metric: Metric to plot: `video_ao`, `ao` or `pair_iou`; the first that all results have by default.

    Returns:
        The files.

    Raises:
        ValueError: Studies of different tables, or results without the metric.
        ModuleNotFoundError: matplotlib is not installed; the message has the command to install it.
    """
    (figures,) = require("matplotlib.figure")
    results = [result for study in studies.values() for result in study]
    name = results[0]["table"]
    if other := sorted({r["table"] for r in results} - {name}):
        raise ValueError(f"Studies of {name} and of {', '.join(other)} have no common plot.")
    metric = check_metric(studies, metric)
    groups = {key: summarize(study) for key, study in studies.items()}
    drawings = {"scores": _draw_scores, "size": _draw_size, "curves": _draw_curves}
    if any(check_claims(study, metric) for study in studies.values()):
        drawings["claims"] = _draw_claims
    if name in ("fig4", "table8"):
        drawings["placement"] = _draw_placement
    if name == "fig8":
        drawings["pretrained_blocks"] = _draw_blocks
    paths = []
    for title, draw in drawings.items():
        figure = figures.Figure(figsize=(10, 4), layout="constrained")
        draw(figure, groups, studies, metric)
        path = Path(folder) / f"{title}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
        paths.append(path)
    return paths


Groups = Mapping[str, Sequence[Summary]]
Studies = Mapping[str, Sequence[Result]]


def _draw_scores(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    axes = figure.add_subplot(1, 1, 1)
    names = list(dict.fromkeys(s.setting.name for group in groups.values() for s in group))
    for number, (key, group) in enumerate(groups.items()):
        shift = 0.15 * (number - (len(groups) - 1) / 2)
        for s in group:
            x = names.index(s.setting.name) + shift
            axes.plot([x] * len(s.seeds), s.scores[metric], "o", color=f"C{number}", markersize=3, alpha=0.5)
            label = key if s is group[0] else None
            axes.plot(
                x, s.mean(metric), "_", color=f"C{number}", markersize=16, markeredgewidth=2, label=label
            )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(LABELS[metric])
    axes.grid(axis="y", alpha=0.3)
    reported = {s.setting.name: s.setting.reported.ao for group in groups.values() for s in group}
    points = [(names.index(name), ao) for name, ao in reported.items() if ao is not None]
    handles, labels = axes.get_legend_handles_labels()
    if points:
        right = axes.twinx()
        handles += right.plot(*zip(*points), "x", color="black")
        labels.append("paper: AO on GOT-10k, % (right axis)")
        right.set_ylabel("paper: AO on GOT-10k, %")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


def _draw_size(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    axes = figure.add_subplot(1, 1, 1)
    largest = max(s.macs for group in groups.values() for s in group)
    for number, (key, group) in enumerate(groups.items()):
        x, y = [s.params / 1e6 for s in group], [s.mean(metric) for s in group]
        areas = [900 * s.macs / largest for s in group]
        axes.scatter(x, y, s=areas, alpha=0.4, color=f"C{number}", label=key)
        for s, px, py in zip(group, x, y):
            axes.annotate(s.setting.name, (px, py), ha="center", va="center", fontsize=8)
    axes.set(xlabel=f"parameters, M (largest circle: {largest / 1e9:.2f} GMACs)", ylabel=LABELS[metric])
    axes.margins(0.15)
    axes.grid(alpha=0.3)


def _draw_curves(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    axes = figure.add_subplot(1, 1, 1)
    lines = itertools.count()
    for key, study in studies.items():
        for s in groups[key]:
            curves = [
                {record["step"]: record["iou"] for record in r["curve"]}
                for r in study
                if r["setting"] == s.setting.name
            ]
            steps = sorted(set.intersection(*map(set, curves)))  # a checkpoint in between adds a record
            ious = np.array([[curve[step] for step in steps] for curve in curves])
            number = next(lines)
            label = s.setting.name if len(studies) == 1 else f"{key}: {s.setting.name}"
            axes.plot(steps, ious.mean(axis=0), color=f"C{number % 10}", linewidth=1.2, label=label)
            axes.fill_between(steps, ious.min(axis=0), ious.max(axis=0), color=f"C{number % 10}", alpha=0.1)
    axes.set(xlabel="step", ylabel="IoU on training pairs (band: seeds)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)


def _draw_claims(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    axes = figure.add_subplot(1, 1, 1)
    names: list[str] = []
    for number, (key, study) in enumerate(studies.items()):
        for result in check_claims(study, metric):
            points = "" if result.claim.points is None else f" (paper: {result.claim.points:+g})"
            name = f"{result.claim.better} - {result.claim.worse}: {result.claim.text}{points}"
            names += [] if name in names else [name]
            y = names.index(name) + 0.2 * (number - (len(studies) - 1) / 2)
            color, margin = f"C{number}", 0 if math.isnan(result.margin) else result.margin
            label = key if name == names[0] else None
            values = [100 * difference for difference in result.differences]
            axes.errorbar(
                100 * result.mean, y, xerr=100 * margin, fmt="|", color=color, capsize=3, label=label
            )
            axes.plot(values, [y] * len(values), "o", color=color, markersize=3, alpha=0.5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"difference in {LABELS[metric]}, points (dots: seeds; bar: 95 % interval of the mean)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)


def _draw_placement(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    panels = {"first": "position of the first EoC-CA block", "number": "number", "interval": "interval"}
    for panel, (attribute, label) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), panel)
        for number, group in enumerate(groups.values()):
            for s in group:
                x, y = getattr(placement(s.setting), attribute), s.mean(metric)
                spread = 0 if math.isnan(s.spread(metric)) else s.spread(metric)
                axes.errorbar(x, y, spread, fmt="o", color=f"C{number}", markersize=4, capsize=2)
                axes.annotate(s.setting.name, (x, y), (4, 3), textcoords="offset points", fontsize=8)
        axes.set(xlabel=label, ylabel=LABELS[metric] if panel == 1 else None)
        axes.grid(alpha=0.3)


def _draw_blocks(figure: Any, groups: Groups, studies: Studies, metric: str) -> None:
    axes = figure.add_subplot(1, 1, 1)
    for number, (key, group) in enumerate(groups.items()):
        spreads = [0 if math.isnan(s.spread(metric)) else s.spread(metric) for s in group]
        x, y = [s.setting.pretrained_blocks for s in group], [s.mean(metric) for s in group]
        axes.errorbar(x, y, spreads, fmt="o-", color=f"C{number}", markersize=4, capsize=2, label=key)
    axes.set(xlabel="blocks from pretrained weights", ylabel=LABELS[metric])
    axes.grid(alpha=0.3)
