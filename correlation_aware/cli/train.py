"""`correlation-aware train`: a tracker on pairs, or a classifier to start from."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from correlation_aware._extras import require
from correlation_aware.cli._common import Device, Model, Weights, console, load_tracker, track_progress

if TYPE_CHECKING:
    from correlation_aware.training.classify import ClassifyTraining
    from correlation_aware.training.engine import Trainer
    from correlation_aware.training.track import TrackTraining

__all__ = ["app"]

app = typer.Typer(help="Train a tracker, or a classifier to start from.", no_args_is_help=True)

Output = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log.jsonl, config.yaml.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file, or the name of one that is shipped; defaults without one.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Such as optimizer.lr=1e-4. Repeatable."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint; --config may be left out then.")
]
Minutes = Annotated[float | None, typer.Option(help="Stop with a checkpoint after so many minutes.")]


@app.command()
def track(
    output: Output,
    config: Config = None,
    changes: Changes = None,
    resume: Resume = False,
    max_minutes: Minutes = None,
    device: Device = None,
) -> None:
    """Train a tracker on pairs of pictures.

    On several GPUs or nodes: accelerate launch --no_python correlation-aware
    train track ... Ctrl-C and SIGTERM end the run with a checkpoint, a second
    one at once.
    """
    _check_installed()
    from correlation_aware.evaluation.synthetic import ClipValidation
    from correlation_aware.training.config import load
    from correlation_aware.training.track import TrackTraining, make_track_trainer

    run = load(TrackTraining, _find(config, output, resume), changes or ())
    _begin(run, device)
    clips = run.validation
    validate = ClipValidation(clips.sources, clips.count, clips.seed) if clips.sources else None
    _fit(make_track_trainer(run, output, device, validate=validate), resume, max_minutes)


@app.command()
def classify(
    output: Output,
    config: Config = None,
    changes: Changes = None,
    resume: Resume = False,
    max_minutes: Minutes = None,
    device: Device = None,
) -> None:
    """Train a classifier on folders of pictures, to start trackers from.

    Its weights open a tracker with --set model.pretrained=RUN/checkpoints/
    step-.../weights. Several GPUs or nodes as in `train track`.
    """
    _check_installed()
    from correlation_aware.training.classify import ClassifyTraining, make_classify_trainer
    from correlation_aware.training.config import load

    run = load(ClassifyTraining, _find(config, output, resume), changes or ())
    _begin(run, device)
    _fit(make_classify_trainer(run, output, device), resume, max_minutes)


@app.command()
def calibrate(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Folders or tar shards of photographs.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the calibrated model.")],
    model: Model = None,
    weights: Weights = None,
    count: Annotated[int, typer.Option(min=1, help="Number of synthetic clips.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips.")] = 0,
    device: Device = None,
) -> None:
    """Make a tracker's score the probability that its box is right.

    Tracks through synthetic clips made of photographs, best ones that were
    not trained on, and fits scale and shift of the score's logit, which go
    into the weights. `eval clips --plot` shows what came of it; give it
    another --seed.
    """
    from correlation_aware.evaluation.calibration import fit_calibration, reliability, scored_frames
    from correlation_aware.evaluation.synthetic import evaluate_clip, make_clips
    from correlation_aware.weights import save_pretrained

    tracker = load_tracker(model, weights, device)
    calibrate_head = getattr(tracker.model.head, "calibrate", None)
    if calibrate_head is None:
        raise ValueError(
            f"The head of {tracker.name} has no calibrate(scale, shift), which this command needs."
        )
    clips = make_clips(dict.fromkeys(sources, 1.0), count, seed)
    results = [evaluate_clip(tracker, clip) for clip in track_progress(clips, count, "clips")]
    scores, right = scored_frames(results)
    scale, shift = fit_calibration(scores, right)
    before = reliability(scores, right).error
    calibrate_head(scale, shift)
    save_pretrained(tracker.model, output)
    console.print(f"{right.mean():.1%} of {len(right)} boxes are right; calibration error {before:.3f}")
    console.print(f"logit -> {scale:.4f} * logit {shift:+.4f}; wrote {escape(str(output))}")


@app.command()
def pairs(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("pairs.png"),
    config: Config = None,
    changes: Changes = None,
    batch: Annotated[int, typer.Option(min=0, help="Which batch of the run, from 0.")] = 0,
) -> None:
    """Draw the pairs that `train track` would see, with their boxes.

    Takes the same --config and --set. Green boxes are right; where the box is
    red the template is of another target.
    """
    _check_installed()
    from correlation_aware.data.sheet import pair_sheet
    from correlation_aware.tracking.video import write_image
    from correlation_aware.training.config import load
    from correlation_aware.training.track import TrackTraining, make_track_model, open_pairs

    run = load(TrackTraining, _find(config, output, False), changes or ())
    write_image(output, pair_sheet(open_pairs(run, make_track_model(run.model), "cpu").batch(batch)))
    console.print(f"Wrote {escape(str(output))}")


@app.command()
def curves(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("curves.png"),
) -> None:
    """Draw the log of a run: losses, validation, learning rate."""
    from correlation_aware.training.log import plot_log, read_log

    plot_log(read_log(run / "log.jsonl"), output)
    console.print(f"Wrote {escape(str(output))}")


def _find(config: Path | None, output: Path, resume: bool) -> Path | None:
    """The configuration: a file, one that is shipped, or on resume that of the run."""
    if config is None:
        own = output / "config.yaml"
        return own if resume and own.is_file() else None
    from correlation_aware import training

    shipped = Path(training.__file__).with_name("configs") / f"{config}.yaml"
    return shipped if shipped.is_file() and not config.is_file() else config


def _begin(run: "TrackTraining | ClassifyTraining", device: str | None) -> None:
    """Prints the configuration and what the library logs, once; takes what speed a GPU gives for nothing."""
    import torch

    from correlation_aware.training.config import to_yaml
    from correlation_aware.training.engine import make_accelerator

    if make_accelerator(run.run, device).is_main_process:
        console.print(escape(to_yaml(run)))
        logger = logging.getLogger("correlation_aware")
        logger.setLevel(logging.INFO)
        logger.handlers = [RichHandler(console=console, show_path=False, show_time=False)]
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def _check_installed() -> None:
    require("accelerate", "yaml", message="Training needs {names}")


def _fit(trainer: "Trainer", resume: bool, max_minutes: float | None) -> None:
    with _progress(trainer.unit) as bar, _stopped_by_signals(trainer):
        task = bar.add_task("train", total=trainer.schedule.steps, speed="")

        def on_record(record: dict[str, Any]) -> None:
            bar.update(task, completed=record["step"])
            if speed := record.get(f"{trainer.unit}_per_s"):  # a validation has none
                bar.update(task, speed=f"{speed:.0f}")
            bar.console.print(_line(record))

        outcome = trainer.fit(resume, max_minutes, on_record)
    if trainer.accelerator.is_main_process:
        state = "Done" if outcome.finished else "Stopped; --resume goes on"
        console.print(f"{state}: step {outcome.step}, {escape(str(outcome.checkpoint / 'weights'))}")


def _line(record: dict[str, Any]) -> str:
    hidden = ("step", "seconds", "lr_backbone")
    figures = (f"{name} {value:.4g}" for name, value in record.items() if name not in hidden)
    return f"step {record['step']}  {'  '.join(figures)}"


def _progress(unit: str) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,"))
    left = (TextColumn("{task.fields[speed]} " + f"{unit}/s,"), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def _stopped_by_signals(trainer: "Trainer") -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        trainer.request_stop()
        for name, handler in before.items():  # the next one acts at once
            signal.signal(name, handler)

    before: dict[signal.Signals, Any] = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        before[name] = signal.signal(name, stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
