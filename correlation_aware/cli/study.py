"""`correlation-aware study`: the design study of the paper, trained at a small scale."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware._files import check_output_folder
from correlation_aware.cli._common import Device, console
from correlation_aware.cli._messages import print_messages
from correlation_aware.cli._signals import stopped_by_signals
from correlation_aware.cli.train_tools import check_installed

if TYPE_CHECKING:
    from correlation_aware.study.report import ClaimResult
    from correlation_aware.study.settings import Setting

__all__ = ["app"]

app = typer.Typer(
    help="The paper's design study: list, profile, train and plot its variants.", no_args_is_help=True
)

TableName = Annotated[
    str, typer.Argument(metavar="TABLE", help="table1, table2, table7 to table10, fig4, fig8 or convergence.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_settings(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table; all by default.")] = "",
    as_json: Json = False,
) -> None:
    """List the variants: model, arguments, the paper's figures, and what was inferred."""
    from correlation_aware.study.settings import TABLES, table

    names = [name] if name else list(TABLES)
    rows = [_facts(title, setting) for title in names for setting in table(title).values()]
    if as_json:
        console.print_json(json.dumps(rows))
        return
    for row in rows:
        arguments = ", ".join(f"{key}={value}" for key, value in row["overrides"].items())
        console.print(f"{row['table']} {row['setting']}: {row['model']}({escape(arguments)})")
        figures = [f"{row[key]:g} {unit}" for key, unit in _UNITS if row[key] is not None]
        console.print(f"    paper: {', '.join(figures) or 'no figures'}; {row['origin']}")
        if row["note"]:
            console.print(f"    {escape(row['note'])}")


_UNITS = (("reported_params", "M"), ("reported_gmacs", "GMACs"), ("reported_ao", "AO"))


@app.command("profile")
def profile_settings(
    name: TableName,
    scale: Annotated[
        str, typer.Option(help="paper, or small or tiny for what `study run` trains.")
    ] = "paper",
    as_json: Json = False,
) -> None:
    """Parameters and GMACs of every variant beside the paper's, with the reason of a deviation."""
    from correlation_aware.models.profile import profile
    from correlation_aware.study.scale import at_scale, check_scale
    from correlation_aware.study.settings import table
    from correlation_aware.zoo import create_model

    check_scale(scale)
    rows = []
    for setting in table(name).values():
        built = at_scale(setting, scale)
        model: Any = create_model(built.model, device="meta", **built.overrides)
        costs = profile(model)
        sizes = [model.sizes.template_size, model.sizes.search_size]
        rows.append(_facts(name, built) | {"params": costs.params, "macs": costs.macs, "image_sizes": sizes})
    if as_json:
        console.print_json(json.dumps(rows))
        return
    view = Table("", "px", "params M", "paper", "GMACs", "paper")
    for row in rows:
        ours = (row["params"] / 1e6, row["macs"] / 1e9)
        theirs = (row["reported_params"], row["reported_gmacs"])
        cells = [cell for a, b in zip(ours, theirs) for cell in (f"{a:.2f}", _beside(a, b, scale))]
        view.add_row(row["setting"], "/".join(map(str, row["image_sizes"])), *cells)
    console.print(view)
    for row in rows:
        if row["note"] and scale == "paper":
            console.print(f"{row['setting']}: {escape(row['note'])}")


