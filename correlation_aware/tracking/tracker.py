"""The tracker: follows one target or several through the frames of a video."""

import copy
import functools
import math
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from correlation_aware import zoo
from correlation_aware._deprecation import renamed_fields
from correlation_aware._devices import as_device
from correlation_aware._fields import check_values
from correlation_aware.models.contract import refuse_wrapper
from correlation_aware.models.tracker import TrackModel
from correlation_aware.runtime import RUNTIMES, Runtime
from correlation_aware.runtime.graphs import description
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.boxes import distinct, vote
from correlation_aware.tracking.crop import Crop, as_boxes, as_rgb, clip_box
from correlation_aware.tracking.device_crop import crop_resize, to_device, upload_region
from correlation_aware.tracking.redetect import LOOK_INTERVAL, Appearance, Redetection, appearances

__all__ = [
    "DECODES",
    "DEFAULT_MODEL",
    "Candidate",
    "Response",
    "Timings",
    "TrackResult",
    "Tracker",
    "TrackerConfig",
    "check_tracker_name",
    "create_tracker",
    "decode_config",
]

DEFAULT_MODEL = "siam_lite0_ca_two_scales_track"  # of models/two_scales.py
TemplateUpdate = Literal["none", "confident"]
P = ParamSpec("P")
T = TypeVar("T")


@renamed_fields(window="window_weight", penalty="scale_penalty")
@dataclass(frozen=True)
class TrackerConfig:
    """Settings of the choice of the best location, and of a second template.

    Sizes and factors of the crops belong to the model, see `Sizes` in `models/contract.py`: by default the
    search region has four times the side of the target.

    Attributes:
        window_weight: Weight of the Hann window in the weighted mean of scores and window, 0..1: 0.49 in the
            authors' code, 0 in the paper.
        scale_penalty: Strength of the penalty for changes of size and aspect ratio: a location's score is
            multiplied by exp(-scale_penalty * (c_size * c_aspect - 1)), where both changes are ratios >= 1.
        damp_size: Whether to move the size of the box only part of the way to the predicted size, at a rate
            of score times penalty factor, so that one bad frame does not ruin it.
        box_vote: Exponent of the boxes' mean over all locations, weighted by
            score * (IoU with the best location's box) ** box_vote; 0 for the best location's box alone, None
            for the `box_vote` of the model's head, 0 if it has none.
        lost_threshold: Score in 0..1 below which a target is reported as lost.
        margin: Smallest width and height in pixels of the part of a box inside the frame, of a target that
            leaves it; a smaller box keeps its own size.
        min_size: Smallest width and height of a box in pixels.
        template_update: What becomes of the second template, of networks with `templates` of 2 or more.
            `none`: it is the first one, or what `Tracker.update_template` sets. `confident`: every
            `update_interval` frames it becomes a crop around the latest box, of targets whose score is at
            least `update_threshold` and that are not lost. The first template stays in any case.
        update_interval: Frames from one update to the next: 25 in the authors' code for TrackingNet.
        update_threshold: Smallest score in 0..1 for an update: 0.6 in the authors' code.
        redetect: Whether to search the frame for a lost target, True by default. Its box stays where it was,
            and its score is at most `lost_threshold`, until the target is found again: something that looks
            like it, and not like other objects that were seen beside it, with a score of at least
            `redetect_threshold` in two frames in a row. A box that jumps to something else than the target is
            lost, too. False tracks on around the last box, and a lost frame costs no more than others.
        redetect_threshold: Smallest score in 0..1 of a target that is found again, at least `lost_threshold`
            with `redetect`.
        redetect_crops: Largest number of search crops per frame and lost target, at least 2; they are in the
            batch of the frame.
    """

    window_weight: float = 0.49
    scale_penalty: float = 0.05
    damp_size: bool = True
    box_vote: float | None = None
    lost_threshold: float = 0.3
    margin: float = 10.0
    min_size: float = 1.0
    template_update: TemplateUpdate = "none"
    update_interval: int = 25
    update_threshold: float = 0.6
    redetect: bool = True
    redetect_threshold: float = 0.6
    redetect_crops: int = 4

    def __post_init__(self) -> None:
        check_values(type(self), vars(self))
        if self.update_interval < 1:
            raise ValueError(f"update_interval={self.update_interval} must be at least 1 frame.")
        if self.redetect_crops < 2:
            raise ValueError(
                f"redetect_crops={self.redetect_crops} must be at least 2: one around the last box, and one "
                "that goes over the frame."
            )
        for name in ("window_weight", "lost_threshold", "update_threshold", "redetect_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in 0..1.")
        for name, least in (("scale_penalty", 0), ("box_vote", 0), ("margin", 1), ("min_size", 1)):
            if not least <= (getattr(self, name) or least) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number of at least {least}.")
        if self.redetect and self.redetect_threshold < self.lost_threshold:
            raise ValueError(
                f"redetect_threshold={self.redetect_threshold} must be at least "
                f"lost_threshold={self.lost_threshold}: a target that is found again would be lost at once. "
                "Raise it, or set redetect=False."
            )
        for name in ("window_weight", "scale_penalty", "box_vote", "lost_threshold", "margin", "min_size"):
            if getattr(self, name) is not None:  # PyTorch does not take all whole numbers
                object.__setattr__(self, name, float(getattr(self, name)))


