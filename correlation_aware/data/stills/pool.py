"""A pool of photographs in one tensor on the device, each at several resolutions (mip levels)."""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.stills.files import Still, read_stills
from correlation_aware.data.stills.geometry import OUTLINE_POINTS, Region, rounded_outline
from correlation_aware.data.stills.objects import (
    clean_mask,
    plain_background_mask,
    salient_rectangles,
    tight_outline,
)
from correlation_aware.data.stills.pool_cache import Write, cached

__all__ = ["LEVELS", "ImagePool", "analyze", "read_pool"]

LEVELS = 5  # mip levels of a photograph
RECTANGLES = 8  # salient rectangles of a photograph

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Array = NDArray[np.floating]


class ImagePool:
    """Photographs of any size in memory, to be sampled in batches.

    Args:
        stills: Photographs; each takes 5.3 bytes per pixel.
        weights: Relative sampling frequency of each photograph; equal by default.
        device: Device of the pixels. All other tensors are on the CPU.
        plain_background: Whether to segment objects on a plain background where a photograph has no mask.
        rectangles: Whether to find salient rectangles, without which `sample_regions` has objects alone.

    Attributes:
        pixels: (P,) int32, red, green, blue and alpha packed into four bytes. Alpha is the object's mask, or
            255 everywhere in a photograph without a mask.
        offset: (N, LEVELS) index in `pixels` of the first pixel of each level of each photograph.
        width: (N, LEVELS) width of each level in pixels.
        height: (N, LEVELS) height of each level in pixels.
        mean: (N, 3) mean color in 0..255.
        masked: (N,) bool, whether the photograph has an object with a mask.
        label: (N,) index of the class, -1 if unknown.
        weights: (N,) relative sampling frequency.

    Raises:
        ValueError: No photographs, more than 2^31 pixels in memory, or invalid weights.
    """

    def __init__(
        self,
        stills: Iterable[Still],
        weights: Iterable[float] | None = None,
        device: str | torch.device = "cpu",
        plain_background: bool = True,
        rectangles: bool = True,
    ) -> None:
        pieces: list[NDArray[np.int32]] = []
        table = analyze(stills, pieces.append, plain_background, rectangles)
        self._fill(_concatenate(pieces).to(device), table, weights)

    @classmethod
    def analyzed(cls, pixels: Tensor, table: Mapping[str, Tensor]) -> "ImagePool":
        """The pool of photographs that were analyzed before.

        Args:
            pixels: (P,) int32, see `ImagePool`.
            table: Result of `analyze`.
        """
        pool = cls.__new__(cls)
        pool._fill(pixels, table, None)
        return pool

    def _fill(self, pixels: Tensor, table: Mapping[str, Tensor], weights: Iterable[float] | None) -> None:
        self.pixels = pixels
        self.height, self.width = table["sizes"].unbind(2)
        areas = table["sizes"].prod(dim=2).flatten()
        self.offset = (areas.cumsum(0) - areas).view_as(self.width)
        self.mean, self._rectangles = table["mean"], table["rectangles"]
        self._boxes, self._outlines = table["box"], table["outline"]
        self.masked, self.label = table["masked"], table["label"]
        self.weights = torch.ones(len(self)) if weights is None else torch.tensor(list(weights)).float()
        if len(self.weights) != len(self) or bool((self.weights < 0).any()) or not self.weights.any():
            raise ValueError(f"{len(self)} photographs need {len(self)} weights, none below 0 and not all 0.")
        self._by_label = self.label.argsort(stable=True)
        ordered = self.label[self._by_label]
        self._first = torch.searchsorted(ordered, self.label)
        self._class_size = torch.searchsorted(ordered, self.label, right=True) - self._first

    def __len__(self) -> int:
        return len(self.label)

    @property
    def device(self) -> torch.device:
        """Device of the pixels."""
        return self.pixels.device

    def sizes(self, images: Tensor) -> Tensor:
        """(n, 2) width and height in pixels of photographs (n,)."""
        return torch.stack([self.width[images, 0], self.height[images, 0]], dim=1).float()

    def sample_images(self, rng: KeyedRandom, count: int) -> Tensor:
        """(count,) indices of random photographs, by their weights."""
        return rng.multinomial(self.weights, count)

    def sample_same_class(self, rng: KeyedRandom, images: Tensor) -> Tensor:
        """(n,) indices of other photographs of the same classes as `images` (n,).

        A photograph of any class takes the place where the class is unknown or has no other photograph.
        """
        alike = self._by_label[self._first[images] + rng.integers(self._class_size[images])]
        unknown = (self.label[images] < 0) | (alike == images)
        return torch.where(unknown, self.sample_images(rng, len(images)), alike)

    def sample_regions(self, rng: KeyedRandom, images: Tensor, objects: float) -> Region:
        """A target region in each photograph: its object, or one of its salient rectangles.

        Args:
            rng: Random number generator.
            images: (n,) indices of photographs.
            objects: Probability of the object where the photograph has one.
        """
        n = len(images)
        image_size = self.sizes(images)
        rectangle = self._rectangles[images, rng.integers(torch.full((n,), RECTANGLES))]
        half_size = torch.minimum(rectangle[:, 2:] / 2 * rng.log_uniform(0.15, n, 2), image_size / 2)
        center = rectangle[:, :2] + rectangle[:, 2:] / 2 + rng.uniform(-0.2, 0.2, n, 2) * half_size
        center = torch.maximum(torch.minimum(center, image_size - half_size), half_size)
        unmasked = torch.zeros(n, dtype=torch.bool)
        rectangles = Region(images, center, half_size, rounded_outline(n), unmasked)
        box = self._boxes[images]
        masked = self.masked[images] & rng.bernoulli(objects, n)
        half_size = box[:, 2:] / 2
        masks = Region(images, box[:, :2] + half_size, half_size, self._outlines[images], masked)
        return masks.where(masked, rectangles)


