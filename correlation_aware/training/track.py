"""Training of a tracker on pairs, from random or pretrained weights, configured by `TrackTraining`.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import set_seed
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from correlation_aware.data.check import summarize_videos
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.pairs import MixedPairs, PairBatch, PairSource, Renormalized
from correlation_aware.data.stills.pool import read_pool
from correlation_aware.data.stills.still_pairs import StillConfig, StillPairs
from correlation_aware.data.videos.pooled_pairs import PooledVideoPairs
from correlation_aware.data.videos.sequences import SequenceSet
from correlation_aware.data.videos.subsets import VideoSet, names_of, open_videos, shorten
from correlation_aware.data.videos.training_data import describe_videos, merge_records
from correlation_aware.data.videos.video_pairs import VideoConfig, VideoPairs
from correlation_aware.models.tracker import TrackModel
from correlation_aware.training.batches import PairBatches
from correlation_aware.training.config import (
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    check_values,
    to_yaml,
)
from correlation_aware.training.engine import Trainer
from correlation_aware.training.losses import LossConfig, best_location_iou, track_loss
from correlation_aware.training.processes import make_accelerator
from correlation_aware.training.start import load_start

__all__ = [
    "PairData",
    "TrackTraining",
    "ValidationData",
    "held_out_videos",
    "make_track_model",
    "make_track_trainer",
    "open_pairs",
]

PER_SOURCE = ("loss", "iou")  # figures of each source in the log, where there are several
REMOTE_THREADS = 8  # that read frames over the network
SUMMARIZED = 200  # videos of a dataset that the summary at the start of a run reads

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairData:
    """Training pairs.

    Attributes:
        sources: Folders or tar shards of still photographs, with their weights in the mix of pairs.
        videos: Annotated videos as `LAYOUT:ROOT`, such as `got10k:datasets/GOT-10k`, with their weights in
            the mix, or with the keys of `VideoSet`; layouts are those of
            `correlation_aware.data.videos.readers`.
        batch_size: Pairs per batch and process.
        cache: Folder that keeps the analyzed photographs: they are read once, and processes and runs share
            them; null to keep them in the memory of every process.
        max_side: Maximum height and width of a photograph in pixels; larger ones are downscaled.
        frames_in_memory: Whether the frames of the videos are read once, at the start, and kept on the device
            of the pairs, where they are cropped: for a GPU and videos that fit, see `PooledVideoPairs`.
        workers: Processes per training process that prepare batches on the CPU; 0 to prepare them in the
            training process, on its device.
        worker_start: How these processes start: `fork`, which shares photographs in memory, or `spawn`, which
            a process needs that has used PyTorch's threads before; null for `fork` on Linux.
        fault_limit: Number of distinct damaged files that are left out, or below 1 a share of the photographs
            and videos; more end the run.
        stills: Configuration of the pairs from photographs.
        frames: Configuration of the pairs from two frames of a video.
    """

    sources: dict[str, float] = field(default_factory=dict)
    videos: dict[str, VideoSet] = field(default_factory=dict)
    batch_size: int = 32
    cache: str | None = None
    max_side: int = 320
    frames_in_memory: bool = False
    workers: int = 0
    worker_start: Literal["fork", "spawn"] | None = None
    fault_limit: float = 100
    stills: StillConfig = field(default_factory=StillConfig)
    frames: VideoConfig = field(default_factory=VideoConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "videos", {name: VideoSet.of(part) for name, part in self.videos.items()})
        check_values("data", self, sources=(0, math.inf), batch_size=(1, math.inf), max_side=(16, math.inf))
        if self.frames_in_memory and not self.videos:
            raise ValueError("data.frames_in_memory=true has no effect without data.videos: remove it.")
        check_values("data", self, workers=(0, math.inf), fault_limit=(0, math.inf))
        sizes = dict.fromkeys(("gap", "scale_jitter", "center_jitter"), (0.0, math.inf))
        check_values("data.frames", self.frames, negative=(0, 1), **sizes)
        probabilities = {name: (0.0, 1.0) for name in vars(self.stills) if name != "photometric"}
        check_values("data.stills", self.stills, **{**probabilities, "scale_jitter": (0, math.inf)})
        surroundings = self.stills.black + self.stills.mean + self.stills.reflect
        if surroundings > 1.000001:
            raise ValueError(
                "data.stills: black, mean and reflect are parts of all cases; their sum "
                f"{surroundings:g} must be at most 1."
            )
        for section, config in (("frames", self.frames), ("stills", self.stills)):
            strengths = dict.fromkeys(("brightness", "contrast", "color"), (0.0, math.inf))
            limits = {**dict.fromkeys(vars(config.photometric), (0.0, 1.0)), **strengths}
            check_values(f"data.{section}.photometric", config.photometric, **limits)


@dataclass(frozen=True)
class ValidationData:
    """Annotated videos and synthetic clips for validation, every `run.validate_every` steps.

    The weights with the highest average overlap, on the videos if there are some, are kept in
    `checkpoints/best`.

    Attributes:
        videos: Annotated videos as `LAYOUT:ROOT` with the keys of `VideoSet`, such as
            `{got10k:GOT-10k: {subset: val}}`; not those of the training data.
        video_count: Number of videos of each dataset, spread evenly; 0 for all.
        sources: Folders or tar shards of photographs with their weights; not those of the training data.
        count: Number of clips, which stay in memory, 14 MB each.
        seed: Seed of the random number generator.
    """

    videos: dict[str, VideoSet] = field(default_factory=dict)
    video_count: int = 0
    sources: dict[str, float] = field(default_factory=dict)
    count: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "videos", {name: VideoSet.of(part) for name, part in self.videos.items()})
        for name, part in self.videos.items():
            if part.weight != 1:
                raise ValueError(f"validation.videos: {name} has weight {part.weight:g}, without an effect.")
        check_values("validation", self, video_count=(0, math.inf), count=(1, math.inf), seed=(0, math.inf))
        check_values("validation", self, sources=(0, math.inf))


@dataclass(frozen=True)
class TrackTraining:
    """Configuration of `correlation-aware train track`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: PairData = field(default_factory=PairData)
    validation: ValidationData = field(default_factory=ValidationData)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)


