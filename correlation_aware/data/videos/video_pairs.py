"""Training pairs from annotated videos: two frames of one video, at most some frames apart."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from correlation_aware._deprecation import renamed_fields
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.photometric import PhotometricConfig, photometric_augment
from correlation_aware.data.videos.sequences import AnnotationError, SequenceSet, Video, read_frame
from correlation_aware.models.contract import Sizes
from correlation_aware.tracking.crop import Crop

__all__ = ["VideoConfig", "VideoPairs"]

ATTEMPTS = 100  # failed attempts at a pair before an error
NO_PAIR = (
    f"No pair was found in {ATTEMPTS} attempts: too few videos have a visible target (negative pairs "
    "need two such videos)."
)

Image = NDArray[np.uint8]


@renamed_fields(centre_jitter="center_jitter")
@dataclass(frozen=True)
class VideoConfig:
    """Sampling and augmentation of pairs from videos.

    Attributes:
        gap: Largest number of frames between template and search image.
        negative: Probability of a template from another video.
        scale_jitter: Largest |log| of the factor of the search crop's side.
        center_jitter: Largest offset of the target from the center of the search image, in sqrt(w * h) of the
            target.
        photometric: Photometric augmentation, weaker than that of stills, as videos vary by themselves.
    """

    gap: int = 100
    negative: float = 0.0
    scale_jitter: float = 0.25
    center_jitter: float = 1.4
    photometric: PhotometricConfig = field(
        default_factory=lambda: PhotometricConfig(
            brightness=10.0,
            contrast=0.2,
            color=0.03,
            tone=0.2,
            gray=0.05,
            shade=0.1,
            blur=0.1,
            noise=0.0,
            codec=0.1,
        )
    )


class _Sample(NamedTuple):
    template: Image
    search: Image
    box: NDArray[np.float64]  # cxcywh in 0..1 of the search image
    positive: bool


class _FrameList(Sequence[Path]):
    """Paths of frames, stored as folder and names: a tenth of the memory of `Path` objects."""

    def __init__(self, paths: Sequence[Path]) -> None:
        folders = {path.parent: str(path.parent) for path in paths[:1]}
        self.folder = next(iter(folders.values()), "")
        self.names = [path.name if path.parent in folders else str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return Path(self.folder, self.names[index])


class _VideoCache:
    """The most recently used videos up to a number of frames; None for a video that is left out."""

    def __init__(self, frames: int = 1_000_000) -> None:
        self.limit, self.frames = frames, 0
        self._videos: OrderedDict[tuple[int, int], Video | None] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a worker process starts with an empty cache

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]

    def get(self, key: tuple[int, int]) -> tuple[bool, Video | None]:
        """Whether the video is in the cache, and the video."""
        with self._lock:
            if key not in self._videos:
                return False, None
            self._videos.move_to_end(key)
            return True, self._videos[key]

    def put(self, key: tuple[int, int], video: Video | None) -> None:
        """Adds a video and removes the least recently used ones beyond the limit."""
        with self._lock:
            if key not in self._videos:
                self.frames += _length(video)
            self._videos[key] = video
            while self.frames > self.limit and len(self._videos) > 1:
                _, removed = self._videos.popitem(last=False)
                self.frames -= _length(removed)


def _length(video: Video | None) -> int:
    return 1 if video is None else len(video.frames)


class VideoPairs:
    """An endless source of pairs from videos. Batch n depends only on the seed and on n.

    Args:
        sets: Datasets with their weights: the share of the pairs that each one provides.
        batch_size: Number of pairs in a batch.
        sizes: Image sizes and crop factors; the search factor applies before the scale jitter.
        seed: Seed of the random number generator.
        device: Device of the batches.
        config: Sampling and augmentation.
        errors: What is left out; by default up to 100 damaged files.
        workers: Number of threads that read images; the default of `ThreadPoolExecutor` if None.

    Raises:
        ValueError: No datasets, or invalid weights.
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
        if not sets or min(weight for _, weight in sets) < 0 or not any(weight for _, weight in sets):
            raise ValueError("VideoPairs needs datasets with weights, none below 0 and not all 0.")
        self.sets = [dataset for dataset, _ in sets]
        self.weights = torch.tensor([float(weight) for _, weight in sets])
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.sizes = sizes or Sizes()
        self.config = config or VideoConfig()
        self.errors = errors or ErrorBudget()
        self.workers = workers
        self.errors.files += sum(map(len, self.sets))
        for dataset in self.sets:
            for name, reason in getattr(dataset, "damaged", {}).items():
                self.errors.add(name, reason)
        self._videos = _VideoCache()

    @torch.no_grad()
    def batch(self, number: int) -> PairBatch:
        """Batch `number`, counted from 0.

        Raises:
            RuntimeError: More unreadable files than `errors` allows, or too few videos with a visible target.
        """
        keys = [(self.seed, number, i + 1) for i in range(self.batch_size)]
        if self.workers == 1:
            samples = [self._sample(KeyedRandom(*key)) for key in keys]
        else:
            with ThreadPoolExecutor(self.workers) as threads:
                samples = list(threads.map(lambda key: self._sample(KeyedRandom(*key)), keys))
        rng, n = KeyedRandom(self.seed, number), self.batch_size
        noise = torch.Generator(self.device).manual_seed(rng.device_seed)
        gray = rng.bernoulli(self.config.photometric.gray, n)
        template, search = (
            normalize(photometric_augment(self._stack(images), rng, noise, self.config.photometric, gray))
            for images in ([s.template for s in samples], [s.search for s in samples])
        )
        boxes = torch.from_numpy(np.stack([s.box for s in samples])).float()
        positive = torch.tensor([s.positive for s in samples])
        return PairBatch(template, search, boxes.to(self.device), positive.to(self.device))

    def _stack(self, images: Sequence[Image]) -> torch.Tensor:
        """(B, 3, H, W) float32 in 0..255, on the device."""
        pixels = rearrange(torch.from_numpy(np.stack(images)).to(self.device), "b h w c -> b c h w")
        return pixels.to(torch.float32, memory_format=torch.contiguous_format)

    def _sample(self, rng: KeyedRandom) -> _Sample:
        """One pair; replaced by another one if a file cannot be read."""
        for _ in range(ATTEMPTS):
            positive = not bool(rng.bernoulli(self.config.negative, 1))
            video = self._video(rng)
            other = video if positive else self._video(rng)
            if video is None or other is None or (not positive and video.name == other.name):
                continue
            at = _one_of(rng, np.flatnonzero(video.visible))
            template_at = (
                self._partner(rng, video, at) if positive else _one_of(rng, np.flatnonzero(other.visible))
            )
            template = self._frame(other, template_at)
            search = self._frame(video, at)
            if template is not None and search is not None:
                return self._crop(rng, template, other.boxes[template_at], search, video.boxes[at], positive)
        raise RuntimeError(NO_PAIR)

    def _video(self, rng: KeyedRandom) -> Video | None:
        """A video with a visible target, None if its files cannot be read or it has none."""
        number = int(rng.multinomial(self.weights, 1))
        index = int(rng.integers(torch.tensor([len(self.sets[number])])))
        known, video = self._videos.get((number, index))
        if not known:
            video = self._read_video(number, index)
            self._videos.put((number, index), video)
        return video

    def _read_video(self, number: int, index: int) -> Video | None:
        dataset = self.sets[number]
        name = f"video {index} of {type(dataset).__name__}"
        try:
            video = dataset[index]
        except AnnotationError as error:
            self.errors.note(name, error)
            return None
        except (OSError, ValueError) as error:
            self.errors.add(name, error)
            return None
        if video.remark:
            self.errors.note(video.name, video.remark)
        if not video.visible.any():
            return None
        paths = [frame for frame in video.frames if isinstance(frame, Path)]  # members of shards are small
        return replace(video, frames=_FrameList(paths)) if len(paths) == len(video.frames) else video

    def _partner(self, rng: KeyedRandom, video: Video, at: int) -> int:
        """Index of another visible frame within the gap, or of the same one if there is none."""
        low, high = max(0, at - self.config.gap), at + self.config.gap + 1
        near = low + np.flatnonzero(video.visible[low:high])
        return _one_of(rng, near[near != at] if len(near) > 1 else near)

    def _frame(self, video: Video, at: int) -> Image | None:
        """A frame, None if it cannot be read or the center of its box is outside it."""
        path, (x, y, w, h) = video.frames[at], video.boxes[at]
        if (name := str(path)) in self.errors:
            return None
        try:
            image = read_frame(path)
        except (OSError, ValueError) as error:
            self.errors.add(name, error)
            return None
        if not (0 < x + w / 2 < image.shape[1] and 0 < y + h / 2 < image.shape[0]):
            self.errors.note(name, f"the center of the box {x:g}, {y:g}, {w:g}, {h:g} is outside the frame")
            return None
        return image

    def _crop(
        self,
        rng: KeyedRandom,
        template: Image,
        template_box: NDArray[np.float64],
        search: Image,
        box: NDArray[np.float64],
        positive: bool,
    ) -> _Sample:
        """Crops both frames, with jitter and a random flip."""
        config, sizes = self.config, self.sizes
        z = Crop.around(template_box, sizes.template_factor).cut(template, sizes.template_size)
        size = float(np.sqrt(box[2] * box[3]))
        side = size * float(rng.log_uniform(config.scale_jitter, 1))
        offset = min(config.center_jitter * size, 0.5 * sizes.search_factor * side - 0.25 * size)
        center = box[:2] + box[2:] / 2 + rng.uniform(-1, 1, 2).double().numpy() * max(0.0, offset)
        crop = Crop.around([*(center - side / 2), side, side], sizes.search_factor)
        x, box = crop.cut(search, sizes.search_size), crop.to_crop(box)
        if rng.bernoulli(0.5, 1):
            z, x = z[:, ::-1], x[:, ::-1]
            box[0] = 1 - box[0]
        return _Sample(z, x, box, positive)


def _one_of(rng: KeyedRandom, indices: NDArray[np.intp]) -> int:
    return int(indices[rng.integers(torch.tensor([len(indices)]))])
