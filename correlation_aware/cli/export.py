"""`correlation-aware export`: models as ONNX, OpenVINO or torch.export files, and as a page in a browser.

Its option --weights is that of `_common.py`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from correlation_aware.cli._common import Weights, console, figure_table, print_wide, track_progress

if TYPE_CHECKING:
    from torch import nn

    from correlation_aware.evaluation.int8 import CalibrationClip, Int8Report
    from correlation_aware.runtime.export import ExportedGraph

__all__ = ["export"]

TRACKED = ("template", "search")  # the graphs of a tracker that runs elsewhere


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model, folder of a model, or hf-hub: name.")
    ],
    output: Annotated[Path, typer.Option(help="Output folder.")],
    weights: Weights = None,
    format: Annotated[
        str,
        typer.Option(
            help="onnx, openvino, torch (the format of torch.export), or web, a page that tracks in browsers."
        ),
    ] = "onnx",
    graph: Annotated[
        list[str] | None,
        typer.Option(
            help="template, search or pair; image for a classifier. Repeatable; all graphs by default, "
            "template and search with web."
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write the tracker in int8, as MODEL.int8; with onnx and web."),
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Photographs (folder or tar shards) or annotated videos (LAYOUT:ROOT, such as "
            "got10k:GOT-10k) that calibrate int8. Repeatable.",
        ),
    ] = None,
) -> None:
    """Export a model to files that run without this package.

    `template` runs once per target and returns its state; `search` takes the
    state and a search image and runs once per frame; `pair` is both in one
    graph. Every file is run and compared with the model; if one differs, none
    is written. `--int8` prints what it costs on calibration data held back.
    """
    from correlation_aware import zoo
    from correlation_aware._files import check_output_folder
    from correlation_aware.runtime.export import FORMATS
    from correlation_aware.runtime.export import export as write

    formats = (*FORMATS, "web")
    if format not in formats:
        raise ValueError(f"--format {format} is not one of {', '.join(formats)}.")
    _check_options(format, graph, int8, calibration)
    check_output_folder(output)
    if weights is None and not zoo.has_weights(model):
        raise ValueError(
            f"{model} has no default weights: name a tag or file with --weights, or use --weights random."
        )
    network = zoo.create_model(model, weights != "random" and (weights or True))
    clips = _prepare_int8(network, calibration or []) if int8 else []
    if format == "web":
        _prepare_page(network)
    kind, graphs = ("onnx", TRACKED) if format == "web" else (format, graph)
    files = write(network, output, kind, graphs)  # type: ignore[arg-type]
    table = figure_table(("file", "MB", "largest difference"))
    for file in files:
        size = sum(p.stat().st_size for p in {file.path, file.path.with_suffix(".bin")} if p.is_file())
        table.add_row(escape(str(file.path)), f"{size / 1e6:.1f}", f"{file.difference:.1e}")
    print_wide(table)
    paths = {file.graph: file.path for file in files}
    if int8:
        paths["search"] = _quantize(network, files, calibration or [], clips)
    if format == "web":
        from correlation_aware.tracking.browser_page import write_page

        write_page(network, output, {name: paths[name] for name in TRACKED})
        console.print(
            f"Wrote a page to {escape(str(output))}. To look at it: python -m http.server --bind 127.0.0.1 "
            f"--directory {escape(str(output))} 8000, and open http://localhost:8000",
        )


def _check_options(format: str, graph: list[str] | None, int8: bool, calibration: list[str] | None) -> None:
    """Checks options that exclude each other or have no effect."""
    if graph and format == "web":
        raise ValueError("--graph has no effect with --format web, which needs template and search.")
    if calibration and not int8:
        raise ValueError("--calibration has no effect without --int8.")
    if not int8:
        return
    if format not in ("onnx", "web"):
        raise ValueError(f"--int8 needs --format onnx or web, not {format}.")
    if not calibration:
        raise ValueError(
            "--int8 needs --calibration SOURCE: photographs, or annotated videos as LAYOUT:ROOT, like "
            "those to track in."
        )
    if graph and not set(TRACKED) <= set(graph):
        raise ValueError("--int8 needs the graphs template and search: leave out --graph, or name both.")


def _prepare_page(network: "nn.Module") -> None:
    """Raises what prevents a page before the export, which takes long."""
    from correlation_aware.tracking.browser_page import PACKAGES, check_page_model, fetch_package

    check_page_model(network)
    for package in PACKAGES:
        fetch_package(package)


def _prepare_int8(network: "nn.Module", sources: list[str]) -> "list[CalibrationClip]":
    """The clips for calibration; raises what prevents int8 before the export, which takes long."""
    from correlation_aware.evaluation.int8 import calibration_clips
    from correlation_aware.models.tracker import TrackModel

    if not isinstance(network, TrackModel):
        raise ValueError(f"--int8 is for trackers, `_track` models; {type(network).__name__} has no head.")
    return list(calibration_clips(sources))


def _quantize(
    network: "nn.Module", files: "list[ExportedGraph]", sources: list[str], clips: "list[CalibrationClip]"
) -> Path:
    """Writes the tracker in int8 and its report, prints the report; returns the path of the search graph."""
    from correlation_aware._files import write_text
    from correlation_aware.evaluation.int8 import quantize_tracker

    (search,) = (file.path for file in files if file.graph == "search")
    exported = search.with_name(search.name.removesuffix(".search.onnx"))
    report = quantize_tracker(network, exported, track_progress(clips, len(clips), "clips"))  # type: ignore[arg-type]
    path = exported.with_name(f"{exported.name}.int8.json")
    write_text(json.dumps({"calibration": sources, **asdict(report)}, indent=2) + "\n", path)
    _print_report(report)
    console.print(f"Wrote {escape(str(path.with_suffix('')))}.template.onnx, .search.onnx and .json")
    return exported.with_name(f"{exported.name}.int8.search.onnx")


def _print_report(report: "Int8Report") -> None:
    console.print(
        f"int8, calibrated with {report.calibration_crops} crops; on {report.held_back_crops} crops held "
        "back, at the best location:"
    )
    console.print(f"  score differs by {report.score_mean:.4f}, at most {report.score_max:.4f}")
    console.print(
        f"  box differs by {report.box_mean:.4f} of the search region, at most {report.box_max:.4f}"
    )
    table = figure_table(("", "AO held back", "ms per search image", "MB"))
    table.add_row(
        "float32", f"{report.ao_float32:.3f}", f"{report.ms_float32:.1f}", f"{report.mb_float32:.1f}"
    )
    table.add_row("int8", f"{report.ao_int8:.3f}", f"{report.ms_int8:.1f}", f"{report.mb_int8:.1f}")
    console.print(table)