DECODES = {
    "default": TrackerConfig(),
    # Inference Details of the paper: the location with the highest score, and its box
    "paper": TrackerConfig(window_weight=0, scale_penalty=0, damp_size=False, box_vote=0, redetect=False),
    # lib/test/tracker/sbt.py of https://github.com/phiphiphi31/SBT
    "released": TrackerConfig(
        window_weight=0.49, scale_penalty=0, damp_size=False, box_vote=0, redetect=False
    ),
}


@dataclass(frozen=True)
class TrackResult:
    """Result of the tracker for one target in one frame.

    Attributes:
        box: x, y, w, h in pixels of the frame.
        score: Confidence of the network in 0..1, without window and penalty; 0 where the network's prediction
            is NaN or infinite. With `redetect` that of the best candidate while the target is lost, but at
            most `lost_threshold`.
        lost: Whether the score is below the threshold, so that the box is not reliable; with `redetect` also
            whether the search for the target goes on. Where the prediction is NaN or infinite the target is
            lost, and the box is the previous one.
        target: Number of the target, see `Tracker.targets`.
    """

    box: tuple[float, float, float, float]
    score: float
    lost: bool
    target: int = 0


@dataclass(frozen=True)
class Candidate:
    """A place where a target could be.

    Attributes:
        box: x, y, w, h in pixels of the frame.
        score: Score of the network in 0..1, without window and penalty.
    """

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Response:
    """Predictions of the model in the latest frame, before the choice of a location.

    Attributes:
        crops: Search region of each of N targets.
        scores: (N, H, W) scores of all locations in 0..1, on the model's device. The next update of a tracker
            with the runtime `cudagraph` overwrites them: clone them to keep them.
        boxes: (N, 4, H, W) boxes of all locations, cxcywh in 0..1 of the search region; likewise.
    """

    crops: list[Crop]
    scores: Tensor
    boxes: Tensor


@dataclass
class Timings:
    """Seconds spent since `init`, summed over frames.

    On a GPU `crop` and `model` are measured by CUDA events, without synchronization; `post` is the rest.

    Attributes:
        crop: Seconds for cutting and normalizing the crops.
        model: Seconds for the network.
        post: Seconds for the choice of the best location, the transfer of the results to the CPU, and updates
            of the template.
        frames: Number of frames.
    """

    crop: float = 0.0
    model: float = 0.0
    post: float = 0.0
    frames: int = 0


