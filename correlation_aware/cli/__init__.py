"""The command line: `correlation-aware track | batch | app | demo | explain | study | models | export | ...`.

Each command is the file of its name, and `app` is web_app.py. Options that several commands share, such as
--model, --weights, --device and --runtime, are in `_common.py`. Only this package writes to the terminal.
"""

import sys
from typing import Annotated

import typer

from correlation_aware._version import __version__
from correlation_aware.cli import (
    batch,
    bench,
    demo,
    eval,
    explain,
    export,
    models,
    study,
    track,
    train,
    vot,
    web_app,
    weights,
)
from correlation_aware.cli._common import Command
from correlation_aware.cli._messages import error_console, print_messages
from correlation_aware.cli._signals import exit_by_signals

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command("track", cls=Command)(track.track)
app.command("batch", cls=Command)(batch.batch)
app.command("app")(web_app.app)
app.command("demo")(demo.demo)
app.command("explain")(explain.explain)
app.command("models")(models.models)
app.command("export", cls=Command)(export.export)
app.add_typer(weights.app, name="weights")
app.add_typer(train.app, name="train")
app.add_typer(eval.app, name="eval")
app.add_typer(vot.app, name="vot")
app.add_typer(study.app, name="study")
app.add_typer(bench.app, name="bench")
for with_former_options in (train.app, eval.app, bench.app):
    for command in with_former_options.registered_commands:
        command.cls = Command


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def group(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Correlation-aware visual tracking: models, weights, and a tracker for your own video."""
    context.with_resource(print_messages(error_console))


def main() -> None:
    """Runs the command line; a user's mistake ends with a one-line message and exit code 1."""
    try:
        with exit_by_signals():
            app()
    except Exception as error:
        mistakes = (ValueError, KeyError, RuntimeError, OSError, ImportError, MemoryError)
        if not isinstance(error, mistakes) and type(error).__module__ != "cv2":
            raise  # a fault of this package, which its traceback explains
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        is_sentence = (
            isinstance(error, (ValueError, RuntimeError, OSError, ImportError)) and str(text).strip()
        )
        kind = "" if is_sentence else f"{type(error).__name__}: "
        error_console.print(f"[red]error:[/red] {kind}", end="")
        readable = str(text).encode(errors="backslashreplace").decode()  # a file name need not be UTF-8
        error_console.print(readable.strip(), markup=False)
        sys.exit(1)
