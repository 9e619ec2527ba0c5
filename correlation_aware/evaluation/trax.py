"""A tracker under the TraX protocol, as the VOT toolkit starts it: `correlation-aware vot serve`.

Protocol: Čehovin, "TraX: The visual Tracking eXchange Protocol and Library", Neurocomputing 2017.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from correlation_aware._extras import require
from correlation_aware._images import read_image
from correlation_aware.evaluation.masks import Mask
from correlation_aware.evaluation.one_pass import Array, Frame, OnePassTracker, box_and_score
from correlation_aware.evaluation.refiners import Refiner, mask_box, refine

__all__ = ["Targets", "region_box", "serve"]


class Targets:
    """The targets of one sequence, each with a tracker, and a refiner where masks are reported.

    Trackers and refiners are made when they are needed and kept for the next sequence.

    Args:
        create_tracker: Function that makes a tracker.
        create_refiner: Function that makes a refiner; None reports boxes.
    """

    def __init__(
        self,
        create_tracker: Callable[[], OnePassTracker],
        create_refiner: Callable[[], Refiner] | None = None,
    ) -> None:
        self._create_tracker = create_tracker
        self._create_refiner = create_refiner
        self._made: list[tuple[OnePassTracker, Refiner | None]] = []
        self._count = self._frame = 0

    def start(self) -> None:
        """Forgets the targets."""
        self._count = self._frame = 0

    def add(self, frame: Frame, box: Array) -> None:
        """Adds a target with its box xywh in a uint8 RGB frame (H, W, 3).

        Raises:
            ValueError: The tracker refuses the box.
        """
        if self._count == len(self._made):
            refiner = self._create_refiner() if self._create_refiner else None
            self._made.append((self._create_tracker(), refiner))
        tracker, refiner = self._made[self._count]
        tracker.init(frame, box)
        start = getattr(refiner, "init", None)
        if start is not None:
            start(frame, box)
        self._count += 1

    def update(self, frame: Frame) -> list[tuple[Array | Mask, float]]:
        """Box xywh (4,) or mask (H, W) and score of each target in the next frame, in the order of `add`.

        The score is NaN if the tracker has none.
        """
        self._frame += 1
        results: list[tuple[Array | Mask, float]] = []
        for tracker, refiner in self._made[: self._count]:
            box, score = box_and_score(tracker.update(frame), self._frame)
            results.append((box if refiner is None else refine(refiner, frame, box), score))
        return results


def region_box(kind: str, values: Any, offset: tuple[int, int] = (0, 0)) -> Array:
    """The box xywh around a region, in pixels.

    Args:
        kind: `rectangle`, `polygon` or `mask`.
        values: x, y, w, h; corners (N, 2); or a mask (H, W) that is not 0 on the target.
        offset: Column and row of the mask in the frame.

    Raises:
        ValueError: Another kind, or an empty mask.
    """
    if kind == "rectangle":
        return np.asarray(values, float)
    if kind == "polygon":
        corners = np.asarray(values, float)
        low = corners.min(axis=0)
        return np.concatenate([low, corners.max(axis=0) - low])
    if kind == "mask":
        return mask_box(values) + (*offset, 0, 0)
    raise ValueError(f"A tracker cannot start on a region of the kind {kind}: rectangle, polygon or mask.")


def serve(
    create_tracker: Callable[[], OnePassTracker],
    name: str = "",
    create_refiner: Callable[[], Refiner] | None = None,
) -> None:
    """Answers a TraX client on standard input and output, or on its socket, until it quits.

    Rectangles, polygons and masks to start on, several targets, and targets that are added later are
    supported. The score of the tracker is reported as the property `confidence`.

    Args:
        create_tracker: Function that makes a tracker; it is called after the greeting, which clients wait for
            with a time limit.
        name: Name of the tracker.
        create_refiner: Function that makes a refiner of the boxes into masks; None reports rectangles.

    Raises:
        ModuleNotFoundError: vot-trax is not installed.
        ConnectionError: The client ended without saying so.
        Exception: What the tracker raised; the client is told.
    """
    (trax,) = require("trax")
    regions, images = [trax.Region.RECTANGLE, trax.Region.POLYGON, trax.Region.MASK], [trax.Image.PATH]
    targets = Targets(create_tracker, create_refiner)
    server = trax.Server(regions, images, ["color"], tracker_name=name, multiobject=True)
    try:
        while (request := server.wait()).type in (trax.TraxStatus.INITIALIZE, trax.TraxStatus.FRAME):
            frame = read_image(request.image["color"].path())
            status = []
            if request.type == trax.TraxStatus.INITIALIZE:
                targets.start()
            else:
                for region, score in targets.update(frame):
                    known = {"confidence": f"{score:.6f}"} if np.isfinite(score) else {}
                    status.append((_trax_region(trax, region), known))
            for region, _ in request.objects or []:
                targets.add(frame, _client_box(region))
                status.append((region, {}))
            server.status(status)
    except trax.TraxException as error:
        raise ConnectionError(f"The TraX client ended without saying so: {error}") from error
    except BaseException as error:
        server.quit(f"{type(error).__name__}: {error}".replace("\n", " "))
        raise
    server.quit()


def _client_box(region: Any) -> Array:
    """The box around a region of the client."""
    if region.type == "rectangle":
        return region_box(region.type, region.bounds())
    if region.type == "mask":
        return region_box(region.type, region.array(), region.offset())
    return region_box(region.type, list(region) if region.type == "polygon" else None)


def _trax_region(trax: Any, region: Array | Mask) -> Any:
    """A region of TraX from a box or a mask, which is cropped."""
    if region.dtype != bool:
        return trax.Rectangle.create(*map(float, region))
    x, y, w, h = mask_box(region).astype(int) if region.any() else (0, 0, 1, 1)
    crop = np.ascontiguousarray(region[y : y + h, x : x + w], np.uint8)
    return trax.Mask.create(crop, x=int(x), y=int(y))
