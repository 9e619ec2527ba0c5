"""NanoTrack in onnxruntime, a small Siamese tracker to compare with.

Reference: NanoTrack (V2, V3), whose ONNX files are in https://github.com/HonglinChu/SiamTrackers under
NanoTrack/models; crops and choice of the location are those of SiamFC and SiamRPN, with the published
settings.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from correlation_aware._extras import require
from correlation_aware.evaluation.one_pass import Array, Frame
from correlation_aware.tracking.tracker import TrackResult

__all__ = ["VERSIONS", "NanoTrack", "NanoTrackConfig"]

TEMPLATE_SIZE, SEARCH_SIZE = 127, 255  # pixels
STRIDE = 16  # pixels of the search image between locations
CONTEXT = 0.5  # of width plus height of the box, added to both sides of the template region
MIN_SIDE = 10.0  # pixels of a box


@dataclass(frozen=True)
class NanoTrackConfig:
    """Settings of a version of NanoTrack, as published.

    Attributes:
        window_weight: Weight of the Hann window in the weighted mean of scores and window.
        scale_penalty: Strength of the penalty for changes of size and aspect ratio.
        size_rate: Factor of the rate at which the size of the box follows the predicted one.
        locations: Number of locations along a side of the score map.
    """

    window_weight: float
    scale_penalty: float
    size_rate: float
    locations: int


VERSIONS = {
    "v2": NanoTrackConfig(0.490, 0.150, 0.385, 16),
    "v3": NanoTrackConfig(0.455, 0.138, 0.348, 15),
}


class NanoTrack:
    """NanoTrack on a CPU.

    Args:
        backbone: ONNX file of the backbone.
        head: ONNX file of the head.
        version: Key of `VERSIONS`.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is not installed; the message says how to install it.
        ValueError: Files that are not of this version.
    """

    def __init__(self, backbone: str | Path, head: str | Path, version: str = "v3") -> None:
        self._config = VERSIONS[version]
        self._backbone = _open(backbone, any_size=True)
        self._head = _open(head)
        outputs = [output.shape for output in self._head.get_outputs()]
        expected = [[1, channels, *[self._config.locations] * 2] for channels in (2, 4)]
        if outputs != expected or len(self._head.get_inputs()) != 2 or len(self._backbone.get_inputs()) != 1:
            raise ValueError(f"{head} has outputs {outputs}; NanoTrack{version.upper()} has {expected}.")
        locations = np.arange(self._config.locations)
        self._offsets = (locations - self._config.locations // 2) * STRIDE  # pixels from the center
        self._window = np.outer(np.hanning(len(locations)), np.hanning(len(locations)))

    def init(self, frame: Frame, box: Array) -> None:
        """Starts on the target in an RGB frame (H, W, 3); `box` is xywh in pixels.

        Raises:
            ValueError: The center of the box is outside the frame.
        """
        x, y, w, h = (float(value) for value in box)
        self._center = np.array([x + (w - 1) / 2, y + (h - 1) / 2])
        if not (0 <= self._center[0] < frame.shape[1] and 0 <= self._center[1] < frame.shape[0]):
            raise ValueError(f"The center of the box {x:g}, {y:g}, {w:g}, {h:g} is outside the frame.")
        self._size = np.array([w, h])
        self._mean = frame.mean(axis=(0, 1))
        crop = _crop(frame, self._center, round(_region(self._size)), TEMPLATE_SIZE, self._mean)
        self._template = self._run(self._backbone, crop)[0]

    def update(self, frame: Frame) -> TrackResult:
        """Box and score of the target in the next frame."""
        config, side = self._config, _region(self._size)
        scale = TEMPLATE_SIZE / side  # pixels of a crop per pixel of the frame
        region = round(side * SEARCH_SIZE / TEMPLATE_SIZE)
        features = self._run(self._backbone, _crop(frame, self._center, region, SEARCH_SIZE, self._mean))[0]
        (logits,), (distances,) = self._run(self._head, self._template, features)  # 2, n, n; 4, n, n
        scores = 1 / (1 + np.exp(logits[0] - logits[1]))
        left, top = self._offsets[None, :] - distances[0], self._offsets[:, None] - distances[1]
        right, bottom = self._offsets[None, :] + distances[2], self._offsets[:, None] + distances[3]
        w, h = right - left, bottom - top
        of_size = _ratio(_region(np.stack([w, h])) / _region(self._size * scale))
        of_aspect = _ratio(self._size[0] / self._size[1] / (w / h))
        penalty = np.exp(-(of_size * of_aspect - 1) * config.scale_penalty)
        weighted = penalty * scores * (1 - config.window_weight) + self._window * config.window_weight
        best = np.unravel_index(np.argmax(weighted), weighted.shape)
        score = float(scores[best])
        rate = penalty[best] * score * config.size_rate
        height, width = frame.shape[:2]
        offset = np.array([left[best] + right[best], top[best] + bottom[best]]) / 2 / scale
        self._center = np.clip(self._center + offset, 0, [width, height])
        size = self._size * (1 - rate) + np.array([w[best], h[best]]) / scale * rate
        self._size = np.maximum(MIN_SIDE, np.minimum(size, [width, height]))
        x, y, w, h = (float(value) for value in (*(self._center - self._size / 2), *self._size))
        return TrackResult((x, y, w, h), score, False)

    @staticmethod
    def _run(session: Any, *arrays: Array) -> Any:
        return session.run(None, dict(zip((node.name for node in session.get_inputs()), arrays)))


def _open(path: str | Path, any_size: bool = False) -> Any:
    """A session of an ONNX file, with `any_size` for images of another size than the file states."""
    onnx, runtime = require("onnx", "onnxruntime", message="NanoTrack needs {names}")
    try:
        model = onnx.load(str(path))
        if any_size:
            for node in (*model.graph.input, *model.graph.output):
                for name, axis in zip("hw", node.type.tensor_type.shape.dim[2:]):
                    axis.dim_param = f"{node.name}_{name}"
            del model.graph.value_info[:]
        options = runtime.SessionOptions()
        threads = os.environ.get("OMP_NUM_THREADS", "")
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        options.log_severity_level = 3
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of protobuf and of onnxruntime, which have no common base
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error


def _region(size: Array) -> Any:
    """Side of the template region around boxes of the sizes (2, ...)."""
    context = CONTEXT * (size[0] + size[1])
    return np.sqrt((size[0] + context) * (size[1] + context))


def _ratio(value: Any) -> Any:
    return np.maximum(value, 1 / value)


def _crop(frame: Frame, center: Array, side: int, size: int, mean: Array) -> Array:
    """A square of the frame, padded with the mean color and resized: (1, 3, size, size) float32 in BGR."""
    x, y = np.floor(center - (side + 1) / 2 + 0.5).astype(int)
    height, width = frame.shape[:2]
    left, top, right, bottom = max(0, -x), max(0, -y), max(0, x + side - width), max(0, y + side - height)
    inside = frame[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)]
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = mean.astype(np.uint8)
    padded[top : side - bottom, left : side - right] = inside
    resized = cv2.resize(padded, (size, size)) if side != size else padded
    return np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)[None], np.float32)
