"""All photographs in one tensor on the device, each with its smaller versions (mip levels)."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.data.draws import Draws
from correlation_aware.data.faults import Faults
from correlation_aware.data.stills.files import Still, read_stills
from correlation_aware.data.stills.geometry import OUTLINE_POINTS, Cut, rounded_outline
from correlation_aware.data.stills.objects import (
    clean_mask,
    plain_ground_mask,
    salient_rectangles,
    tight_outline,
)

__all__ = ["LEVELS", "ImagePool", "read_pool"]

LEVELS = 5
RECTANGLES = 8

Image = NDArray[np.uint8]
Array = NDArray[np.floating]


class ImagePool:
    """Photographs of any size, ready to be sampled in batches.

    Args:
        stills: The photographs; all are held in memory, 5.3 bytes a pixel.
        weights: How often each is drawn, relative to the others; alike by default.
        device: Where the pixels live. Everything else stays on the CPU.
        plain_ground: Look for objects before a ground of one colour where a photograph has no mask.

    Attributes:
        pixels: (P,) int32, red, green, blue and alpha in four bytes; alpha is the object's mask, 255
            everywhere where there is none.
        offset, width, height: (N, LEVELS) where each level of each photograph lies in `pixels`.
        mean: (N, 3) colour.
        masked: (N,) bool, there is an object with a mask.
        label: (N,) number of the class, -1 if it is unknown.

    Raises:
        ValueError: No photograph, more than 2^31 pixels, or weights that do not fit.
    """

    def __init__(
        self,
        stills: Iterable[Still],
        weights: Iterable[float] | None = None,
        device: str | torch.device = "cpu",
        plain_ground: bool = True,
    ) -> None:
        pieces: list[NDArray[np.int32]] = []
        entries: list[_Entry] = []
        numbered = enumerate(stills)
        with ThreadPoolExecutor() as threads:
            while chunk := list(islice(numbered, 256)):  # bounds what waits in memory
                for pixels, entry in threads.map(partial(_describe, plain_ground=plain_ground), chunk):
                    pieces.append(pixels)
                    entries.append(entry)
        if not entries:
            raise ValueError("A pool needs one photograph at least.")
        self.pixels = _joined(pieces).to(device)
        sizes = torch.tensor([entry.sizes for entry in entries])
        self.height, self.width = sizes.unbind(2)
        areas = sizes.prod(dim=2).flatten()
        self.offset = (areas.cumsum(0) - areas).view_as(self.width)
        self.mean, self._rectangles, self._boxes, self._outlines = (
            torch.from_numpy(np.stack(column)).float()
            for column in zip(*((e.mean, e.rectangles, e.box, e.outline) for e in entries))
        )
        self.masked = torch.tensor([entry.masked for entry in entries])
        names = {label: i for i, label in enumerate(sorted({entry.label for entry in entries} - {""}))}
        self.label = torch.tensor([names.get(entry.label, -1) for entry in entries])
        self.weights = torch.ones(len(self)) if weights is None else torch.tensor(list(weights)).float()
        if len(self.weights) != len(self) or bool((self.weights < 0).any()) or not self.weights.any():
            raise ValueError(f"{len(self)} photographs need as many weights, none below 0, not all 0.")
        self._by_label = self.label.argsort(stable=True)
        ordered = self.label[self._by_label]
        self._first = torch.searchsorted(ordered, self.label)
        self._alike = torch.searchsorted(ordered, self.label, right=True) - self._first

    def __len__(self) -> int:
        return len(self.label)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def sides(self, pictures: Tensor) -> Tensor:
        """(n, 2) width and height in pixels."""
        return torch.stack([self.width[pictures, 0], self.height[pictures, 0]], dim=1).float()

    def draw(self, draws: Draws, count: int) -> Tensor:
        """(count,) numbers of photographs, by their weights."""
        return draws.weighted(self.weights, count)

    def same_class(self, draws: Draws, pictures: Tensor) -> Tensor:
        """Another photograph of the class of each, or any one where the class or another is unknown."""
        alike = self._by_label[self._first[pictures] + draws.below(self._alike[pictures])]
        unknown = (self.label[pictures] < 0) | (alike == pictures)
        return torch.where(unknown, self.draw(draws, len(pictures)), alike)

    def cuts(self, draws: Draws, pictures: Tensor, objects: float) -> Cut:
        """A target in each of the photographs: its object, or one of its salient rectangles.

        Args:
            draws: The random numbers.
            pictures: (n,) numbers of photographs.
            objects: Probability of the object where there is one.
        """
        n = len(pictures)
        whole = self.sides(pictures)
        rectangle = self._rectangles[pictures, draws.below(torch.full((n,), RECTANGLES))]
        half = torch.minimum(rectangle[:, 2:] / 2 * draws.scale(0.15, n, 2), whole / 2)
        centre = rectangle[:, :2] + rectangle[:, 2:] / 2 + draws.uniform(-0.2, 0.2, n, 2) * half
        centre = torch.maximum(torch.minimum(centre, whole - half), half)
        regions = Cut(pictures, centre, half, rounded_outline(n), torch.zeros(n, dtype=torch.bool))
        box = self._boxes[pictures]
        masked = self.masked[pictures] & draws.chance(objects, n)
        found = Cut(pictures, box[:, :2] + box[:, 2:] / 2, box[:, 2:] / 2, self._outlines[pictures], masked)
        return found.where(masked, regions)


def read_pool(
    sources: Mapping[str, float],
    max_side: int = 400,
    device: str | torch.device = "cpu",
    faults: Faults | None = None,
) -> ImagePool:
    """Reads stills of several sources into one pool.

    Args:
        sources: Folders or tar shards, see `read_stills`, each with its weight: the share of the draws that
            come from it.
        max_side: Larger photographs are shrunk to this many pixels.
        device: Where the pixels live.
        faults: Counts what cannot be read; 100 files may fail by default.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: See `read_stills` and `ImagePool`.
    """
    faults = faults or Faults()
    counts: list[int] = []

    def stills() -> Iterable[Still]:
        for source in sources:
            counts.append(0)
            for still in read_stills(source, max_side, faults):
                counts[-1] += 1
                yield still

    pool = ImagePool(stills(), device=device)
    pool.weights = torch.cat([torch.full((n,), w / n) for n, w in zip(counts, sources.values())])
    return pool


def _joined(pieces: list[NDArray[np.int32]]) -> Tensor:
    """All pieces behind each other; takes them from the list, so that memory never holds them twice."""
    count = sum(map(len, pieces))
    if count >= 2**31:
        raise ValueError(f"{count} pixels are more than a pool can hold, 2^31: lower max_side or take fewer.")
    joined, end = torch.empty(count, dtype=torch.int32), count
    while pieces:
        piece = torch.from_numpy(pieces.pop())
        joined[end - len(piece) : end] = piece
        end -= len(piece)
    return joined


class _Entry(NamedTuple):
    sizes: list[tuple[int, int]]  # height and width of each level
    mean: Array
    rectangles: Array
    masked: bool
    box: Array
    outline: Array
    label: str


def _describe(numbered: tuple[int, Still], plain_ground: bool) -> tuple[NDArray[np.int32], _Entry]:
    """Pixels of all levels, and what else there is to know of a photograph."""
    number, still = numbered
    guess = plain_ground_mask(still.image) if still.mask is None and plain_ground else still.mask
    mask = None if guess is None else clean_mask(guess)
    levels = _levels(still.image, mask)
    box, outline = np.ones(4, np.float32), np.zeros((OUTLINE_POINTS, 2), np.float32)
    if mask is not None:
        box, outline = tight_outline(mask)
    pixels = np.concatenate([level.reshape(-1, 4).view(np.int32)[:, 0] for level in levels])
    return pixels, _Entry(
        sizes=[(level.shape[0], level.shape[1]) for level in levels],
        mean=still.image.reshape(-1, 3).mean(axis=0),
        rectangles=salient_rectangles(still.image, RECTANGLES, np.random.default_rng(number)),
        masked=mask is not None,
        box=box,
        outline=outline,
        label=still.label,
    )


def _levels(image: Image, mask: NDArray[np.bool_] | None) -> list[Image]:
    """Red, green, blue and alpha, (H, W, 4), and each time half of it."""
    alpha = np.full(image.shape[:2], 255, np.uint8)
    if mask is not None:
        alpha = np.asarray(cv2.GaussianBlur((mask * 255).astype(np.uint8), (0, 0), 1.0), np.uint8)
    levels = [np.ascontiguousarray(np.dstack([image, alpha]))]
    while len(levels) < LEVELS:
        big = levels[-1]
        height, width = big.shape[:2]
        even = cv2.copyMakeBorder(big, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        half = cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        levels.append(np.ascontiguousarray(half, np.uint8))
    return levels
