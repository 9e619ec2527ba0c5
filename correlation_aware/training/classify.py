"""ImageNet pretraining of `_cls` models as in the paper, with timm's transforms, mixup and losses."""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from timm.data import ImageDataset, Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from correlation_aware.training.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, to_yaml
from correlation_aware.training.engine import Trainer, make_accelerator
from correlation_aware.training.shards import ShardReader
from correlation_aware.weights import load_pretrained
from correlation_aware.zoo import create_model

__all__ = ["ClassifyTraining", "ImageBatch", "ImageData", "Images", "TeacherConfig", "make_classify_trainer"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """Labelled pictures, and how they are changed in training.

    Attributes:
        train: A folder with a folder of pictures per class, or tar shards such as
            `train-{000000..001281}.tar`, see `ShardReader`.
        val: The same for validation, if there is any.
        batch_size: Pictures of a batch, on each process.
        size: Side of the pictures in pixels.
        workers: Processes that read pictures, for each process that trains.
        auto_augment: timm's policy, such as `rand-m9-mstd0.5-inc1`; none if null.
        erase: Probability of random erasing.
        mixup: Alpha of mixup, 0 for none.
        cutmix: Alpha of CutMix, 0 for none.
        smoothing: Label smoothing.
    """

    train: str = ""
    val: str | None = None
    batch_size: int = 128
    size: int = 224
    workers: int = 8
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation: the labels are blended with a teacher's.

    Attributes:
        name: A model of timm with the same classes; none if null.
        checkpoint: A file with its weights, instead of timm's pretrained ones.
        share: Of the teacher in the loss.
        temperature: Divides both logits.
    """

    name: str | None = None
    checkpoint: str | None = None
    share: float = 0.5
    temperature: float = 1.0


@dataclass(frozen=True)
class ClassifyTraining:
    """A run of `correlation-aware train classify`."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="sbt_light_cls"))
    data: ImageData = field(default_factory=ImageData)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, backbone_lr=1e-3, weight_decay=0.05, ema=0.9999)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(steps=375_000, warmup=6_250))
    run: RunConfig = field(default_factory=RunConfig)


class ImageBatch(NamedTuple):
    """B pictures (B, 3, H, W) and their classes (B,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "ImageBatch":
        return ImageBatch(*(t.to(device, non_blocking=True) for t in self))


class Images:
    """Batches in random order, epoch after epoch; batch n depends on the seed and n alone.

    Args:
        dataset: Pairs of a picture's tensor and its class.
        batch_size: Pictures of a batch; what is left over at an epoch's end opens the next epoch.
        workers: Processes that read.
        seed: Of the order and of what the transforms draw.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, workers: int = 0, seed: int = 0) -> None:
        self.dataset, self.batch_size, self.workers, self.seed = dataset, batch_size, workers, seed

    def batches(self, start: int, stride: int) -> Iterator[ImageBatch]:
        """See `Source.batches`."""
        length: int = len(self.dataset)  # type: ignore[arg-type]
        order = _Order(length, self.batch_size, self.seed, start, stride)
        seeded = _Seeded(self.dataset, self.seed)
        generator = torch.Generator().manual_seed(self.seed)  # otherwise the loader draws from the global one
        for images, labels in DataLoader(
            seeded, batch_sampler=order, num_workers=self.workers, generator=generator
        ):
            yield ImageBatch(images, labels)


