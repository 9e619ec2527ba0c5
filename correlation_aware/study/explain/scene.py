"""What the sections of the page are about: the video, its trackers, and what the caller chose."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.study.explain.trace import Trace, Truth
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.video import Frame

__all__ = ["Box", "Scene", "file_stem"]

Box = Sequence[float]


@dataclass
class Scene:
    """What is explained: the video, its trackers and what the caller chose.

    Attributes:
        box: Box of the target in the first frame.
        traces: Results of the trackers.
        truth: Ground truth, if there is one.
        threshold: Smallest score of a positive location.
        points: Places x, y in pixels of the frame from which attention is shown.
        distractors: Boxes of distractors by frame.
        frames: Frames of the video by number: the first one, and those that figures show.
    """

    box: Box
    traces: Sequence[Trace]
    truth: Truth | None
    threshold: float
    points: Sequence[tuple[float, float]] = ()
    distractors: Mapping[int, Sequence[Box]] = field(default_factory=dict)
    frames: Mapping[int, Frame] = field(default_factory=dict)

    def true_box(self, frame: int) -> NDArray[np.float64] | None:
        """The true box in a frame; None if it is not known or the target is not visible."""
        if self.truth is None or not self.truth.visible[frame]:
            return None
        return np.asarray(self.truth.boxes[frame])

    def target_box(self, trace: Trace, frame: int) -> Box:
        """The true box in a frame, else the tracked one."""
        true = self.true_box(frame)
        return trace.results[frame].box if true is None else [float(value) for value in true]

    def images(self, trace: Trace, frame: int) -> tuple[Frame, Frame, Tensor, Tensor]:
        """Template and search image of a frame, uint8 and as the network gets them."""
        tracker = trace.tracker
        sizes, crop = tracker.model.sizes, trace.response(frame)[1]
        template = Crop.around(self.box, sizes.template_factor)
        dtype = next(tracker.model.parameters()).dtype
        parts = (
            (self.frames[0], template, sizes.template_size),
            (self.frames[frame], crop, sizes.search_size),
        )
        z, x = (tracker.images(image, [region], size).to(dtype) for image, region, size in parts)
        z_image, x_image = (region.cut(image, size) for image, region, size in parts)
        return z_image, x_image, z, x


def file_stem(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")
