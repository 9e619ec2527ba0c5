"""Re-detection of lost targets: where the frame is searched, and on what evidence a target is taken again.

Appearances are compared by color and by the network's own features of a template crop, in units of the
changes that the target itself showed while it was tracked: nothing here depends on the family of the network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.models.contract import TemplateState
from correlation_aware.tracking.crop import Crop

__all__ = ["LOOK_INTERVAL", "Appearance", "Memory", "Redetection", "appearances", "tiles"]

TILE_STEP = 0.6  # distance of neighboring tiles over their side, so that they overlap
MAX_TILES = 6  # along the longer side of the frame
DISTRACTORS = 8  # that are remembered of a target
COLOR_BINS = (6, 8, 8)  # of lightness and the two colors of CIELAB
COLOR_RANGES = ((0, 256), (68, 188), (68, 188))
COLOR_SAMPLES = 24  # pixels along width and height
LOOK_INTERVAL = 10  # frames from one look at a target and its distractors to the next
DISTRACTOR_SCORE = 0.3  # smallest score of a distractor that is remembered
SAME_PLACE = 0.3  # smallest IoU of a candidate with that of the frame before
JUMP = 0.1  # largest IoU with the box of the frame before for which the appearance is checked
SPREAD_RATE = 0.1  # of the moving average of the target's own changes
SMALLEST_SPREAD = (0.04, 0.02)  # of the target's own changes in color and features
LARGEST_CHANGE = 3.0  # of a target that is taken again, in units of its own changes
LARGEST_DRIFT = 5.0  # of a tracked target, in the same units; beyond it something else is tracked
# shifts and scales of the first box, in its sides, whose appearances are the smallest change to expect
JITTER = (
    (0.1, 0.0, 1.0),
    (-0.1, 0.0, 1.0),
    (0.0, 0.1, 1.0),
    (0.0, -0.1, 1.0),
    (0.0, 0.0, 1.2),
    (0.0, 0.0, 0.85),
)

Array = NDArray[np.float64]


class Appearance(NamedTuple):
    """Appearance of the content of a box.

    Attributes:
        color: (bins,) square roots of the frequencies of colors.
        features: (F,) features of the network, pooled over the template crop, of norm 1.
    """

    color: NDArray[np.float32]
    features: NDArray[np.float32]

    def distance(self, other: "Appearance") -> Array:
        """Distances in color and in features, (2,), each 0 for the same content."""
        color, features = (1 - float(a @ b) if a.size else 0.0 for a, b in zip(self, other))
        return np.array([max(color, 0.0), max(features, 0.0)])


@dataclass
class Memory:
    """What is remembered of one target, and the state of the search for it.

    Attributes:
        first: Appearance in the first frame.
        spread: (2,) usual distances of the target's own appearance from the first one, in color and features.
        distractors: Appearances of other objects that the network took for similar ones.
        lost: Whether the target is lost.
        next_tile: Number of the tile of the frame to search next.
        pending: Box of a candidate that waits for confirmation, xywh in pixels.
    """

    first: Appearance
    spread: Array
    distractors: list[Appearance] = field(default_factory=list)
    lost: bool = False
    next_tile: int = 0
    pending: Array | None = None

    @classmethod
    def of_target(cls, views: Sequence[Appearance]) -> "Memory":
        """The memory of a new target from its first appearance and those of slightly different boxes."""
        first, *others = views
        distances = [first.distance(other) for other in others]
        return cls(first, np.maximum(np.mean(distances, axis=0), SMALLEST_SPREAD))

    def change(self, appearance: Appearance) -> float:
        """Distance from the first appearance in units of the target's usual changes."""
        return self._normalized(self.first.distance(appearance))

    def accepts(self, appearance: Appearance, largest_change: float) -> bool:
        """Whether the target can look like that, and no remembered distractor looks more like it."""
        change = self.change(appearance)
        return change <= largest_change and all(
            change < self._normalized(distractor.distance(appearance)) for distractor in self.distractors
        )

    def learn(self, appearance: Appearance) -> None:
        """Learns how much the target changes from an appearance that certainly is its own."""
        distance = self.first.distance(appearance)
        self.spread = np.maximum(self.spread, self.spread + SPREAD_RATE * (distance - self.spread))

    def remember(self, distractor: Appearance) -> None:
        """Remembers a distractor, in place of the one that is most like it if there are too many."""
        if self.distractors:
            distances = [self._normalized(known.distance(distractor)) for known in self.distractors]
            nearest = int(np.argmin(distances))
            if distances[nearest] < 0.5 or len(self.distractors) >= DISTRACTORS:
                self.distractors[nearest] = distractor
                return
        self.distractors.append(distractor)

    def _normalized(self, distance: Array) -> float:
        return float((distance / self.spread).mean())

    def lose(self) -> None:
        """Starts the search."""
        self.lost, self.next_tile, self.pending = True, 0, None

    def crops(self, box: Array, factor: float, height: int, width: int, count: int) -> list[Crop]:
        """The crops to search for a lost target in the next frame.

        The first one is around the candidate, or else around the last box; the others go on over the frame,
        from the last box outwards, and begin again when they have covered it.

        Args:
            box: Last box before the target was lost, xywh in pixels.
            factor: Side of a crop over sqrt(w * h).
            height: Height of the frame in pixels.
            width: Width of the frame in pixels.
            count: Largest number of crops, at least 2.
        """
        here = Crop.around(box if self.pending is None else self.pending, factor)
        every = tiles(box, factor, height, width)
        count = min(count - 1, len(every))
        chosen = [every[(self.next_tile + i) % len(every)] for i in range(count)]
        self.next_tile = (self.next_tile + count) % len(every)
        return [here, *chosen]


