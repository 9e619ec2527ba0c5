"""`correlation-aware weights`: list, verify, download, convert and push weights."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from correlation_aware._files import (
    atomic_path,
    check_output_file,
    check_output_folder,
    read_json,
    sha256_file,
)

if TYPE_CHECKING:
    from torch import Tensor

    from correlation_aware.weights import WeightsEntry, WeightsSource

app = typer.Typer(help="List, verify, download, convert and publish weights.", no_args_is_help=True)

Format = Annotated[
    str,
    typer.Option(help="Format of SOURCE, such as sbt or pvt_v2; by default detected from parameter names."),
]
Remote = Annotated[
    str, typer.Argument(metavar="NAME", help="model, model.tag or hf-hub:organisation/name[@revision].")
]
RemoteOrLocal = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="model, model.tag, hf-hub:organisation/name[@revision], or a local file or folder.",
    ),
]


@app.command("list")
def list_entries(
    as_json: Annotated[bool, typer.Option("--json", help="The entries as JSON.")] = False,
) -> None:
    """Show the weights that are known."""
    from correlation_aware import weights

    manifest = weights.load_manifest()
    if as_json:
        typer.echo(json.dumps({name: entry.to_json() for name, entry in manifest.items()}, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("weights", "source", "kind", "pixels", "license"):
        table.add_column(column, overflow="fold", no_wrap=column in ("weights", "pixels"))
    for name, entry in manifest.items():
        kind = "model" if entry.role == "model" else "part"
        table.add_row(name, _origin(entry), kind, _pixels(entry), entry.license)
    console = Console()
    if not console.is_terminal:  # in a pipe or a file no line is folded
        console.width = Console(width=1000).measure(table).maximum
    console.print(table)
    typer.echo("\nsource   repository on the Hugging Face Hub, a URL, or this package (bundled)")
    typer.echo("kind     model: all its tensors; part: some of them, as a starting point for training")
    typer.echo("pixels   side of the template and the search image, or of the one image, in training")


@app.command()
def verify(name: RemoteOrLocal) -> None:
    """Check a file's hash and that every number in it is finite; download it first if it is not there."""
    from correlation_aware import weights

    source = weights.resolve_weights(name)
    path = source.fetch()
    state_dict = weights.read_state_dict(path)
    weights.check_finite(state_dict, name)
    typer.echo(f"file     {path}")
    typer.echo(f"sha256   {sha256_file(path)}, {_verified_by(source)}")
    typer.echo(f"content  {_content(state_dict)}, all finite")


@app.command()
def download(
    name: Remote,
    to: Annotated[Path | None, typer.Option(help="Folder for a copy; otherwise only the cache.")] = None,
) -> None:
    """Download weights, verify them and print their path."""
    from correlation_aware import weights

    if to is not None:
        check_output_folder(to)
    source = weights.resolve_weights(name)
    if source.path is not None:
        raise ValueError(
            f"{name} is a local file already. Name a model, model.tag or hf-hub:organisation/name."
        )
    path = source.fetch()
    if to is not None:
        title = source.entry.name if source.entry else source.name.removeprefix("hf-hub:").replace("/", "--")
        target = to / f"{title}{path.suffix}"
        to.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        path = target
    typer.echo(f"{path}  ({_verified_by(source)})")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Checkpoint of the authors, of timm, of a plug-in, ...")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The .safetensors file to write.")],
    format: Format = "auto",
    model: Annotated[
        str | None, typer.Option(help="Architecture that SOURCE is of; all of its tensors must fit then.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DEST if it exists.")] = False,
) -> None:
    """Rewrite somebody's checkpoint as safetensors with this package's parameter names."""
    from correlation_aware import weights

    if format not in weights.format_names():
        raise ValueError(f"--format {format!r} is not one of {', '.join(weights.format_names())}.")
    if dest.exists() and not force:
        raise FileExistsError(f"{dest} exists. Name another file or add --force.")
    check_output_file(dest, (".safetensors",))
    network = None
    if model is not None:
        from correlation_aware.zoo import create_model

        network = create_model(model)
    original = weights.read_state_dict(source)
    converted = weights.convert_state_dict(original, format, network.state_dict() if network else None)
    if network is not None:
        weights.load_state_dict(network, converted, source=str(source))
    weights.write_state_dict(converted, dest)
    typer.echo(f"{source}: {_content(original)}")
    typer.echo(f"{dest}: {_content(converted)}, sha256 {sha256_file(dest)}")


@app.command()
def push(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of save_pretrained, or a .safetensors file.")
    ],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="organisation/name on the Hub.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="model.tag to publish it as.")],
    training: Annotated[str, typer.Option(help="Description of the training, in a sentence or two.")],
    license: Annotated[str, typer.Option(help="The Hub's identifier; `other` for your own.")] = "apache-2.0",
    results: Annotated[
        Path | None, typer.Option(help="JSON list of {dataset, metric, value, command}.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload; without this, only show what would be uploaded.")
    ] = False,
) -> None:
    """Publish weights on the Hugging Face Hub with a model card, and show the manifest entry to add.

    The weights are loaded into the model first; what does not fit is refused.
    """
    from correlation_aware import publish, weights

    model, _, tag = name.partition(".")
    plan = publish.push(
        source,
        repository,
        model,
        tag,
        training=training,
        license=license,
        results=weights.parse_results(read_json(results), str(results)) if results else (),
        private=private,
        dry_run=not upload,
    )
    typer.echo(f"{'Uploaded' if plan.uploaded else 'Would upload'} to {plan.url}:\n")
    typer.echo(f"model.safetensors  {plan.weights.stat().st_size} bytes, sha256 {sha256_file(plan.weights)}")
    typer.echo(f"config.json        {json.dumps(plan.config)}")
    typer.echo(f"README.md\n{plan.card}")
    if plan.entry is not None:
        typer.echo("Entry for weights_manifest.json:")
        typer.echo(json.dumps({plan.name: plan.entry.to_json()}, indent=2))
    else:
        typer.echo(f"No entry for weights_manifest.json. {plan.no_entry}")
    if not plan.uploaded:
        typer.echo("\nNothing was uploaded. Add --upload to do it.")


def _origin(entry: "WeightsEntry") -> str:
    return "bundled" if entry.source == "bundled" else str(entry.url or entry.repository)


def _pixels(entry: "WeightsEntry") -> str:
    return str(entry.input_size or f"{entry.template_size}, {entry.search_size}")


def _verified_by(source: "WeightsSource") -> str:
    """What the hash of a file was compared with."""
    from correlation_aware import weights
    from correlation_aware.weights.hub import hash_in_name

    if source.path is not None:
        digest = sha256_file(source.path)
        known = [name for name, entry in weights.load_manifest().items() if entry.sha256 == digest]
        return f"the same as {known[0]}" if known else "which is in no entry of the manifest"
    if source.url is not None:
        return "as in its name" if hash_in_name(source.url) else "not verified, its address has no hash"
    return f"as in the {'manifest' if source.entry and source.entry.sha256 else 'Hub'}"


def _content(state_dict: "dict[str, Tensor]") -> str:
    numbers = sum(tensor.numel() for tensor in state_dict.values())
    return f"{len(state_dict)} tensors, {numbers / 1e6:.3f} M numbers"