def make_track_trainer(
    config: TrackTraining,
    folder: str | Path,
    device: str | None = None,
    pairs: PairSource | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> Trainer:
    """Builds the trainer of a tracker; its `fit` starts the training.

    Args:
        config: Configuration of the run.
        folder: Output folder of checkpoints and log.
        device: `cpu` to train on the CPU even if there is a GPU.
        pairs: Source of pairs that replaces the one of `config.data`, with its `batch_size`.
        validate: Function from the averaged model to scalars for the log, see `RunConfig.validate_every`.

    Raises:
        ValueError: A model without a prediction head, or no data.
        FileNotFoundError, ConnectionError, RuntimeError: Data or weights that cannot be downloaded or read.
    """
    accelerator = make_accelerator(config.run, device)
    set_seed(config.run.seed)
    model = make_track_model(config.model)
    load_start(model, config.model)
    errors = ErrorBudget(config.data.fault_limit)
    workers = config.data.workers
    videos = {name: open_videos(name, part) for name, part in config.data.videos.items()}
    if pairs is None:
        device_of_pairs = "cpu" if workers else accelerator.device
        is_main = accelerator.is_main_process
        pairs = open_pairs(config, model, device_of_pairs, errors, describe=is_main, videos=videos)
    records = [describe_videos(name, config.data.videos[name], dataset) for name, dataset in videos.items()]
    model.training_data = merge_records(model.training_data, records)

    names: list[str] = getattr(pairs, "names", [])
    # on a CPU the backward pass of the unfused attention is faster than that of the fused one
    unfused = accelerator.device.type == "cpu"

    def compute(network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH) if unfused else nullcontext():
            output = network(batch.template, batch.search)
        loss = track_loss(output, batch.boxes, batch.positive, config.loss)
        terms = {"loss": loss.total, "score": loss.score, "l1": loss.l1, "giou": loss.giou}
        values = {**terms, "iou": best_location_iou(output, batch.boxes, batch.positive)}
        if len(names) > 1:
            name = names[int(batch.source)]
            values |= {f"{key}_{name}": values[key].detach() for key in PER_SOURCE}
        return values

    return Trainer(
        model,
        compute,
        PairBatches(
            pairs,
            config.data.batch_size,
            accelerator.device.type != "cpu",
            workers,
            errors,
            config.data.worker_start,
        ),
        folder,
        accelerator,
        optimizer=config.optimizer,
        schedule=config.schedule,
        run=config.run,
        text=to_yaml(config),
        validate=validate,
        best="video_ao" if config.validation.videos else "ao",
        optional=[f"{key}_{name}" for key in PER_SOURCE for name in names] if len(names) > 1 else (),
    )


def held_out_videos(config: TrackTraining) -> list[SequenceSet]:
    """Opens the datasets of `validation.videos`.

    Raises:
        ValueError: A video is in the training data too, or a dataset that cannot be opened.
    """
    sets = []
    for location, part in config.validation.videos.items():
        dataset = open_videos(location, part)
        if location in config.data.videos:
            trained = set(names_of(open_videos(location, config.data.videos[location])))
            if shared := [name for name in names_of(dataset) if name in trained]:
                raise ValueError(
                    f"validation.videos: {len(shared)} videos of {location} are in data.videos too "
                    f"({shorten(shared)}). Exclude them there, with `exclude`."
                )
        sets.append(dataset)
    return sets


def make_track_model(config: ModelConfig) -> TrackModel:
    """Creates the model of a run with random weights.

    Raises:
        ValueError: A model without a prediction head, an unknown model, or an unknown override.
    """
    model = config.create()
    if not isinstance(model, TrackModel):
        name = config.name.partition(".")[0]
        raise ValueError(f"model.name={config.name} has no prediction head; use {name}_track.")
    return model


def open_pairs(
    config: TrackTraining,
    model: TrackModel,
    device: str | torch.device,
    errors: ErrorBudget | None = None,
    describe: bool = False,
    videos: Mapping[str, SequenceSet] | None = None,
) -> PairSource:
    """Opens the pairs of `config.data`, with the sizes, crop factors and normalization of the model.

    Args:
        config: Configuration of the run.
        model: Model to train.
        device: Device on which pairs are made.
        errors: What is left out; by default as many damaged files as `data.fault_limit` allows.
        describe: Whether to log a summary of every dataset of videos, of up to 200 of its videos.
        videos: The datasets of `config.data.videos`, if they are open already.

    Raises:
        ValueError: No data, or an unknown layout.
        FileNotFoundError, RuntimeError: Data that cannot be read.
    """
    data, sizes, seed = config.data, model.sizes, config.run.seed
    errors = errors or ErrorBudget(data.fault_limit)
    # each source has random numbers of its own: with the same ones the choice of the source would decide them
    still_seed, video_seed = 3 * seed + 1, 3 * seed + 2
    sources: list[tuple[PairSource, float]] = []
    names = [name for name, used in (("stills", data.sources), ("videos", data.videos)) if used]
    if data.sources:
        pool = read_pool(data.sources, data.max_side, device, errors, data.cache)
        stills = StillPairs(pool, data.batch_size, sizes, seed=still_seed, config=data.stills)
        sources.append((stills, sum(data.sources.values())))
    if data.videos:
        opened = videos or {name: open_videos(name, part) for name, part in data.videos.items()}
        sets = [(opened[name], part.weight) for name, part in data.videos.items()]
        for name, (dataset, _) in zip(data.videos, sets) if describe else ():
            summary = summarize_videos(name, dataset, limit=SUMMARIZED)
            for line in summary.text():
                _logger.log(logging.WARNING if line.startswith("  WRONG") else logging.INFO, "%s", line)
        remote = any("://" in name for name in data.videos)  # the time of a frame is that of a request
        frames = (PooledVideoPairs if data.frames_in_memory else VideoPairs)(
            sets,
            data.batch_size,
            sizes,
            seed=video_seed,
            device=device,
            config=data.frames,
            errors=errors,
            workers=REMOTE_THREADS if remote else 1 if data.workers else None,
        )
        sources.append((frames, sum(part.weight for part in data.videos.values())))
    if not sources:
        raise ValueError(
            "data.sources and data.videos are empty: name photographs or videos with their weights, such "
            "as data.sources={photos/: 1.0, shard-000000.tar: 2.0} or data.videos={got10k:GOT-10k/: 1.0}."
        )
    return normalized_for(model, MixedPairs(sources, 3 * seed, names))


def normalized_for(model: TrackModel, pairs: PairSource) -> PairSource:
    """A source of pairs with the normalization and the channels of a model instead of ImageNet's."""
    mean, std = tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])
    if (mean, std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) and model.in_chans == 3:
        return pairs
    return Renormalized(pairs, mean, std, model.in_chans)