Look = Callable[[NDArray[np.uint8], Sequence[Array]], list[Appearance]]
ScoredBox = tuple[float, Array]  # score, and box xywh in pixels


class Redetection:
    """Search for the lost ones of several targets.

    Every method that needs appearances takes `look`, a function of a frame and N boxes.

    Args:
        threshold: Smallest score of a target that is taken again, and of one that is certainly the target.
        count: Largest number of search crops of a lost target in a frame.

    Attributes:
        memories: Memory of each target.
    """

    def __init__(self, threshold: float, count: int) -> None:
        self.threshold, self.count = threshold, count
        self.memories: list[Memory] = []

    def add(self, frame: NDArray[np.uint8], boxes: Array, look: Look) -> None:
        """Adds targets with boxes (N, 4) xywh in a frame."""
        views = [_moved(box, *change) for box in boxes for change in ((0.0, 0.0, 1.0), *JITTER)]
        seen, step = look(frame, views), len(JITTER) + 1
        self.memories += [Memory.of_target(seen[i : i + step]) for i in range(0, len(seen), step)]

    def keep(self, indices: Sequence[int]) -> None:
        """Keeps the targets `indices`, in that order."""
        self.memories = [self.memories[i] for i in indices]

    def crops(self, boxes: Sequence[Array], factor: float, height: int, width: int) -> list[list[Crop]]:
        """The search crops of every target: one of a tracked one, several of a lost one."""
        return [
            memory.crops(box, factor, height, width, self.count)
            if memory.lost
            else [Crop.around(box, factor)]
            for memory, box in zip(self.memories, boxes)
        ]

    def judge(
        self,
        frame: NDArray[np.uint8],
        before: Sequence[Array],
        boxes: Array,
        lost: NDArray[np.bool_],
        scores: NDArray[np.float32],
        candidates: Mapping[int, Sequence[ScoredBox]],
        due: bool,
        look: Look,
    ) -> None:
        """Keeps the boxes of lost targets where they were, and moves those that are taken again, in place.

        Args:
            frame: uint8 RGB (H, W, 3).
            before: Boxes of N targets in the frame before, xywh in pixels.
            boxes: (N, 4) new boxes; those of lost targets do not count.
            lost: (N,) which of the tracked targets have a score that is too low, or none.
            scores: (N,) scores.
            candidates: Best box of each search crop, by the number of the lost target.
            due: Whether it is time to look at tracked targets with a high score.
            look: Function that gives appearances.
        """
        tracked = {i: boxes[i] for i, m in enumerate(self.memories) if not m.lost and not lost[i]}
        doubtful = self._doubtful(frame, before, tracked, scores, due, look)
        for i, memory in enumerate(self.memories):
            if memory.lost:  # since an earlier frame
                scores[i] = max((score for score, _ in candidates[i]), default=0.0)
            elif lost[i] or i in doubtful:
                memory.lose()
            lost[i] = memory.lost
            if memory.lost:
                boxes[i] = before[i]
        for i, (score, box) in self._retake(frame, candidates, look).items():
            boxes[i], scores[i], lost[i] = box, score, False

    def _retake(
        self, frame: NDArray[np.uint8], candidates: Mapping[int, Sequence[ScoredBox]], look: Look
    ) -> dict[int, ScoredBox]:
        """Decides which lost targets are taken again.

        A candidate has to look like the target, and in two frames in a row to have a score of at least
        `threshold` at the same place; in the second frame there is a crop around it.

        Args:
            frame: uint8 RGB (H, W, 3).
            candidates: Best box of each search crop, by the number of the lost target.
            look: Function that gives appearances.

        Returns:
            Score and box of those that are taken again.
        """
        likely = [(i, c) for i, of_target in candidates.items() for c in of_target if c[0] >= self.threshold]
        seen = look(frame, [box for _, (_, box) in likely]) if likely else []
        accepted: dict[int, list[tuple[float, ScoredBox]]] = {i: [] for i in candidates}
        for (i, candidate), appearance in zip(likely, seen):
            if self.memories[i].accepts(appearance, LARGEST_CHANGE):
                accepted[i].append((self.memories[i].change(appearance), candidate))
        taken: dict[int, ScoredBox] = {}
        for i, choices in accepted.items():
            memory = self.memories[i]
            ranked = [candidate for _, candidate in sorted(choices, key=lambda choice: choice[0])]
            pending, memory.pending = memory.pending, ranked[0][1] if ranked else None
            again = [c for c in ranked if pending is not None and _iou(c[1], pending) >= SAME_PLACE]
            if again:
                taken[i], memory.lost, memory.pending = again[0], False, None
        return taken

    def _doubtful(
        self,
        frame: NDArray[np.uint8],
        before: Sequence[Array],
        after: Mapping[int, Array],
        scores: NDArray[np.float32],
        due: bool,
        look: Look,
    ) -> set[int]:
        """The tracked targets whose box is on something that does not look like them; learns from the others.

        Those are looked at whose box jumped, and if it is `due` those with a high score.
        """
        jumped = {i for i, box in after.items() if _iou(box, before[i]) < JUMP}
        certain = {i for i in after if due and scores[i] >= self.threshold}
        looked_at = sorted(jumped | certain)
        doubtful = set()
        for i, appearance in zip(looked_at, look(frame, [after[i] for i in looked_at]) if looked_at else []):
            if not self.memories[i].accepts(appearance, LARGEST_CHANGE if i in jumped else LARGEST_DRIFT):
                doubtful.add(i)
            elif i in certain:
                self.memories[i].learn(appearance)
        return doubtful

    def remember(
        self,
        frame: NDArray[np.uint8],
        targets: Mapping[int, Array],
        others: Mapping[int, Sequence[ScoredBox]],
        look: Look,
    ) -> None:
        """Remembers the best other box in the search region of targets that certainly are tracked.

        Args:
            frame: uint8 RGB (H, W, 3).
            targets: Boxes of certain targets, by number.
            others: Candidates in their search regions, best first.
            look: Function that gives appearances.
        """
        distractors: dict[int, Array] = {}
        for i, box in targets.items():
            apart = [b for s, b in others[i] if s >= DISTRACTOR_SCORE and _iou(b, box) < JUMP]
            if apart:
                distractors[i] = apart[0]
        seen = look(frame, list(distractors.values())) if distractors else []
        for i, appearance in zip(distractors, seen):
            self.memories[i].remember(appearance)


