"""The page that tracks in a browser: its files, and in headless Chromium its boxes, against the tracker's."""

import base64
import csv
import functools
import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from chromium import Chromium
from tiny_tracker import tiny_tracker
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import export as cli_export
from correlation_aware.demo_clip import draw_clip
from correlation_aware.runtime.export import export
from correlation_aware.tracking import browser_page
from correlation_aware.tracking.browser_page import PACKAGES, SOURCES, NpmPackage, fetch_package, write_page
from correlation_aware.tracking.video import open_frames

CONFIG = ca.TrackerConfig(box_vote=8.0, window_weight=0.3, redetect=False)
SIZE = (120, 160)  # height, width
BOXES = (
    (40, 30, 40, 30),
    (120.5, 10, 50, 20),
    (0, 60, 12, 40),
    (10, 10, 140, 100),
    (0, 108, 15, 12),
    (153, 50, 6, 7.5),
)
DIRECT = """(async () => {
    const {Tracker} = await import("/tracker.js");
    const bytes = new Uint8Array(await (await fetch("/frames.bin")).arrayBuffer());
    const [height, width] = SIZE, size = width * height * 4;
    const frame = n => ({width, height, read(x, y, w, h) {
        const part = new Uint8Array(w * h * 4);
        for (let row = 0; row < h; row++) {
            const start = n * size + ((y + row) * width + x) * 4;
            part.set(bytes.subarray(start, start + w * 4), row * w * 4);
        }
        return part;
    }});
    const tracker = await Tracker.load(new URL("/", location)), all = [];
    for (const box of BOXES) {
        await tracker.init(frame(0), box);
        for (let n = 1; n < bytes.length / size; n++) {
            const {box, score, lost} = await tracker.update(frame(n));
            all.push([...box, score, Number(lost)]);
        }
    }
    return all;
})()"""

PLAYED = """(async () => {
    delete window.VideoDecoder;
    const {openFile} = await import("/frames.js");
    const file = new File([await (await fetch("/clip.webm")).blob()], "clip.webm", {type: "video/webm"});
    const source = await openFile(file), pixels = [];
    for (let n = 0; n < 2; n++) {
        const {index, time} = await source.next();
        pixels.push(index, time, ...source.read(80, 60, 1, 1));
    }
    source.close();
    return [source.note, ...pixels];
})()"""  # a browser without WebCodecs


class Server:
    """Serves a folder as any server of static files does, and counts what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[NpmPackage, Server]]:
    """A package with a registry that serves it, and an empty cache."""
    folder = tmp_path / "registry" / "tiny-package" / "-"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "tiny-package-1.2.3.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/dist/tiny.mjs")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"code"))
    digest = hashlib.sha512((folder / "tiny-package-1.2.3.tgz").read_bytes()).digest()
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path / "cache"))
    with Server(tmp_path / "registry") as server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.address + "/")
        files = {"package/dist/tiny.mjs": "tiny.js"}
        yield NpmPackage("tiny-package", "1.2.3", integrity, "MIT", files), server


def test_a_package_is_downloaded_once_and_its_hash_is_checked(small_package, monkeypatch):
    package, server = small_package
    path = fetch_package(package)
    assert fetch_package(package) == path and server.asked == ["/tiny-package/-/tiny-package-1.2.3.tgz"]
    path.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"has another hash than expected.*was\s+removed"):
        fetch_package(package)
    assert not path.exists()
    other = replace(package, integrity=f"sha512-{base64.b64encode(bytes(64)).decode()}")
    with pytest.raises(RuntimeError, match="has another hash than expected: expected AAAA"):
        fetch_package(other)
    with pytest.raises(ConnectionError, match=r"1\.2\.4\.tgz cannot be downloaded: HTTP Error 404"):
        fetch_package(replace(package, version="1.2.4"))
    monkeypatch.setattr(browser_page, "LARGEST_PACKAGE", 3)
    with pytest.raises(ConnectionError, match="it has more than 3 bytes"):
        fetch_package(package)
    assert not any(path.parent.iterdir())
    server.__exit__()
    with pytest.raises(ConnectionError, match=r"put the file at .*tiny-package-1\.2\.3\.tgz by hand"):
        fetch_package(package)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    assert package.url == "https://registry.npmjs.org/tiny-package/-/tiny-package-1.2.3.tgz"


def test_the_packages_are_pinned():
    for package in PACKAGES:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64


def test_the_files_of_a_page(small_package, tmp_path, monkeypatch):
    """Without a browser: the page's values are the tracker's, and it names no file that is not there."""
    package, _ = small_package
    monkeypatch.setattr(browser_page, "PACKAGES", (package,))
    folder, model = tmp_path / "page", tiny_tracker()
    folder.mkdir()
    graphs = {name: folder / f"tiny.int8.{name}.onnx" for name in ("template", "search")}
    for path in graphs.values():
        path.write_bytes(b"12345")
    written = write_page(model, folder, graphs, CONFIG)
    assert {path for path in folder.rglob("*") if path.is_file()} == {*written, *graphs.values()}
    assert (folder / "vendor" / "tiny.js").read_bytes() == b"code"
    assert f"tiny.js: tiny-package 1.2.3 of the npm registry (MIT), {package.integrity}" in (
        folder / "vendor" / "README.txt"
    ).read_text("utf-8")
    content = json.loads((folder / "model.json").read_text("utf-8"))
    assert content["graphs"] == {"template": "tiny.int8.template.onnx", "search": "tiny.int8.search.onnx"}
    assert content["bytes"] == 10
    assert (content["template_size"], content["search_size"]) == (32, 64)
    assert (content["template_factor"], content["search_factor"]) == (2, 4)
    assert all(getattr(CONFIG, name) == value for name, value in content["config"].items())
    script = (folder / "tracker.js").read_text("utf-8")
    for name in content["config"]:  # every setting is used
        assert re.search(rf"\b(config\.)?{name}\b", script), name
    vendored = {f"vendor/{name}" for known in PACKAGES for name in known.files.values()}
    known = vendored | {str(path.relative_to(folder)) for path in written}
    for source in sorted(SOURCES.iterdir()):
        text = source.read_text("utf-8")
        names = re.findall(r"""(?:src=|href=|from |URL\()"([\w./]+\.\w+)\"""", text)
        assert names or source.name == "page.css", source.name
        assert {name.removeprefix("./") for name in names} <= known, source.name
        assert not re.search(r"https?://(?!localhost|www\.w3\.org/2000/svg)", text)


