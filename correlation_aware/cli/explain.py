"""`correlation-aware explain`: a page about what trackers see in a video or a pair of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from correlation_aware.cli._common import (
    WEIGHTS_HELP,
    Decode,
    DepthRange,
    Device,
    console,
    load_tracker,
    parse_box,
    parse_depth_range,
    parse_numbers,
    progress_bar,
)

if TYPE_CHECKING:
    from correlation_aware.tracking.tracker import Tracker

__all__ = ["explain"]


def explain(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A video file, a folder of frames, or two or more images: the one of the box, then those to "
            "search in.",
        ),
    ],
    box: Annotated[
        str, typer.Option(metavar="X,Y,W,H", help="Box of the target in the first frame, in pixels.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the page, index.html, and its PNG files.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="`_track` models, beside each other; by default siam_lite0_ca_two_scales_track.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="WEIGHTS,WEIGHTS", help=f"{WEIGHTS_HELP}; one for each model."),
    ] = None,
    frame: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Frame to explain, from 1. Repeat for more; hard frames by default."),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ground truth: a line x, y, w, h for each frame.")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="Place in the frame from which to show attention. Repeat for more."),
    ] = None,
    distractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,X,Y,W,H",
            help="Box of a distractor in frame N, to color it in t-SNE. Repeat for more; by default what has "
            "high scores outside the target.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest score of a positive location.")
    ] = 0.5,
    device: Device = None,
    decode: Decode = "default",
    limit: Annotated[int | None, typer.Option(min=2, help="Maximum number of frames.")] = None,
    depth_range: DepthRange = None,
) -> None:
    """Explain what trackers see: score maps, attention, features, failures.

    Tracks the target by every model and writes index.html, a page with all
    images inside, and the images as PNG files.
    """
    from correlation_aware.study import explain as study

    target, depth = parse_box(box), parse_depth_range(depth_range)
    points = [parse_numbers(text, "--point", "x,y", "40,60") for text in point or ()]
    distractors: dict[int, list[tuple[float, ...]]] = {}
    for text in distractor or ():
        number, *place = parse_numbers(text, "--distractor", "n,x,y,w,h", "12,120,80,64,48")
        if not number.is_integer():
            raise ValueError(f"--distractor {text!r}: the first number is that of a frame, such as 12")
        distractors.setdefault(int(number), []).append(tuple(place))
    trackers = _load(model, weights, device, decode)
    with progress_bar() as bar:
        task = bar.add_task("track", total=None)

        def show(step: str) -> None:
            bar.update(task, description=step, advance=step == "track")

        page = study.explain(
            source,
            target,
            trackers,
            output,
            frames=frame or (),
            truth=truth,
            points=[(x, y) for x, y in points],
            distractors=distractors,
            threshold=threshold,
            limit=limit,
            depth_range=depth,
            on_step=show,
        )
    console.print(f"Wrote {escape(str(page))}")


def _load(models: str | None, weights: str | None, device: str | None, decode: str) -> "list[Tracker]":
    """The trackers of --model and --weights.

    Raises:
        ValueError: Another number of weights than of models.
    """
    import torch

    names: list[str | None] = [None] if models is None else [*models.split(",")]
    tags: list[str | None] = [None] * len(names) if weights is None else [*weights.split(",")]
    if len(tags) != len(names):
        raise ValueError(
            f"--weights {weights!r} has {len(tags)} entries for {len(names)} models: give one for each"
        )
    trackers = []
    for name, tag in zip(names, tags):
        torch.manual_seed(0)  # the same random weights in every run
        trackers.append(load_tracker(name, tag, device, decode=decode))
    return trackers