def _moved(box: Array, dx: float, dy: float, scale: float) -> Array:
    x, y, w, h = box
    x, y = x + w * (dx + (1 - scale) / 2), y + h * (dy + (1 - scale) / 2)
    return np.array([x, y, w * scale, h * scale])


def _iou(a: Array, b: Array) -> float:
    shared = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    area = float(shared.clip(min=0).prod())
    return area / max(float(a[2:].prod() + b[2:].prod()) - area, 1e-9)


def tiles(box: Array, factor: float, height: int, width: int) -> list[Crop]:
    """Overlapping crops that cover a frame, from those next to a box to the farthest.

    They have the side of the crop around the box, but at least a sixth of the longer side of the frame.

    Args:
        box: xywh in pixels.
        factor: Side of the crop around the box over sqrt(w * h).
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
    """
    side = max(Crop.around(box, factor).side, -(-max(height, width) // MAX_TILES))
    rows, columns = _starts(height, side), _starts(width, side)
    crops = [Crop(x, y, side) for y in rows for x in columns]
    center = np.asarray(box[:2]) + np.asarray(box[2:]) / 2
    return sorted(
        crops, key=lambda c: float(np.hypot(c.x + side / 2 - center[0], c.y + side / 2 - center[1]))
    )


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [(length - side) // 2]
    count = int(np.ceil((length - side) / (TILE_STEP * side))) + 1
    return [round(start) for start in np.linspace(0, length - side, count)]


def appearances(
    frame: NDArray[np.uint8], boxes: Sequence[Array], state: Sequence[Tensor]
) -> list[Appearance]:
    """Appearances of the content of boxes.

    Args:
        frame: uint8 RGB (H, W, 3).
        boxes: N boxes xywh in pixels.
        state: State of N templates around the boxes, of `InferenceSession.encode`.
    """
    features = pooled_features(state)
    return [Appearance(color_histogram(frame, box), features[i]) for i, box in enumerate(boxes)]


def pooled_features(state: Sequence[Tensor]) -> NDArray[np.float32]:
    """(N, F) features of N templates of norm 1, pooled without regard to the layout of a family's tensors.

    Each tensor keeps its largest dimension, which is that of channels in maps of features. F is 0 for a state
    without floating-point tensors.
    """
    pooled = [torch.empty(len(state[0]), 0)]
    for tensor in TemplateState(state):
        if tensor.is_floating_point() and tensor.ndim > 1:
            kept = max(range(1, tensor.ndim), key=lambda i: (tensor.shape[i], i))
            others = [i for i in range(1, tensor.ndim) if i != kept]
            vector = tensor.float().mean(others) if others else tensor.float()
            pooled.append(torch.nn.functional.normalize(vector, dim=1).cpu())
    return (torch.cat(pooled, dim=1) / max(1, len(pooled) - 1) ** 0.5).numpy()


def color_histogram(frame: NDArray[np.uint8], box: Array) -> NDArray[np.float32]:
    """Square roots of the frequencies of colors in the middle of a box, 70 % of its width and height."""
    x, y, w, h = box
    height, width = frame.shape[:2]
    rows, columns = (
        np.clip(np.floor(start + length * np.linspace(0.15, 0.85, COLOR_SAMPLES)).astype(int), 0, side - 1)
        for start, length, side in ((y, h, height), (x, w, width))
    )
    pixels = np.ascontiguousarray(frame[rows[:, None], columns])
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)  # each in 0..255
    counts, _ = np.histogramdd(lab.clip((0, 68, 68), (255, 187, 187)), COLOR_BINS, COLOR_RANGES)
    for axis in range(3):  # neighboring bins share, so that slight changes of light matter little
        padded = np.pad(counts, [(int(i == axis),) * 2 for i in range(3)], mode="edge")
        low, high = (padded.take(range(k, k + counts.shape[axis]), axis) for k in (0, 2))
        counts = (low + 2 * counts + high) / 4
    return np.sqrt(counts.ravel() / counts.sum()).astype(np.float32)
