"""A small Hugging Face Hub on this machine, and processes whose real hub client talks to it.

The client reads its settings when it is imported, so a test that needs its own talks to a `Client`, a
process that takes one call after the other.
"""

import contextlib
import hashlib
import http.server
import io
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from base64 import b64decode
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `files`, by "org/name/file", as the Hub does, and takes commits.

    Attributes:
        files: What the Hub says it has; its hashes are sent as ETag.
        mode: `ok`; `wrong` sends other bytes of the same length; `cut` always ends the connection half way;
            `cut_once` does so once; `long` says that files are longer than they are; `redirect` sends clients
            to `other`; `short` sends half a file and does not say so; `slow` rests half way;
            `gated`; `no_etag`.
        requests: "METHOD path [range]" of every request for a file.
        tokens: Tokens that came with requests for a file, None for those without.
        other: Address of another server, for `redirect`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.mode = "ok"
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.other = ""
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def reset(self) -> None:
        self.files.clear()
        self.requests.clear()
        self.tokens.clear()
        self.mode = "ok"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._resolve(send_body=False)

    def do_GET(self) -> None:
        self._resolve(send_body=True)

    def do_POST(self) -> None:
        """The four calls of an upload; small files travel inside the commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {"errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            name = json.loads(body)
            answer = {"url": f"{self.server.endpoint}/{name['organization']}/{name['name']}"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            }
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            for value in (line["value"] for line in lines if line["key"] == "file"):
                self.server.files[f"{match[1]}/{value['path']}"] = b64decode(value["content"])
            answer = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.server.endpoint}/{match[1]}/commit/{COMMIT}",
            }
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, send_body: bool) -> None:
        span = self.headers.get("Range", "")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match:  # not the client's questions about the Hub itself
            self.server.requests.append(f"{self.command} {self.path} {span}".strip())
            self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.mode == "gated":
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if match is None or not any(name.startswith(f"{match[1]}/") for name in self.server.files):
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if match[2] not in ("main", COMMIT):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        content = self.server.files.get(f"{match[1]}/{match[3]}")
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if match[3].endswith(".safetensors"):
            etag = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers["ETag"] = '"opaque"' if self.server.mode == "no_etag" else f'"{etag}"'
        if self.server.mode == "no_etag":
            headers.pop("X-Linked-Etag", None)
        if self.server.mode == "redirect":
            return self._answer(302, b"", headers | {"Location": f"{self.server.other}{self.path}"})
        if self.server.mode == "long" and not send_body:
            headers["X-Linked-Size"] = str(10**15)
        self._answer(200, content, headers, send_body, span)

    def _answer(
        self, status: int, content: bytes, headers: dict[str, str], send_body: bool = True, span: str = ""
    ) -> None:
        mode, half = self.server.mode, len(content) // 2
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if mode == "wrong" and send_body:
            content = bytes(byte ^ 1 for byte in content)
        body = content[start:]
        self.send_response(206 if span else status)
        for key, value in headers.items():
            self.send_header(key, value)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if mode == "short" and send_body:
            self.send_header("Connection", "close")
            body = body[:half]
        elif mode == "long" and send_body:
            self.send_header("Content-Length", str(10**15))
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not send_body:
            return
        if mode in ("cut", "cut_once"):
            body, self.close_connection = content[start:half], True
            self.server.mode = "ok" if mode == "cut_once" else mode
        elif mode == "slow":
            self.wfile.write(body[:half])
            time.sleep(0.5)
            body = body[half:]
        self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that went away
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Client:
    """A process with its own environment. `send` a call, `receive` its `ok`, or its `error` and `message`."""

    def __init__(self, home: Path, endpoint: str, **env: str) -> None:
        self.home = home
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve_calls, args=(theirs, settings | env), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Starts `fetch` (of an entry's fields), `fetch_repository`, `cli` (of the `weights` command) or
        `python`.

        `python` runs a text with `ca`, `timm`, `torch` and the keyword arguments as names, and answers with
        the text's `answer` and with the log.
        """
        self._pipe.send((function, args, kwargs))

    def receive(self) -> dict[str, Any]:
        return self._pipe.recv()

    def call(self, function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.send(function, *args, **kwargs)
        return self.receive()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


# Every process starts as a copy of one that has imported what takes long, but not yet the hub client.
_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context = multiprocessing.get_context(_method)
if _method == "forkserver":
    _context.set_forkserver_preload(["torchvision"])


def _serve_calls(pipe: Connection, settings: dict[str, str]) -> None:
    for key in [key for key in os.environ if key.startswith("HF_")]:
        del os.environ[key]
    os.environ.update(settings)
    assert "huggingface_hub" not in sys.modules
    import timm
    import torch
    from typer.testing import CliRunner

    import correlation_aware as ca
    from correlation_aware import weights
    from correlation_aware.cli.weights import app

    torch.set_num_threads(1)

    def fetch(entry: dict[str, Any], **kwargs: Any) -> Any:
        return weights.fetch(weights.WeightsEntry(**entry), **kwargs)

    def cli(*args: str) -> Any:
        result = CliRunner().invoke(app, args)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def python(code: str, **names: Any) -> Any:
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger("correlation_aware").addHandler(handler)
        names |= {"ca": ca, "timm": timm, "torch": torch}
        try:
            exec(code, names)
        finally:
            logging.getLogger("correlation_aware").removeHandler(handler)
        return names.get("answer"), log.getvalue()

    functions: dict[str, Any] = {
        "fetch": fetch,
        "fetch_repository": weights.fetch_repository,
        "cli": cli,
        "python": python,
    }
    while True:
        name, args, kwargs = pipe.recv()
        try:
            answer = {"ok": functions[name](*args, **kwargs)}
        except Exception as error:
            answer = {"error": [c.__name__ for c in type(error).__mro__], "message": str(error)}
        pipe.send(answer)
