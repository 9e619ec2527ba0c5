"""ImageNet pretraining of `_cls` models, with timm's transforms, mixup and losses."""

import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from timm.data import ImageDataset, Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from correlation_aware.training.config import (
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    check_values,
    to_yaml,
)
from correlation_aware.training.engine import Trainer
from correlation_aware.training.processes import make_accelerator
from correlation_aware.training.shards import ShardReader
from correlation_aware.training.start import load_start

__all__ = ["ClassifyTraining", "ImageBatch", "ImageData", "Images", "TeacherConfig", "make_classify_trainer"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """Labeled images and their augmentation.

    Attributes:
        train: Folder with one subfolder of images per class, or tar shards such as
            `train-{000000..001281}.tar`, see `ShardReader`.
        val: Folder or shards for validation; null for no validation.
        batch_size: Images per batch and process.
        size: Height and width of the images in pixels.
        workers: Data loading processes per training process.
        auto_augment: timm's augmentation policy, such as `rand-m9-mstd0.5-inc1`; null for none.
        erase: Probability of random erasing.
        mixup: Alpha of mixup, 0 for none.
        cutmix: Alpha of CutMix, 0 for none.
        smoothing: Label smoothing, 0 for none.
        repeats: Number of times that an image follows itself, with other random augmentation: repeated
            augmentation (https://arxiv.org/abs/1901.09335), 3 in DeiT. As there, an epoch keeps its number of
            samples, and has that part of the images.
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
    repeats: int = 1

    def __post_init__(self) -> None:
        check_values("data", self, batch_size=(1, math.inf), size=(1, math.inf), workers=(0, math.inf))
        check_values("data", self, repeats=(1, math.inf))
        check_values("data", self, mixup=(0, math.inf), cutmix=(0, math.inf), erase=(0, 1), smoothing=(0, 1))


@dataclass(frozen=True)
class TeacherConfig:
    """Knowledge distillation: the loss blends the labels with the predictions of a teacher.

    Attributes:
        name: timm model with the same classes; null for no distillation.
        checkpoint: File with the teacher's weights; null for timm's pretrained ones.
        share: Weight of the distillation term in the loss, 0..1; the labels have the rest.
        temperature: Divisor of the student's and the teacher's logits.
    """

    name: str | None = None
    checkpoint: str | None = None
    share: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_values("teacher", self, share=(0, 1))
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"teacher.temperature={self.temperature} must be above 0 and finite.")


@dataclass(frozen=True)
class ClassifyTraining:
    """Configuration of `correlation-aware train classify`."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="sbt_light_cls"))
    data: ImageData = field(default_factory=ImageData)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, backbone_lr=1e-3, weight_decay=0.05, ema=0.9999)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(steps=375_000, warmup=6_250))
    run: RunConfig = field(default_factory=RunConfig)


class ImageBatch(NamedTuple):
    """B images (B, 3, H, W) and their classes (B,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "ImageBatch":
        return ImageBatch(*(t.to(device, non_blocking=True) for t in self))


class Images:
    """Shuffled batches, epoch after epoch; batch n depends only on the seed and n.

    Args:
        dataset: Pairs of an image tensor and its class.
        batch_size: Images per batch; a remainder at the end of an epoch is completed from the next epoch.
        workers: Data loading processes.
        seed: Seed of the order and of the random transforms.
        repeats: Number of times that an image follows itself, with other random transforms.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, workers: int = 0, seed: int = 0, repeats: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.workers, self.seed = dataset, batch_size, workers, seed
        self.repeats = repeats

    def batches(self, start: int, stride: int) -> Iterator[ImageBatch]:
        """See `Source.batches`."""
        length: int = len(self.dataset)  # type: ignore[arg-type]
        order = _BatchOrder(length, self.batch_size, self.seed, start, stride, self.repeats)
        seeded = _Seeded(self.dataset, self.seed)
        generator = torch.Generator().manual_seed(self.seed)  # else the loader uses the global generator
        for images, labels in DataLoader(
            seeded, batch_sampler=order, num_workers=self.workers, generator=generator
        ):
            yield ImageBatch(images, labels)


