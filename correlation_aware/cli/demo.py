"""`correlation-aware demo`: generate a clip, track in it and show the result, offline."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import Model, Weights, console, load_tracker, progress_bar

__all__ = ["demo"]

LENGTH, FPS, TILES = 60, 20, 12
FILES = ("clip.mp4", "demo.mp4", "contact_sheet.png")
TRUTH = (250, 250, 250)  # RGB of the true box

Box = tuple[float, float, float, float]


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("correlation_aware_demo"),
    model: Model = None,
    weights: Weights = None,
) -> None:
    """Track a target in a generated clip, offline.

    Writes clip.mp4, demo.mp4 and contact_sheet.png, in place of those of an
    earlier demo. The true box is thin and white, the tracked box thick and
    colored.
    """
    import torch

    from correlation_aware._files import check_output_folder
    from correlation_aware.demo_clip import draw_clip
    from correlation_aware.evaluation.one_pass import overlap
    from correlation_aware.tracking.draw import contact_sheet, draw_box, draw_result
    from correlation_aware.tracking.stream import Tracking
    from correlation_aware.tracking.video import VideoWriter, open_frames, write_image

    check_output_folder(output)
    others = [output / name for name in FILES if (output / name).exists()]
    if 0 < len(others) < len(FILES):
        raise ValueError(
            f"{others[0]} is not of a demo, which writes {', '.join(FILES)}: use another --output"
        )
    torch.manual_seed(0)  # the same random weights in every run
    tracker = load_tracker(model, weights)
    output.mkdir(parents=True, exist_ok=True)
    truth: list[Box] = []
    with TemporaryDirectory(dir=output, prefix=".demo-") as folder:  # all three files appear at the end
        clip, video, sheet = (Path(folder) / name for name in FILES)
        with VideoWriter(clip, FPS) as writer:
            for frame, box in draw_clip(LENGTH):
                writer.write(frame)
                truth.append(box)

        overlaps, tiles, began = [], [], time.perf_counter()
        with open_frames(clip) as frames, VideoWriter(video, FPS) as writer, progress_bar() as bar:
            task = bar.add_task("track", total=LENGTH)
            for i, results in enumerate(Tracking(frames, tracker, truth[0])):
                (result,) = results.targets
                frame = draw_result(draw_box(results.frame, truth[i], TRUTH, thickness=1), result)
                writer.write(frame)
                if i:
                    overlaps.append(float(overlap(result.box, truth[i])))
                if i % (LENGTH // TILES) == 0:
                    tiles.append((f"frame {i}", frame))
                bar.advance(task)
        speed = LENGTH / (time.perf_counter() - began)
        captions, images = zip(*tiles)
        write_image(sheet, contact_sheet(images, width=1600, captions=captions))
        clip, video, sheet = (path.replace(output / path.name) for path in (clip, video, sheet))

    random = tracker.weights_name == "random"
    loaded = "[yellow]random: the boxes mean nothing[/]" if random else escape(tracker.weights_name)
    table = Table.grid(padding=(0, 2))
    table.add_row("model", f"[bold]{tracker.name}[/] on {tracker.device}")
    table.add_row("weights", loaded)
    table.add_row("clip", f"{LENGTH} generated frames")
    table.add_row("speed", f"{speed:.1f} frames/s, including decoding and writing")
    table.add_row("mean IoU", f"{sum(overlaps) / len(overlaps):.3f} with the true boxes; 1 at best")
    table.add_row("", "the clip is hard: a look-alike passes the target, and a leaf hides it")
    for name, path in (("files", clip), ("", video), ("", sheet)):
        table.add_row(name, escape(str(path)))
    start = ",".join(f"{value:.0f}" for value in truth[0])
    console.print(table)
    console.print(escape(f"next      correlation-aware track {clip} --box {start} --output tracked.mp4"))
