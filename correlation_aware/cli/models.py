"""`correlation-aware models`: the zoo as a table."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["models"]


def models(
    filter: Annotated[
        str, typer.Argument(metavar="FILTER", help="A name, with wildcards, such as 'sbt_*_track'.")
    ] = "",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only names with weights, one line per tag.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Parameters and GMACs, and those reported in papers.")
    ] = False,
    template_size: Annotated[
        int | None, typer.Option(help="Template size in pixels for --profile; default: the model's.")
    ] = None,
    search_size: Annotated[
        int | None,
        typer.Option(help="Search image size in pixels for --profile; default: the model's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models of the zoo.

    On a terminal by family, with the tags of their weights; in a pipe names
    alone, one per line.
    """
    from correlation_aware.models.registry import near_names
    from correlation_aware.zoo import list_models

    for option, size in (("--template-size", template_size), ("--search-size", search_size)):
        if size is not None and not profile:
            raise ValueError(f"{option} {size} has no effect without --profile")
    names = list_models(filter, pretrained=pretrained)
    if not names and pretrained and list_models(filter):
        raise ValueError(f"No model that matches {filter!r} has weights; leave out --pretrained.")
    if not names:
        near = [] if set("*?[") & set(filter) else near_names(filter, list_models())[:8]
        hint = f" Near: {', '.join(near)}." if near else ""
        raise ValueError(f"No model matches {filter!r}.{hint} 'correlation-aware models' lists all models.")
    if not profile and not as_json and sys.stdout.isatty():
        typer.echo(_by_family(names))
        return
    if not profile:
        typer.echo(json.dumps(names, indent=2) if as_json else "\n".join(names))
        return
    rows = [_row(name, template_size, search_size) for name in names]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(caption="Batch 1. Image sizes: template/search; of a classifier, its input.")
    titles = ("model", "px", "params M", "GMACs", "GMACs cached", "paper: params M", "GMACs")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model"],
            "/".join(map(str, row["image_sizes"])),
            f"{row['params'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.2f}",
            f"{row['cached_macs'] / 1e9:.2f}",
            *(f"{value:.2f}" for value in row["reported"] or ()),
        )
    Console(width=None if Console().is_terminal else 110).print(table)


def _by_family(names: list[str]) -> str:
    """Names under the first line of their module's documentation, each with the tags of its weights."""
    from correlation_aware.models.registry import registered_models, timm_models
    from correlation_aware.weights.sources import tags_of

    modules = {name: function.__module__ for name, function in registered_models().items()} | timm_models()
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(modules[name.partition(".")[0]], []).append(name)
    width = max(map(len, names))
    blocks = []
    for module, members in families.items():
        lines = [(sys.modules[module].__doc__ or module).strip().splitlines()[0] + f" ({module})"]
        for name in members:
            tags = [] if "." in name else tags_of(name)
            lines.append(f"  {name:{width}}  {'weights: ' + ', '.join(tags) if tags else ''}".rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _row(name: str, template_size: int | None, search_size: int | None) -> dict[str, Any]:
    from correlation_aware.models.profile import profile
    from correlation_aware.models.registry import reported_costs
    from correlation_aware.zoo import create_model

    model: Any = create_model(name, device="meta")
    options = {"template_size": template_size, "search_size": search_size}
    sizes: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if sizes and hasattr(model, "sizes"):  # layers of a head may depend on the sizes
        model = create_model(name, device="meta", **sizes)
    costs = profile(model, template_size, search_size)
    if hasattr(model, "sizes"):
        image_sizes = [template_size or model.sizes.template_size, search_size or model.sizes.search_size]
    else:
        image_sizes = [search_size or model.pretrained_cfg["input_size"][-1]]
    reported = reported_costs(name.partition(".")[0])
    return {"model": name, **vars(costs), "image_sizes": image_sizes, "reported": reported}
