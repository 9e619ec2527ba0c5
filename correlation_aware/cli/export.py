"""`correlation-aware export`: models as ONNX, OpenVINO or torch.export files.

Its option --weights is that of `_common.py`.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from correlation_aware.cli._common import Weights, console

__all__ = ["export"]


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model, folder of a model, or hf-hub: name.")
    ],
    output: Annotated[Path, typer.Option(help="Output folder.")],
    weights: Weights = None,
    format: Annotated[
        str, typer.Option(help="onnx, openvino or torch (the format of torch.export).")
    ] = "onnx",
    graph: Annotated[
        list[str] | None,
        typer.Option(
            help="template, search or pair; image for a classifier. Repeatable; all graphs by default."
        ),
    ] = None,
) -> None:
    """Export a model to files that run without this package.

    `template` runs once per target and returns its state; `search` takes the
    state and a search image and runs once per frame; `pair` is both in one
    graph. Every file is run and compared with the model; if one differs, none
    is written.
    """
    from correlation_aware import zoo
    from correlation_aware._files import check_output_folder
    from correlation_aware.runtime.export import export as write

    check_output_folder(output)
    if weights is None and not zoo.has_weights(model):
        raise ValueError(
            f"{model} has no default weights: name a tag or file with --weights, or use --weights random."
        )
    network = zoo.create_model(model, weights != "random" and (weights or True))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("graph", "file", "MB", "largest difference"):
        table.add_column(title, justify="right" if title in ("MB", "largest difference") else "left")
    for file in write(network, output, format, graph):  # type: ignore[arg-type]
        size = sum(p.stat().st_size for p in {file.path, file.path.with_suffix(".bin")} if p.is_file())
        table.add_row(file.graph, escape(str(file.path)), f"{size / 1e6:.1f}", f"{file.difference:.1e}")
    console.print(table)