def make_classify_trainer(config: ClassifyTraining, folder: str | Path, device: str | None = None) -> Trainer:
    """Builds the trainer of a classifier; its `fit` starts the training.

    Args:
        config: Configuration of the run.
        folder: Output folder of checkpoints and log.
        device: `cpu` to train on the CPU even if there is a GPU.

    Raises:
        ValueError: Unknown model or override, or validation classes that the training data lack.
        FileNotFoundError: There are no images.
    """
    data = config.data
    accelerator = make_accelerator(config.run, device)
    dataset = _open_images("data.train", data.train, None)
    classes = len(dataset.reader.class_to_idx)
    set_seed(config.run.seed)
    model = config.model.create(num_classes=classes)
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    prepared = {key: cfg[key] for key in ("interpolation", "mean", "std")}
    dataset.transform = _train_transform(data, **prepared)
    validate = None
    if data.val is not None:
        transform = create_transform(data.size, crop_pct=cfg["crop_pct"], **prepared)
        validate = _Accuracy(data, _open_images("data.val", data.val, transform, dataset.reader.class_to_idx))
    load_start(model, config.model)
    mix = None
    if data.mixup or data.cutmix:
        mix = Mixup(data.mixup, data.cutmix, label_smoothing=data.smoothing, num_classes=classes)
    teacher = _open_teacher(config.teacher, classes, accelerator.device)
    cross_entropy = SoftTargetCrossEntropy()

    def compute(network: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        images, labels = batch
        if mix is not None and len(images) % 2 == 0:  # mixup needs an even batch
            images, targets = mix(images, labels)
        else:
            targets = F.one_hot(labels, classes) * (1 - data.smoothing) + data.smoothing / classes
        logits = network(images).float()
        loss = cross_entropy(logits, targets)
        if teacher is None:
            return {"loss": loss}
        t, share = config.teacher.temperature, config.teacher.share
        with torch.no_grad(), accelerator.autocast():
            expected = (teacher(images).float() / t).softmax(dim=1)
        distilled = t * t * F.kl_div((logits / t).log_softmax(dim=1), expected, reduction="batchmean")
        return {"loss": (1 - share) * loss + share * distilled, "labels": loss, "teacher": distilled}

    return Trainer(
        model,
        compute,
        Images(dataset, data.batch_size, data.workers, config.run.seed, data.repeats),
        folder,
        accelerator,
        optimizer=config.optimizer,
        schedule=config.schedule,
        run=config.run,
        text=to_yaml(config),
        validate=validate,
        unit="images",
        best="top1",
    )


def _train_transform(data: ImageData, **prepared: Any) -> Any:
    """Random crops and augmentation; `prepared` is how images are prepared for the model, in timm's terms."""
    prepared |= {"auto_augment": data.auto_augment, "re_prob": data.erase, "re_mode": "pixel"}
    transform = create_transform(data.size, is_training=True, **prepared)
    for policy in transform.transforms:
        for op in getattr(policy, "ops", ()):  # of RandAugment
            if op.name.startswith("Posterize"):
                op.level_fn = _AtLeastOneBit(op.level_fn)
    return transform


class _AtLeastOneBit:
    """Argument of timm's posterize, which asks for 0 bits at the highest level; Pillow takes 1 to 8."""

    def __init__(self, level_fn: Callable[..., tuple[int]]) -> None:
        self.level_fn = level_fn

    def __call__(self, level: float, hparams: Any) -> tuple[int]:
        return (max(1, self.level_fn(level, hparams)[0]),)


def _open_images(
    key: str, location: str, transform: Any, class_to_idx: dict[str, int] | None = None
) -> ImageDataset:
    if location.endswith(".tar"):
        reader = ShardReader(location)
        if class_to_idx is not None and len(reader.class_to_idx) > len(class_to_idx):
            raise ValueError(
                f"{key}={location!r} has classes up to {len(reader.class_to_idx) - 1}, "
                f"data.train up to {len(class_to_idx) - 1}."
            )
        return ImageDataset(None, reader=reader, transform=transform)
    if not location or not Path(location).is_dir():
        raise FileNotFoundError(
            f"{key}={location!r} is neither a folder with one subfolder of images per class nor tar shards."
        )
    return ImageDataset(location, transform=transform, class_map=class_to_idx or "")


class _Accuracy:
    """Top-1 accuracy on the validation images, which are prepared as timm does for the model."""

    def __init__(self, data: ImageData, dataset: ImageDataset) -> None:
        self.loader = DataLoader(
            dataset, data.batch_size, num_workers=data.workers, generator=torch.Generator().manual_seed(0)
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        device, correct, total = next(model.parameters()).device, 0, 0
        for images, labels in self.loader:
            correct += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
            total += len(labels)
        return {"top1": correct / max(1, total)}


class _BatchOrder(Sampler[list[tuple[int, int]]]):
    """Endless batches of (number of the pass, index): batch `start`, `start + stride`, ...

    Every epoch has a random order, in which an image is `repeats` times in a row, in passes of its own.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start: int, stride: int, repeats: int
    ) -> None:
        self.repeats = repeats
        self.length, self.batch_size, self.seed, self.start, self.stride = (
            length,
            batch_size,
            seed,
            start,
            stride,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, permutation, number = -1, np.empty(0, int), self.start
        while True:
            batch = []
            for position in range(number * self.batch_size, (number + 1) * self.batch_size):
                epoch, i = divmod(position, self.length)
                if epoch != shuffled:
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                    shuffled = epoch
                image, repeat = divmod(i, self.repeats)
                batch.append((epoch * self.repeats + repeat, int(permutation[image])))
            yield batch
            number += self.stride


class _Seeded(Dataset[Any]):
    """Reads samples with every random generator seeded by (seed, pass, index), and restores their states."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        python, numpy = random.getstate(), np.random.get_state()
        seed = int(np.random.SeedSequence((self.seed, *key)).generate_state(1)[0])
        try:
            with torch.random.fork_rng(devices=()):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                return self.dataset[key[1]]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _open_teacher(config: TeacherConfig, classes: int, device: torch.device) -> nn.Module | None:
    if config.name is None:
        return None
    source = {"checkpoint_path": config.checkpoint} if config.checkpoint else {"pretrained": True}
    teacher = timm.create_model(config.name, num_classes=classes, **source)
    return teacher.to(device).eval().requires_grad_(False)
