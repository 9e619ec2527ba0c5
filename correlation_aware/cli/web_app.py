"""`correlation-aware app`: a local web page that tracks targets in a video.

Its options --model, --weights, --device, --runtime, --decode and --redetect are those of `_common.py`.
"""

import socket
from contextlib import suppress
from typing import Annotated

import typer

from correlation_aware._extras import require
from correlation_aware.cli._common import (
    Decode,
    Device,
    Model,
    Redetect,
    Runtime,
    Weights,
    console,
    load_tracker,
)
from correlation_aware.cli._signals import interrupt, stopped_by_signals

__all__ = ["app"]

HOST = "127.0.0.1"  # this machine alone


def app(
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    decode: Decode = "default",
    redetect: Redetect = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any free one.")] = 8000,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest size of a video in MB.")] = 1000,
) -> None:
    """Serve a local web page: drop a video, draw boxes, watch it track.

    Boxes and the video with boxes can be downloaded. The page is on 127.0.0.1,
    for the browsers of this machine alone. Videos are temporary files, which
    are removed with the page, when there are too many, and at the end.
    """
    (uvicorn, _) = require("uvicorn", "starlette", message="the page needs {names}")
    from correlation_aware.cli.web_app_server import AppServer

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise OSError(
            f"port {port} cannot be used ({error.strerror}): choose another one with --port"
        ) from error
    tracker = load_tracker(model, weights, device, runtime, decode, redetect)
    # uvicorn sends SIGINT and SIGTERM again when it has ended
    with (
        suppress(KeyboardInterrupt),
        stopped_by_signals(interrupt),
        listening,
        AppServer(tracker, max_megabytes) as server,
    ):
        console.print(f"http://{HOST}:{listening.getsockname()[1]}  (Ctrl-C ends it)", style="bold")
        options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 1}
        uvicorn.Server(uvicorn.Config(server.asgi, **options)).run(sockets=[listening])
