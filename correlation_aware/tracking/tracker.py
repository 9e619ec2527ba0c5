"""The tracker: where the target is, frame after frame, for one target or many."""

import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from correlation_aware import zoo
from correlation_aware.models.tracker import TrackModel
from correlation_aware.runtime.session import RUNTIMES, InferenceSession, Runtime
from correlation_aware.tracking.crop import Crop, as_boxes, as_rgb, clip_box
from correlation_aware.tracking.device_crop import cut_all, send, upload

__all__ = ["DEFAULT_MODEL", "Timings", "TrackResult", "Tracker", "TrackerConfig", "create_tracker"]

DEFAULT_MODEL = "sbt_light_cell_track"


@dataclass(frozen=True)
class TrackerConfig:
    """How a tracker decides. How large it crops belongs to the model, see `Sizes`.

    Attributes:
        window: Weight of the Hann window in the blend with the scores: 0.49 in the authors' code, 0 in the
            paper.
        penalty: How much a candidate loses by a change of size and aspect: its score is multiplied by
            exp(-penalty * (c_size * c_aspect - 1)), the two changes being ratios of at least 1.
        damp_size: Move the size towards the candidate's at a rate of score times that factor, so that one bad
            frame does not make the box explode. Otherwise the candidate's size is taken as it is.
        lost_threshold: A target whose best score is below this is reported as lost.
        margin: Pixels of the box that always stay inside the frame.
    """

    window: float = 0.49
    penalty: float = 0.05
    damp_size: bool = True
    lost_threshold: float = 0.3
    margin: float = 10.0

    def __post_init__(self) -> None:
        for name in ("window", "lost_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..1.")
        if self.penalty < 0:
            raise ValueError(f"penalty={self.penalty} must be at least 0.")


@dataclass(frozen=True)
class TrackResult:
    """Where a target is in a frame.

    Attributes:
        box: x, y, w, h in pixels of the frame.
        score: The network's confidence in 0..1, before the window.
        lost: The score is too low to trust the box.
    """

    box: tuple[float, float, float, float]
    score: float
    lost: bool


@dataclass
class Timings:
    """Seconds spent since `init`, summed over frames, by part.

    On a GPU `crop` and `model` are the seconds between events in its queue, and `post`, in which the results
    come to the host, is the rest: nothing waits for the sake of a timing.
    """

    crop: float = 0.0
    model: float = 0.0
    post: float = 0.0
    frames: int = 0