def read_pool(
    sources: Mapping[str, float],
    max_side: int = 400,
    device: str | torch.device = "cpu",
    errors: ErrorBudget | None = None,
    cache: str | Path | None = None,
) -> ImagePool:
    """Reads photographs of several sources into one pool.

    Args:
        sources: Folders or tar shards, see `read_stills`, with their weights: the share of the samples from
            each source.
        max_side: Longest side in pixels; larger photographs are downscaled.
        device: Device of the pixels.
        errors: What is left out; by default up to 100 damaged files.
        cache: Folder that keeps the analyzed photographs for other processes and runs, see `pool_cache`; None
            to keep them in the memory of this process.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: See `read_stills` and `ImagePool`.
    """
    errors = errors or ErrorBudget()
    if cache is None:
        counts: list[int] = []
        pool = ImagePool(_read_all(sources, max_side, errors, counts), device=device)
    else:

        def run(counts: list[int], write: Write) -> dict[str, Tensor]:
            return analyze(_read_all(sources, max_side, errors, counts), write)

        pixels, table, counts = cached(sources, max_side, errors, cache, run)
        pool = ImagePool.analyzed(pixels.to(device), table)
    for source, count in zip(sources, counts):
        _log.info("%s: %d photographs", source, count)
    pool.weights = torch.cat([torch.full((n,), w / n) for n, w in zip(counts, sources.values())])
    return pool


def _read_all(
    sources: Iterable[str], max_side: int, errors: ErrorBudget, counts: list[int]
) -> Iterable[Still]:
    """All photographs; the number of each source is appended to `counts`."""
    for source in sources:
        counts.append(0)
        for still in read_stills(source, max_side, errors):
            counts[-1] += 1
            yield still


