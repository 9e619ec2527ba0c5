"""The commands `track` and `demo`: printed text, output files and exit codes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from correlation_aware._files import atomic_path
from correlation_aware.cli import _common, _messages, demo, main
from correlation_aware.cli._signals import ENDINGS, exit_by_signals
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking import draw
from correlation_aware.tracking.draw import COLORS
from correlation_aware.tracking.tracker import Timings, TrackerConfig, TrackResult
from correlation_aware.tracking.video import VideoWriter, open_frames, write_image

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--model", "sbt_test_track", "--device", "cpu")
BOX = ("--box", "20,30,16,14")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in an empty folder: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["correlation-aware", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return call


@pytest.fixture
def video(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", 20) as writer:
        for frame, _ in draw_clip(6, (96, 128)):
            writer.write(frame)
    return writer.path


class Scripted:
    """A tracker that moves its boxes by one pixel per frame and loses target 0 in the updates `lost`."""

    name, weights_name, device = "scripted", "test", "cpu"

    def __init__(self, lost: tuple[int, ...], interrupt_at: int = -1, number: int = signal.SIGINT) -> None:
        self.lost, self.interrupt_at, self.timings = lost, interrupt_at, Timings(0.1, 0.4, 0.05)
        self.number = number
        self.targets: tuple[int, ...] = ()

    def init(self, frame: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> None:
        self.boxes = [(x, y, w, h) for x, y, w, h in boxes]

    def update(self, frame: np.ndarray) -> list[TrackResult]:
        self.timings.frames += 1
        if self.timings.frames == self.interrupt_at:
            signal.raise_signal(self.number)
        self.boxes = [(x + 1, y, w, h) for x, y, w, h in self.boxes]
        flags = [i == 0 and self.timings.frames in self.lost for i in range(len(self.boxes))]
        return [TrackResult(b, 0.1 if f else 0.9, f, i) for i, (b, f) in enumerate(zip(self.boxes, flags))]


def scripted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    def create(*_: object, **__: object) -> Scripted:
        return Scripted(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("correlation_aware.tracking.tracker.create_tracker", create)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_video_is_tracked_into_a_video_and_a_table(run: Run, video: Path, tmp_path: Path) -> None:
    second = ("--box", " 60, 40,20 ,20.5")
    code, out, _ = run("track", video, *BOX, *second, *MODEL, "--output", "out.mp4", "--boxes", "out.csv")
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["frame", "target", "x", "y", "w", "h", "score", "lost", "time"]
    assert [(row["frame"], row["target"]) for row in rows] == [
        (str(i), str(n)) for i in range(6) for n in (0, 1)
    ]
    assert [float(rows[1][key]) for key in "xywh"] == [60, 40, 20, 20.5]
    assert rows[0]["score"] == "1.0000"
    assert all(0 <= float(row["score"]) <= 1 and float(row["w"]) > 0 for row in rows)
    assert code == (3 if "1" in (rows[-1]["lost"], rows[-2]["lost"]) else 0)
    frames = list(open_frames(tmp_path / "out.mp4"))
    assert len(frames) == 6 and frames[0].shape == (96, 128, 3)
    assert "The weights of sbt_test_track are random: it will not track" in out
    for words in (
        "6 frames in",
        "frames/s",
        "target #1: seen in ",
        " of 6 frames, last box ",
        "read the frame",
        "network",
        "Wrote out.mp4",
        "Wrote out.csv",
    ):
        assert words in out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.mp4", "out.csv", "out.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /dev/stdout")
def test_boxes_alone_are_on_the_standard_output(video: Path) -> None:
    words = ("track", video, *BOX, *MODEL, "--format", "jsonl", "--boxes", "/dev/stdout")
    command = (sys.executable, "-m", "correlation_aware", *map(str, words))
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert [json.loads(line)["frame"] for line in out.splitlines()] == list(range(6)), "no other line"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /dev/stdout")
def test_a_reader_that_has_enough_does_not_end_the_tracking(video: Path, tmp_path: Path) -> None:
    words = (
        "track",
        video,
        *BOX,
        *MODEL,
        "--format",
        "jsonl",
        "--boxes",
        "/dev/stdout",
        "--output",
        "out.mp4",
    )
    command = (sys.executable, "-m", "correlation_aware", *map(str, words))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["frame"] == 0
        process.stdout.close()
        messages = process.stderr.read().decode()
    assert process.returncode in (0, 3) and "Wrote out.mp4" in messages
    assert len(list(open_frames(tmp_path / "out.mp4"))) == 6


def test_an_older_file_that_is_replaced_is_told(run: Run, video: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine\n")
    out = run("track", video, *BOX, *MODEL, "--boxes", "out.csv", "--output", "out.mp4")[1]
    assert "Wrote out.mp4\nWrote out.csv, in place of an older file\n" in out
    assert len(table(tmp_path / "out.csv")) == 6


def test_every_target_has_its_color(run: Run, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames" / "0.png", np.full((240, 320, 3), 40, np.uint8))
    boxes = ((20, 60, 80, 80), (200, 120, 80, 80))
    words = [word for box in boxes for word in ("--box", ",".join(map(str, box)))]
    code, *_ = run("track", "frames", *MODEL, *words, "--output", "out.mp4")
    assert code == 0
    frame = next(open_frames(tmp_path / "out.mp4")).astype(float)
    for number, (x, y, w, h) in enumerate(boxes):
        lower_line = frame[y + h - 4 : y + h + 4, x + 20 : x + w - 20].reshape(-1, 3)
        brightest = lower_line[lower_line.sum(axis=1).argsort()[-40:]].mean(axis=0)  # lossy
        distances = [np.abs(brightest - color).sum() for color in COLORS]
        assert int(np.argmin(distances)) == number


def test_a_folder_is_tracked_up_to_a_limit_without_files(run: Run, tmp_path: Path) -> None:
    for i, (frame, _) in enumerate(draw_clip(12, (96, 128))):
        write_image(tmp_path / f"{i}.png", frame)
    code, out, _ = run("track", tmp_path, *BOX, *MODEL, "--limit", 4, "--weights", "random")
    assert code in (0, 3)
    assert "4 frames in" in out and "Wrote" not in out and "may be incomplete" not in out
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), True),
        (("--no-redetect",), False),
        (("--decode", "paper"), False),
        (("--redetect", "--decode", "paper"), True),
    ],
)
def test_the_search_for_lost_targets_is_an_option(
    run: Run, video: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: bool
) -> None:
    configs = []

    def create(*_: object, config: TrackerConfig, **__: object) -> Scripted:
        configs.append(config)
        return Scripted(())

    monkeypatch.setattr("correlation_aware.tracking.tracker.create_tracker", create)
    assert run("track", video, *BOX, *words)[0] == 0
    assert configs[0].redetect == expected and configs[0].window_weight == (0 if "paper" in words else 0.49)


def test_a_lost_and_a_recovered_target_are_reported_once_each(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (2, 3))
    code, out, _ = run("track", video, *BOX, "--boxes", "out.csv")
    assert code == 0
    reported = [line for line in out.splitlines() if line.startswith("frame ")]
    assert reported == ["frame 2: target lost (score 0.10)", "frame 4: target found again (score 0.90)"]
    assert "scripted with the weights test" in out and "random" not in out
    assert [row["lost"] for row in table(tmp_path / "out.csv")] == ["0", "0", "1", "1", "0", "0"]


def test_a_target_lost_at_the_end_is_exit_code_3(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (5,))
    code, out, _ = run("track", video, *BOX, *BOX, "--output", "out.mp4")
    assert code == 3
    assert "frame 5: target #0 lost (score 0.10)" in out and "#1 lost" not in out
    assert "target #0: seen in 5 of 6 frames, last box 25,30,16,14\ntarget #1: seen in 6 of 6 frames, " in out
    assert len(list(open_frames(tmp_path / "out.mp4"))) == 6


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_completes_the_files(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"there is no {name} on this system")
    before = signal.getsignal(getattr(signal, name))
    scripted(monkeypatch, (), 4, getattr(signal, name))
    code, out, _ = run("track", video, *BOX, "--output", "out.mp4", "--boxes", "out.csv")
    assert code == 130
    assert "Stopped after 4 frames" in out
    assert len(list(open_frames(tmp_path / "out.mp4"))) == len(table(tmp_path / "out.csv")) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "out.mp4", "out.csv"}
    assert signal.getsignal(getattr(signal, name)) == before


@pytest.mark.parametrize("number", ENDINGS)
def test_other_commands_remove_their_temporary_files(tmp_path: Path, number: int) -> None:
    with pytest.raises(SystemExit) as end, exit_by_signals(), atomic_path(tmp_path / "out.onnx") as path:
        path.write_text("half")
        signal.raise_signal(number)
    assert end.value.code == 128 + number and not any(tmp_path.iterdir())
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with exit_by_signals():
            signal.raise_signal(number)
    finally:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    "words, message",
    [
        (("clip.mp4", "--box", "1,2,3"), "--box '1,2,3' is not x,y,w,h"),
        (("clip.mp4", "--box", "a,b,c,d"), "--box 'a,b,c,d' is not x,y,w,h"),
        (("clip.mp4", "--box", "500,500,10,10"), "500"),
        (("absent.mp4", *BOX), "no file or folder absent.mp4"),
        (("clip.mp4", *BOX, "--output", "missing/out.mp4"), "the folder of missing/out.mp4 does not exist"),
        (("clip.mp4", *BOX, "--boxes", "missing/out.csv"), "the folder of missing/out.csv does not exist"),
        (("clip.mp4", *BOX, "--output", "out.avi"), "must end in .mp4"),
        (("clip.mp4", *BOX, "--output", "./clip.mp4"), "must be different files"),
        (("clip.mp4", *BOX, "--output", "out.mp4", "--boxes", "out.mp4"), "must be different files"),
        (("clip.mp4", *BOX, "--output", "out.mp4", "--model", "sbt_tset_track"), "sbt_test_track"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_files(
    run: Run, video: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    content = video.read_bytes()
    code, _, error = run("track", *MODEL, *words)
    assert code == 1
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"] and video.read_bytes() == content


def test_an_unreadable_frame_leaves_no_partial_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i, (frame, _) in enumerate(draw_clip(3, (96, 128))):
        write_image(tmp_path / "frames" / f"{i}.png", frame)
    (tmp_path / "frames" / "1.png").write_bytes(b"broken")
    code, _, error = run("track", "frames", *BOX, *MODEL, "--output", "out.mp4", "--boxes", "out.csv")
    assert code == 1 and "1.png" in error
    assert [file.name for file in tmp_path.iterdir()] == ["frames"]


def test_a_truncated_video_is_tracked_to_its_last_frame(run: Run, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20, (128, 96))
    for frame, _ in draw_clip(20, (96, 128)):
        writer.write(frame)
    writer.release()
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    code, out, _ = run("track", "cut.avi", *BOX, *MODEL)
    assert code in (0, 3)
    assert re.search(r"The file ends after \d+ of 20 frames and may be incomplete", out)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_does_not_end_the_command(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for console in (_common.console, _messages.error_console):
        monkeypatch.setattr(console, "quiet", False)  # it stays quiet
    monkeypatch.setattr(_common, "spare_busy_cores", lambda: _messages.error_console.print("one thread"))
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(sys, stream, pipe)
        code, *_ = run("track", video, *BOX, *MODEL, "--boxes", "b.csv", "--output", "b.mp4")
    assert code in (0, 3)
    assert len(table(tmp_path / "b.csv")) == 6 and (tmp_path / "b.mp4").exists()


def test_wrong_usage_and_help(run: Run, video: Path) -> None:
    code, _, error = run("track", video)
    assert code == 2 and "--box" in error
    code, _, error = run("track", video, "--box", "100", "80", "40", "40.5")
    assert code == 2 and "a box is one word: --box 100,80,40,40.5" in error
    code, _, error = run("track", video, "--box", "1,2,3")
    assert code == 1 and "error: --box '1,2,3' is not x,y,w,h: four numbers" in error
    code, out, _ = run("track", "--help")
    assert code == 0 and "Exit codes" in out and "--weights" in out


def test_start_step_trail_and_formats(run: Run, video: Path, tmp_path: Path) -> None:
    words = ("--start", "2", "--every", "2", "--trail", "9", "--output", "out.mp4")
    run("track", video, *BOX, *MODEL, *words, "--boxes", "a.csv")
    assert [(row["frame"], row["time"]) for row in table(tmp_path / "a.csv")] == [
        ("2", "0.1000"),
        ("4", "0.2000"),
    ]
    with open_frames("out.mp4") as frames:
        assert (frames.fps, frames.length) == (10, 2)
    run("track", video, *BOX, *MODEL, "--boxes", "a.txt", "--format", "got10k")
    assert np.loadtxt("a.txt", delimiter=",").shape == (6, 4)


def test_a_trail_joins_the_centers(run: Run, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ())
    for name, words in (("with", ("--trail", "4")), ("without", ())):
        assert run("track", video, "--box", "20,30,60,40", "--output", f"{name}.mp4", *words)[0] == 0
    ends = [np.stack(list(open_frames(f"{name}.mp4")))[-1].astype(int) for name in ("with", "without")]
    changed = np.abs(ends[0] - ends[1]).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert rows.mean() == pytest.approx(50, abs=1.5) and columns.min() >= 46 and columns.max() <= 60


def test_the_score_maps_of_all_targets_are_drawn(run: Run, video: Path) -> None:
    """From the first update on, in gray search regions; the boxes are the same."""
    boxes = (*BOX, "--box", "70,20,30,30")
    for name, words in (("with", ("--score-map",)), ("without", ())):
        torch.manual_seed(0)  # of the weights
        run("track", video, *boxes, *MODEL, "--output", f"{name}.mp4", "--boxes", f"{name}.csv", *words)
    assert Path("with.csv").read_bytes() == Path("without.csv").read_bytes()
    shown, plain = (np.stack(list(open_frames(f"{name}.mp4"))).astype(int) for name in ("with", "without"))
    changed = np.abs(shown - plain).max(axis=3) > 20
    assert changed[0].mean() < 0.01 and (changed[1:].mean(axis=(1, 2)) > 0.2).all()


@pytest.mark.parametrize(
    "words, message",
    [
        (("--score-map",), "--score-map has no effect without --output FILE or --show"),
        (("--select",), "--box and --select exclude each other"),
        (("--format", "mot"), "--format mot has no effect without --boxes"),
        (("--trail", "5"), "--trail 5 has no effect without --output"),
        (("--boxes", "a.txt"), "a.txt tells no format: use one of csv, jsonl"),
        (("--start", "soon"), "start='soon' is no frame number and no time"),
        (("--start", "99"), "start=99 is after the end"),
        (("--show",), "OpenCV cannot open a window"),
    ],
)
def test_options_that_cannot_be_used(run: Run, video: Path, tmp_path: Path, words, message) -> None:
    code, _, error = run("track", video, *BOX, *MODEL, *words)
    assert code == 1 and message in error
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_boxes_can_be_drawn_and_the_window_ends_the_run(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a screen, so the window itself is replaced."""
    shown: list[np.ndarray] = []
    window = {
        "namedWindow": lambda *_: None,
        "destroyWindow": lambda *_: None,
        "selectROIs": lambda *_, **__: np.array([[20, 30, 16, 14], [60, 40, 20, 20]]),
        "imshow": lambda _, image: shown.append(image),
        "waitKey": lambda _: ord("q") if len(shown) == 3 else -1,
    }
    for name, function in window.items():
        monkeypatch.setattr(cv2, name, function)
    _, out, _ = run("track", video, *MODEL, "--select", "--show", "--boxes", "a.csv")
    rows = table(tmp_path / "a.csv")
    assert [(row["frame"], row["target"]) for row in rows] == [(str(i), t) for i in range(3) for t in "01"]
    assert [float(rows[1][key]) for key in "xywh"] == [60, 40, 20, 20] and "incomplete" not in out


