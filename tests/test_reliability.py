"""Short forms of the checks of docs/reliability.md: odd inputs, full disks, killed and several processes."""

import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware import _images
from correlation_aware.data.videos.readers import Coco, Folder
from correlation_aware.evaluation.shared_run import start_run
from correlation_aware.runtime import session as session_module
from correlation_aware.study.run import read_results
from correlation_aware.tracking.frame_source import Selection
from correlation_aware.training.config import load
from correlation_aware.training.log import RunLog, read_log
from correlation_aware.training.track import TrackTraining
from correlation_aware.weights import read_state_dict, write_state_dict
from correlation_aware.weights.files import hash_state_dict
from correlation_aware.weights.manifest import load_manifest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of Linux")
TARGETS = ("frames", "boxes", "videos", "manifests", "checkpoints", "configurations", "results")


@needs_linux
@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs_have_documented_errors(name, tmp_path, monkeypatch):
    hypothesis = pytest.importorskip("hypothesis")
    import fuzz_targets

    target, number = fuzz_targets.TARGETS[name], 0
    monkeypatch.setattr(logging.getLogger("correlation_aware"), "disabled", True)

    @hypothesis.settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(target.inputs)
    def attempt(value):
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        fuzz_targets.attempt(target, value, folder)

    attempt()
    assert number >= 20


# ---- the smallest inputs of what random inputs once did


@pytest.mark.parametrize("content", [b"\xff", b'{"a":' * 5000, b'{"a.b": {}, "a.b": {}}', b"[]"])
def test_manifests(content, tmp_path):
    (tmp_path / "weights.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.json is not a"):
        load_manifest(tmp_path / "weights.json")


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff", b"[" * 100_000, b"[" * 900, b"model: {overrides: &a [*a]}", ALIASES.encode()),
        *(b"a: !!timestamp x", b"a: 2001-99-99", b"a: !!int ''", b"a: !!float x", b"a: " + b"9" * 5000),
    ],
)
def test_training_configurations(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml is not"):
        load(TrackTraining, tmp_path / "config.yaml")


@pytest.mark.parametrize("setting", ["optimizer.lr=1" + "0" * 400, "schedule.steps=1" + "0" * 400])
def test_numbers_that_no_float_has(setting):
    with pytest.raises(ValueError, match="is not of type"):
        load(TrackTraining, None, [setting])
    with pytest.raises(ValueError, match="window_weight=1000000"):
        ca.TrackerConfig(window_weight=10**400)
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), np.uint8)
    tracker = ca.create_tracker(
        ca.create_model("sbt_test_track"), device="cpu", config=ca.TrackerConfig(scale_penalty=10**30)
    )
    tracker.init(frames[0], (30, 30, 24, 20))
    assert np.isfinite(tracker.update(frames[1]).box).all()


@pytest.mark.parametrize(("start", "every"), [(None, 1), (0, None), ("9" * 5000, 1)])
def test_selections(start, every):
    with pytest.raises(ValueError, match=r"start=|every="):
        Selection(start, every)


def test_a_matrix_is_a_gray_frame():
    frame = np.asmatrix(np.zeros((90, 120), np.uint8))
    tracker = ca.create_tracker(ca.create_model("sbt_test_track"), device="cpu")
    tracker.init(frame, (30, 30, 24, 20))
    assert np.isfinite(tracker.update(frame).box).all()


