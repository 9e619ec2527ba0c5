"""The server of `correlation-aware app`: uploads, tracking in a thread, previews and downloads."""

import json
import logging
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from correlation_aware._extras import require
from correlation_aware.tracking.draw import COLORS, draw_results
from correlation_aware.tracking.results import ResultWriter
from correlation_aware.tracking.stream import FrameResults, Tracking
from correlation_aware.tracking.tracker import Tracker
from correlation_aware.tracking.video import Frame, VideoWriter, open_frames

if TYPE_CHECKING:  # imported by the server instead, since it is an extra
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["AppServer"]

MAX_VIDEOS = 4  # on disk; the oldest ones are removed
MAX_TARGETS = 16
MAX_REQUEST = 100_000  # bytes of anything but a video
PREVIEW_SIDE = 1280  # pixels
SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
MISTAKES = (ValueError, RuntimeError, OSError, MemoryError, cv2.error)
FAULT = "an error of this program; its console has more"

_logger = logging.getLogger(__name__)


@dataclass
class _Video:
    """An uploaded video and what is known of its tracking."""

    folder: Path
    source: Path
    name: str  # of the files to download
    state: str = "ready"  # tracking, done, stopped, failed
    count: int = 0
    total: int | None = None
    error: str = ""
    latest: FrameResults | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def boxes(self) -> Path:
        return self.folder / "boxes.csv"

    @property
    def drawing(self) -> Path:
        return self.folder / "tracked.mp4"


