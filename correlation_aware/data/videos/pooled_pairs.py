"""Training pairs from videos whose frames are in memory: batches of tensor operations on any device."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.photometric import photometric_augment
from correlation_aware.data.stills.files import Still
from correlation_aware.data.stills.geometry import Region, place, rounded_outline
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import sample
from correlation_aware.data.videos.sequences import SequenceSet, Video
from correlation_aware.data.videos.video_pairs import ATTEMPTS, NO_PAIR, Image, VideoConfig, VideoPairs
from correlation_aware.models.contract import Sizes

__all__ = ["PooledVideoPairs"]

# Below the mip level that matches the scale: up to a factor of two, pixels of the full resolution are
# interpolated, as the tracker crops its frames.
MIP_BIAS = -0.5
CHUNK = 32  # videos read at a time
MOST_PIXELS = 1_500_000_000  # with their mip levels below the 2^31 of the pool


class _Place(NamedTuple):
    """Place of a target in the part of its frame that is kept."""

    center: NDArray[np.float64]  # x, y in pixels of the part
    half_size: NDArray[np.float64]  # half its width and height
    number: int  # of the frame in its video


class PooledVideoPairs(VideoPairs):
    """Pairs as those of `VideoPairs`, from frames that are read once and cropped on the device.

    Kept of each frame are the surroundings of the target that a crop can show, downscaled to the resolution
    of the largest crop: up to 4 MB for search images of 256 px, less where the frame is smaller.

    Args:
        sets: Datasets with their weights: the share of the pairs that each one provides.
        batch_size: Number of pairs in a batch.
        sizes: Image sizes and crop factors; the search factor applies before the scale jitter.
        seed: Seed of the random number generator.
        device: Device of the frames and of the batches.
        config: Sampling and augmentation.
        errors: What is left out; by default up to 100 damaged files.
        workers: Number of threads that read images; the default of `ThreadPoolExecutor` if None.

    Raises:
        ValueError: No datasets, invalid weights, or no video with a visible target.
        RuntimeError: More unreadable files than `errors` allows.
    """

    def __init__(
        self,
        sets: Sequence[tuple[SequenceSet, float]],
        batch_size: int,
        sizes: Sizes | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        config: VideoConfig | None = None,
        errors: ErrorBudget | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(sets, batch_size, sizes, seed, device, config, errors, workers)
        places: list[_Place] = []
        names: list[str] = []  # of each video
        counts: list[int] = []  # frames of each video
        weights: list[float] = []  # of each video

        def read() -> Iterator[Still]:
            pixels = 0
            for number, weight in enumerate(self.weights.tolist()):
                before = len(counts)
                for name, video in self._read(number) if weight else ():
                    places.extend(place for _, place in video)
                    names.append(name)
                    counts.append(len(video))
                    pixels += sum(image[..., 0].size for image, _ in video)
                    if pixels > MOST_PIXELS:
                        raise ValueError(
                            f"The frames have more than {MOST_PIXELS:.1e} pixels, the most that are kept in "
                            "memory. Use data.frames_in_memory=false, or fewer videos."
                        )
                    yield from (Still(image) for image, _ in video)
                found = len(counts) - before
                weights.extend([weight / max(1, found)] * found)

        stills = read()
        first = next(stills, None)
        if first is None:
            raise ValueError("The datasets have no video with a visible target.")
        stills = itertools.chain([first], stills)
        self.pool = ImagePool(stills, device=device, plain_background=False, rectangles=False)
        self._video_weights = torch.tensor(weights)
        self._name = torch.from_numpy(np.unique(names, return_inverse=True)[1])
        self._count = torch.tensor(counts)
        self._first = self._count.cumsum(0) - self._count
        self._center, self._half_size = (
            torch.from_numpy(np.stack(values)).float() for values in list(zip(*places))[:2]
        )
        # frames within the gap of each frame are an interval: those of a video are in order
        gap, numbers = self.config.gap, torch.tensor([place.number for place in places])
        videos = list(zip(self._first.tolist(), numbers.split(counts)))
        self._low = torch.cat([first + torch.searchsorted(n, n - gap) for first, n in videos])
        self._high = torch.cat([first + torch.searchsorted(n, n + gap, right=True) for first, n in videos])

    def _read(self, number: int) -> Iterator[tuple[str, list[tuple[Image, _Place]]]]:
        """Name and visible targets of every video of a dataset."""
        indices = range(len(self.sets[number]))
        with ThreadPoolExecutor(self.workers) as threads:
            for start in indices[::CHUNK]:  # limits the decoded images in memory
                read = threads.map(partial(self._read_video, number), indices[start : start + CHUNK])
                videos = [video for video in read if video is not None]
                frames = [(video, at) for video in videos for at in np.flatnonzero(video.visible).tolist()]
                found: dict[int, list[tuple[Image, _Place]]] = {}
                for (video, _), target in zip(frames, threads.map(self._target, *zip(*frames))):
                    if target is not None:
                        found.setdefault(id(video), []).append(target)
                yield from ((video.name, found[id(video)]) for video in videos if id(video) in found)

    def _target(self, video: Video, at: int) -> tuple[Image, _Place] | None:
        """The part of a frame that a search image can show, at the resolution of the largest one."""
        image, box = self._frame(video, at), video.boxes[at]
        if image is None:
            return None
        config, sizes = self.config, self.sizes
        size, jitter = float(np.sqrt(box[2] * box[3])), float(np.exp(config.scale_jitter))
        # half a search image, whose center is less than that far from the target's
        reach = max(size * jitter * sizes.search_factor, size * sizes.template_factor / 2)
        center = box[:2] + box[2:] / 2
        low = np.maximum(np.floor(center - reach), 0).astype(int)
        high = np.minimum(np.ceil(center + reach), image.shape[1::-1]).astype(int)
        part: Any = image[low[1] : high[1], low[0] : high[0]]
        largest = max(sizes.search_size / sizes.search_factor, sizes.template_size / sizes.template_factor)
        shrink = min(1.0, jitter * largest / size)
        old = np.array(part.shape[1::-1])
        new = np.maximum(1, np.round(old * shrink)).astype(int)
        scale = new / old
        if shrink < 1:
            part = cv2.resize(part, tuple(new.tolist()), interpolation=cv2.INTER_AREA)
        else:
            part = part.copy()  # a view would keep the whole frame in memory
        return part, _Place((center - low) * scale, box[2:] / 2 * scale, at)

    @torch.no_grad()
    def batch(self, number: int) -> PairBatch:
        """Batch `number`, counted from 0.

        Raises:
            RuntimeError: Negative pairs of videos that all have one name.
        """
        config, sizes, n = self.config, self.sizes, self.batch_size
        rng = KeyedRandom(self.seed, number)
        noise = torch.Generator(self.device).manual_seed(rng.device_seed)
        video, other, positive = self._draw(rng)
        search = self._first[video] + rng.integers(self._count[video])
        low = self._low[search]
        others = self._high[search] - low - 1  # frames within the gap besides the search image
        partner = low + rng.integers(others.clamp(min=1))
        partner += ((partner >= search) & (others > 0)).long()
        template = torch.where(positive, partner, self._first[other] + rng.integers(self._count[other]))
        flip = rng.bernoulli(0.5, n)
        at, scale = self._place(rng, search)
        z_scale = sizes.template_size / (sizes.template_factor * self._size(template))
        z_at = torch.full((n, 2), sizes.template_size / 2)
        gray = rng.bernoulli(config.photometric.gray, n)
        z, x = (
            normalize(photometric_augment(pixels, rng, noise, config.photometric, gray))
            for pixels in (
                self._cut(template, z_at, z_scale, flip, sizes.template_size),
                self._cut(search, at, scale, flip, sizes.search_size),
            )
        )
        boxes = torch.cat([at, 2 * self._half_size[search] * scale[:, None]], dim=1) / sizes.search_size
        return PairBatch(z, x, boxes.to(self.device), positive.to(self.device))

    def _draw(self, rng: KeyedRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Videos (n,), others (n,) for the templates of negatives, and which pairs are positive (n,)."""
        n = self.batch_size
        video, other, positive = torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool()
        left = torch.arange(n)
        for _ in range(ATTEMPTS):  # a negative of one video is drawn again
            positive[left] = ~rng.bernoulli(self.config.negative, len(left))
            for videos in (video, other):
                videos[left] = rng.multinomial(self._video_weights, len(left))
            left = (~positive & (self._name[video] == self._name[other])).nonzero()[:, 0]
            if not len(left):
                return video, other, positive
        raise RuntimeError(NO_PAIR)

    def _cut(self, frames: Tensor, at: Tensor, scale: Tensor, flip: Tensor, size: int) -> Tensor:
        """(n, 3, size, size) in 0..255, in which the targets are `at` these pixels."""
        n, half_size = len(frames), self._half_size[frames]
        unmasked = torch.zeros(n, dtype=torch.bool)
        region = Region(frames, self._center[frames], half_size, rounded_outline(n), unmasked)
        placement = place(half_size, at, scale, flip=flip)
        return sample(self.pool, region, placement, (size, size), torch.full((n,), MIP_BIAS)).rgb

    def _size(self, frames: Tensor) -> Tensor:
        """(n,) square root of the target's area in pixels of its image."""
        return 2 * self._half_size[frames].prod(dim=1).sqrt()

    def _place(self, rng: KeyedRandom, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Position (n, 2) of the targets in the search images, in pixels, and scale (n,) of the frames."""
        config, sizes, n = self.config, self.sizes, len(frames)
        jitter = rng.log_uniform(config.scale_jitter, n)
        scale = sizes.search_size / (sizes.search_factor * self._size(frames) * jitter)
        # in sizes of the target: most of it stays in the image
        offset = (0.5 * sizes.search_factor * jitter - 0.25).clamp(min=0, max=config.center_jitter)
        shift = rng.uniform(-1, 1, n, 2) * (offset * self._size(frames) * scale)[:, None]
        return sizes.search_size / 2 - shift, scale