def analyze(
    stills: Iterable[Still], write: Write, plain_background: bool = True, rectangles: bool = True
) -> dict[str, Tensor]:
    """Finds objects and salient regions of N photographs.

    Args:
        stills: Photographs.
        write: Function that takes the packed pixels of every photograph, in order.
        plain_background: See `ImagePool`.
        rectangles: See `ImagePool`.

    Returns:
        Columns with a row for every photograph: `sizes` (N, LEVELS, 2), height and width; `mean` (N, 3);
        `rectangles` (N, RECTANGLES, 4) and `box` (N, 4) xywh; `outline` (N, OUTLINE_POINTS, 2); `masked` and
        `label` (N,).

    Raises:
        ValueError: No photographs.
    """
    entries: list[_Entry] = []
    numbered = enumerate(stills)
    prepare = partial(_prepare, plain_background=plain_background, rectangles=rectangles)
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(numbered, 256)):  # limits the decoded images in memory
            for pixels, entry in threads.map(prepare, chunk):
                write(pixels)
                entries.append(entry)
    if not entries:
        raise ValueError("The pool has no photographs: pass at least one.")
    names = {label: i for i, label in enumerate(sorted({entry.label for entry in entries} - {""}))}
    columns = ("mean", "rectangles", "box", "outline")
    return {
        "sizes": torch.tensor([entry.sizes for entry in entries]),
        **{
            name: torch.from_numpy(np.stack([getattr(entry, name) for entry in entries])).float()
            for name in columns
        },
        "masked": torch.tensor([entry.masked for entry in entries]),
        "label": torch.tensor([names.get(entry.label, -1) for entry in entries]),
    }


def _concatenate(pieces: list[NDArray[np.int32]]) -> Tensor:
    """Concatenates the pieces and empties the list, so that memory never holds all pixels twice."""
    count = sum(map(len, pieces))
    if count >= 2**31:
        raise ValueError(
            f"The photographs have {count} pixels, and memory holds 2^31 at most: set data.cache to a "
            "folder, which keeps them on disk, lower max_side or pass fewer photographs."
        )
    pixels, end = torch.empty(count, dtype=torch.int32), count
    while pieces:
        piece = torch.from_numpy(pieces.pop())
        pixels[end - len(piece) : end] = piece
        end -= len(piece)
    return pixels


class _Entry(NamedTuple):
    sizes: list[tuple[int, int]]  # height and width of each level
    mean: Array  # (3,)
    rectangles: Array  # (RECTANGLES, 4) xywh in pixels
    masked: bool
    box: Array  # (4,) xywh in pixels
    outline: Array  # (OUTLINE_POINTS, 2) in region coordinates
    label: str  # name of the class, "" if unknown


def _prepare(
    numbered: tuple[int, Still], plain_background: bool, rectangles: bool
) -> tuple[NDArray[np.int32], _Entry]:
    """Packed pixels of all levels of a photograph, and its entry of the pool."""
    number, still = numbered
    raw_mask = plain_background_mask(still.image) if still.mask is None and plain_background else still.mask
    mask = None if raw_mask is None else clean_mask(raw_mask)
    levels = _levels(still.image, mask)
    box, outline = np.ones(4, np.float32), np.zeros((OUTLINE_POINTS, 2), np.float32)
    if mask is not None:
        box, outline = tight_outline(mask)
    pixels = np.concatenate([level.reshape(-1, 4).view(np.int32)[:, 0] for level in levels])
    salient = np.ones((RECTANGLES, 4), np.float32)
    if rectangles:
        salient = salient_rectangles(still.image, RECTANGLES, np.random.default_rng(number))
    return pixels, _Entry(
        sizes=[(level.shape[0], level.shape[1]) for level in levels],
        mean=still.image.reshape(-1, 3).mean(axis=0),
        rectangles=salient,
        masked=mask is not None,
        box=box,
        outline=outline,
        label=still.label,
    )


def _levels(image: Image, mask: NDArray[np.bool_] | None) -> list[Image]:
    """RGBA images (H, W, 4), uint8, each of half the size of the one before."""
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