@app.command()
def run(
    name: TableName,
    output: Annotated[Path, typer.Option(help="Folder of the study; the same command continues it.")],
    photographs: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Folder or tar shards of photographs to train on. Repeatable."),
    ] = None,
    videos: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYOUT:ROOT", help="Annotated videos to train on. Repeatable."),
    ] = None,
    clips: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE", help="Other photographs, whose synthetic clips are tracked through. Repeatable."
        ),
    ] = None,
    clip_count: Annotated[int, typer.Option(min=1, help="Number of these clips.")] = 16,
    sequences: Annotated[
        Path | None, typer.Option(help="Annotated sequences in GOT-10k's layout to measure on.")
    ] = None,
    subset: Annotated[str, typer.Option(help="Subset of the sequences.")] = "val",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every variant.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Time of the whole study, instead of --steps: every variant gets as many steps as fit.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Variants to train, such as C1,C9; all by default.")] = "",
    scale: Annotated[
        str,
        typer.Option(
            help="small: an eighth of the channels, images of half the size; tiny: images of a quarter of "
            "the size; or paper."
        ),
    ] = "small",
    pretrained: Annotated[
        str | None,
        typer.Option("--start", help="Weights to start from, as model.pretrained of `train track`."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Variants to train at a time.")] = 1,
    stored: Annotated[
        bool,
        typer.Option(
            "--store-pairs",
            help="Make the pairs of a seed once, in a file that all its variants read, removed at the end.",
        ),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change to the recipe `study`. Repeatable."),
    ] = None,
    device: Device = None,
) -> None:
    """Train every variant from the same seeds and pairs for the same steps, and measure it.

    Results are written one by one, and the command continues where it was
    stopped. Ctrl-C or SIGTERM stops with checkpoints; a second one stops
    immediately. At the end: a table, summary.json and the plots.
    """
    check_installed()
    from correlation_aware.study.run import PROCESSES, Plan, read_plan_steps, run_study, steps_within
    from correlation_aware.training import __file__ as training_file
    from correlation_aware.training.config import load
    from correlation_aware.training.track import TrackTraining

    if (steps is None) == (budget is None):
        raise ValueError("Name one of --steps and --budget.")
    _check_changes(changes or ())
    sources = [f"data.sources={json.dumps(dict.fromkeys(photographs, 1.0))}"] if photographs else []
    sources += [f"data.videos={json.dumps(dict.fromkeys(videos, 1.0))}"] if videos else []
    recipe = Path(training_file).with_name("configs") / "study.yaml"

    def configure(steps: int) -> TrackTraining:
        return load(TrackTraining, recipe, [*sources, f"schedule.steps={steps}", *(changes or ())])

    training = configure(steps or 1000)
    if not training.data.sources and not training.data.videos:
        raise ValueError("No training data: name photographs with --photographs, or videos with --videos.")
    plan = Plan(
        name,
        training,
        only=tuple(only.split(",")) if only else (),
        seeds=_numbers(seeds),
        scale=scale,
        pretrained=pretrained,
        clips=dict.fromkeys(clips or (), 1.0),
        clip_count=clip_count,
        sequences=None if sequences is None else str(sequences),
        subset=subset,
        stored=stored,
    )
    stop = PROCESSES.Event()
    with print_messages(console):
        if budget is not None:
            chosen = read_plan_steps(output) or steps_within(plan, budget, processes, device)
            console.print(f"{chosen} steps of every variant")
            plan = replace(plan, training=configure(chosen))
        try:
            with stopped_by_signals(stop.set):
                results = run_study(plan, output, processes, device, _print_result, stop)
        except RuntimeError as error:
            if not stop.is_set():
                raise
            console.print(escape(str(error)))
            raise typer.Exit(1) from error
    _report({output.name: results}, output)


@app.command()
def plot(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of `study run`.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the plots; the first FOLDER by default.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What is plotted: video_ao, ao or pair_iou; the first that all results have."),
    ] = None,
) -> None:
    """Draw the plots of finished variants again; several studies of a table share them."""
    from correlation_aware.study.report import check_metric
    from correlation_aware.study.run import read_results

    folder = output or folders[0]
    check_output_folder(folder)
    names = [path.name for path in folders]
    studies = {
        path.name if names.count(path.name) == 1 else str(path): read_results(path) for path in folders
    }
    metric = check_metric(studies, metric)
    folder.mkdir(parents=True, exist_ok=True)
    _report(studies, folder, metric)


