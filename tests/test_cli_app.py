"""The command `app`: its server, and its page in headless Chromium."""

import base64
import csv
import http.client
import io
import json
import logging
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import Chromium
from rich.console import Console
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import app
from correlation_aware.cli._messages import print_messages
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.video import VideoWriter, open_frames

uvicorn = pytest.importorskip(
    "uvicorn", reason="needs uvicorn: pip install 'uvicorn>=0.30' (the extra [app])"
)
pytest.importorskip("starlette", reason="needs starlette: pip install 'starlette>=0.40' (the extra [app])")

from correlation_aware.cli.web_app_server import AppServer  # noqa: E402 (needs starlette)

FRAMES = 8
DROP = """{
    const data = new DataTransfer(), bytes = Uint8Array.from(atob("CONTENT"), c => c.charCodeAt(0));
    data.items.add(new File([bytes], "my clip.mp4"));
    $("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
}"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "my clip.mp4", 20) as writer:
        for frame, _ in draw_clip(FRAMES, (180, 240)):
            writer.write(frame)
    return writer.path


def wait(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds; what does not happen in two minutes is an error."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Served:
    """A server with a small network, on a free port."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        tracker = ca.create_tracker(ca.create_model("sbt_test_track"), device="cpu")
        self.app = AppServer(tracker, max_megabytes=2)
        config = uvicorn.Config(self.app.asgi, port=0, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = (response.headers["Content-Type"] or "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content

    def end_of(self, key: str) -> dict[str, Any]:
        """The status when tracking has ended."""
        while (status := self.ask("GET", f"/videos/{key}/status")[1])["state"] == "tracking":
            time.sleep(0.02)
        return status


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    with served.app:
        yield served
        served.server.should_exit = True
        served.thread.join()
    assert not served.app.folder.exists()


def test_a_video_is_tracked_and_its_files_are_removed(served: Served, clip: Path) -> None:
    status, about = served.ask("POST", "/videos?name=my%20clip.mp4", clip.read_bytes())
    assert status == 200 and (about["width"], about["height"], about["length"]) == (240, 180, FRAMES)
    key = about["key"]
    assert served.ask("GET", f"/videos/{key}/first.jpg?start=3")[1][:2] == b"\xff\xd8"
    assert served.ask("GET", f"/videos/{key}/boxes.csv") == (404, {"error": "there is no boxes.csv"})
    boxes = [[40, 60, 30, 30], [100, 90, 40.5, 30]]
    assert served.ask("POST", f"/videos/{key}/track", {"start": 2, "boxes": boxes})[0] == 202
    end = served.end_of(key)
    assert (end["state"], end["frames"], end["total"], len(end["targets"])) == (
        "done",
        FRAMES - 2,
        FRAMES - 2,
        2,
    )
    assert served.ask("GET", f"/videos/{key}/latest.jpg")[1][:2] == b"\xff\xd8"
    rows = list(csv.DictReader(served.ask("GET", f"/videos/{key}/boxes.csv")[1].decode().splitlines()))
    assert [(row["frame"], row["target"]) for row in rows] == [
        (str(i), n) for i in range(2, FRAMES) for n in "01"
    ]
    assert [float(rows[1][name]) for name in "xywh"] == boxes[1]
    assert served.ask("GET", f"/videos/{key}/tracked.mp4")[1][4:8] == b"ftyp"
    assert served.ask("GET", f"/videos/{key}/video.mp4")[0] == 404
    assert [folder.name for folder in served.app.folder.iterdir()] == [key]
    assert served.ask("POST", f"/videos/{key}/close")[0] == 200
    assert served.ask("GET", f"/videos/{key}/status") == (
        400,
        {"error": "this video was removed: load it again"},
    )
    keys = [served.ask("POST", "/videos?name=a.mp4", clip.read_bytes())[1]["key"] for _ in range(6)]
    known = [served.ask("GET", f"/videos/{key}/status")[0] for key in keys]
    assert known == [400, 400, 200, 200, 200, 200]  # the oldest ones are removed
    wait(lambda: len(list(served.app.folder.iterdir())) == 4)


def test_what_is_refused(served: Served, clip: Path) -> None:
    content = clip.read_bytes()
    for name, body, headers, code, message in (
        ("a.mp4", bytes(2_000_001), {}, 413, "the video is larger than 2 MB"),
        ("a.mp4", iter([bytes(1_500_000)] * 2), {}, 413, "the video is larger than 2 MB"),  # without a length
        ("a.mp4", b"no video", {}, 400, "cannot be decoded as video"),
        ("a.mp4", b"", {}, 400, "cannot be decoded as video"),
        ("a.m3u8", content, {}, 400, "is no video"),
        (
            "a.mp4",
            content,
            {"Origin": "http://evil.example"},
            403,
            "requests of http://evil.example are refused",
        ),
    ):
        status, answer = served.ask("POST", f"/videos?name={name}", body, **headers)
        assert status == code and message in answer["error"]
        assert not list(served.app.folder.iterdir())
    assert served.ask("GET", "/", Host="evil.example")[0] == 400  # whose address has become 127.0.0.1
    own = {"Origin": f"http://127.0.0.1:{served.port}"}
    key = served.ask("POST", "/videos?name=../../a.mp4", content, **own)[1]["key"]
    for request, message in (
        ({"boxes": []}, "draw 1 to 16 boxes"),
        ({"boxes": [[1, 2, 30, 40]] * 17}, "draw 1 to 16 boxes"),
        ({"boxes": [[1, 2, 30, 40]], "start": -1}, "first frame '-1'"),
        ({"boxes": [[1, 2, 30, 40]], "pad": "x" * 100_000}, "the request is larger"),
        ([], "draw 1 to 16"),
    ):
        body = json.dumps(request)
        assert message in served.ask("POST", f"/videos/{key}/track", body)[1]["error"]
    for boxes, message in (([[900, 900, 30, 40]], "outside the frame"), ([["a"]], "A box is four numbers")):
        assert served.ask("POST", f"/videos/{key}/track", {"boxes": boxes})[0] == 202
        assert message in served.end_of(key)["error"]
    assert {path.name for path in served.app.folder.rglob("*")} == {key, "video.mp4"}


def test_tracking_can_be_stopped(served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [served.ask("POST", "/videos?name=a.mp4", clip.read_bytes())[1]["key"] for _ in range(2)]
    begun, go_on, update = threading.Event(), threading.Event(), served.app._tracker.update

    def waits(frame: Any) -> Any:
        begun.set()
        go_on.wait()
        return update(frame)

    monkeypatch.setattr(served.app._tracker, "update", waits)
    job = {"boxes": [[40, 60, 30, 30]]}
    served.ask("POST", f"/videos/{keys[0]}/track", job)
    begun.wait()
    assert "another video is being tracked" in served.ask("POST", f"/videos/{keys[1]}/track", job)[1]["error"]
    served.ask("POST", f"/videos/{keys[0]}/stop")
    go_on.set()
    end = served.end_of(keys[0])
    assert end["state"] == "stopped" and end["frames"] == 2
    assert len(served.ask("GET", f"/videos/{keys[0]}/boxes.csv")[1].splitlines()) == 3


def test_a_fault_ends_tracking_and_the_console_has_its_traceback(
    served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(frame: Any) -> Any:
        return [][len(frame)]

    monkeypatch.setattr(served.app._tracker, "update", fails)
    key = served.ask("POST", "/videos?name=a.mp4", clip.read_bytes())[1]["key"]
    terminal = Console(file=io.StringIO(), width=1000)
    with print_messages(terminal):
        assert served.ask("POST", f"/videos/{key}/track", {"boxes": [[40, 60, 30, 30]]})[0] == 202
        status = served.end_of(key)
    assert (status["state"], status["error"]) == ("failed", "an error of this program; its console has more")
    text = terminal.file.getvalue()
    assert text.startswith("tracking of a failed\nTraceback") and "in fails" in text
    assert text.endswith("IndexError: list index out of range\n")
    monkeypatch.undo()
    thread = served.app._videos[key].thread
    assert thread is not None
    thread.join()
    assert served.ask("POST", f"/videos/{key}/track", {"boxes": [[40, 60, 30, 30]]})[0] == 202
    assert served.end_of(key)["state"] == "done"


def test_a_fault_in_an_answer(
    served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = served.ask("POST", "/videos?name=a.mp4", clip.read_bytes())[1]["key"]
    monkeypatch.delattr(served.app, "_max_bytes")
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # to caplog
    status, answer = served.ask("POST", "/videos?name=a.mp4", clip.read_bytes())
    assert (status, answer) == (500, {"error": "an error of this program; its console has more"})
    wait(lambda: "has no attribute '_max_bytes'" in caplog.text)  # the server prints it after the answer
    assert served.ask("GET", f"/videos/{key}/status")[0] == 200


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(served: Served, clip: Path, tmp_path: Path, width: int) -> None:
    with Chromium(tmp_path) as page:
        page.open(f"http://127.0.0.1:{served.port}/", width)
        if width == 390:
            page.choose_file("#file", clip)
        else:
            page.run(DROP.replace("CONTENT", base64.b64encode(clip.read_bytes()).decode()))
        page.wait("state === 'ready' && document.getElementById('image').naturalWidth")
        screen = (
            "JSON.stringify((p => [p.x, p.y])(new DOMPoint({}).matrixTransform($('svg').getScreenCTM())))"
        )
        corners = [(40, 60), (70, 90)], [(140, 120), (100, 90)]
        for start, end in corners:
            page.drag(*(json.loads(page.run(screen.format(f"{x}, {y}"))) for x, y in (start, end)))
        boxes = page.run("boxes")
        assert [[round(value) for value in box] for box in boxes] == [[40, 60, 30, 30], [100, 90, 40, 30]]
        assert page.run("document.documentElement.scrollWidth") <= width  # nothing is cut off at the side
        page.run("$('track').click()")
        page.wait("state === 'finished'")
        assert f"Done: {FRAMES} of {FRAMES} frames" in page.run("$('message').textContent")
        for button, name in (("csv", "my_clip_boxes.csv"), ("mp4", "my_clip_tracked.mp4")):
            page.run(f"$('{button}').click()")
            wait((page.downloads / name).is_file)
        page.run("$('again').click()")
        page.run("$('start').value = 99, $('start').onchange()")
        page.wait("$('message').className === 'error'")
        assert "start=99 is after the end" in page.run("$('message').textContent")
        assert not page.messages
        page.run("close()")
        wait(lambda: not list(served.app.folder.iterdir()))
    lines = (tmp_path / "downloads" / "my_clip_boxes.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * FRAMES
    with open_frames(tmp_path / "downloads" / "my_clip_tracked.mp4") as frames:
        assert len(list(frames)) == FRAMES


def test_the_command_serves_this_machine_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    seen: list[Any] = []

    def ends(server: Any, sockets: list[Any]) -> None:
        seen.extend([sockets[0].getsockname(), list(tmp_path.iterdir())])
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(uvicorn.Server, "run", ends)
    words = ["app", "--model", "sbt_test_track", "--device", "cpu", "--port"]
    result = CliRunner().invoke(app, [*words, "0"])
    address, folders = seen
    assert result.exit_code == 0 and f"http://127.0.0.1:{address[1]} " in result.output
    assert address[0] == "127.0.0.1" and len(folders) == 1 and not list(tmp_path.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as other:
        error = CliRunner().invoke(app, [*words, str(other.getsockname()[1])]).exception
    assert "cannot be used" in str(error) and "choose another one with --port" in str(error)
