"""`track`: any source of frames, targets that come and go, candidates, and files of results."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking import live
from correlation_aware.tracking.boxes import distinct
from correlation_aware.tracking.results import FORMATS, ResultWriter
from correlation_aware.tracking.tracker import Tracker
from correlation_aware.tracking.video import VideoWriter, open_frames, write_image

FRAMES = [frame for frame, _ in draw_clip(9, (96, 128))]
BOX, OTHER = (20.0, 30.0, 16.0, 14.0), (60.0, 40.0, 20.0, 20.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ca.create_model("sbt_test_track")


@pytest.fixture
def tracker(model) -> Tracker:
    return ca.create_tracker(model, device="cpu")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """A video at 10 frames/s whose frame i has the gray level 20 i."""
    with VideoWriter(tmp_path_factory.mktemp("video") / "numbered.mp4", 10) as writer:
        for i in range(10):
            writer.write(np.full((64, 64, 3), 20 * i, np.uint8))
    return writer.path


def numbers(source) -> list[int]:
    return [round(float(frame.mean()) / 20) for frame in source]


def test_a_stream_gives_what_the_tracker_gives(model, tracker):
    tracker.init(FRAMES[0], [BOX, OTHER])
    expected = [tracker.update(frame) for frame in FRAMES[1:]]
    results = list(ca.track(iter(FRAMES), [BOX, OTHER], model=model, device="cpu"))
    assert [r.index for r in results] == list(range(9))
    assert [r.time for r in results] == pytest.approx([i / 30 for i in range(9)])
    assert [[(t.box, t.score, t.lost, t.target) for t in results[0].targets]] == [
        [(BOX, 1.0, False, 0), (OTHER, 1.0, False, 1)]
    ]
    assert [list(r.targets) for r in results[1:]] == expected
    assert all((r.frame == frame).all() for r, frame in zip(results, FRAMES))
    single = list(ca.track(FRAMES, BOX, tracker=tracker, limit=3))
    assert [len(r.targets) for r in single] == [1, 1, 1]
    assert single[1].targets[0].box == pytest.approx(
        expected[0][0].box, abs=1e-3
    )  # of a batch of another size


def test_a_tracker_with_targets_tracks_on(tracker):
    tracker.init(FRAMES[0], BOX)
    expected = [tracker.update(frame) for frame in FRAMES[1:4]]
    tracker.init(FRAMES[0], BOX)
    results = list(ca.track(FRAMES[1:4], tracker=tracker))
    assert [r.targets for r in results] == [(e,) for e in expected]


def test_targets_come_and_go_with_numbers_of_their_own(model, tracker):
    alone = ca.create_tracker(model, device="cpu")
    alone.init(FRAMES[2], OTHER)
    with ca.track(FRAMES, tracker=tracker) as stream:
        assert next(stream).targets == ()
        with pytest.raises(ValueError, match="no target 0; the targets are: none"):
            stream.remove(0)
        assert stream.add(BOX) == (0,)
        assert [r.target for r in next(stream).targets] == [0]
        next(stream)
        assert stream.add([OTHER, BOX]) == (1, 2)
        three = next(stream).targets
        assert [r.target for r in three] == [0, 1, 2]
        expected = alone.update(FRAMES[3])
        assert three[1].box == pytest.approx(expected.box, abs=1e-3)  # of a batch of another size
        stream.remove(0)
        assert tracker.targets == (1, 2)
        two = next(stream).targets
        assert [r.target for r in two] == [1, 2]
        assert two[0].box == pytest.approx(alone.update(FRAMES[4]).box, abs=1e-3)
        with pytest.raises(ValueError, match="no target 0; the targets are: 1, 2"):
            stream.remove(0)
        stream.remove(2)
        stream.remove(1)
        assert next(stream).targets == () and tracker.update(FRAMES[5]) == []
        assert stream.add(BOX) == (3,)  # no number is used twice
        assert [r.target for r in next(stream).targets] == [3]
    tracker.init(FRAMES[0], BOX)
    assert tracker.targets == (0,) and isinstance(tracker.update(FRAMES[1]), ca.TrackResult)


def test_mistakes(tracker):
    with pytest.raises(RuntimeError, match="There is no frame yet"):
        ca.track(FRAMES, tracker=tracker).add(BOX)
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match="the source has no frame"):
            next(ca.track(empty, BOX, tracker=tracker))
    for source in (None, 1.5):
        with pytest.raises(TypeError, match=f"source={source} is not a video file, a folder of frames"):
            ca.track(source, BOX, tracker=tracker)
    with pytest.raises(TypeError, match="tracker='sbt_test_track' must be a Tracker"):
        ca.track(FRAMES, BOX, tracker="sbt_test_track")
    with pytest.raises(ValueError, match="model, config has no effect on a tracker that exists"):
        ca.track(FRAMES, BOX, tracker=tracker, model="sbt_test_track", config=ca.TrackerConfig())
    with pytest.raises(ValueError, match="runtime has no effect"):
        ca.track(FRAMES, BOX, tracker=tracker, runtime="onnx")
    with pytest.raises(ValueError, match="is outside the frame"):
        next(ca.track(FRAMES, (500, 500, 10, 10), tracker=tracker))
    for box in ((48, 112), [BOX, BOX[:3]]):
        with pytest.raises(ValueError, match=r"Boxes have shape \(4,\)|A box is four numbers"):
            next(ca.track(FRAMES, box, tracker=tracker))
    with pytest.raises(ValueError, match=r"single frame of shape \(96, 128, 3\); pass a list"):
        ca.track(FRAMES[0], BOX, tracker=tracker)
    with pytest.raises(ValueError, match="decode has no effect on a tracker that exists"):
        ca.track(FRAMES, BOX, tracker=tracker, decode="paper")
    with pytest.raises(ValueError, match="uint8"):
        next(ca.track([FRAMES[0] / 255], BOX, tracker=tracker))
    with pytest.raises(RuntimeError, match="no candidates yet"):
        tracker.candidates()
    stream = ca.track(FRAMES[:2], BOX, tracker=tracker)
    assert len(list(stream)) == 2
    with pytest.raises(RuntimeError, match="The source, the frames, has ended: no frame follows"):
        stream.add(OTHER)
    assert tracker.targets == (0,)


def test_candidates_are_distinct_places_best_first(tracker):
    tracker.init(FRAMES[0], [BOX, OTHER])
    results = tracker.update(FRAMES[1])
    for result, found in zip(results, tracker.candidates(4), strict=True):
        scores = [candidate.score for candidate in found]
        assert 1 <= len(found) <= 4 and scores == sorted(scores, reverse=True) and scores[0] >= result.score
    with pytest.raises(ValueError, match="count=0"):
        tracker.candidates(0)
    boxes = torch.tensor(
        [[10.0, 10, 4, 4], [11, 10, 4, 4], [20, 10, 4, 4], [30, 10, 4, 4], [12.1, 10, 4, 4]]
    ).T
    scores = torch.tensor([0.5, 0.9, 0.2, float("nan"), 0.8])
    assert distinct(boxes, scores, 5) == [1, 2]  # 0 and 4 overlap 1 by 0.6 and 0.57
    assert distinct(boxes, scores, 5, max_overlap=0.58) == [1, 4, 2]
    assert distinct(boxes, scores, 1) == [1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 4}, [4, 5, 6, 7, 8, 9]),
        ({"start": "4", "every": 2}, [4, 6, 8]),
        ({"start": "0.35s", "limit": 2}, [4, 5]),
        ({"start": "0:0.3", "every": 5}, [3, 8]),
        ({"every": 3}, [0, 3, 6, 9]),
        ({"every": 20}, [0]),
    ],
)
def test_start_and_step(numbered, tmp_path, options, expected):
    for i in range(10):
        write_image(tmp_path / f"left_{i}.png", np.full((8, 8, 3), 20 * i, np.uint8))
        write_image(tmp_path / f"right_{i}.png", np.zeros((8, 8, 3), np.uint8))
    with open_frames(numbered, **options) as source:
        assert numbers(source) == expected
        assert source.index == expected[-1] and source.time == pytest.approx(expected[-1] / 10, abs=1e-3)
        assert source.length in (None, len(expected))
    if "s" not in str(options.get("start")) and ":" not in str(options.get("start")):  # another rate
        with open_frames(f"{tmp_path}/left_*.png", **options) as source:
            assert source.length == len(expected) and numbers(source) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start=-1 must be at least 0"),
        ({"start": "soon"}, "start='soon' is no frame number and no time, such as 300, 12.5s"),
        (
            {"start": 10},
            "start=10 is after the end of .*numbered.mp4, whose last frame is number 9, at 0.90 s",
        ),
        ({"start": "1:00"}, "start='1:00' is after the end"),
        ({"every": 0}, "every=0 must be at least 1"),
        ({"start": 1.5}, "start=1.5 is not an integer, a number of frames; a time is text, such as '12.5s'"),
        ({"every": 2.5}, "every=2.5 is not an integer"),
        ({"limit": True}, "limit=True is not an integer"),
    ],
)
def test_mistakes_of_start_and_step(numbered, options, message):
    with pytest.raises(ValueError, match=message):
        next(open_frames(numbered, **options))


def test_a_pattern_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"has no images named left_\*"):
        open_frames(f"{tmp_path}/left_*")


class Camera(http.server.BaseHTTPRequestHandler):
    """A camera of the network that sends 30 frames of level 40, and closes the connection the first time."""

    served: list[int]
    sent: threading.Event
    hold: threading.Event

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.served.append(len(self.served))
        _, data = cv2.imencode(".jpg", np.full((48, 64, 3), 40 * len(self.served), np.uint8))
        part = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data.tobytes() + b"\r\n"
        try:
            for _ in range(30):
                self.wfile.write(part)
            self.sent.set()
            if len(self.served) > 1:
                self.hold.wait(60)
        except OSError:
            pass  # the client has gone

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def camera(monkeypatch) -> Iterator[tuple[str, type[Camera]]]:
    handler = type("Handler", (Camera,), {"served": [], "sent": threading.Event(), "hold": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/camera.mjpg", handler
        handler.hold.set()
        server.shutdown()


def test_a_stream_drops_frames_and_is_opened_again(camera, monkeypatch):
    monkeypatch.setattr(live, "PAUSE_SECONDS", 0.01)
    url, handler = camera
    with open_frames(url) as source:
        assert isinstance(source, live.LiveSource) and source.length is None
        levels, indices = [], []
        while 80 not in levels:  # of the second connection, after the end of the first one
            levels.append(round(float(next(source).mean()) / 40) * 40)
            indices.append(source.index)
        assert indices == sorted(set(indices)) and source.dropped == indices[-1] + 1 - len(indices)
        assert set(levels) <= {40, 80} and source.time > 0
        handler.hold.set()  # ends the connection, on which the thread may wait
    assert not source._thread.is_alive()


def test_a_stream_that_ends_is_given_up_with_a_warning(camera, monkeypatch):
    monkeypatch.setattr(live, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(live, "RECONNECT_SECONDS", 0.0)
    url, _ = camera
    with open_frames(url) as source, pytest.warns(RuntimeWarning, match="has given no frame for 0 s"):
        assert len(list(source)) >= 1
    with pytest.raises(RuntimeError, match=r"camera\.mjpg cannot be opened; is its server running"):
        open_frames(url.replace("127.0.0.1", "127.0.0.1.invalid"))


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_results(tmp_path, tracker, format):
    boxes = BOX if format == "got10k" else [BOX, OTHER]
    results = list(ca.track(FRAMES[:3], boxes, tracker=tracker))
    lost = ca.FrameResults(5, 0.5, FRAMES[0], (ca.TrackResult((1, 2, 3, 4.5678), 0.01, True, 0),))
    path = tmp_path / {"csv": "a.csv", "jsonl": "a.jsonl", "coco": "a.json"}.get(format, "a.txt")
    with ResultWriter(path, format if path.suffix == ".txt" else None) as writer:
        for result in [*results, lost]:
            assert not path.exists()
            writer.write(result)
    lines = path.read_text().splitlines()
    if format == "csv":
        assert lines[0] == "frame,target,x,y,w,h,score,lost,time" and len(lines) == 8
        assert lines[1] == "0,0,20.000,30.000,16.000,14.000,1.0000,0,0.0000"
        assert lines[-1] == "5,0,1.000,2.000,3.000,4.568,0.0100,1,0.5000"
    elif format == "jsonl":
        first, *_, last = map(json.loads, lines)
        assert first["targets"][1] == {"target": 1, "box": list(OTHER), "score": 1.0, "lost": False}
        target = {"target": 0, "box": [1, 2, 3, 4.568], "score": 0.01, "lost": True}
        assert last == {"frame": 5, "time": 0.5, "targets": [target]}
    elif format == "mot":
        assert lines[:2] == [
            "1,1,20.000,30.000,16.000,14.000,1.0000,-1,-1,-1",
            "1,2,60.000,40.000,20.000,20.000,1.0000,-1,-1,-1",
        ]
        assert len(lines) == sum(not r.lost for result in results for r in result.targets)
    elif format == "got10k":
        assert lines[0] == "20.000,30.000,16.000,14.000" and lines[-1] == "1.000,2.000,3.000,4.568"
        assert np.loadtxt(path, delimiter=",").shape == (4, 4)
    else:
        rows = json.loads(path.read_text())
        assert len(rows) == 7 and rows[1] == {
            "image_id": 0, "category_id": 1, "bbox": list(OTHER), "score": 1.0, "track_id": 1
        }  # fmt: skip


def test_mistakes_of_files_of_results(tmp_path, tracker):
    with pytest.raises(
        ValueError, match=r"the name .*a.txt tells no format: use one of csv, jsonl, mot, got10k"
    ):
        ResultWriter(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="format='xml' is unknown"):
        ResultWriter(tmp_path / "a.xml", "xml")
    result = next(ca.track(FRAMES, [BOX, OTHER], tracker=tracker))
    with (
        pytest.raises(ValueError, match="got10k is for one target, and there are 2"),
        ResultWriter(tmp_path / "a.txt", "got10k") as writer,
    ):
        writer.write(result)
    assert not list(tmp_path.iterdir())
    with ResultWriter(tmp_path / "none.json") as writer:
        pass
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_rows_are_those_of_the_table(tracker):
    first, second = ca.track(FRAMES[:2], [BOX, OTHER], tracker=tracker)
    assert first.rows()[1] == {
        "frame": 0, "target": 1, "x": 60, "y": 40, "w": 20, "h": 20, "score": 1, "lost": 0, "time": 0
    }  # fmt: skip
    assert [row["time"] for row in second.rows()] == [1 / 30] * 2


def test_detections_of_supervision(tracker):
    supervision = pytest.importorskip("supervision", reason="pip install supervision")
    detections = next(ca.track(FRAMES, [BOX, OTHER], tracker=tracker)).to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[20, 30, 36, 44], [60, 40, 80, 60]]
    assert detections.tracker_id.tolist() == [0, 1] and detections.confidence.tolist() == [1, 1]
    assert len(ca.FrameResults(0, 0.0, FRAMES[0], ()).to_supervision()) == 0


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "tracking.md").read_text()
    with VideoWriter("video.mp4") as writer:
        for frame, _ in draw_clip(22, (240, 360)):
            writer.write(frame)
    names = {"ca": ca}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "onnx_client" not in block:  # that one is run with exported files, in test_runtime_session.py
            exec(block, names)
    assert names["result"].index == 21 and names["results"].tracker.targets
    table = page[page.index("| `--format` |") :].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(FORMATS)
