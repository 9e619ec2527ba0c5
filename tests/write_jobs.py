"""Everything that writes files, for the tests with full disks, killed processes and several processes.

A job can be started in a folder any number of times.
"""

import csv
import functools
import hashlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from acme_family import MaskedNet
from hub_server import HubServer
from training_runs import make_trainer

import correlation_aware as ca
from correlation_aware.data.stills.pool import read_pool
from correlation_aware.evaluation.benchmarks import open_benchmark
from correlation_aware.evaluation.one_pass import SequenceResult
from correlation_aware.evaluation.results import ResultFolder, describe_run
from correlation_aware.runtime.export import export, open_graph
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.encoders import count_frames
from correlation_aware.tracking.results import ResultWriter
from correlation_aware.tracking.stream import Tracking
from correlation_aware.tracking.video import VideoWriter, open_frames
from correlation_aware.training import checkpoint
from correlation_aware.training.run_state import read_run_state
from correlation_aware.weights.hub import fetch_file

FRAMES = 20


@dataclass(frozen=True)
class Job:
    """A job that writes files.

    Attributes:
        run: Function of the folder.
        check: Function of the folder; raises AssertionError if a file or folder under its final name is not
            whole, and returns whether the work of the job is complete.
        prepare: Function of an empty folder for inputs, which is called once, in the parent process.
    """

    run: Callable[[Path], object]
    check: Callable[[Path], bool]
    prepare: Callable[[Path], object] = lambda folder: None


@functools.cache
def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (FRAMES, 120, 160, 3), dtype=np.uint8))


@functools.cache
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return ca.TrackModel.build(MaskedNet(), "cell").eval()


@functools.cache
def named_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return ca.create_model("sbt_test_track").eval()


def run_track(folder: Path) -> None:
    tracker = ca.create_tracker(model(), device="cpu")
    with (
        open_frames(frames()) as source,
        ResultWriter(folder / "boxes.csv") as table,
        VideoWriter(folder / "clip.mp4", codec="mp4v") as video,
    ):
        for results in Tracking(source, tracker, (40, 40, 30, 30)):
            table.write(results)
            video.write(results.frame)


def check_track(folder: Path) -> bool:
    table, video = folder / "boxes.csv", folder / "clip.mp4"
    if table.exists():
        assert len(list(csv.reader(table.open()))) == FRAMES + 1
    if video.exists():
        assert count_frames(video) == FRAMES
    return table.exists() and video.exists()


def run_save(folder: Path) -> None:
    ca.save_pretrained(named_model(), folder / "model")


def check_save(folder: Path) -> bool:
    place = folder / "model"
    if (place / "model.safetensors").exists() and (place / "config.json").exists():
        again = ca.create_model(place, pretrained=True).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in named_model().state_dict().items())
        return True
    return False


def _graphs_are_whole(place: Path) -> bool:
    files = sorted(place.glob("*.onnx"))
    for file in files:
        open_graph(file)
    return len(files) == 2


def run_export(folder: Path) -> None:
    export(model(), folder / "export", "onnx", ("template", "search"))


def run_cache(folder: Path) -> None:
    os.environ["CORRELATION_AWARE_CACHE"] = str(folder / "cache")
    session = InferenceSession(model(), runtime="onnx")
    session.set_template(torch.zeros(1, 3, 16, 16))
    assert torch.isfinite(session(torch.zeros(1, 3, 32, 32))[0]).all()


def check_cache(folder: Path) -> bool:
    places = [place for place in (folder / "cache").glob("[!.]*") if place.is_dir()]
    return bool(places) and all(map(_graphs_are_whole, places))


@functools.cache
def hub() -> HubServer:
    server = HubServer()
    server.files["org/name/model.safetensors"] = bytes(1 << 22)
    server.mode = "slow"
    return server


def run_download(folder: Path) -> None:
    os.environ["NO_PROXY"] = "127.0.0.1"
    fetch_file(None, f"{hub().endpoint}/org/name/resolve/main/model.safetensors", folder / "weights")


def check_download(folder: Path) -> bool:
    found = list((folder / "weights").glob("[!.]*"))
    for file in found:
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(bytes(1 << 22)).digest()
    return bool(found)


INPUTS: list[Path] = []  # the folder of the latest `prepare`


def prepare_images(folder: Path) -> None:
    place = folder / "val" / "s"
    place.mkdir(parents=True)
    for number, image in enumerate(frames()[:3], 1):
        cv2.imwrite(str(place / f"{number:08d}.jpg"), image)
    (place / "groundtruth.txt").write_text("10,8,12,9\n" * 3)
    INPUTS[:] = [folder]


class Still:
    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        self.box = box

    def update(self, frame: np.ndarray) -> np.ndarray:
        return self.box


def _results(folder: Path) -> ResultFolder:
    return ResultFolder(folder / "out", open_benchmark("got10k", INPUTS[0]), "mine")


def run_results(folder: Path) -> None:
    results = _results(folder)
    results.start(describe_run(results.benchmark, "mine", "", {"a": "b" * 5000}))
    (outcome,) = results.evaluate(Still())
    if not isinstance(outcome, SequenceResult):
        raise OSError(outcome.reason)


def check_results(folder: Path) -> bool:
    results = _results(folder)
    if not results.files("s")[0].is_file():
        return False
    outcome = results.read("s")
    assert isinstance(outcome, SequenceResult) and len(outcome.seconds) == 3
    return True


def run_training(folder: Path) -> None:
    make_trainer(folder / "run", 2, checkpoint_steps=1).fit(resume=True)


def check_training(folder: Path) -> bool:
    found = checkpoint.complete(folder / "run" / "checkpoints")
    for path in found:
        read_run_state(path, 0)
        assert ca.create_model(path / "weights", pretrained=True)
    return bool(found) and found[-1].name == "step-00000002"


def run_photographs(folder: Path) -> None:
    assert len(read_pool({str(INPUTS[0]): 1.0}, 64, cache=folder / "pools")) == 3


def check_photographs(folder: Path) -> bool:
    found = [place for place in (folder / "pools").glob("stills-*") if place.is_dir()]
    if found:
        run_photographs(folder)
    return bool(found)


JOBS = {
    "track": Job(run_track, check_track),
    "save_pretrained": Job(run_save, check_save),
    "export": Job(run_export, lambda folder: _graphs_are_whole(folder / "export")),
    "export cache": Job(run_cache, check_cache),
    "download": Job(run_download, check_download, lambda folder: hub()),
    "results of eval": Job(run_results, check_results, prepare_images),
    "training": Job(run_training, check_training),
    "photographs": Job(run_photographs, check_photographs, prepare_images),
}


def in_process(function: Callable[[], object]) -> int:
    """Runs a function in a forked process and returns its id.

    Its exit code is 0, 1 after a documented error, or 2.
    """
    process = os.fork()
    if process:
        return process
    code = 2
    try:
        function()
        code = 0
    except (OSError, RuntimeError, ValueError, cv2.error) as error:
        print(f"{type(error).__name__}: {error}"[:300], flush=True)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
