"""The command `batch`: the table of targets, files of results, resume, several processes, a Ray cluster."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import correlation_aware as ca
from correlation_aware.cli import app, eval_processes
from correlation_aware.cli import batch as cli_batch
from correlation_aware.cli._common import console
from correlation_aware.cli.eval_common import TrackerOptions
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking import batch as batch_module
from correlation_aware.tracking.batch import Job, JobTarget, read_jobs
from correlation_aware.tracking.tracker import Tracker
from correlation_aware.tracking.video import VideoWriter, open_frames, write_image

HEADER = "video,frame,x,y,w,h"
JOBS = f"""{HEADER},id,name
a.mp4,0,20,30,16,14,,
b/0*.png,1,20,30,16.5,14,5,
a.mp4,3,40,30,20,20,7,
gone.mp4,0,1,2,3,4,,
c.mp4,0,20,30,16,14,,other
"""
RESULTS = ["a.csv", "b.csv", "other.csv"]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a folder with the videos of JOBS and a small network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, seed in (("a", 0), ("c", 2)):
        with VideoWriter(tmp_path / f"{name}.mp4", 20) as writer:
            for frame, _ in draw_clip(6, (96, 128), seed):
                writer.write(frame)
    (tmp_path / "b").mkdir()
    for i, (frame, _) in enumerate(draw_clip(5, (96, 128), 1)):
        write_image(tmp_path / "b" / f"0{i}.png", frame)
    Path("jobs.csv").write_text(JOBS)
    torch.manual_seed(0)
    ca.save_pretrained(ca.create_model("sbt_test_track"), "net")

    def call(output: str, *words: str, jobs: str = "jobs.csv") -> Result:
        command = ["batch", jobs, output, "--model", "./net", "--device", "cpu", *words]
        return CliRunner().invoke(app, command)

    return call


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_a_table_of_targets(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    blank = "   \n" + 7 * "," + "\n\n"
    (tmp_path / "jobs.csv").write_text("\ufeff" + JOBS + blank, encoding="utf-8", newline="\r\n")
    a, b, gone, c = read_jobs(tmp_path / "jobs.csv")
    box = (20.0, 30.0, 16.0, 14.0)
    targets = JobTarget(0, 0, box), JobTarget(7, 3, (40.0, 30.0, 20.0, 20.0))
    assert a == Job("a", "a.mp4", str(tmp_path / "a.mp4"), targets)
    assert (b.name, b.source, b.targets[0].id) == ("b", str(tmp_path / "b" / "0*.png"), 5)
    assert gone.name == "gone" and c.name == "other" and c.targets[0].box == box
    late_first = f"{HEADER}\n b , 9,1,2,3,4\n b , 2 ,1,2,3,4\nhttp://host/v.mp4,0,1,2,3,4\n"
    (tmp_path / "jobs.csv").write_text(late_first)
    b, url = read_jobs(tmp_path / "jobs.csv")
    assert [(t.id, t.frame) for t in b.targets] == [(1, 2), (0, 9)] and url.source == "http://host/v.mp4"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column video, frame, x, y, w, h in its header"),
        ("a.mp4,0,1,2,3,4\n", "no column video, frame"),
        ("video;frame;x;y;w;h\na.mp4;0;1;2;3;4\n", "separated by commas"),
        (f"{HEADER},label\na,0,1,2,3,4,dog\n", "unknown columns 'label'.* optionally id and name"),
        (f"{HEADER},x\na,0,1,2,3,4,1\n", "a column twice"),
        (f"{HEADER}\n", "no line with a target"),
        (f"{HEADER}\na,0,1,2,3\n", "line 2: expected 6 values"),
        (f"{HEADER}\na,0,1,2,3,4,5\n", "line 2: expected 6 values"),
        (f"{HEADER}\n,0,1,2,3,4\n", "line 2: video is empty"),
        (f"{HEADER}\na,0,1,2,3,4\na,1.5,1,2,3,4\n", "line 3: frame '1.5' is not a number"),
        (f"{HEADER}\na,-1,1,2,3,4\n", "line 2: frame '-1'"),
        (f"{HEADER}\na,0,1,2,3,x\n", "line 2: the box '1,2,3,x' is not x,y,w,h"),
        (f"{HEADER}\na,0,1,2,0,4\n", "line 2: the box '1,2,0,4'"),
        (f"{HEADER}\na,0,1,nan,3,4\n", "line 2: the box '1,nan,3,4'"),
        (f"{HEADER},id\na,0,1,2,3,4,1\na,0,1,2,3,4,\n", "line 3: a has two targets with the id 1"),
        (f"{HEADER}\nx/a.mp4,0,1,2,3,4\ny/A.avi,0,1,2,3,4\n", "x/a.mp4 and y/A.avi would have the name A"),
        (f"{HEADER},name\na,0,1,2,3,4,../b\n", "line 2: name '../b' cannot name a file"),
        (f"{HEADER},name\na,0,1,2,3,4,{'b' * 201}\n", "line 2: name 'b+' cannot name a file"),
        (f"{HEADER}\n/,0,1,2,3,4\n", "line 2: name '' cannot name a file.* column `name`"),
        (f"{HEADER}\n , ,,,,,\n", "line 2: expected 6 values"),
        (f"{HEADER}\n,,,,,\n  \n", "no line with a target"),
        (f"{HEADER},name\na,0,1,2,3,4,b\na,0,1,2,3,4,c\n", "line 3: a has two names, b and c"),
    ],
)
def test_a_mistake_in_the_table_has_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "jobs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_jobs(tmp_path / "jobs.csv")


def test_targets_of_one_video_share_a_pass_and_a_bad_video_is_passed_over(run: Run) -> None:
    result = run("out", "--video")
    assert result.exit_code == 3
    assert "gone failed: FileNotFoundError: no file or folder" in result.output
    assert "a: 6 frames, " in result.output and "b: 4 frames, " in result.output
    assert "1 of 4 videos failed: gone" in result.output and "out: 3 of 4 videos" in result.output
    assert list(contents("out/boxes")) == RESULTS
    assert list(contents("out/videos")) == ["a.mp4", "b.mp4", "other.mp4"]
    with open_frames("out/videos/b.mp4") as frames:
        assert frames.length == 4
    with open("out/boxes/a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["target"]) for row in rows] == [
        *((str(i), "0") for i in range(3)),
        *((str(i), target) for i in range(3, 6) for target in ("0", "7")),
    ]
    expected = []
    with ca.track("a.mp4", [(20, 30, 16, 14)], model="net", device="cpu") as tracking:
        for results in tracking:
            expected += [[f"{value:.3f}" for value in target.box] for target in results.targets]
            if results.index == 3:
                tracking.add((40, 30, 20, 20))
                expected.append(["40.000", "30.000", "20.000", "20.000"])
    assert [[row[key] for key in "xywh"] for row in rows] == expected
    assert Path("out/boxes/b.csv").read_text().splitlines()[1].startswith("1,5,20.000,30.000,16.500,14.000,")


def test_finished_videos_are_not_tracked_again_and_runs_are_not_mixed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out")
    before = contents("out/boxes")
    tracked: list[str] = []
    track_job = batch_module.track_job

    def noted(job, *arguments):
        tracked.append(job.name)
        return track_job(job, *arguments)

    monkeypatch.setattr(batch_module, "track_job", noted)
    Path("out/boxes/b.csv").unlink()
    for leftover in (".12345678.b.csv", ".b.claim", ".a.claim"):  # of a killed process
        Path("out/boxes", leftover).write_text("0,0,")
    again = run("out")
    assert again.exit_code == 3 and "2 of 4 videos are finished in out" in again.output
    assert tracked == ["b", "gone"] and contents("out/boxes") == before
    Path("other.csv").write_text(JOBS.replace("a.mp4,3,", "a.mp4,2,") + "d.mp4,0,1,2,30,40,,\n")
    for words, jobs, message in (
        (("--format", "mot"), "jobs.csv", r"run format: csv there, mot now"),
        (("--decode", "paper"), "jobs.csv", r"run config: \{.*\} there, \{.*\} now"),
        (("--no-redetect",), "jobs.csv", r"run config: .*'redetect': True.*\} there, \{.*'redetect': False"),
        ((), "other.csv", r"jobs a: a.mp4 .* #7 frame 3 .* #7 frame 2 .*; jobs d: None there, d.mp4 #0"),
    ):
        error = run("out", *words, jobs=jobs).exception
        with pytest.raises(ValueError, match=rf"out/boxes has results of another run \({message}.*OUTPUT"):
            raise error
    assert contents("out/boxes") == before


def test_random_weights_are_those_of_the_run_before(run: Run) -> None:
    Path("jobs.csv").write_text(f"{HEADER}\na.mp4,0,20,30,16,14\n")
    words = ["batch", "jobs.csv", "out", "--model", "sbt_test_track", "--device", "cpu"]
    for _ in range(2):
        torch.rand(1)
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0 and "The weights of sbt_test_track are random" in result.output


def test_ctrl_c_leaves_finished_videos_and_no_part_of_another(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = Tracker.update, []

    def interrupted(self, frame):
        calls.append(1)
        if len(calls) == 7:  # the second frame of b
            raise KeyboardInterrupt
        return update(self, frame)

    monkeypatch.setattr(Tracker, "update", interrupted)
    result = run("out", "--video")
    assert result.exit_code == 130 and "1 of 4 videos are finished; the same command" in result.output
    assert list(contents("out/boxes")) == ["a.csv"] and list(contents("out/videos")) == ["a.mp4"]
    assert run("out", "--video").exit_code == 3 and list(contents("out/boxes")) == RESULTS


def test_a_target_after_the_end_and_warnings_name_their_video(run: Run) -> None:
    rows = ("a.mp4,0,60,60,120,90", "c.mp4,0,1,2,30,40", "c.mp4,9,1,2,30,40")
    Path("jobs.csv").write_text("\n".join((HEADER, *rows)))
    result = run("out", "--format", "mot")
    assert result.exit_code == 3 and list(contents("out/boxes")) == ["a.txt"]
    assert "a: Most of the box (60, 60, 120, 90) is outside the 128 x 96 px frame" in result.output
    assert "c failed: ValueError: target 1 starts in frame 9, and the last frame is 5" in result.output
    error = run("new", "--format", "got10k").exception
    assert "--format got10k is for one target, and c has more" in str(error)
    assert "not one of csv, jsonl" in str(run("new", "--format", "xml").exception)
    assert not Path("new").exists()


KILLED = """
import os, signal, sys
from correlation_aware.cli import main
from correlation_aware.tracking.tracker import Tracker
update, calls = Tracker.update, []
def killed(self, frame):
    calls.append(1)
    if len(calls) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, frame)