def test_what_a_page_does_not_do(small_package, tmp_path, monkeypatch):
    monkeypatch.setattr(browser_page, "PACKAGES", (small_package[0],))
    model = tiny_tracker()
    paths = {name: tmp_path / "other" / f"tiny.{name}.onnx" for name in ("template", "search")}
    with pytest.raises(ValueError, match=r"have to be in .*page, the folder of the page"):
        write_page(model, tmp_path / "page", paths)
    with pytest.raises(ValueError, match="neither redetect nor template_update: set redetect=False"):
        write_page(model, tmp_path / "other", paths, ca.TrackerConfig(redetect=True))
    with pytest.raises(ValueError, match="TinyNet has no prediction head"):
        write_page(model.backbone, tmp_path / "other", paths)
    with pytest.raises(ValueError, match="in_chans=1"):
        write_page(ca.create_model("sbt_test_track", in_chans=1, device="meta"), tmp_path / "other", paths)
    model.backbone.update_interval = 20
    with pytest.raises(ValueError, match="updates its template every 20 frames"):
        write_page(model, tmp_path / "other", paths)


def test_the_options_of_the_command(tmp_path):
    app = typer.Typer()
    app.command()(cli_export.export)
    for words, message in (
        (("--format", "html"), "--format html is not one of onnx, openvino, torch, web"),
        (("--format", "web", "--graph", "pair"), "--graph has no effect with --format web"),
        (("--calibration", "photos"), "--calibration has no effect without --int8"),
        (("--int8",), "--int8 needs --calibration SOURCE"),
        (("--int8", "--calibration", "photos", "--format", "torch"), "--int8 needs --format onnx or web"),
        (("--int8", "--calibration", "photos", "--graph", "pair"), "--int8 needs the graphs template and"),
    ):
        result = CliRunner().invoke(app, ["sbt_test_track", "--output", str(tmp_path / "page"), *words])
        assert isinstance(result.exception, ValueError) and message in str(result.exception), result.output
    assert not (tmp_path / "page").exists()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small tracker, in a folder."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    try:
        for package in PACKAGES:
            fetch_package(package)
    except ConnectionError as error:
        pytest.skip(f"needs the npm registry: {error}")
    folder, model = tmp_path_factory.mktemp("page"), tiny_tracker()
    files = export(model, folder, "onnx", ["template", "search"])
    write_page(model, folder, {file.graph: file.path for file in files}, CONFIG)
    return folder


