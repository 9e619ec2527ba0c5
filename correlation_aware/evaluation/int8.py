"""Quantization of an exported tracker to int8, and a report of what it costs on clips held back."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from correlation_aware.data.stills.synthetic_clips import ClipConfig
from correlation_aware.data.videos.sequences import Video, read_frame
from correlation_aware.data.videos.subsets import names_videos, open_videos
from correlation_aware.evaluation.one_pass import Array, Frame, SequenceResult, average, overlap, run_sequence
from correlation_aware.evaluation.synthetic import VISIBLE, make_clips
from correlation_aware.models.tracker import TrackModel
from correlation_aware.runtime.export import open_graph
from correlation_aware.runtime.quantize import quantize
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import Tracker, TrackerConfig

__all__ = ["CalibrationClip", "Int8Report", "calibration_clips", "quantize_tracker"]

LENGTH = 24  # frames of a clip
EVERY = 3  # of whose search crops one is kept
HELD_BACK = 4  # of as many clips one is held back
CONFIG = TrackerConfig(redetect=False)  # one search crop per frame
TIMED = 20  # crops that are timed


class CalibrationClip(NamedTuple):
    """T frames with one target.

    Attributes:
        name: Name in messages.
        frames: uint8 RGB frames (H, W, 3), which may be read more than once.
        boxes: (T, 4) xywh in pixels, NaN where the target is not visible; known in the first frame.
    """

    name: str
    frames: Iterable[Frame]
    boxes: Array


@dataclass(frozen=True)
class Int8Report:
    """Differences of a tracker in int8 to the one in float32, on clips that did not calibrate it.

    Attributes:
        calibration_crops: Number of search crops that calibrated it.
        held_back_crops: Number of search crops that were held back.
        score_mean: Mean difference of the scores at the location with the best score in float32.
        score_max: Largest such difference.
        box_mean: Mean difference of the boxes there, in sides of the search region: the largest of center x,
            center y, width and height.
        box_max: Largest such difference.
        ao_float32: Average overlap in float32 on the clips held back.
        ao_int8: Average overlap in int8 on them.
        ms_float32: Median milliseconds of the search graph in float32, in turn with int8.
        ms_int8: Median milliseconds of the search graph in int8.
        mb_float32: Megabytes of the search graph's file in float32.
        mb_int8: Megabytes of the search graph's file in int8.
    """

    calibration_crops: int
    held_back_crops: int
    score_mean: float
    score_max: float
    box_mean: float
    box_max: float
    ao_float32: float
    ao_int8: float
    ms_float32: float
    ms_int8: float
    mb_float32: float
    mb_int8: float


class _VideoFrames:
    """Frames of a video, read whenever they are iterated."""

    def __init__(self, video: Video, numbers: Sequence[int]) -> None:
        self.files = [video.frames[number] for number in numbers]

    def __iter__(self) -> Iterator[Frame]:
        return map(read_frame, self.files)


def calibration_clips(sources: Sequence[str], count: int = 32, seed: int = 0) -> Iterator[CalibrationClip]:
    """Clips for calibration: parts of annotated videos, or synthetic clips made from photographs.

    Args:
        sources: Videos as `LAYOUT:ROOT`, such as `got10k:GOT-10k`, and folders or tar shards of photographs.
        count: Number of clips from each source of videos, spread evenly, and from all photographs together.
        seed: Seed of the synthetic clips.

    Yields:
        Clips of at most 24 frames, whose target is visible in the first one.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: Sources that cannot be read.
    """
    photographs = [source for source in sources if not names_videos(source)]
    for source in sources:
        if names_videos(source):
            videos = open_videos(source)
            for index in np.unique(np.linspace(0, len(videos) - 1, count).round().astype(int)).tolist():
                video = videos[index]
                first = int(np.argmax(video.visible))
                numbers = range(first, min(first + LENGTH, len(video.frames)))
                if video.visible[first] and len(numbers) > 1:
                    boxes = np.where(video.visible[numbers, None], video.boxes[numbers], np.nan)
                    yield CalibrationClip(video.name, _VideoFrames(video, numbers), boxes)
    if photographs:
        made = make_clips(dict.fromkeys(photographs, 1.0), count, seed, ClipConfig(length=LENGTH))
        for number, clip in enumerate(made):
            boxes = np.where(clip.visible[:, None] >= VISIBLE, clip.boxes, np.nan)
            boxes[0] = clip.boxes[0]
            yield CalibrationClip(f"clip {number}", clip.frames, boxes)


class _Recorder(InferenceSession):
    """A session that keeps the inputs of its search graph."""

    def __init__(self, model: TrackModel, exported: Path) -> None:
        super().__init__(model, device="cpu", dtype=torch.float32, runtime="onnx", exported=exported)
        self.inputs: list[tuple[np.ndarray, ...]] = []

    def __call__(self, search: Tensor, templates: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        assert self._state is not None
        self.inputs.append(tuple(tensor.numpy() for tensor in (*self._state, search)))
        return super().__call__(search, templates)


def quantize_tracker(model: TrackModel, exported: str | Path, clips: Iterable[CalibrationClip]) -> Int8Report:
    """Quantizes the search graph of an exported tracker to int8, and measures the result.

    The tracker in float32 follows the targets of the clips, and its search crops calibrate the graph. Every
    fourth clip is held back and measures it. The template graph, which runs once per target, is float32.
    Lost targets are not searched for.
    Writes `EXPORTED.int8.search.onnx` and `EXPORTED.int8.template.onnx`.

    Args:
        model: The tracker that was exported.
        exported: Path of its ONNX files without `.template.onnx`.
        clips: At least four clips.

    Returns:
        The report.

    Raises:
        ValueError: Fewer than four clips, or files of other weights.
        FileNotFoundError: There are no such files.
        ModuleNotFoundError: onnx or onnxruntime is not installed; the message says how to install it.
    """
    exported = Path(exported)
    int8 = exported.with_name(f"{exported.name}.int8")
    session = _Recorder(model, exported)
    inputs: tuple[list[tuple[np.ndarray, ...]], ...] = ([], [])
    held_back, before = [], []
    for number, clip in enumerate(clips):
        held = number % HELD_BACK == HELD_BACK - 1
        session.inputs.clear()
        result = _track(Tracker(session, CONFIG), clip)
        inputs[held].extend(session.inputs[::EVERY])
        if held:
            held_back.append(clip)
            before.append(result)
    if not held_back:
        raise ValueError(f"Quantization needs at least {HELD_BACK} clips, to calibrate and to measure it.")
    source, output = (path.with_name(f"{path.name}.search.onnx") for path in (exported, int8))
    shutil.copyfile(f"{exported}.template.onnx", f"{int8}.template.onnx")
    quantize(source, output, inputs[False])
    tracker = Tracker(InferenceSession(model, "cpu", torch.float32, "onnx", int8), CONFIG)
    after = [_track(tracker, clip) for clip in held_back]
    differences, times = _compare(source, output, inputs[True])
    (score_mean, box_mean), (score_max, box_max) = differences.mean(axis=0), differences.max(axis=0)
    return Int8Report(
        *map(len, inputs),
        *map(float, (score_mean, score_max, box_mean, box_max)),
        *(average(results).ao for results in (before, after)),
        *np.median(times, axis=0).tolist(),
        *(path.stat().st_size / 1e6 for path in (source, output)),
    )


def _track(tracker: Tracker, clip: CalibrationClip) -> SequenceResult:
    boxes, scores, seconds = run_sequence(tracker, clip.frames, clip.boxes[0])
    overlaps = np.where(np.isnan(clip.boxes).any(axis=1), np.nan, overlap(boxes, clip.boxes))
    return SequenceResult(clip.name, boxes, scores, seconds, overlaps)


def _compare(source: Path, output: Path, inputs: Sequence[tuple[np.ndarray, ...]]) -> tuple[Array, Array]:
    """Differences of score and box (N, 2) at the best location, and milliseconds (T, 2) of both files."""
    functions = [open_graph(path, threads=torch.get_num_threads()) for path in (source, output)]
    differences, times = [], []
    for number, arrays in enumerate(inputs):
        results, seconds = [], []
        for function in functions:
            start = time.perf_counter()
            results.append(function(*arrays))
            seconds.append(time.perf_counter() - start)
        (scores, boxes), (scores8, boxes8) = ((s[0].ravel(), b[0].reshape(4, -1)) for s, b in results)
        best = int(scores.argmax())
        box = np.abs(boxes8[:, best] - boxes[:, best]).max()
        differences.append((abs(float(scores8[best] - scores[best])), float(box)))
        if 0 < number <= TIMED or len(inputs) == 1:  # the first call allocates memory
            times.append([1000 * value for value in seconds])
    return np.array(differences), np.array(times)