class AppServer:
    """The page's server, and its temporary files: use it in a `with` block.

    Args:
        tracker: Tracker, which tracks in one video at a time.
        max_megabytes: Largest size of a video.

    Raises:
        ModuleNotFoundError: Starlette is not installed.

    Attributes:
        asgi: The application for an ASGI server. It answers to the names of this machine alone, and takes
            nothing that a page of another server sends.
        folder: Folder of the temporary files; it is removed at the end of the block.
    """

    def __init__(self, tracker: Tracker, max_megabytes: int) -> None:
        names = ("applications", "middleware", "middleware.base", "middleware.trustedhost", "routing")
        applications, middlewares, base, trusted, routing, self._requests, self._responses = require(
            *(f"starlette.{name}" for name in (*names, "requests", "responses"))
        )
        self._tracker = tracker
        self._max_bytes = max_megabytes * 1_000_000
        self._videos: dict[str, _Video] = {}
        self._busy = threading.Lock()  # one video is tracked at a time
        self._files = tempfile.TemporaryDirectory(prefix="correlation_aware_app_")
        self.folder = Path(self._files.name)
        get, post, route = ("GET",), ("POST",), routing.Route
        routes = [
            route("/", self._page, methods=get),
            route("/videos", self._upload, methods=post),
            route("/videos/{key}/first.jpg", self._first, methods=get),
            route("/videos/{key}/latest.jpg", self._preview, methods=get),
            route("/videos/{key}/status", self._status, methods=get),
            route("/videos/{key}/track", self._track, methods=post),
            route("/videos/{key}/stop", self._stop, methods=post),
            route("/videos/{key}/close", self._close, methods=post),
            route("/videos/{key}/{file}", self._download, methods=get),
        ]
        middleware = [
            middlewares.Middleware(trusted.TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
            middlewares.Middleware(base.BaseHTTPMiddleware, dispatch=self._guard),
        ]
        handlers: dict[Any, Any] = {**dict.fromkeys(MISTAKES, self._mistake), Exception: self._fault}
        self.asgi = applications.Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    def __enter__(self) -> "AppServer":
        return self

    def __exit__(self, *error: object) -> None:
        for key in list(self._videos):
            thread = self._remove(key)
            if thread is not None:
                thread.join()
        self._files.cleanup()

    async def _page(self, request: "Request") -> "Response":
        return self._responses.HTMLResponse(
            resources.files("correlation_aware.cli").joinpath("web_app.html").read_text("utf-8")
        )

    async def _upload(self, request: "Request") -> "Response":
        """Stores the body as a video; its name is in the query."""
        name = Path(request.query_params.get("name", "")).name
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{name} is no video: the name has to end in {', '.join(SUFFIXES)}")
        for key in list(self._videos)[: max(0, len(self._videos) - MAX_VIDEOS + 1)]:
            self._remove(key)
        key = secrets.token_urlsafe(16)
        folder = self.folder / key
        folder.mkdir()
        stem = re.sub(r"[^\w.-]+", "_", Path(name).stem, flags=re.ASCII) or "video"
        video = _Video(folder, folder / f"video{suffix}", stem)
        try:
            with video.source.open("wb") as file:
                async for block in self._body(request, self._max_bytes, "the video"):
                    file.write(block)
            with open_frames(video.source) as frames:
                frame = next(frames)
                length, fps = frames.length, frames.fps
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._videos[key] = video
        height, width = frame.shape[:2]
        about = {"key": key, "width": width, "height": height, "length": length, "fps": fps}
        return self._responses.JSONResponse({**about, "colors": COLORS, "targets": MAX_TARGETS})

    def _first(self, request: "Request") -> "Response":
        """The frame whose number is in the query."""
        start = request.query_params.get("start", "0")
        with open_frames(self._video(request).source, start=_whole_number(start)) as frames:
            return self._jpeg(next(frames))

    def _preview(self, request: "Request") -> "Response":
        """The latest frame with boxes, at most `PREVIEW_SIDE` pixels wide and high."""
        latest = self._video(request).latest
        if latest is None:
            raise ValueError("no frame was tracked yet")
        return self._jpeg(draw_results(latest.frame, latest.targets))

    async def _status(self, request: "Request") -> "Response":
        video = self._video(request)
        targets = video.latest.targets if video.latest else ()
        results = [{"box": r.box, "score": r.score, "lost": r.lost} for r in targets]
        about = {"state": video.state, "frames": video.count, "total": video.total, "error": video.error}
        return self._responses.JSONResponse({**about, "targets": results})

    async def _track(self, request: "Request") -> "Response":
        """Starts to track; the body is `{"start": 0, "boxes": [[x, y, w, h], ...]}`, boxes in pixels."""
        video = self._video(request)
        content = json.loads(
            b"".join([block async for block in self._body(request, MAX_REQUEST, "the request")])
        )
        boxes = content.get("boxes") if isinstance(content, dict) else None
        if not isinstance(boxes, list) or not 1 <= len(boxes) <= MAX_TARGETS:
            raise ValueError(f"draw 1 to {MAX_TARGETS} boxes")
        start = _whole_number(str(content.get("start", 0)))
        if not self._busy.acquire(blocking=False):
            raise ValueError("another video is being tracked: stop it first, or wait for its end")
        video.stop.clear()
        video.state, video.count, video.total, video.error, video.latest = "tracking", 0, None, "", None
        video.thread = threading.Thread(target=self._run, args=(video, start, boxes), daemon=True)
        video.thread.start()
        return self._responses.JSONResponse({}, 202)

    def _run(self, video: _Video, start: int, boxes: list[Any]) -> None:
        try:
            with ExitStack() as stack:
                frames = stack.enter_context(open_frames(video.source, start=start))
                video.total = frames.length
                table = stack.enter_context(ResultWriter(video.boxes))
                drawing = stack.enter_context(VideoWriter(video.drawing, frames.fps))
                for results in Tracking(frames, self._tracker, boxes):
                    table.write(results)
                    drawing.write(draw_results(results.frame, results.targets), results.time)
                    video.latest, video.count = results, video.count + 1
                    if video.stop.is_set():
                        break
            video.state = "stopped" if video.stop.is_set() else "done"
        except MISTAKES as error:
            video.error, video.state = str(error), "failed"
        except Exception:  # a fault of this package: its thread ends here, and the page has to know
            _logger.exception("tracking of %s failed", video.name)
            video.error, video.state = FAULT, "failed"
        finally:
            self._busy.release()

    async def _stop(self, request: "Request") -> "Response":
        self._video(request).stop.set()
        return self._responses.JSONResponse({})

    async def _close(self, request: "Request") -> "Response":
        self._remove(request.path_params["key"])
        return self._responses.JSONResponse({})

    def _download(self, request: "Request") -> "Response":
        video, name = self._video(request), request.path_params["file"]
        files = {"boxes.csv": video.boxes, "tracked.mp4": video.drawing}
        if name not in files or video.state not in ("done", "stopped"):
            return self._responses.JSONResponse({"error": f"there is no {name}"}, 404)
        return self._responses.FileResponse(files[name], filename=f"{video.name}_{name}")

    async def _guard(
        self, request: "Request", call_next: "Callable[[Request], Awaitable[Response]]"
    ) -> "Response":
        """Refuses what pages of other servers send, and adds headers that keep this one apart from them."""
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers['host']}":
            return self._responses.JSONResponse({"error": f"requests of {origin} are refused"}, 403)
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    async def _mistake(self, request: "Request", error: Exception) -> "Response":
        return self._responses.JSONResponse(
            {"error": str(error)}, 413 if isinstance(error, _TooLarge) else 400
        )

    async def _fault(self, request: "Request", error: Exception) -> "Response":
        """The page's answer; the server prints the traceback."""
        return self._responses.JSONResponse({"error": FAULT}, 500, HEADERS)

    async def _body(self, request: "Request", limit: int, what: str) -> Any:
        """Blocks of the body of a request.

        Raises:
            ValueError: More than `limit` bytes, or a connection that ends before the last one.
        """
        text = f"{what} is larger than {limit / 1e6:g} MB; --max-megabytes allows larger videos"
        count, expected = 0, int(request.headers.get("content-length") or 0)
        if expected > limit:
            raise _TooLarge(text)
        try:
            async for block in request.stream():
                count += len(block)
                if count > limit:
                    raise _TooLarge(text)
                yield block
        except self._requests.ClientDisconnect:
            raise ValueError(f"{what} ended after {count} of {expected} bytes") from None

    def _jpeg(self, frame: Frame) -> "Response":
        scale = min(1.0, PREVIEW_SIDE / max(frame.shape[:2]))
        size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
        if scale < 1:
            frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return self._responses.Response(data.tobytes(), media_type="image/jpeg")

    def _video(self, request: "Request") -> _Video:
        video = self._videos.get(request.path_params["key"])
        if video is None:
            raise ValueError("this video was removed: load it again")
        return video

    def _remove(self, key: str) -> threading.Thread | None:
        """Removes a video and its files, once its thread has ended; returns the thread that does it."""
        video = self._videos.pop(key, None)
        if video is None:
            return None
        video.stop.set()

        def clean() -> None:
            if video.thread is not None:
                video.thread.join()
            shutil.rmtree(video.folder, ignore_errors=True)

        thread = threading.Thread(target=clean, daemon=True)
        thread.start()
        return thread


class _TooLarge(ValueError):
    """A request above its limit."""


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"the first frame {text!r} is not a number from 0")
    return int(text)