def test_demo_needs_no_input_and_prints_everything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LENGTH", 12)
    code, out, _ = run("demo", "--model", "sbt_test_track", "--weights", "random", "--output", "new/folder")
    assert code == 0
    folder = tmp_path / "new" / "folder"
    assert sorted(file.name for file in folder.iterdir()) == ["clip.mp4", "contact_sheet.png", "demo.mp4"]
    for name in ("clip.mp4", "demo.mp4"):
        assert len(list(open_frames(folder / name))) == 12
    assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    for words in (
        "sbt_test_track",
        "random: the boxes mean nothing",
        "12 generated frames",
        "frames/s",
        "mean IoU",
    ):
        assert words in out
    for name in ("clip.mp4", "demo.mp4", "contact_sheet.png"):
        assert str(Path("new/folder") / name) in out
    again = run("demo", "--model", "sbt_test_track", "--output", "new/folder")[1]
    figure = re.compile(r"mean IoU +([\d.]+)")
    assert figure.findall(again) == figure.findall(out)


def test_demo_replaces_no_file_of_the_user(run: Run, video: Path) -> None:
    content = video.read_bytes()
    code, _, error = run("demo", "--model", "sbt_test_track", "--output", video.parent)
    assert code == 1 and "clip.mp4 is not of a demo, which writes clip.mp4, demo.mp4, contact_sheet" in error
    assert video.read_bytes() == content and os.listdir(video.parent) == ["clip.mp4"]


def test_an_interrupted_demo_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LENGTH", 12)
    monkeypatch.setattr(draw, "contact_sheet", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert run("demo", "--model", "sbt_test_track", "--output", "new")[0] == 128 + signal.SIGTERM
    assert os.listdir(tmp_path / "new") == []


def test_demo_rejects_a_file_as_its_folder(run: Run, video: Path) -> None:
    code, _, error = run("demo", "--output", video)
    assert code == 1 and "is a file; the output must be a folder" in error