def test_boxes_in_a_browser(page: Path, tmp_path: Path) -> None:
    """The same pixels give the same boxes; a video, read by another decoder, almost the same."""
    clip = list(draw_clip(6, SIZE))
    rgba = [np.dstack([frame, np.full(SIZE, 255, np.uint8)]) for frame, _ in clip]
    (page / "frames.bin").write_bytes(np.stack(rgba).tobytes())
    video = tmp_path / "my clip.webm"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"VP80"), 20, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("needs an OpenCV that writes VP8")
    for frame, _ in clip:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    (tmp_path / "text.mp4").write_text("no video")
    tracker = ca.create_tracker(tiny_tracker(), device="cpu", config=CONFIG)
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with Server(page) as server, Chromium(tmp_path, *camera) as browser:
        browser.open(f"{server.address}/index.html", 1000)
        browser.run("window.$ = id => document.getElementById(id)")
        browser.wait("$('message').textContent.startsWith('Choose')")
        script = DIRECT.replace("SIZE", json.dumps(SIZE)).replace("BOXES", json.dumps(BOXES))
        actual, expected = np.array(browser.run(script)), []
        for box in BOXES:
            tracker.init(clip[0][0], box)
            results = [tracker.update(frame) for frame, _ in clip[1:]]
            expected += [[*result.box, result.score, result.lost] for result in results]
        # float32 in another order
        np.testing.assert_allclose(actual, np.array(expected), rtol=0, atol=2e-3)

        def rows_of(name: str) -> list[dict[str, str]]:
            """Rows of the CSV file that the page gives."""
            browser.run("$('csv').click()")
            while not (path := browser.downloads / f"{name}.csv").is_file():
                browser.run("new Promise(resolve => setTimeout(resolve, 20))")
            return list(csv.DictReader(path.read_text("utf-8").splitlines()))

        assert browser.run("$('track').disabled")
        browser.choose_file("#file", video)
        browser.wait("$('message').textContent.startsWith('my clip.webm, 160 x 120')")
        assert browser.run("$('frame').textContent") == f"Frame 1 of {len(clip)}"
        corner = "(p => [p.x, p.y])(new DOMPoint(X, Y).matrixTransform($('svg').getScreenCTM()))"
        ends = (browser.run(corner.replace("X, Y", f"{x}, {y}")) for x, y in ((40, 30), (80, 60)))
        browser.drag(*(tuple(end) for end in ends))
        box = [float(browser.run(f"$('{name}').value")) for name in "xywh"]
        assert box == pytest.approx([40, 30, 40, 30], abs=1)
        for name, value in zip("xywh", BOXES[0]):  # by keyboard
            browser.run(f"$('{name}').value = {value}")
        browser.run("$('x').dispatchEvent(new Event('input'))")
        assert browser.run("$('track').textContent") == "Track"
        browser.run("$('track').click()")
        browser.wait("$('message').textContent.startsWith('Done: 6 frames')")
        rows = rows_of("my clip")
        frames = list(open_frames(video))
        tracker.init(frames[0], BOXES[0])
        boxes = [BOXES[0], *(tracker.update(frame).box for frame in frames[1:])]
        assert list(rows[0]) == ["frame", "target", "x", "y", "w", "h", "score", "lost", "time"]
        assert [row["frame"] for row in rows] == [str(i) for i in range(len(clip))]
        assert [float(row["time"]) for row in rows] == pytest.approx([i / 20 for i in range(6)], abs=2e-3)
        decoded = [[float(row[name]) for name in "xywh"] for row in rows]
        # browser and OpenCV convert the video's colors to RGB with other roundings
        np.testing.assert_allclose(decoded, np.array(boxes), rtol=0, atol=1.5)

        browser.run("$('again').click()")  # "Start again": the box is drawn anew
        browser.wait("$('again').hidden && !$('box').hidden")
        browser.choose_file("#file", tmp_path / "text.mp4")
        browser.wait("$('message').className === 'error'")
        message = browser.run("$('message').textContent")
        assert message == "This browser cannot play text.mp4. Convert it to mp4 (H.264) or webm."

        (page / "clip.webm").write_bytes(video.read_bytes())
        note, first, time, *color, second, later = browser.run(PLAYED)[:9]
        assert note.startswith("Frames may be skipped") and (first, second, time) == (0, 1, 0) and later >= 0
        assert np.abs(np.subtract(color[:3], frames[0][60, 80].astype(int))).max() < 10 and color[3] == 255

        browser.run("$('camera').click()")
        browser.wait("$('message').textContent.startsWith('camera, ')")
        for name, value in zip("xywh", (200, 100, 100, 80)):
            browser.run(f"$('{name}').value = {value}")
        browser.run("$('x').dispatchEvent(new Event('input'))")
        browser.run("$('track').click()")
        browser.wait("parseInt($('frame').textContent.slice(6)) > 3")
        browser.run("$('track').click()")
        browser.wait("$('track').textContent === 'Continue'")
        seen = int(browser.run("$('frame').textContent")[6:])
        browser.run("$('track').click()")
        browser.wait(f"parseInt($('frame').textContent.slice(6)) > {seen + 1}")
        browser.run("$('track').click()")
        browser.wait("!$('csv').hidden")
        times = [float(row["time"]) for row in rows_of("camera")]
        assert len(times) > seen and times[0] == 0 and times == sorted(times)

        browser.open(f"{server.address}/index.html?phone", 390)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert not browser.messages
        here = {path.split("?")[0] for path in server.asked} - {"/frames.bin", "/clip.webm"}
        names = {f"/{path.relative_to(page)}" for path in page.rglob("*")}
        assert here <= names, here - names  # nothing else, and the policy of the page allows no other server
        policy = browser.run("document.querySelector('meta[http-equiv]').content")
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy
