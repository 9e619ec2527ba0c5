"""Training pairs from annotated videos: two frames of one video, within a gap."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from correlation_aware.data.draws import Draws
from correlation_aware.data.faults import Faults
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.stills.photometric import PhotometricConfig, alter
from correlation_aware.data.videos.sequences import SequenceSet, Video
from correlation_aware.tracking.crop import Crop

__all__ = ["VideoConfig", "VideoPairs"]

ATTEMPTS = 100  # until a sample is given up for lack of videos that can be used

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoConfig:
    """How two frames become a pair.

    Attributes:
        gap: Most frames between the two.
        negative: Probability of a template from another video.
        scale_jitter: The search picture is e^-jitter .. e^jitter times as wide.
        centre_jitter: Most that the target lies off the middle, in sizes of the target.
        photometric: Light, cameras and codecs; the videos bring most of it, so less than with stills.
    """

    gap: int = 100
    negative: float = 0.0
    scale_jitter: float = 0.25
    centre_jitter: float = 1.4
    photometric: PhotometricConfig = field(
        default_factory=lambda: PhotometricConfig(10.0, 0.2, 0.03, 0.2, 0.05, 0.1, 0.1, 0.0, 0.1)
    )


class _Sample(NamedTuple):
    template: Image
    search: Image
    box: NDArray[np.float64]  # cxcywh in 0..1
    positive: bool


class VideoPairs:
    """An endless source of pairs from videos; batch n depends on the seed and n alone.

    Args:
        sets: Datasets, each with its weight: its share of the pairs.
        batch_size: Pairs a batch.
        template_size: Side of the template in pixels.
        search_size: Side of the search picture in pixels.
        template_factor: Side of the template in sizes of the target (root of its area).
        search_factor: The same of the search picture, before jitter.
        seed: Of everything random.
        device: Where the batches are.
        config: How two frames become a pair.
        faults: Counts what cannot be read; 100 files may fail by default.
        workers: Threads that read pictures; as many as `ThreadPoolExecutor` takes by default.

    Raises:
        ValueError: No dataset, or weights that cannot be used.
    """

    def __init__(
        self,
        sets: Sequence[tuple[SequenceSet, float]],
        batch_size: int,
        template_size: int = 128,
        search_size: int = 256,
        template_factor: float = 2.0,
        search_factor: float = 4.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
        config: VideoConfig | None = None,
        faults: Faults | None = None,
        workers: int | None = None,
    ) -> None:
        if not sets or min(weight for _, weight in sets) < 0 or not any(weight for _, weight in sets):
            raise ValueError("VideoPairs needs datasets with weights, none below 0 and not all 0.")
        self.sets = [dataset for dataset, _ in sets]
        self.weights = torch.tensor([float(weight) for _, weight in sets])
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.template_size, self.search_size = template_size, search_size
        self.template_factor, self.search_factor = template_factor, search_factor
        self.config = config or VideoConfig()
        self.faults = faults or Faults()
        self.workers = workers

    @torch.no_grad()
    def batch(self, number: int) -> PairBatch:
        """Batch `number`, from 0.

        Raises:
            RuntimeError: Too many files cannot be read.
        """
        with ThreadPoolExecutor(self.workers) as threads:
            keys = ((self.seed, number, i + 1) for i in range(self.batch_size))
            samples = list(threads.map(lambda key: self._sample(Draws(*key)), keys))
        draws, n = Draws(self.seed, number), self.batch_size
        noise = torch.Generator(self.device).manual_seed(draws.device_seed)
        grey = draws.chance(self.config.photometric.grey, n)
        pictures = []
        for images in ([s.template for s in samples], [s.search for s in samples]):
            stacked = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
            pixels = stacked.to(torch.float32, memory_format=torch.contiguous_format)
            pictures.append(normalize(alter(pixels, draws, noise, self.config.photometric, grey)))
        boxes = torch.from_numpy(np.stack([s.box for s in samples])).float()
        positive = torch.tensor([s.positive for s in samples])
        return PairBatch(pictures[0], pictures[1], boxes.to(self.device), positive.to(self.device))

    def _sample(self, draws: Draws) -> _Sample:
        """One pair; another one in its place if a file cannot be read."""
        for _ in range(ATTEMPTS):
            positive = not bool(draws.chance(self.config.negative, 1))
            video = self._video(draws)
            other = video if positive else self._video(draws)
            if video is None or other is None or (not positive and video.name == other.name):
                continue
            at = _one_of(draws, np.flatnonzero(video.visible))
            template_at = (
                self._partner(draws, video, at) if positive else _one_of(draws, np.flatnonzero(other.visible))
            )
            template = self._frame(other, template_at)
            search = self._frame(video, at)
            if template is not None and search is not None:
                return self._cut(draws, template, other.boxes[template_at], search, video.boxes[at], positive)
        raise RuntimeError(
            f"No pair could be made in {ATTEMPTS} attempts: too few videos have a visible target, or only "
            "one has and negatives need two."
        )

    def _video(self, draws: Draws) -> Video | None:
        """A video with a visible target, None if its files cannot be read or it has none."""
        number = int(draws.weighted(self.weights, 1))
        index = int(draws.below(torch.tensor([len(self.sets[number])])))
        try:
            video = self.sets[number][index]
        except (OSError, ValueError) as error:
            self.faults.add(f"video {index} of {type(self.sets[number]).__name__}", error)
            return None
        return video if video.visible.any() else None

    def _partner(self, draws: Draws, video: Video, at: int) -> int:
        """Another visible frame within the gap, or the same one if there is none."""
        low, high = max(0, at - self.config.gap), at + self.config.gap + 1
        near = low + np.flatnonzero(video.visible[low:high])
        return _one_of(draws, near[near != at] if len(near) > 1 else near)

    def _frame(self, video: Video, at: int) -> Image | None:
        """A frame, None if it cannot be read or its box lies elsewhere."""
        path, (x, y, w, h) = video.frames[at], video.boxes[at]
        try:
            picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise ValueError("not a picture, or a damaged one")
            if not (0 < x + w / 2 < picture.shape[1] and 0 < y + h / 2 < picture.shape[0]):
                raise ValueError(f"the box {x:g}, {y:g}, {w:g}, {h:g} lies outside of the frame")
        except (OSError, ValueError, cv2.error) as error:
            self.faults.add(str(path), error)
            return None
        return np.asarray(picture, np.uint8)

    def _cut(
        self,
        draws: Draws,
        template: Image,
        template_box: NDArray[np.float64],
        search: Image,
        box: NDArray[np.float64],
        positive: bool,
    ) -> _Sample:
        config = self.config
        z = Crop.around(template_box, self.template_factor).cut(template, self.template_size)
        size = float(np.sqrt(box[2] * box[3]))
        side = size * float(draws.scale(config.scale_jitter, 1))
        reach = min(config.centre_jitter * size, 0.5 * self.search_factor * side - 0.25 * size)
        centre = box[:2] + box[2:] / 2 + draws.uniform(-1, 1, 2).double().numpy() * max(0.0, reach)
        crop = Crop.around([*(centre - side / 2), side, side], self.search_factor)
        x, where = crop.cut(search, self.search_size), crop.to_crop(box)
        if draws.chance(0.5, 1):
            z, x = z[:, ::-1], x[:, ::-1]
            where[0] = 1 - where[0]
        return _Sample(z, x, where, positive)


def _one_of(draws: Draws, numbers: NDArray[np.intp]) -> int:
    return int(numbers[draws.below(torch.tensor([len(numbers)]))])