def make_classify_trainer(config: ClassifyTraining, folder: str | Path, device: str | None = None) -> Trainer:
    """Puts model, data and engine together; `fit` of what it returns runs.

    Args:
        config: The run.
        folder: Where its checkpoints and log go.
        device: `cpu` to keep away from GPUs.

    Raises:
        ValueError: A model that does not classify.
        FileNotFoundError: No pictures.
    """
    data = config.data
    accelerator = make_accelerator(config.run, device)
    transform = create_transform(
        data.size, is_training=True, auto_augment=data.auto_augment, re_prob=data.erase, re_mode="pixel"
    )
    dataset = _open_images("data.train", data.train, transform)
    classes = len(dataset.reader.class_to_idx)
    set_seed(config.run.seed)
    model = create_model(config.model.name, **{"num_classes": classes, **config.model.overrides})
    start = config.model.start()
    if start is not None:
        load_pretrained(model, start, partial=True)
    mix = None
    if data.mixup or data.cutmix:
        mix = Mixup(data.mixup, data.cutmix, label_smoothing=data.smoothing, num_classes=classes)
    teacher = _open_teacher(config.teacher, classes, accelerator.device)
    cross_entropy = SoftTargetCrossEntropy()

    def compute(network: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        images, labels = batch
        if mix is not None and len(images) % 2 == 0:  # it mixes pairs
            images, targets = mix(images, labels)
        else:
            targets = F.one_hot(labels, classes) * (1 - data.smoothing) + data.smoothing / classes
        logits = network(images).float()
        loss = cross_entropy(logits, targets)
        if teacher is None:
            return {"loss": loss}
        t, share = config.teacher.temperature, config.teacher.share
        with torch.no_grad(), accelerator.autocast():
            wanted = (teacher(images).float() / t).softmax(dim=1)
        distilled = t * t * F.kl_div((logits / t).log_softmax(dim=1), wanted, reduction="batchmean")
        return {"loss": (1 - share) * loss + share * distilled, "labels": loss, "teacher": distilled}

    return Trainer(
        model,
        compute,
        Images(dataset, data.batch_size, data.workers, config.run.seed),
        folder,
        accelerator,
        optimizer=config.optimizer,
        schedule=config.schedule,
        run=config.run,
        text=to_yaml(config),
        validate=None if data.val is None else _Accuracy(data, dataset.reader.class_to_idx),
        unit="images",
    )


def _open_images(
    key: str, where: str, transform: Any, class_to_idx: dict[str, int] | None = None
) -> ImageDataset:
    if where.endswith(".tar"):
        reader = ShardReader(where)
        if class_to_idx is not None and len(reader.class_to_idx) > len(class_to_idx):
            raise ValueError(
                f"{key}={where!r} has classes up to {len(reader.class_to_idx) - 1}, "
                f"data.train up to {len(class_to_idx) - 1}."
            )
        return ImageDataset(None, reader=reader, transform=transform)
    if not where or not Path(where).is_dir():
        raise FileNotFoundError(
            f"{key}={where!r} is neither a folder, with a folder of pictures per class, nor tar shards."
        )
    return ImageDataset(where, transform=transform, class_map=class_to_idx or "")


class _Accuracy:
    """Top-1 accuracy on the validation pictures."""

    def __init__(self, data: ImageData, class_to_idx: dict[str, int]) -> None:
        dataset = _open_images("data.val", str(data.val), create_transform(data.size), class_to_idx)
        self.loader = DataLoader(
            dataset, data.batch_size, num_workers=data.workers, generator=torch.Generator().manual_seed(0)
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        device, right, seen = next(model.parameters()).device, 0, 0
        for images, labels in self.loader:
            right += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
            seen += len(labels)
        return {"top1": right / max(1, seen)}


class _Order(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), from batch `start` on and without end."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int, stride: int) -> None:
        self.length, self.batch_size, self.seed, self.start, self.stride = (
            length,
            batch_size,
            seed,
            start,
            stride,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known, number = (-1, np.empty(0, int)), self.start
        while True:
            batch = []
            for place in range(number * self.batch_size, (number + 1) * self.batch_size):
                epoch, i = divmod(place, self.length)
                if epoch != known[0]:
                    known = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
                batch.append((epoch, int(known[1][i])))
            yield batch
            number += self.stride


class _Seeded(Dataset[Any]):
    """Seeds every generator a transform may draw from by (seed, epoch, index), and puts it back."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        python, numpy = random.getstate(), np.random.get_state()
        word = int(np.random.SeedSequence((self.seed, *key)).generate_state(1)[0])
        try:
            with torch.random.fork_rng(devices=()):
                random.seed(word)
                np.random.seed(word)
                torch.manual_seed(word)
                return self.dataset[key[1]]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _open_teacher(config: TeacherConfig, classes: int, device: torch.device) -> nn.Module | None:
    if config.name is None:
        return None
    own = {"checkpoint_path": config.checkpoint} if config.checkpoint else {"pretrained": True}
    teacher = timm.create_model(config.name, num_classes=classes, **own)
    return teacher.to(device).eval().requires_grad_(False)
