"""`correlation-aware train`: train trackers and classifiers; its tools are in `train_tools`.

Its options --model and --device are those of `_common.py`.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from correlation_aware._files import IMAGE_SUFFIXES, check_output_file, check_output_folder
from correlation_aware.cli import train_tools
from correlation_aware.cli._common import Device, Model, console
from correlation_aware.cli._messages import print_messages
from correlation_aware.cli._signals import stopped_by_signals

if TYPE_CHECKING:
    from torch import nn

    from correlation_aware.training.classify import ClassifyTraining
    from correlation_aware.training.engine import Outcome, Trainer
    from correlation_aware.training.track import TrackTraining

__all__ = ["app"]

EXIT_INTERRUPTED = 130
CLEAR = 0.02  # change of the average overlap that is more than chance on a few videos

app = typer.Typer(
    help="Train a tracker, or a classifier for its backbone; calibrate scores.", no_args_is_help=True
)

Output = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log.jsonl, config.yaml.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file, or the name of a shipped one, such as track_cpu; default values without it."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change to the configuration, such as optimizer.lr=1e-4. Repeatable.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue from the newest checkpoint, with the run's own --config by default."
    ),
]


def _check_minutes(minutes: float | None) -> float | None:
    if minutes is not None and not minutes >= 0:  # before all work, which the time limit is for
        raise ValueError(f"--max-minutes {minutes} is not a number of minutes, such as 30 or 0.5")
    return minutes


Minutes = Annotated[
    float | None,
    typer.Option(callback=_check_minutes, help="Time limit; training stops with a checkpoint."),
]


@app.command()
def track(
    output: Output,
    config: Config = None,
    changes: Changes = None,
    resume: Resume = False,
    max_minutes: Minutes = None,
    device: Device = None,
) -> None:
    """Train a tracker on pairs of template and search images.

    On several GPUs or nodes: accelerate launch --no_python correlation-aware
    train track ...; on CPUs torchrun --nproc_per_node 2 --no-python
    correlation-aware train track ... Ctrl-C or SIGTERM stops with a checkpoint
    and exit code 130, --max-minutes with 0; a second Ctrl-C stops immediately.
    """
    train_tools.check_installed()
    from correlation_aware.training.config import load
    from correlation_aware.training.track import TrackTraining, make_track_trainer

    check_output_folder(output)
    run = load(TrackTraining, _config_path(config, output, resume), changes or ())
    with _run_messages(run, device):
        trainer = make_track_trainer(run, output, device, validate=_validation(run))
        _fit(trainer, run, resume, max_minutes)


@app.command()
def classify(
    output: Output,
    config: Config = None,
    changes: Changes = None,
    resume: Resume = False,
    max_minutes: Minutes = None,
    device: Device = None,
) -> None:
    """Train a classifier on folders of images, to pretrain backbones of trackers.

    To start a tracker from its weights: train track --set
    model.pretrained=RUN/checkpoints/step-.../weights. Several GPUs or nodes
    as in `train track`.
    """
    train_tools.check_installed()
    from correlation_aware.training.classify import ClassifyTraining, make_classify_trainer
    from correlation_aware.training.config import load

    check_output_folder(output)
    run = load(ClassifyTraining, _config_path(config, output, resume), changes or ())
    with _run_messages(run, device):
        _fit(make_classify_trainer(run, output, device), run, resume, max_minutes)


@app.command()
def pairs(
    output: Annotated[Path, typer.Option(help="Image file to write.")] = Path("pairs.png"),
    config: Config = None,
    changes: Changes = None,
    batch: Annotated[int, typer.Option(min=0, help="Number of the batch, from 0.")] = 0,
) -> None:
    """Draw a batch of training pairs of `train track` with their boxes.

    Takes the same --config and --set. Boxes are green, and red in pairs
    whose template shows another target.
    """
    train_tools.check_installed()
    from correlation_aware.data.sheet import pair_sheet
    from correlation_aware.tracking.video import write_image
    from correlation_aware.training.config import load
    from correlation_aware.training.track import TrackTraining, make_track_model, open_pairs

    check_output_file(output, IMAGE_SUFFIXES)
    run = load(TrackTraining, _config_path(config, output, False), changes or ())
    write_image(output, pair_sheet(open_pairs(run, make_track_model(run.model), "cpu").batch(batch)))
    console.print(f"Wrote {escape(str(output))}")


@app.command()
def finetune(
    videos: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Your annotated videos: folders of frames with a groundtruth.txt, or LAYOUT:ROOT.",
        ),
    ],
    output: Output,
    model: Model = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per step.")] = 8,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Video to evaluate on; by default every fifth. Repeatable."),
    ] = None,
    photographs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Folder or tar shards of photographs for half of the pairs, against forgetting. Repeatable.",
        ),
    ] = None,
    clips: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Other photographs, whose synthetic clips measure what was forgotten."
        ),
    ] = None,
    clip_count: Annotated[int, typer.Option(min=1, help="Number of these clips.")] = 16,
    changes: Changes = None,
    resume: Resume = False,
    max_minutes: Minutes = None,
    device: Device = None,
) -> None:
    """Fine-tune a trained tracker on your own videos, and measure whether it helped.

    Some videos are held out. A table shows the average overlap on them before
    and after, of the last weights and not of the best ones, and on synthetic
    clips of other targets. --set takes the keys of `train track`.
    """
    train_tools.check_installed()
    from correlation_aware.evaluation.synthetic import ClipValidation
    from correlation_aware.evaluation.videos import VideoValidation
    from correlation_aware.tracking.tracker import TrackerConfig, create_tracker
    from correlation_aware.training.config import change
    from correlation_aware.training.finetune import finetune_config
    from correlation_aware.training.track import held_out_videos, make_track_trainer

    config = finetune_config(videos, model, steps, batch, hold_out or (), photographs or ())
    config = change(config, changes or ())
    if clips is not None and clips in config.data.sources:
        raise ValueError(f"--clips {clips} is among --photographs: measure forgetting on others.")
    with _run_messages(config, device):
        trainer = make_track_trainer(config, output, device)
        validation = VideoValidation(held_out_videos(config))
        others = None if clips is None else ClipValidation({clips: 1.0}, clip_count)

        def measure(name: str | Path) -> dict[str, float]:
            tracker = create_tracker(name, device=device, config=TrackerConfig(redetect=False))
            results = zip(validation.names, validation.results(tracker))
            overlaps = {name: float(result.ious.mean()) for name, result in results}
            average = {"mean of held-out videos": sum(overlaps.values()) / len(overlaps)}
            forgotten = {} if others is None else {"synthetic clips": others(tracker.model)["ao"]}
            return {**overlaps, **average, **forgotten}

        is_main = trainer.accelerator.is_main_process
        before = measure(config.model.name) if is_main else {}
        outcome = _fit(trainer, config, resume, max_minutes)
        if is_main and outcome.finished:
            _print_comparison(before, measure(outcome.checkpoint / "weights"))
            if others is None:
                console.print("What was forgotten was not measured: name other photographs with --clips.")
            console.print("The score is not calibrated any more; train calibrate does it on photographs.")


for tool in train_tools.TOOLS:
    app.command()(tool)


def _validation(config: "TrackTraining") -> "Callable[[nn.Module], dict[str, float]] | None":
    """Validation on the configured videos and clips, None without any."""
    from correlation_aware.evaluation.synthetic import ClipValidation
    from correlation_aware.evaluation.videos import VideoValidation
    from correlation_aware.training.track import held_out_videos

    data = config.validation
    parts: list[Callable[[nn.Module], dict[str, float]]] = []
    if data.videos:
        parts.append(VideoValidation(held_out_videos(config), data.video_count))
    if data.sources:
        parts.append(ClipValidation(data.sources, data.count, data.seed))
    if not parts:
        return None
    return lambda model: {name: value for part in parts for name, value in part(model).items()}


def _print_comparison(before: dict[str, float], after: dict[str, float]) -> None:
    """Table of average overlaps; yellow lines if the held-out videos are no better, or the clips worse."""
    table = Table("average overlap", "before", "after", "change")
    for name, value in before.items():
        table.add_row(escape(name), f"{value:.3f}", f"{after[name]:.3f}", f"{after[name] - value:+.3f}")
    console.print(table)
    mean = "mean of held-out videos"
    if after[mean] < before[mean] + CLEAR:
        console.print(
            f"Fine-tuning did not clearly help on the held-out videos (by {CLEAR} or more): keep the "
            "original weights, or train on more videos.",
            style="yellow",
        )
    if after.get("synthetic clips", 1.0) < before.get("synthetic clips", 0.0) - CLEAR:
        console.print(
            "The tracker forgot: it is worse on other targets. Use it for videos like these only, or add "
            "--photographs.",
            style="yellow",
        )


def _config_path(config: Path | None, output: Path, resume: bool) -> Path | None:
    """Path of the configuration: a file, a shipped one by name, or on resume the one of the run."""
    if config is None:
        of_run = output / "config.yaml"
        if resume and not of_run.is_file():
            raise FileNotFoundError(f"{output} has no run to resume: there is no {of_run}.")
        return of_run if resume else None
    if config.is_file():
        return config
    from correlation_aware import training

    folder = Path(training.__file__).with_name("configs")
    shipped = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if str(config) not in shipped:
        raise FileNotFoundError(
            f"There is no configuration file {config}. The package has: {', '.join(shipped)}."
        )
    return shipped[str(config)]


@contextmanager
def _run_messages(run: "TrackTraining | ClassifyTraining", device: str | None) -> Iterator[None]:
    """Prints the library's messages inside the block, in the main process only.

    Also allows TensorFloat-32 products and cuDNN's search for the fastest algorithms.
    """
    import torch

    from correlation_aware.training.processes import make_accelerator

    is_main = make_accelerator(run.run, device).is_main_process
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    with print_messages(console if is_main else None, logging.INFO):
        # of several processes, about convolutions in channels_last: no error, and nothing a user can change
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield


def _fit(
    trainer: "Trainer", run: "TrackTraining | ClassifyTraining", resume: bool, max_minutes: float | None
) -> "Outcome":
    """Trains, and prints the configuration once all checks have passed.

    Raises:
        typer.Exit: A signal stopped the run before its end.
    """
    from correlation_aware.training.config import to_yaml

    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        trainer.request_stop()

    with _progress(trainer.unit) as bar, stopped_by_signals(stop):
        task: Any = None
        begin, first = time.monotonic(), 0

        def on_step(step: int) -> None:
            nonlocal task, first
            if task is None:  # a resumed run starts here
                if trainer.accelerator.is_main_process:
                    console.print(escape(to_yaml(run)))
                first = step
                task = bar.add_task("train", total=trainer.schedule.steps, completed=step, speed="")
            bar.update(task, completed=step)

        def on_record(record: dict[str, Any]) -> None:
            if speed := record.get(f"{trainer.unit}_per_s"):  # validation records have none
                bar.update(task, speed=f"{speed:.0f}")
            done = record["step"] - first
            left = (trainer.schedule.steps - record["step"]) * (time.monotonic() - begin) / max(1, done)
            bar.console.print(_line(record) + f"  left {timedelta(seconds=round(left))}")

        outcome = trainer.fit(resume, max_minutes, on_record, on_step)
    if trainer.accelerator.is_main_process:
        state = "Done" if outcome.finished else "Stopped; --resume continues"
        console.print(f"{state}: step {outcome.step}, {escape(str(outcome.checkpoint / 'weights'))}")
    if stopped and not outcome.finished:
        raise typer.Exit(EXIT_INTERRUPTED)
    return outcome


def _line(record: dict[str, Any]) -> str:
    hidden = ("step", "seconds", "lr_backbone")
    figures = (f"{name} {value:.4g}" for name, value in record.items() if name not in hidden)
    return f"step {record['step']}  {'  '.join(figures)}"


def _progress(unit: str) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,"))
    speed = TextColumn("{task.fields[speed]} " + f"{unit}/s,")
    return Progress(
        *columns,
        speed,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