def test_images_whose_headers_ask_for_memory(tmp_path):
    import cv2

    image = np.zeros((8, 8, 3), np.uint8)
    png, jpg, bmp = (
        bytearray(cv2.imencode(suffix, image)[1].tobytes()) for suffix in (".png", ".jpg", ".bmp")
    )
    chunk = png.index(b"IDAT")
    length, png[chunk - 4 : chunk] = png[chunk - 4 : chunk], b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match=r"^a\.png: a damaged image: .* a part of it 4294967295"):
        _images.decode_image(bytes(png), "a.png")
    png[chunk - 4 : chunk] = length
    png[16:24] = (10_000).to_bytes(4, "big") * 2
    at = jpg.index(b"\xff\xc0")
    jpg[at + 5 : at + 9] = (10_000).to_bytes(2, "big") * 2
    bmp[18:26] = (10_000).to_bytes(4, "little") * 2
    for content in (png, jpg, bmp):
        with pytest.raises(ValueError, match="a damaged image: 100000000 pixels in its header"):
            _images.decode_image(bytes(content))
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + b"\xff\x7f\xff\x7f" + bytes(20))
    with pytest.raises(OSError, match=r"a\.gif is not an image, or a damaged one"):
        _images.image_size(tmp_path / "a.gif")
    thermal = cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes()
    for depth_range in ((5, 5), (9, 1), (0, float("nan")), (0, 10**400), (0,), 3):
        with pytest.raises(ValueError, match=r"depth_range=.* must be two finite numbers"):
            _images.decode_image(thermal, depth_range=depth_range)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(10**6, 10**6), "repeat few numbers to 4000000000000 bytes"),
        (torch.ones(3, 4, device="meta"), "'a' is a meta tensor"),
        (torch.ones(3, 4).to_sparse(), r"'a' is a torch\.sparse_coo tensor"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "'a' is a .* tensor"),
    ],
)
def test_tensors_that_are_no_weights(tensor, message, tmp_path):
    torch.save({"a": tensor}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth.* {message}"):
        read_state_dict(tmp_path / "a.pth")


def test_tensors_that_are_weights_all_the_same(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.complex64).conj(), "b": torch.ones(3).to(torch.float8_e4m3fn)}
    torch.save(tensors, tmp_path / "a.pth")
    read = read_state_dict(tmp_path / "a.pth")
    write_state_dict(read, tmp_path / "a.safetensors")
    assert hash_state_dict(read) == hash_state_dict(read_state_dict(tmp_path / "a.safetensors"))