Tracker.update = killed
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs claims of files, and SIGKILL")
def test_kill_9_and_several_processes_give_the_results_of_one(run: Run) -> None:
    assert eval_processes.START_METHOD == "spawn"
    assert run("one").exit_code == 3
    words = ["batch", "jobs.csv", "two", "--model", "./net", "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert [name for name in contents("two/boxes") if name[0] != "."] == ["a.csv"]
    assert any(name.endswith(".b.csv") for name in contents("two/boxes"))  # half of it, under another name
    try:
        assert run("two", "--processes", "2").exit_code == 3
    finally:
        console.quiet = False
    assert contents("two/boxes") == contents("one/boxes")
    assert json.loads(Path("two/batch.json").read_text())["machine"]["processes"] == 1


def test_what_a_second_process_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("one")
    options = TrackerOptions("./net", None, "cpu", "auto", "default")
    batch = cli_batch.Batch(tuple(read_jobs("jobs.csv")), Path("two"), options, "csv", False, None)
    threads = torch.get_num_threads()
    try:
        cli_batch._work(eval_processes.Place(1, 2, 1), batch)
    finally:
        console.quiet = False
        torch.set_num_threads(threads)
    assert contents("two/boxes") == contents("one/boxes")
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "a",
        "b",
        "other",
    ]  # the first one reports failures


def test_a_ray_cluster_gives_the_results_of_one_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray>=2.40'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert run("one").exit_code == 3
    result = run("two", "--ray", "local", "--processes", "2")
    assert result.exit_code == 3, result.output + str(result.exception)
    assert contents("two/boxes") == contents("one/boxes")
    assert "gone failed: FileNotFoundError: no file or folder" in result.output
