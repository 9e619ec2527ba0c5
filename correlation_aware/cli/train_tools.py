"""Tools of `correlation-aware train`: check and pack data, calibrate scores, average weights, plot logs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from correlation_aware._extras import require
from correlation_aware._files import PLOT_SUFFIXES, check_output_file, check_output_folder
from correlation_aware.cli._common import Device, Model, Weights, console, load_tracker, track_progress

__all__ = ["TOOLS", "check_installed"]


def check_installed() -> None:
    """Raises `ModuleNotFoundError` with the command to install what training needs."""
    require("accelerate", "yaml", message="Training needs {names}")


def check(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Videos as LAYOUT:ROOT, such as got10k:GOT-10k, or photographs: a folder or tar shards.",
        ),
    ],
    subset: Annotated[str | None, typer.Option(help="Subset of the videos, such as val.")] = None,
) -> None:
    """Read training data whole: counts, sizes, what is left out and why.

    Exits with 1 if boxes are wrong: corners, values in 0..1, targets below
    2 pixels, or videos of one frame.
    """
    check_installed()
    from correlation_aware.data.check import check_source
    from correlation_aware.data.videos.subsets import VideoSet

    wrong = False
    for location in data:
        summary = check_source(location, VideoSet(subset=subset))
        for line in summary.text(full=True):
            console.print(line, markup=False, style="red" if line.startswith("  WRONG") else None)
        wrong = wrong or bool(summary.mistakes)
    if wrong:
        raise typer.Exit(1)


def pack(
    videos: Annotated[
        str, typer.Argument(metavar="LAYOUT:ROOT", help="Annotated videos, such as got10k:GOT-10k.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the shards.")],
    subset: Annotated[str | None, typer.Option(help="Subset of the videos, such as val.")] = None,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", min=1, help="Megabytes from which on another shard is started.")
    ] = 1000,
) -> None:
    """Write annotated videos into tar shards, to train from them on disk or from a web server.

    Each shard is a WebDataset whose samples are videos, with an index of its
    members beside it. Files of frames are copied as they are.
    """
    check_installed()
    from correlation_aware.data.videos.pack import pack_videos
    from correlation_aware.data.videos.subsets import VideoSet, open_videos

    packed = pack_videos(open_videos(videos, VideoSet(subset=subset)), output, shard_mb * 10**6)
    for name, reason in packed.left_out.items():
        console.print(f"left out: {name} ({reason})", markup=False, style="yellow")
    console.print(
        f"{packed.videos} videos with {packed.frames} frames in {len(packed.shards)} shards: "
        f"{packed.location}",
        markup=False,
    )


def calibrate(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Folders or tar shards of photographs.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the calibrated model.")],
    model: Model = None,
    weights: Weights = None,
    count: Annotated[int, typer.Option(min=1, help="Number of synthetic clips.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips.")] = 0,
    device: Device = None,
) -> None:
    """Calibrate a tracker's score to the probability that its box is right.

    Runs the tracker on synthetic clips made from photographs, which should
    not be training data, and fits scale and shift of the score's logit,
    which are saved in the weights. `eval clips --plot` with another --seed
    shows the result.
    """
    from correlation_aware.evaluation.calibration import fit_calibration, reliability, scored_frames
    from correlation_aware.evaluation.synthetic import evaluate_clip, make_clips
    from correlation_aware.weights import save_pretrained

    check_output_folder(output)
    tracker = load_tracker(model, weights, device, redetect=False)  # it changes boxes and scores by the score
    calibrate_head = getattr(tracker.model.head, "calibrate", None)
    if calibrate_head is None:
        raise ValueError(
            f"The head of {tracker.name} has no method calibrate(scale, shift) and cannot be calibrated."
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


def average(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Folders of models, or checkpoints of runs."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Average the weights of several checkpoints of one model."""
    from correlation_aware.training.average import average_checkpoints

    folder = average_checkpoints(checkpoints, output)
    console.print(f"Wrote the mean of {len(checkpoints)} checkpoints to {escape(str(folder))}")


def curves(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[Path, typer.Option(help="Image file to write.")] = Path("curves.png"),
) -> None:
    """Plot the log of a run: losses, validation, learning rate."""
    from correlation_aware.training.log import plot_log, read_log

    check_output_file(output, PLOT_SUFFIXES)
    if not (run / "log.jsonl").is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: it has no log.jsonl.")
    plot_log(read_log(run / "log.jsonl"), output)
    console.print(f"Wrote {escape(str(output))}")


TOOLS = (check, pack, calibrate, average, curves)