def test_a_bad_line_of_a_log_is_left_out_alone(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    lines = [
        b'{"step": 1}',
        b'{"step": \xff}',
        b"[" * 9000,
        b'{"loss": 1}',
        b"3",
        b'{"step": 2}',
        b'{"step": 3',
    ]
    path.write_bytes(b"\n".join(lines))
    assert read_log(path) == [{"step": 1}, {"step": 2}]
    assert "4 lines are no records and are left out: 2, 3, 4, 5" in caplog.text
    with RunLog(tmp_path, 2) as log:
        log.write({"step": 3})
    assert [record["step"] for record in read_log(path)] == [1, 2, 3]


COCO = [
    '{"images": [], "annotations": [[1]]}',
    "[" * 9000,
    '{"images": {}, "annotations": [{"image_id": 1}]}',
    "\\",
]


@pytest.mark.parametrize("content", COCO)
def test_annotations_of_coco(content, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"train2017\.json is not an annotation file"):
        Coco(tmp_path)


def test_annotations_that_are_no_text(tmp_path):
    (tmp_path / "groundtruth.txt").write_bytes(b"1,2,3,\xff")
    with pytest.raises(ValueError, match=r"groundtruth\.txt is not a text in UTF-8: .* at byte 6"):
        Folder(tmp_path)[0]


@pytest.mark.parametrize("content", ["[]", "{}", '{"table": "table7", "setting": "none", "seed": 0}'])
def test_results_of_a_study(content, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "study.json").write_text('{"training": {"schedule": {"steps": 1}}}')
    (tmp_path / "results" / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"run": null, "versions": [1]}', "3"])
def test_the_manifest_of_something_else(content, tmp_path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match="results of another run"):
        start_run(tmp_path / "mine", tmp_path / "mine.json", {"run": {"a": 1}}, "Choose another name")


# ---- files that are being written


@pytest.fixture
def jobs(monkeypatch):
    for package in ("accelerate", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    import write_jobs

    monkeypatch.setenv("CORRELATION_AWARE_CACHE", "")  # which a job sets
    return write_jobs


def ran_in_new_process(request: pytest.FixtureRequest) -> bool:
    """Runs the test in a new interpreter, unless this is the one.

    The jobs are forked. Forks of a process that has used autograd or PyTorch's threads, as other tests do,
    cannot use them.
    """
    if os.environ.get("NEW_PROCESS"):
        return False
    test = f"{__file__}::{request.node.name}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    done = subprocess.run(command, env={**os.environ, "NEW_PROCESS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return True


def end(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@needs_linux
@pytest.mark.parametrize(
    "name", ["track", "save_pretrained", "download", "results of eval", "training", "photographs"]
)
def test_a_full_disk_leaves_nothing_half(name, jobs, tmp_path, request):
    import resource

    if ran_in_new_process(request):
        return

    job = jobs.JOBS[name]
    (tmp_path / "inputs").mkdir()
    job.prepare(tmp_path / "inputs")

    def run():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        job.run(tmp_path)

    assert end(jobs.in_process(run)) == 1
    assert not job.check(tmp_path)
    assert end(jobs.in_process(lambda: job.run(tmp_path))) == 0
    assert job.check(tmp_path)


@needs_linux
@pytest.mark.parametrize("name", ["track", "save_pretrained", "download", "photographs"])
def test_kill_9_leaves_nothing_half(name, jobs, tmp_path, request):
    if ran_in_new_process(request):
        return
    job = jobs.JOBS[name]
    (tmp_path / "inputs").mkdir()
    job.prepare(tmp_path / "inputs")
    began = time.perf_counter()
    for share in (1.0, 0.3, 0.8):  # the first one is measured
        folder = tmp_path / str(share)
        folder.mkdir()
        process = jobs.in_process(lambda folder=folder: job.run(folder))
        if share == 1:
            assert end(process) == 0
            seconds = time.perf_counter() - began
        else:
            time.sleep(share * seconds)
            os.kill(process, signal.SIGKILL)
            end(process)
            job.check(folder)
            assert end(jobs.in_process(lambda folder=folder: job.run(folder))) == 0
        assert job.check(folder)


def test_weights_are_not_replaced_before_the_configuration_is_written(tmp_path, monkeypatch):
    ca.save_pretrained(ca.create_model("sbt_test_cls", num_classes=3), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("correlation_aware.weights.pretrained.write_state_dict", full)
    with pytest.raises(OSError, match="No space"):
        ca.save_pretrained(ca.create_model("sbt_test_cls", num_classes=4), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- the cache of exported graphs


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A function that exports a model to the cache, and the log of the exports."""
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path / "cache"))

    def write(model, folder, format, graphs):
        with log.open("a") as file:
            file.write("export\n")
        time.sleep(0.2)  # the others arrive meanwhile
        folder.mkdir()
        for graph in graphs:
            (folder / f"sbt_test.{graph}.onnx").write_text(graph)

    monkeypatch.setattr(session_module, "export", write)
    monkeypatch.setattr(
        session_module, "gives_outputs_of", lambda model, files: all(f.is_file() for f in files.values())
    )
    torch.manual_seed(0)
    model = ca.create_model("sbt_test")
    return lambda: session_module._exported(model, "onnx"), log


@pytest.mark.parametrize("damage", ["bit", "cut", "removed", "no hashes", "hashes"])
def test_a_damaged_export_is_made_again(damage, exported):
    export, log = exported
    file, _ = export()
    content = file.read_text()
    if damage == "bit":
        file.write_text("T" + content[1:])
    elif damage == "cut":
        file.write_text(content[:-1])
    elif damage == "removed":
        file.unlink()
    elif damage == "no hashes":
        (file.parent / session_module.HASHES).unlink()
    else:
        (file.parent / session_module.HASHES).write_text(json.dumps({"other": "0"}))
    assert export()[0].read_text() == content
    assert export()[0] == file and log.read_text().count("\n") == 2
    assert list(file.parent.parent.iterdir()) == [file.parent]


@needs_linux
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_of_several_one_exports(kind, exported):
    export, log = exported
    workers = [threading.Thread(target=export) for _ in range(3)]
    if kind == "processes":
        workers = [multiprocessing.get_context("fork").Process(target=export) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text().count("\n") == 1 and export()[0].is_file()


def test_an_export_that_was_killed_is_cleaned_up(exported):
    export, _ = exported
    file, _ = export()
    left = file.parent.with_name(f".{file.parent.name}-abc")
    left.mkdir()
    file.unlink()
    export()
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_a_cache_that_cannot_be_written(exported, monkeypatch):
    export, _ = exported
    export()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(session_module, "file_lock", refuse)
    assert export()[0].is_file()  # what it has is used
    export()[0].unlink()
    with pytest.raises(PermissionError, match="CORRELATION_AWARE_CACHE"):
        export()


def test_the_long_checks_have_a_command():
    path = Path(__file__).parents[1] / "benchmarks" / "reliability.py"
    text = path.read_text()
    assert importlib.util.spec_from_file_location("reliability", path) is not None
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    for command in ("fuzz", "memory", "processes", "disk", "kill"):
        assert f"reliability.py {command}" in text and f"reliability.py {command}" in page
