"""`correlation-aware eval clips` and `eval longterm`: a tracker's settings on synthetic clips.

Their options --model, --weights, --device, --runtime and --decode are those of `_common.py`.
"""

import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from correlation_aware._deprecation import current_fields
from correlation_aware._extras import require
from correlation_aware.cli._common import (
    Decode,
    Device,
    Model,
    Runtime,
    Weights,
    console,
    figure_table,
    load_tracker,
    print_wide,
    track_progress,
)
from correlation_aware.cli.eval_common import Json, print_scores

if TYPE_CHECKING:
    from correlation_aware.evaluation.long_term import LongTermResult, LongTermScores
    from correlation_aware.evaluation.one_pass import SequenceResult
    from correlation_aware.tracking.tracker import Tracker, TrackerConfig

__all__ = ["clips", "longterm"]

Sources = Annotated[list[str], typer.Argument(metavar="SOURCE", help="Folders or tar shards of photographs.")]
Count = Annotated[int, typer.Option(min=1, help="Number of clips.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the clips.")]


def clips(
    sources: Sources,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    decode: Decode = "default",
    count: Count = 40,
    seed: Seed = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Values of a field of TrackerConfig, such as window_weight=0.2,0.4. Repeat for a grid.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reliability diagram of the score to write (PNG).")
    ] = None,
    as_json: Json = None,
) -> None:
    """Evaluate on synthetic clips with exact boxes, made from photographs.

    For choosing a tracker's settings and checking the calibration of its
    score without using a benchmark. The photographs should not be training
    data. --sweep prints a row for each combination of settings. CE is the
    expected calibration error: the mean difference of the score and the
    fraction of right boxes.
    """
    from correlation_aware._files import PLOT_SUFFIXES, check_output_file
    from correlation_aware.evaluation.calibration import plot_reliability, reliability, scored_frames
    from correlation_aware.evaluation.one_pass import average
    from correlation_aware.evaluation.synthetic import evaluate_clip, make_clips
    from correlation_aware.tracking.tracker import decode_config

    configs = _grid(sweep or [], decode_config(decode))
    if plot is not None and len(configs) > 1:
        raise ValueError(
            "--plot shows one combination of settings: leave out --sweep, or use one value per field"
        )
    if plot is not None:
        require("matplotlib.figure")
        check_output_file(plot, PLOT_SUFFIXES)
    if as_json is not None:
        check_output_file(as_json)
    tracker = load_tracker(model, weights, device)
    trackers = _configured(tracker, configs)
    results: dict[str, list[SequenceResult]] = {name: [] for name in trackers}
    generated = make_clips(dict.fromkeys(sources, 1.0), count, seed)
    for number, clip in enumerate(track_progress(generated, count, "clips")):
        for name, configured in trackers.items():
            results[name].append(evaluate_clip(configured, clip, f"clip {number}"))
    rows = {name: average(of_config) for name, of_config in results.items()}
    calibrations = {name: reliability(*scored_frames(of_config)) for name, of_config in results.items()}
    errors = {name: f"{calibrations[name].error:.3f}" for name in rows}
    print_scores(dict(sorted(rows.items(), key=lambda row: -row[1].ao)), {}, "settings", {"CE": errors})
    if plot is not None:
        title = f"{tracker.weights_name}, {count} synthetic clips"
        plot_reliability(next(iter(calibrations.values())), plot, title)
        console.print(f"Wrote {escape(str(plot))}")
    if as_json is not None:
        settings = {n: {**asdict(s), "calibration_error": calibrations[n].error} for n, s in rows.items()}
        _write(as_json, tracker, count, seed, settings)


