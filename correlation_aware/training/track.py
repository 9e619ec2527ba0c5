"""Training of a tracker: `TrackTraining` in a YAML file, from scratch or from pretrained weights.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from accelerate.utils import set_seed
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.pairs import MixedPairs, PairBatch, PairSource, Renormalized
from correlation_aware.data.stills.pool import read_pool
from correlation_aware.data.stills.still_pairs import StillConfig, StillPairs
from correlation_aware.data.videos.readers import open_set
from correlation_aware.data.videos.video_pairs import VideoConfig, VideoPairs
from correlation_aware.models.tracker import TrackModel
from correlation_aware.training.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, to_yaml
from correlation_aware.training.engine import Trainer, make_accelerator
from correlation_aware.training.losses import LossConfig, best_cell_iou, track_loss
from correlation_aware.weights import load_pretrained
from correlation_aware.zoo import create_model

__all__ = [
    "ClipData",
    "PairBatches",
    "PairData",
    "TrackTraining",
    "make_track_model",
    "make_track_trainer",
    "open_pairs",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairData:
    """Where pairs come from.

    Attributes:
        sources: Folders or tar shards of stills, each with its share of the pairs.
        videos: Annotated videos as `LAYOUT:ROOT`, such as `got10k:datasets/GOT-10k`, each with its share; the
            layouts are those of `correlation_aware.data.videos.readers`.
        batch_size: Pairs of a batch, on each process.
        max_side: Larger photographs are shrunk to this many pixels.
        fault_limit: Files that may be unreadable before the run ends.
        stills: The mix of pairs from stills.
        frames: How two frames of a video become a pair.
    """

    sources: dict[str, float] = field(default_factory=dict)
    videos: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    max_side: int = 320
    fault_limit: int = 100
    stills: StillConfig = field(default_factory=StillConfig)
    frames: VideoConfig = field(default_factory=VideoConfig)


@dataclass(frozen=True)
class ClipData:
    """Synthetic clips to validate on, every `run.validate_every` steps.

    Attributes:
        sources: Folders or tar shards of stills with their shares, best ones that are not trained on.
        count: Number of clips; they are kept in memory, 14 MB each.
        seed: Of everything random.
    """

    sources: dict[str, float] = field(default_factory=dict)
    count: int = 16
    seed: int = 0


@dataclass(frozen=True)
class TrackTraining:
    """A run of `correlation-aware train track`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: PairData = field(default_factory=PairData)
    validation: ClipData = field(default_factory=ClipData)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)


class PairBatches:
    """A source of pairs for the trainer.

    Args:
        pairs: Its batches must depend on their numbers alone.
        batch_size: Of the batches.
        ahead: Make the next batch in a thread; worth it where a GPU trains meanwhile.
    """

    def __init__(self, pairs: PairSource, batch_size: int, ahead: bool = False) -> None:
        self.pairs, self.batch_size, self.ahead = pairs, batch_size, ahead

    def batches(self, start: int, stride: int) -> Iterator[PairBatch]:
        """See `Source.batches`."""
        numbers = count(start, stride)
        if not self.ahead:
            for number in numbers:
                with _one_thread():
                    batch = self.pairs.batch(number)
                yield batch
        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = thread.submit(self.pairs.batch, next(numbers))
            for number in numbers:
                batch = coming.result()
                coming = thread.submit(self.pairs.batch, number)
                yield batch


@contextmanager
def _one_thread() -> Iterator[None]:
    """A batch is hundreds of small operations; on a CPU, threads spend more on waiting than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_track_trainer(
    config: TrackTraining,
    folder: str | Path,
    device: str | None = None,
    pairs: PairSource | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> Trainer:
    """Puts model, data and engine together; `fit` of what it returns runs.

    Args:
        config: The run.
        folder: Where its checkpoints and log go.
        device: `cpu` to keep away from GPUs.
        pairs: Instead of those of `config.data`, whose `batch_size` it must have.
        validate: Scalars of the averaged model for the log, see `RunConfig.validate_every`.

    Raises:
        ValueError: A model without a prediction head, no data, a folder that holds a run.
        FileNotFoundError, ConnectionError, RuntimeError: Data or weights that cannot be had.
    """
    accelerator = make_accelerator(config.run, device)
    set_seed(config.run.seed)
    model = make_track_model(config.model)
    start = config.model.start()
    if start is not None:
        load_pretrained(model, start, partial=True)
    if pairs is None:
        pairs = open_pairs(config, model, accelerator.device)

    # on a CPU the plain form of the attention is quicker to differentiate than the fused one
    plain = accelerator.device.type == "cpu"

    def compute(network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            output = network(batch.template, batch.search)
        loss = track_loss(output, batch.boxes, batch.positive, config.loss)
        parts = {"loss": loss.total, "score": loss.score, "l1": loss.l1, "giou": loss.giou}
        return {**parts, "iou": best_cell_iou(output, batch.boxes, batch.positive)}

    return Trainer(
        model,
        compute,
        PairBatches(pairs, config.data.batch_size, ahead=accelerator.device.type != "cpu"),
        folder,
        accelerator,
        optimizer=config.optimizer,
        schedule=config.schedule,
        run=config.run,
        text=to_yaml(config),
        validate=validate,
    )


def make_track_model(config: ModelConfig) -> TrackModel:
    """The model of a run, with fresh weights.

    Raises:
        ValueError: It has no prediction head, or there is no such model or override.
    """
    model = create_model(config.name, **config.overrides)
    if not isinstance(model, TrackModel):
        name = config.name.partition(".")[0]
        raise ValueError(f"model.name={config.name} has no prediction head; take {name}_track.")
    return model


def open_pairs(config: TrackTraining, model: TrackModel, device: str | torch.device) -> PairSource:
    """The pairs of `config.data` in the sizes that the model is meant for.

    Raises:
        ValueError: No sources are named, or an unknown layout.
        FileNotFoundError, RuntimeError: They cannot be read.
    """
    data, sizes, seed = config.data, model.sizes, config.run.seed
    errors = ErrorBudget(data.fault_limit)
    sources: list[tuple[PairSource, float]] = []
    if data.sources:
        pool = read_pool(data.sources, data.max_side, device, errors)
        stills = StillPairs(pool, data.batch_size, sizes, seed=seed, config=data.stills)
        sources.append((stills, sum(data.sources.values())))
    if data.videos:
        sets = [(open_set(*_layout(name)), share) for name, share in data.videos.items()]
        frames = VideoPairs(
            sets, data.batch_size, sizes, seed=seed, device=device, config=data.frames, errors=errors
        )
        sources.append((frames, sum(data.videos.values())))
    if not sources:
        raise ValueError(
            "data.sources and data.videos are empty: name pictures or videos and their shares, such "
            "as data.sources={photos/: 1.0, shard-000000.tar: 2.0} or data.videos={got10k:GOT-10k/: 1.0}."
        )
    mixed, cfg = MixedPairs(sources, seed), model.pretrained_cfg
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if (mean, std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) and model.in_chans == 3:
        return mixed
    return Renormalized(mixed, mean, std, model.in_chans)


def _layout(name: str) -> tuple[str, str]:
    layout, colon, root = name.partition(":")
    if not colon:
        raise ValueError(f"data.videos: {name!r} is not LAYOUT:ROOT, such as got10k:datasets/GOT-10k.")
    return layout, root
