"""`correlation-aware models`: the zoo as a table."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["models"]

# Table 2 of the paper: parameters in millions and GMACs, with the prediction head
PAPER = {
    "sbt_light_track": (3.03, 3.81),
    "sbt_small_track": (13.80, 11.92),
    "sbt_base_track": (21.27, 19.27),
    "sbt_large_track": (35.20, 31.46),
}


def models(
    filter: Annotated[str, typer.Argument(help="Wildcards, for example 'sbt_*_track'.")] = "",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only names with weights, with their tags.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Parameters and GMACs, beside those of the paper's Table 2.")
    ] = False,
    template_size: Annotated[int, typer.Option(help="Side of the template in pixels, for --profile.")] = 128,
    search_size: Annotated[
        int, typer.Option(help="Side of the search picture in pixels, for --profile.")
    ] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models of the zoo."""
    from correlation_aware import list_models

    names = list_models(filter, pretrained=pretrained)
    if not names:
        raise ValueError(f"No model matches {filter!r}. 'correlation-aware models' lists all.")
    if not profile:
        typer.echo(json.dumps(names, indent=2) if as_json else "\n".join(names))
        return
    rows = [_row(name.split(".")[0], template_size, search_size) for name in names]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(
        caption=f"Batch 1, template {template_size} px, search {search_size} px; classifiers at the latter."
    )
    for i, title in enumerate(("model", "params M", "GMACs", "GMACs cached", "paper: params M", "GMACs")):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        paper = PAPER.get(row["model"], (None, None))
        table.add_row(
            row["model"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.2f}",
            f"{row['cached_macs'] / 1e9:.2f}",
            *(f"{figure:.2f}" if figure else "" for figure in paper),
        )
    Console(width=None if Console().is_terminal else 100).print(table)


def _row(name: str, template_size: int, search_size: int) -> dict[str, Any]:
    from correlation_aware import create_model
    from correlation_aware.models.profile import profile

    sizes: dict[str, Any] = (
        {"template_size": template_size, "search_size": search_size} if name.endswith("_track") else {}
    )
    costs = profile(create_model(name, device="meta", **sizes), template_size, search_size)
    return {"model": name, **vars(costs)}
