"""The command line: `correlation-aware track | demo | models | export | weights | train | eval | bench`.

The only room that prints.
"""

import sys

import typer
from rich.console import Console

from correlation_aware.cli import bench, demo, eval, export, models, track, train, weights
from correlation_aware.cli._common import show_renames

__all__ = ["app", "main"]

app = typer.Typer(
    help="Correlation-aware visual tracking: models, weights, and a tracker for your own video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("track")(track.track)
app.command("demo")(demo.demo)
app.command("models")(models.models)
app.command("export")(export.export)
app.add_typer(weights.app, name="weights")
app.add_typer(train.app, name="train")
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command line; a user's mistake ends in one line and exit code 1."""
    try:
        with show_renames():
            app()
    except (ValueError, KeyError, RuntimeError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True).print(f"[red]error:[/red] {type(error).__name__}: ", end="")
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(text))
        sys.exit(1)