def _exclusive(method: Callable[P, T]) -> Callable[P, T]:
    """A method of a tracker that raises RuntimeError while another thread is in such a method of it."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        tracker = cast(Tracker, args[0])
        if not tracker._lock.acquire(blocking=False):
            raise RuntimeError(
                "Two threads use this tracker at the same time, which mixes their targets. Create one for "
                "each thread: create_tracker(tracker.model) shares the weights."
            )
        try:
            return method(*args, **kwargs)
        finally:
            tracker._lock.release()

    return call


class Tracker:
    """Follows one target or several through the frames of a video.

    Several threads cannot use one tracker at the same time, which raises RuntimeError: create one for each
    thread, of the same model.

    Args:
        session: Session of a `_track` model. It stores the template, so do not share it between trackers.
        config: Settings; the defaults if None.

    Attributes:
        session: Session that runs the model.
        config: Settings.
        name: Architecture name of the model.
        weights_name: Name of the weights for display; `random` for random ones, `unknown` of a model that
            `create_model` did not make.
        timings: Seconds spent since `init`.
        response: Score maps and boxes of the latest update; None before the first one, and after a change of
            the targets.
        device: Device of the model.

    Raises:
        ValueError: A model without a prediction head, with other than 1 or 3 input channels, or with one
            template where `template_update` needs two.

    Examples:
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
        if config is not None and not isinstance(config, TrackerConfig):
            raise TypeError(f"config={config!r} must be a TrackerConfig, such as TrackerConfig(margin=5).")
        if model.in_chans not in (1, 3):
            raise ValueError(
                f"A tracker's model takes images of 1 or 3 channels, not in_chans={model.in_chans}."
            )
        self.session = session
        self.config = config or TrackerConfig()
        if self.config.template_update != "none" and model.templates < 2:
            raise ValueError(
                f"template_update={self.config.template_update!r} needs a network with two templates, "
                "such as supersbt_base_2temp_track or supersbt_* with templates=2; this "
                f"{type(model.backbone).__name__} has one. Leave it out, or take another network."
            )
        config_of_model = description(model)
        self.name: str = config_of_model["architecture"]
        self.weights_name = model.weights_name
        self.timings = Timings()
        self.response: Response | None = None
        self.device = session.device
        self._sizes = model.sizes
        own = self.config.box_vote
        self._box_vote = getattr(model.head, "box_vote", 0.0) if own is None else own
        mean, std = (torch.tensor(config_of_model[key], device=self.device) * 255 for key in ("mean", "std"))
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self._window = torch.empty(0, device=self.device)
        self._crops_on_device = self.device.type != "cpu"
        self._boxes = np.empty((0, 4))
        self._redetection = self._new_redetection()
        self._targets: tuple[int, ...] = ()
        self._next_target = 0  # also the number of targets so far
        self._many = False
        self._warned = False
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def __copy__(self) -> "Tracker":
        """A deep copy: a shallow one would share the template."""
        return copy.deepcopy(self)

    @property
    def model(self) -> TrackModel:
        """Model that the session runs."""
        assert isinstance(self.session.model, TrackModel)
        return self.session.model

    @property
    def targets(self) -> tuple[int, ...]:
        """Numbers of the targets, in the order of the results; `init` starts at 0, none is used twice."""
        return self._targets

    @property
    def weights(self) -> str:
        """Old name of `weights_name`, deprecated."""
        warnings.warn(
            "Tracker.weights is now called weights_name; "
            "the old name will be removed after the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.weights_name

    @_exclusive
    @torch.inference_mode()
    def init(self, frame: NDArray[np.uint8], box: ArrayLike) -> None:
        """Starts tracking; replaces all earlier targets.

        Args:
            frame: uint8 RGB (H, W, 3), gray (H, W) or RGBA (H, W, 4).
            box: x, y, w, h in pixels of the frame, or (N, 4) for N targets.

        Raises:
            ValueError: An invalid frame or box; the message says why and how to correct it.
        """
        frame = as_rgb(frame)
        boxes = as_boxes(box, *frame.shape[:2])
        self.session.set_template(self._template_pixels(frame, boxes))
        self._boxes, self._many, self._warned = boxes, np.ndim(box) == 2, False
        self._redetection = self._new_redetection()
        if self._redetection:
            self._redetection.add(frame, boxes, self._look)
        self._targets, self._next_target = tuple(range(len(boxes))), len(boxes)
        self.response = None
        self.timings = Timings()

    @_exclusive
    @torch.inference_mode()
    def add(self, frame: NDArray[np.uint8], box: ArrayLike) -> tuple[int, ...]:
        """Adds targets to those that are tracked, if any; from now on `update` returns a list.

        Args:
            frame: Frame as in `init`, usually the latest one.
            box: x, y, w, h in pixels of the frame, or (N, 4) for N targets.

        Returns:
            Numbers of the new targets.

        Raises:
            ValueError: An invalid frame or box.
        """
        frame = as_rgb(frame)
        boxes = as_boxes(box, *frame.shape[:2])
        self.session.add_template(self._template_pixels(frame, boxes))
        if self._redetection:
            self._redetection.add(frame, boxes, self._look)
        new = tuple(range(self._next_target, self._next_target + len(boxes)))
        self._boxes = np.concatenate([self._boxes, boxes])
        self._targets, self._next_target = (*self._targets, *new), self._next_target + len(boxes)
        self._many, self.response = True, None
        return new

    @_exclusive
    def remove(self, target: int) -> None:
        """Stops tracking a target; the others keep their numbers. From now on `update` returns a list.

        Args:
            target: Number of the target, one of `targets`.

        Raises:
            ValueError: No such target.
        """
        if target not in self._targets:
            numbers = ", ".join(map(str, self._targets)) or "none"
            raise ValueError(f"There is no target {target!r}; the targets are: {numbers}.")
        kept = [i for i, number in enumerate(self._targets) if number != target]
        self.session.keep_templates(kept)
        if self._redetection:
            self._redetection.keep(kept)
        self._boxes, self._targets = self._boxes[kept], tuple(self._targets[i] for i in kept)
        self._many, self.response = True, None

    @_exclusive
    @torch.inference_mode()
    def update(self, frame: NDArray[np.uint8]) -> TrackResult | list[TrackResult]:
        """Tracks all targets in the next frame, in one forward pass.

        Args:
            frame: Frame as in `init`; its size may differ from that of the previous frame.

        Returns:
            One result, or a list of N results, in the order of `targets`, if the boxes in `init` had shape
            (N, 4) or targets were added or removed. A target for which the network gives NaN or infinite
            values is lost, with a `RuntimeWarning` the first time after `init`; the others are not affected.

        Raises:
            RuntimeError: `init` was not called.
            ValueError: An invalid frame.
        """
        self._check_started()
        frame = as_rgb(frame)
        if not self._targets:  # all were removed
            self.timings.frames += 1
            return []
        height, width = frame.shape[:2]
        start = time.perf_counter()
        timestamps = [self._timestamp()]
        boxes = [self._clip(b, height, width) for b in self._boxes]
        count, crops, owners = len(boxes), *self._search_crops(boxes, height, width)
        pixels = self.images(frame, crops, self._sizes.search_size)
        timestamps.append(self._timestamp())
        score_map, box_map = self.session(pixels, owners if len(crops) > count else None)
        timestamps.append(self._timestamp())
        self.response = Response(crops[:count], score_map[:count], box_map[:count])
        sizes = np.stack([c.to_crop(boxes[i])[2:] for c, i in zip(crops, owners)]).astype(np.float32)
        previous = to_device(torch.from_numpy(sizes), self.device)
        scores, crop_boxes = self._select(score_map[:count], box_map[:count], previous[:count])
        valid = np.isfinite(scores) & np.isfinite(crop_boxes).all(axis=1)
        self._boxes = np.stack(
            [
                self._clip(crop.to_frame(new), height, width) if ok else box
                for crop, new, box, ok in zip(crops, crop_boxes, boxes, valid)
            ]
        )
        scores = np.where(valid, scores, 0)
        lost = ~valid | (scores < self.config.lost_threshold)
        if self._redetection:
            candidates = self._lost_candidates(crops, owners, score_map, box_map, previous, (height, width))
            due = (self.timings.frames + 1) % LOOK_INTERVAL == 0
            self._redetection.judge(frame, boxes, self._boxes, lost, scores, candidates, due, self._look)
            most = np.where(lost, self.config.lost_threshold, 1.0)
            scores = np.minimum(scores.astype(np.float64), most)
        results = [
            TrackResult(_as_tuple(box), float(score), bool(is_lost), target)
            for box, score, is_lost, target in zip(self._boxes, scores, lost, self._targets)
        ]
        self.timings.frames += 1
        self._remember_when_due(frame, results)
        self._update_when_due(frame, results)
        if not valid.all() and not self._warned:
            self._warned = True
            dtype = self.session.dtype
            overflow = "" if dtype == torch.float32 else f", or an overflow of {dtype}: try torch.float32"
            warnings.warn(
                f"{self.name} gave NaN or infinite values for {np.count_nonzero(~valid)} of {len(valid)} "
                "targets, which are lost, with their previous boxes. The cause may be NaN in the weights "
                f"({self.weights_name}){overflow}.",
                RuntimeWarning,
                stacklevel=2,
            )
        crop, model = (_seconds(a, b) for a, b in pairwise(timestamps))
        self.timings.crop += crop
        self.timings.model += model
        self.timings.post += time.perf_counter() - start - crop - model
        return results if self._many else results[0]

    def candidates(self, count: int = 5) -> list[list[Candidate]]:
        """The places with the best scores in the search region of the latest frame, for each target.

        Window and penalty of `TrackerConfig` do not count. Of boxes that overlap by an IoU above 0.5 only the
        best one is listed.

        Args:
            count: Largest number of candidates per target.

        Returns:
            One list per target, best first, in the order of `targets`.

        Raises:
            RuntimeError: No frame was tracked since the last change of the targets.
            ValueError: A count below 1.
        """
        if count < 1:
            raise ValueError(f"count={count} must be at least 1.")
        if self.response is None:
            raise RuntimeError("There are no candidates yet: call update(frame) first.")
        latest = self.response
        scores, boxes = latest.scores.float().flatten(1).cpu(), latest.boxes.float().flatten(2).cpu()
        return [
            [Candidate(_as_tuple(crop.to_frame(b[:, i].numpy())), float(s[i])) for i in distinct(b, s, count)]
            for crop, s, b in zip(latest.crops, scores, boxes)
        ]

    @_exclusive
    @torch.inference_mode()
    def update_template(self, frame: NDArray[np.uint8], box: ArrayLike | None = None) -> None:
        """Gives the model a recent template of every target: a crop of a frame around its box.

        Of a network with two templates it replaces the second one, until the next call; the first one, of
        `init`, stays. The filter of `siam_*_dcf` takes its part of it. The boxes that are tracked stay.

        Args:
            frame: Frame as in `init`.
            box: x, y, w, h in pixels of the frame, or (N, 4) for N targets; the latest boxes by default.

        Raises:
            RuntimeError: `init` was not called.
            ValueError: An invalid frame or box, or another number of boxes than targets.
            NotImplementedError: A network with one template that never changes; the message names others.
        """
        self._check_started()
        frame = as_rgb(frame)
        boxes = self._boxes if box is None else as_boxes(box, *frame.shape[:2])
        if len(boxes) != len(self._boxes):
            raise ValueError(f"box has {len(boxes)} boxes for {len(self._boxes)} targets: give one for each.")
        self._update_templates(frame, boxes, [True] * len(boxes))

    def _clip(self, box: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
        return clip_box(box, height, width, self.config.margin, self.config.min_size)

    def _check_started(self) -> None:
        if not self._next_target:
            raise RuntimeError("The tracker has no target yet: call init(frame, box) first.")

    def _update_when_due(self, frame: NDArray[np.uint8], results: list[TrackResult]) -> None:
        """Updates the templates of targets that are not lost, as the model and the configuration say."""
        interval, threshold = self.model.update_interval, 0.0
        if self.config.template_update == "confident":
            interval, threshold = self.config.update_interval, self.config.update_threshold
        if interval and self.timings.frames % interval == 0:
            chosen = [not result.lost and result.score >= threshold for result in results]
            self._update_templates(frame, self._boxes, chosen)

    def _new_redetection(self) -> Redetection | None:
        config = self.config
        return Redetection(config.redetect_threshold, config.redetect_crops) if config.redetect else None

    def _look(self, frame: NDArray[np.uint8], boxes: Sequence[NDArray[np.float64]]) -> list[Appearance]:
        """Appearances of the content of boxes."""
        return appearances(frame, boxes, self.session.encode(self._template_pixels(frame, boxes)))

    def _search_crops(
        self, boxes: Sequence[NDArray[np.float64]], height: int, width: int
    ) -> tuple[list[Crop], list[int]]:
        """The search crops of a frame, one of each target first, and the number of the target of each."""
        factor = self._sizes.search_factor
        if self._redetection is None:
            return [Crop.around(box, factor) for box in boxes], list(range(len(boxes)))
        groups = self._redetection.crops(boxes, factor, height, width)
        more = [(crop, i) for i, group in enumerate(groups) for crop in group[1:]]
        owners = [*range(len(boxes)), *(i for _, i in more)]
        return [*(group[0] for group in groups), *(crop for crop, _ in more)], owners

    def _lost_candidates(
        self,
        crops: Sequence[Crop],
        owners: Sequence[int],
        scores: Tensor,
        boxes: Tensor,
        previous: Tensor,
        size: tuple[int, int],
    ) -> dict[int, list[tuple[float, NDArray[np.float64]]]]:
        """The best score and box of every search crop of lost targets, by the number of the target."""
        assert self._redetection is not None
        candidates: dict[int, list[tuple[float, NDArray[np.float64]]]] = {
            i: [] for i, memory in enumerate(self._redetection.memories) if memory.lost
        }
        rows = [row for row, owner in enumerate(owners) if owner in candidates]
        if rows:
            best, crop_boxes = self._select(scores[rows], boxes[rows], previous[rows], search=True)
            for row, score, box in zip(rows, best, crop_boxes):
                if np.isfinite(score) and np.isfinite(box).all():
                    in_frame = self._clip(crops[row].to_frame(box), *size)
                    candidates[owners[row]].append((float(score), in_frame))
        return candidates

    def _remember_when_due(self, frame: NDArray[np.uint8], results: list[TrackResult]) -> None:
        """Remembers what else is in the search region of targets whose score is high."""
        if self._redetection is None or self.timings.frames % LOOK_INTERVAL:
            return
        certain = [
            i for i, r in enumerate(results) if not r.lost and r.score >= self.config.redetect_threshold
        ]
        if certain:
            others = {
                i: [(c.score, np.array(c.box)) for c in of_target]
                for i, of_target in enumerate(self.candidates(3))
            }
            self._redetection.remember(frame, {i: self._boxes[i] for i in certain}, others, self._look)

    def _update_templates(
        self, frame: NDArray[np.uint8], boxes: NDArray[np.float64], chosen: list[bool]
    ) -> None:
        """Gives the model templates cut around boxes, of the chosen targets."""
        self.session.update_template(self._template_pixels(frame, boxes), chosen)

    def _template_pixels(
        self, frame: NDArray[np.uint8], boxes: NDArray[np.float64] | Sequence[NDArray[np.float64]]
    ) -> Tensor:
        """Template images around boxes, as `images`."""
        crops = [Crop.around(box, self._sizes.template_factor) for box in boxes]
        return self.images(frame, crops, self._sizes.template_size)

    def images(self, frame: NDArray[np.uint8], crops: list[Crop], size: int) -> Tensor:
        """The images that the model gets of crops of a frame.

        Args:
            frame: uint8 RGB (H, W, 3).
            crops: N crops.
            size: Side of the images in pixels: `template_size` or `search_size` of the model's `sizes`.

        Returns:
            (N, in_chans, size, size), normalized, on the model's device.
        """
        if self._crops_on_device:
            pixels = crop_resize(*upload_region(frame, crops, self.device), size)
        else:
            images = np.stack([crop.cut(frame, size) for crop in crops])
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        if self.model.in_chans == 1:
            pixels = pixels.float().mean(dim=1, keepdim=True)
        return (pixels - self._mean) / self._std

    def _select(
        self, scores: Tensor, boxes: Tensor, previous: Tensor, search: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Selects the location with the best score after scale penalty and window, and its box by vote.

        Args:
            scores: (N, H, W) score maps of N crops.
            boxes: (N, 4, H, W) boxes of all locations, cxcywh in 0..1 of the crop.
            previous: (N, 2) width and height of the previous boxes in 0..1 of the crops.
            search: Whether the target may be anywhere and of any size: without window, penalty and damping.

        Returns:
            Scores (N,) and boxes (N, 4) of the selected locations, boxes cxcywh in 0..1 of the crop.
        """
        scores, boxes = scores.float(), boxes.float()
        if self._window.shape != scores.shape[1:]:
            rows, columns = (
                torch.hann_window(n, periodic=False, device=self.device) for n in scores.shape[1:]
            )
            self._window = torch.outer(rows, columns)
        change = _size_aspect_change(boxes[:, 2:], previous[:, :, None, None])
        factor = torch.exp(-(0 if search else self.config.scale_penalty) * (change - 1))
        weight = 0 if search else self.config.window_weight
        ranking = scores * factor * (1 - weight) + self._window * weight
        best = ranking.flatten(1).argmax(dim=1, keepdim=True)  # N, 1
        score, factor = scores.flatten(1).gather(1, best), factor.flatten(1).gather(1, best)
        box = boxes.flatten(2).gather(2, best[:, None].expand(-1, 4, -1))[..., 0]
        if self._box_vote:
            box = vote(boxes, scores, box, self._box_vote)
        if self.config.damp_size and not search:
            box = torch.cat([box[:, :2], torch.lerp(previous, box[:, 2:], score * factor)], dim=1)
        selected = torch.cat([score, box], dim=1).cpu().numpy()  # one transfer
        return selected[:, 0], selected[:, 1:]

    def _timestamp(self) -> "float | torch.cuda.Event":
        """Timestamp: `perf_counter` on a CPU, a CUDA event on a GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _seconds(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000  # both have passed: the results are on the CPU
    assert isinstance(start, float) and isinstance(end, float)
    return end - start


def _as_tuple(box: NDArray[np.floating]) -> tuple[float, float, float, float]:
    x, y, w, h = box.tolist()
    return x, y, w, h


def _size_aspect_change(new: Tensor, old: Tensor) -> Tensor:
    """Change of size times change of aspect ratio, each a ratio >= 1.

    Args:
        new: (N, 2, H, W) width and height at all locations.
        old: (N, 2, 1, 1) width and height of the previous boxes.

    Returns:
        (N, H, W).
    """

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a / b, b / a)

    def padded_size(wh: Tensor) -> Tensor:
        return ((wh + wh.mean(dim=1, keepdim=True)).prod(dim=1)).sqrt()

    new, old = new.clamp(min=1e-4), old.clamp(min=1e-4)
    return ratio(padded_size(new), padded_size(old)) * ratio(new[:, 0] / new[:, 1], old[:, 0] / old[:, 1])


def decode_config(name: str) -> TrackerConfig:
    """Settings by their name, a key of `DECODES`.

    Raises:
        ValueError: An unknown name.
    """
    if name not in DECODES:
        raise ValueError(f"decode={name!r} is not one of {', '.join(DECODES)}.")
    return DECODES[name]


def check_tracker_name(name: str | Path) -> None:
    """Checks that a name is that of a model with a prediction head, without loading weights.

    Args:
        name: Name of a model, with or without a tag; folders and repositories are not checked.

    Raises:
        ValueError: An unknown name or tag, or a model without a prediction head.
    """
    zoo.has_weights(name)  # raises for unknown names and tags
    architecture = str(name).partition(".")[0]
    if zoo.is_location(name) or architecture.endswith("_track"):
        return
    if isinstance(zoo.create_model(architecture, device="meta"), TrackModel):
        return
    tracker = f"{architecture.removesuffix('_cls')}_track"
    advice = f"use {tracker}" if tracker in zoo.list_models() else "a tracker needs a `_track` model"
    raise ValueError(f"{architecture} has no prediction head; {advice}.")


def create_tracker(
    model: str | Path | TrackModel | None = None,
    *,
    pretrained: bool | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    runtime: Runtime = "auto",
    exported: str | Path | None = None,
    config: TrackerConfig | None = None,
    decode: str | None = None,
) -> Tracker:
    """Creates a tracker, ready for `init`.

    Args:
        model: Name of a `_track` model, `hf-hub:organisation/name`, a folder, or a model object;
            `siam_lite0_ca_two_scales_track` by default.
        pretrained: Weights, as in `create_model`. By default those of the manifest; if it has none, random
            weights with a warning.
        device: Device, such as `cpu` or `cuda`; by default a GPU if there is one.
        dtype: Dtype of the computation, such as `torch.bfloat16` or "bfloat16"; `torch.float32` by default.
        runtime: Runtime of the model, one of `RUNTIMES`, see `InferenceSession`.
        exported: Exported files to run with `onnx` or `openvino`, such as `FOLDER/MODEL.int8`, see
            `InferenceSession`.
        config: Settings of the choice of the best location, see `TrackerConfig`. Image sizes and crop factors
            are the model's: create it with, for example, `search_factor=5` and pass the model.
        decode: Name of such settings, instead of `config`: `default`; `paper`, the location with the highest
            score and its box, nothing else; or `released`, the authors' code, which adds a Hann window. The
            last two have no `redetect`.

    Raises:
        ValueError: A model without a prediction head or in a wrapper such as that of `torch.compile`, an
            unknown name, device or dtype, a runtime that does not support the device or dtype, exported files
            of other weights, or an unknown `decode`, or one beside `config`.
        ModuleNotFoundError: The runtime is not installed.
        RuntimeError: `cudagraph` or a CUDA device without a GPU.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}.")
    if decode is not None:
        if config is not None:
            raise ValueError(f"Both config and decode={decode!r} are given: remove one of them.")
        config = decode_config(decode)
    if device is None:
        on_gpu = torch.cuda.is_available() and runtime not in ("onnx", "openvino")
        device = "cuda" if on_gpu or runtime == "cudagraph" else "cpu"
    elif runtime != "cudagraph":  # the session has an error of its own for that
        device = as_device(device)
    network: torch.nn.Module
    if isinstance(model, torch.nn.Module):
        if pretrained is not None:
            raise ValueError(
                f"pretrained={pretrained!r} has no effect on a model object: use load_pretrained(model, ...)."
            )
        network = refuse_wrapper(model)
    else:
        name = DEFAULT_MODEL if model is None else model
        check_tracker_name(name)
        if pretrained is None:
            pretrained = zoo.has_weights(name)
        if not pretrained:
            warnings.warn(f"{name} has random weights: it will not track.", RuntimeWarning, stacklevel=2)
        network = zoo.create_model(name, pretrained)
    if not isinstance(network, TrackModel):
        raise ValueError(
            f"{type(network).__name__} has no prediction head; a tracker needs a `_track` model."
        )
    return Tracker(InferenceSession(network, device, dtype, runtime, exported), config)