def _report(studies: dict[str, list[dict[str, Any]]], folder: Path, metric: str | None = None) -> None:
    """Prints the table of every study, writes summary.json and the plots."""
    from correlation_aware._files import write_text
    from correlation_aware.study.report import (
        LABELS,
        agreement,
        check_claims,
        metrics_of,
        plot_study,
        summarize,
    )

    facts = {}
    for title, results in studies.items():
        summaries, metrics = summarize(results), metrics_of(results)
        view = Table(escape(title), "seeds")
        for key in metrics:
            view.add_column(LABELS[key].replace(" on ", " on\n"), no_wrap=True)
        for header in ("size\nM", "GMACs", "pairs\nper s", "paper\nAO"):
            view.add_column(header)
        for s in summaries:
            spreads = [f" ± {s.spread(key):.3f}" if len(s.seeds) > 1 else "" for key in metrics]
            cells = [f"{s.mean(key):.3f}{spread}" for key, spread in zip(metrics, spreads)]
            costs = (f"{s.params / 1e6:.2f}", f"{s.macs / 1e9:.3f}", f"{s.pairs_per_s:.1f}")
            ao = s.setting.reported.ao
            view.add_row(s.setting.name, str(len(s.seeds)), *cells, *costs, "" if ao is None else f"{ao:g}")
        console.print(view)
        correlations = {}
        for key in metrics:
            correlations[key], count = agreement(summaries, key)
            if not math.isnan(correlations[key]):
                words = f"Rank correlation of {LABELS[key]} with the paper's AO over {count} settings"
                console.print(f"{words}: {correlations[key]:+.2f}")
        claims = {key: check_claims(results, key) for key in metrics}
        if any(claims.values()):
            _print_claims(claims)
        facts[title] = {
            "table": results[0]["table"],
            "steps": results[0]["steps"],
            "rank_correlation": {
                key: None if math.isnan(value) else round(value, 3) for key, value in correlations.items()
            },
            "claims": [
                {**c.claim._asdict(), "metric": key, "differences": c.differences, "verdict": c.verdict}
                for key in metrics
                for c in claims[key]
            ],
            "settings": {
                s.setting.name: {
                    "seeds": s.seeds,
                    **{key: [round(value, 4) for value in values] for key, values in s.scores.items()},
                    "params": s.params,
                    "macs": s.macs,
                    "pairs_per_s": round(s.pairs_per_s, 2),
                    "reported_ao": s.setting.reported.ao,
                }
                for s in summaries
            },
        }
    write_text(json.dumps(facts, indent=2) + "\n", folder / "summary.json")
    try:
        paths = plot_study(studies, folder, metric)
    except ModuleNotFoundError as error:
        console.print(f"No plots: {error}", style="yellow")
        return
    console.print(f"Wrote {escape(', '.join(str(path) for path in [folder / 'summary.json', *paths]))}")


def _print_claims(claims: "dict[str, list[ClaimResult]]") -> None:
    """The paper's sentences beside what was measured, in points."""
    from correlation_aware.study.report import LABELS

    view = Table("better,\nworse", "the better one has", "paper,\npoints")
    for key in claims:
        view.add_column(LABELS[key].replace(" on ", " on\n"), no_wrap=True)
    for results in zip(*claims.values()):
        claim, cells = results[0].claim, []
        for result in results:
            margin = "" if math.isnan(result.margin) else f" ± {100 * result.margin:.1f}"
            cells.append(f"{100 * result.mean:+.1f}{margin}\n{result.verdict}")
        points = "" if claim.points is None else f"{claim.points:+.1f}"
        view.add_row(f"{claim.better}, {claim.worse}", claim.text, points, *cells)
    console.print(view)


def _print_result(result: dict[str, Any]) -> None:
    from correlation_aware.study.report import LABELS

    figures = [f"{key} {result[key]:.3f}" for key in LABELS if key in result]
    speed = f"{result['pairs_per_s']} pairs/s"
    console.print(f"{result['setting']}, seed {result['seed']}: {', '.join(figures)}, {speed}")


def _facts(title: str, setting: "Setting") -> dict[str, Any]:
    reported = {f"reported_{key}": value for key, value in setting.reported._asdict().items()}
    return {
        "table": title,
        "setting": setting.name,
        "model": setting.model,
        "overrides": dict(setting.overrides),
        **reported,
        "origin": setting.origin,
        "note": setting.note,
    }


def _beside(ours: float, theirs: float | None, scale: str) -> str:
    if theirs is None:
        return ""
    return f"{theirs:.2f} ({100 * (ours / theirs - 1):+.0f} %)" if scale == "paper" else f"{theirs:.2f}"


def _check_changes(changes: Sequence[str]) -> None:
    """Refuses changes to what options or the variants set, which would have no effect."""
    options = {
        "schedule.steps": "Name --steps.",
        "data.sources": "Name --photographs.",
        "data.videos": "Name --videos.",
        "run.seed": "Name --seeds.",
        "model": "Models are those of the table, see `study list`; their weights are named with --start.",
    }
    for text in changes:
        key = text.partition("=")[0]
        owner = next((name for name in options if f"{key}.".startswith(f"{name}.")), None)
        if owner is not None:
            raise ValueError(f"--set {text!r} has no effect in a study. {options[owner]}")


def _numbers(text: str) -> tuple[int, ...]:
    words: Sequence[str] = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise ValueError(f"--seeds {text!r} must be different whole numbers, such as 0,1,2.")
    return tuple(int(word) for word in words)