class Tracker:
    """Follows targets through the frames of a video. Weights belong to the model; this object is the state.

    Args:
        session: Session of a `_track` model; it belongs to this tracker alone, as it keeps the template.
        config: How to decide.

    Attributes:
        name: Architecture name of the model.
        weights: Name of the weights for people to read, `random` if there are none.

    Raises:
        ValueError: A model without a prediction head, or of other than 1 or 3 input channels.

    Example:
        >>> tracker = create_tracker()
        >>> tracker.init(frame, (x, y, w, h))
        >>> result = tracker.update(next_frame)
    """

    def __init__(self, session: InferenceSession, config: TrackerConfig | None = None) -> None:
        model = session.model
        if not isinstance(model, TrackModel):
            raise ValueError(
                f"{type(model).__name__} has no prediction head; a tracker needs a `_track` model."
            )
        if model.in_chans not in (1, 3):
            raise ValueError(
                f"A tracker's model takes images of 1 or 3 channels, not in_chans={model.in_chans}."
            )
        self.session = session
        self.config = config or TrackerConfig()
        self.name: str = model.pretrained_cfg["architecture"]
        self.weights = model.weights_name
        self.timings = Timings()
        self.device = session.device
        self._sizes = model.sizes
        mean, std = (
            torch.tensor(model.pretrained_cfg[key], device=self.device) * 255 for key in ("mean", "std")
        )
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self._window = torch.empty(0, device=self.device)
        self._cuts_on_device = self.device.type != "cpu"
        self._boxes = np.empty((0, 4))
        self._many = False

    @property
    def model(self) -> TrackModel:
        """The model that the session runs."""
        assert isinstance(self.session.model, TrackModel)
        return self.session.model

    @torch.inference_mode()
    def init(self, frame: NDArray[np.uint8], box: ArrayLike) -> None:
        """Starts on a frame; forgets what was tracked before.

        Args:
            frame: uint8 RGB (H, W, 3), grey (H, W) or RGBA (H, W, 4).
            box: x, y, w, h in pixels of the frame, or (N, 4) for N targets.

        Raises:
            ValueError: A frame or a box that cannot be used; the message says why and what to do.
        """
        frame = as_rgb(frame)
        boxes = as_boxes(box, *frame.shape[:2])
        crops = [Crop.around(b, self._sizes.template_factor) for b in boxes]
        self.session.set_template(self._pixels(frame, crops, self._sizes.template_size))
        self._boxes, self._many = boxes, np.ndim(box) == 2
        self.timings = Timings()

    @torch.inference_mode()
    def update(self, frame: NDArray[np.uint8]) -> TrackResult | list[TrackResult]:
        """Finds the targets in the next frame, all in one forward pass.

        Args:
            frame: As in `init`; its size may differ from the frame before.

        Returns:
            One result, or a list of N where `init` was given (N, 4) boxes.

        Raises:
            RuntimeError: `init` was not called.
            ValueError: A frame that cannot be used.
        """
        if not len(self._boxes):
            raise RuntimeError("The tracker has no target yet: call init(frame, box) first.")
        frame = as_rgb(frame)
        height, width = frame.shape[:2]
        began = time.perf_counter()
        marks = [self._mark()]
        boxes = [clip_box(b, height, width, self.config.margin) for b in self._boxes]
        crops = [Crop.around(b, self._sizes.search_factor) for b in boxes]
        pixels = self._pixels(frame, crops, self._sizes.search_size)
        marks.append(self._mark())
        cell_scores, cell_boxes = self.session(pixels)
        marks.append(self._mark())
        sizes = np.stack([c.to_crop(b)[2:] for c, b in zip(crops, boxes)]).astype(np.float32)
        scores, places = self._best(cell_scores, cell_boxes, send(torch.from_numpy(sizes), self.device))
        self._boxes = np.stack(
            [clip_box(c.to_frame(b), height, width, self.config.margin) for c, b in zip(crops, places)]
        )
        results = [
            TrackResult(
                (float(x), float(y), float(w), float(h)), float(s), bool(s < self.config.lost_threshold)
            )
            for (x, y, w, h), s in zip(self._boxes, scores)
        ]
        crop, model = (_seconds(a, b) for a, b in pairwise(marks))
        self.timings.crop += crop
        self.timings.model += model
        self.timings.post += time.perf_counter() - began - crop - model
        self.timings.frames += 1
        return results if self._many else results[0]

    def _pixels(self, frame: NDArray[np.uint8], crops: list[Crop], size: int) -> Tensor:
        """(N, in_chans, size, size), normalized, on the model's device."""
        if self._cuts_on_device:
            cuts = cut_all(*upload(frame, crops, self.device), size)
        else:
            cuts = torch.from_numpy(np.stack([crop.cut(frame, size) for crop in crops])).permute(0, 3, 1, 2)
        if self.model.in_chans == 1:
            cuts = cuts.float().mean(dim=1, keepdim=True)
        return (cuts - self._mean) / self._std

    def _best(
        self, scores: Tensor, boxes: Tensor, sizes: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Picks the cell that wins after penalty and window.

        Args:
            scores: (N, H, W) of N crops.
            boxes: (N, 4, H, W), cxcywh in 0..1 of the crop.
            sizes: (N, 2), width and height of the last boxes in 0..1 of the crops.

        Returns:
            Score (N,) and box (N, 4), cxcywh in 0..1 of the crop.
        """
        scores, boxes = scores.float(), boxes.float()
        if self._window.shape != scores.shape[1:]:
            rows, columns = (
                torch.hann_window(n, periodic=False, device=self.device) for n in scores.shape[1:]
            )
            self._window = torch.outer(rows, columns)
        factor = torch.exp(-self.config.penalty * (_change(boxes[:, 2:], sizes[:, :, None, None]) - 1))
        blend = scores * factor * (1 - self.config.window) + self._window * self.config.window
        best = blend.flatten(1).argmax(dim=1, keepdim=True)  # N, 1
        score, factor = scores.flatten(1).gather(1, best), factor.flatten(1).gather(1, best)
        box = boxes.flatten(2).gather(2, best[:, None].expand(-1, 4, -1))[..., 0]
        if self.config.damp_size:
            box = torch.cat([box[:, :2], torch.lerp(sizes, box[:, 2:], score * factor)], dim=1)
        found = torch.cat([score, box], dim=1).cpu().numpy()
        return found[:, 0], found[:, 1:]

    def _mark(self) -> "float | torch.cuda.Event":
        """A moment: of the clock, or in the queue of the GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _seconds(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000  # both are past: the results have come to the host
    assert isinstance(start, float) and isinstance(end, float)
    return end - start


def _change(new: Tensor, old: Tensor) -> Tensor:
    """Change of size times change of aspect, ratios >= 1: (N, 2, H, W), (N, 2, 1, 1) -> (N, H, W)."""

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a / b, b / a)

    def padded_size(wh: Tensor) -> Tensor:
        return ((wh + wh.mean(dim=1, keepdim=True)).prod(dim=1)).sqrt()

    new, old = new.clamp(min=1e-4), old.clamp(min=1e-4)
    return ratio(padded_size(new), padded_size(old)) * ratio(new[:, 0] / new[:, 1], old[:, 0] / old[:, 1])


def create_tracker(
    model: str | Path | TrackModel | None = None,
    *,
    pretrained: bool | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    runtime: Runtime = "auto",
    config: TrackerConfig | None = None,
) -> Tracker:
    """Creates a tracker, ready for `init`.

    Args:
        model: A `_track` name, `hf-hub:organisation/name`, a folder, or a model that exists;
            `sbt_light_cell_track` by default.
        pretrained: As in `create_model`. By default the weights of the manifest, or random ones, with a
            warning, where it has none.
        device: `cpu`, `cuda`, ...; a GPU if there is one, by default.
        dtype: Of the computation, `torch.float32` by default.
        runtime: `auto`, `eager`, `compile`, `cudagraph`, `onnx` or `openvino`, see `InferenceSession`.
        config: How to decide.

    Raises:
        ValueError: A model without a prediction head, an unknown name, a runtime that cannot be had.
        ModuleNotFoundError: The runtime is not installed.
        RuntimeError: `cudagraph` without a GPU.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be had or that are damaged.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}.")
    if device is None:
        on_gpu = torch.cuda.is_available() and runtime not in ("onnx", "openvino")
        device = "cuda" if on_gpu or runtime == "cudagraph" else "cpu"
    network: torch.nn.Module
    if isinstance(model, torch.nn.Module):
        if pretrained is not None:
            raise ValueError(
                f"pretrained={pretrained!r} has no effect on a model that exists: use load_pretrained."
            )
        network = model
    else:
        name = DEFAULT_MODEL if model is None else str(model)
        if pretrained is None:
            pretrained = zoo.has_weights(name)
        if not pretrained:
            warnings.warn(
                f"{name} runs with random weights: it will not track.", RuntimeWarning, stacklevel=2
            )
        network = zoo.create_model(name, pretrained)
    if not isinstance(network, TrackModel):
        raise ValueError(
            f"{type(network).__name__} has no prediction head; a tracker needs a `_track` model."
        )
    return Tracker(InferenceSession(network, device, dtype, runtime), config)