def longterm(
    sources: Sources,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    count: Count = 20,
    seed: Seed = 0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Values of a field of TrackerConfig; redetect=0,1 by default. Repeat for a grid.",
        ),
    ] = None,
    as_json: Json = None,
) -> None:
    """Evaluate on synthetic clips in which the target goes out of sight.

    In 150 frames it leaves the frame and is covered by an object, and returns
    elsewhere; a recolored copy of it and another object stay. F is VOT's
    F-score for long-term tracking at its best threshold of the score, P and R
    are precision and recall there. "again" is the share of returns after
    which the target is found within 25 frames, "elsewhere" the share of
    clips that end on something else. "cost" is the time per frame over that
    of the first row; "if lost" is that of frames with a lost target.
    """
    from correlation_aware._files import check_output_file
    from correlation_aware.evaluation.long_term import LONG_TERM_CLIPS, long_term_scores, track_clip
    from correlation_aware.evaluation.synthetic import make_clips
    from correlation_aware.tracking.tracker import decode_config

    configs = _grid(sweep or ["redetect=0,1"], decode_config(decode))
    if as_json is not None:
        check_output_file(as_json)
    tracker = load_tracker(model, weights, device, runtime)
    trackers = _configured(tracker, configs)
    results: dict[str, list[LongTermResult]] = {name: [] for name in trackers}
    generated = make_clips(dict.fromkeys(sources, 1.0), count, seed, LONG_TERM_CLIPS)
    for clip in track_progress(generated, count, "clips"):
        for name, configured in trackers.items():
            results[name].append(track_clip(configured, clip))
    rows = {name: long_term_scores(of_config) for name, of_config in results.items()}
    _print_long_term(rows)
    if as_json is not None:
        _write(as_json, tracker, count, seed, {name: asdict(scores) for name, scores in rows.items()})


def _configured(tracker: "Tracker", configs: Mapping[str, "TrackerConfig"]) -> dict[str, "Tracker"]:
    """A tracker of the same model and runtime for each configuration."""
    from correlation_aware.runtime.session import InferenceSession
    from correlation_aware.tracking.tracker import Tracker

    runtime, exported = tracker.session.runtime, tracker.session.exported
    return {
        name: Tracker(InferenceSession(tracker.model, runtime=runtime, exported=exported), config)
        for name, config in configs.items()
    }


def _print_long_term(rows: Mapping[str, "LongTermScores"]) -> None:
    """Prints a row per setting; the first one is the unit of cost."""
    titles = ("settings", "clips", "returns", "F", "P", "R", "again", "elsewhere")
    table = figure_table((*titles, "ms/frame", "cost", "if lost"))
    unit = next(iter(rows.values())).milliseconds
    for name, s in rows.items():
        shares = (f"{value:.3f}" for value in (s.f1, s.precision, s.recall, s.redetected, s.ends_elsewhere))
        costs = (f"{value / unit:.2f}" for value in (s.milliseconds, s.milliseconds_lost))
        table.add_row(escape(name), str(s.clips), str(s.returns), *shares, f"{s.milliseconds:.1f}", *costs)
    print_wide(table)


def _write(
    path: Path, tracker: "Tracker", count: int, seed: int, settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes the figures of each setting to the file of --json."""
    from correlation_aware._files import write_text

    about = {"tracker": tracker.name, "weights": tracker.weights_name, "clips": count, "seed": seed}
    write_text(json.dumps({**about, "settings": settings}, indent=2) + "\n", path)
    console.print(f"Wrote {escape(str(path))}")


def _grid(sweep: Sequence[str], default: "TrackerConfig") -> dict[str, "TrackerConfig"]:
    """Configurations of all combinations of the values, by labels such as `window_weight=0.2 margin=5`."""
    known = {
        name: type(value) if isinstance(value, int) else float
        for name, value in vars(default).items()
        if not isinstance(value, str)
    }
    axes: list[list[tuple[str, Any]]] = []
    for text in sweep:
        name, _, values = text.partition("=")
        (name,) = current_fields(type(default), {name: values})
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2) or known
            raise ValueError(f"--sweep {text!r}: there is no setting {name!r}. Near: {', '.join(near)}.")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(
                f"--sweep {text!r} is not NAME=V,V,... with numbers, 0 and 1 for no, yes"
            ) from None
        axes.append([(name, known[name](number)) for number in numbers])
    grid = {
        " ".join(f"{name}={value:g}" for name, value in choice) or "default": replace(default, **dict(choice))
        for choice in itertools.product(*axes)
    }
    for name in (name for axis in axes for name, _ in axis):
        if name.startswith("redetect_") and not any(config.redetect for config in grid.values()):
            raise ValueError(f"--sweep {name}=... has no effect with redetect off: add --sweep redetect=1")
    return grid
