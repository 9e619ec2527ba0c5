"""`correlation-aware weights`: list, verify, download, convert and push weights."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from correlation_aware import weights
from correlation_aware._files import atomic_path, read_json, sha256_file

app = typer.Typer(help="List, verify, download, convert and publish weights.", no_args_is_help=True)

Format = Annotated[
    str, typer.Option(help="Format of SOURCE, such as sbt or pvt_v2; by default told by its names.")
]
Remote = Annotated[str, typer.Argument(help="model, model.tag or hf-hub:organisation/name[@revision].")]
RemoteOrLocal = Annotated[str, typer.Argument(help="As for download, or a local file or folder.")]


@app.command("list")
def list_entries(
    as_json: Annotated[bool, typer.Option("--json", help="The entries as JSON.")] = False,
) -> None:
    """Show the weights that are known."""
    manifest = weights.load_manifest()
    if as_json:
        typer.echo(json.dumps({name: entry.to_json() for name, entry in manifest.items()}, indent=2))
        return
    table = Table(box=None)
    for column in ("weights", "from", "role", "license"):
        table.add_column(column, overflow="fold", no_wrap=column == "weights")
    for name, entry in manifest.items():
        where = f"{entry.source} {entry.url or entry.repository or entry.file}"
        table.add_row(name, where, entry.role.replace("_", " "), entry.license)
    Console().print(table)


@app.command()
def verify(name: RemoteOrLocal) -> None:
    """Check a file's hash and that every number in it is finite; fetch it first if need be."""
    path, against = _local(Path(name)) or _fetch(name)[1:]
    state_dict = weights.read_state_dict(path)
    weights.check_finite(state_dict, name)
    typer.echo(f"file     {path}")
    typer.echo(f"sha256   {sha256_file(path)}, {against}")
    typer.echo(f"content  {_content(state_dict)}, all finite")


@app.command()
def download(
    name: Remote,
    to: Annotated[Path | None, typer.Option(help="Folder for a copy; otherwise only the cache.")] = None,
) -> None:
    """Fetch weights, verify them and say where they are."""
    title, path, against = _fetch(name)
    if to is not None:
        target = to / f"{title}{path.suffix}"
        to.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        path = target
    typer.echo(f"{path}  ({against})")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the authors, of timm or of PVTv2.")],
    dest: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    format: Format = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace DEST if it exists.")] = False,
) -> None:
    """Rewrite somebody's checkpoint as safetensors with this package's parameter names."""
    if dest.exists() and not force:
        raise FileExistsError(f"{dest} exists. Name another file or add --force.")
    given = weights.read_state_dict(source)
    converted = weights.convert_state_dict(given, format)
    weights.write_state_dict(converted, dest)
    typer.echo(f"{source}: {_content(given)}")
    typer.echo(f"{dest}: {_content(converted)}, sha256 {sha256_file(dest)}")


@app.command()
def push(
    source: Annotated[Path, typer.Argument(help="Folder of save_pretrained, or a .safetensors file.")],
    repository: Annotated[str, typer.Argument(help="organisation/name on the Hub.")],
    name: Annotated[str, typer.Argument(help="model.tag to publish it as.")],
    training: Annotated[str, typer.Option(help="How the weights were trained, in a sentence or two.")],
    license: Annotated[str, typer.Option(help="SPDX identifier.")] = "apache-2.0",
    results: Annotated[
        Path | None, typer.Option(help="JSON list of {dataset, metric, value, command}.")
    ] = None,
    template_size: Annotated[int | None, typer.Option(help="Pixels; default: config.json's.")] = None,
    search_size: Annotated[int | None, typer.Option(help="Pixels; default: config.json's.")] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Pixels, of a classifier; default: config.json's.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Do it. Without this, only show what would be done.")
    ] = False,
) -> None:
    """Publish weights on the Hugging Face Hub with a model card, and show the manifest entry to add."""
    model, _, tag = name.partition(".")
    plan = weights.push(
        source,
        repository,
        model,
        tag,
        training=training,
        license=license,
        results=weights.parse_results(read_json(results), str(results)) if results else (),
        template_size=template_size,
        search_size=search_size,
        input_size=input_size,
        private=private,
        dry_run=not upload,
    )
    typer.echo(f"{'Uploaded' if plan.uploaded else 'Would upload'} to {plan.url}:\n")
    typer.echo(f"model.safetensors  {plan.entry.bytes} bytes, sha256 {plan.entry.sha256}")
    typer.echo(f"config.json        {json.dumps(plan.config)}")
    typer.echo(f"README.md\n{plan.card}")
    typer.echo("Entry for weights_manifest.json:")
    typer.echo(json.dumps({plan.entry.name: plan.entry.to_json()}, indent=2))
    if not plan.uploaded:
        typer.echo("\nNothing was uploaded. Add --upload to do it.")


def _local(path: Path) -> tuple[Path, str] | None:
    """A file that is here and what it is known as; None if the name is none of a file."""
    if (path / "model.safetensors").is_file():
        path /= "model.safetensors"
    if not path.is_file():
        if path.suffix in weights.SUFFIXES:
            raise FileNotFoundError(f"There is no file {path}.")
        return None
    digest = sha256_file(path)
    known = [name for name, entry in weights.load_manifest().items() if entry.sha256 == digest]
    return path, f"the same as {known[0]}" if known else "which no entry of the manifest names"


def _fetch(name: str) -> tuple[str, Path, str]:
    """A name for a copy, the verified path, and what it was checked against."""
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return repository.replace("/", "--"), weights.fetch_repository(repository)[1], "as the Hub says"
    entry = weights.find_entry(name)
    return entry.name, weights.fetch(entry), f"as the {'manifest' if entry.sha256 else 'Hub'} says"


def _content(state_dict: dict[str, Tensor]) -> str:
    numbers = sum(tensor.numel() for tensor in state_dict.values())
    return f"{len(state_dict)} tensors, {numbers / 1e6:.3f} M numbers"
