"""Fine-tuning of a trained tracker on a user's own videos, of which some are held out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from correlation_aware.data.videos.subsets import VideoSet, names_of, open_videos
from correlation_aware.data.videos.video_pairs import VideoConfig
from correlation_aware.tracking.tracker import DEFAULT_MODEL
from correlation_aware.training.config import (
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from correlation_aware.training.track import PairData, TrackTraining, ValidationData
from correlation_aware.weights.sources import default_entry

__all__ = ["finetune_config"]

HOLD_OUT = 5  # one of so many videos is held out
STILLS_SHARE = 0.5  # of the pairs, where there are photographs


def finetune_config(
    videos: str,
    model: str | None = None,
    steps: int = 300,
    batch_size: int = 8,
    held_out: Sequence[str] = (),
    photographs: Sequence[str] = (),
) -> TrackTraining:
    """Configuration of a careful fine-tuning: the model with its head, low learning rates, a short schedule.

    Args:
        videos: Annotated videos: `LAYOUT:ROOT`, or a folder in the layout `folder`.
        model: Name of a `_track` model with trained weights, or a folder of one; the default model if None.
        steps: Number of optimizer steps.
        batch_size: Pairs per step.
        held_out: Names of the videos to evaluate on, which are not trained on; every fifth by default.
        photographs: Folders or tar shards of photographs that provide half of the pairs, against forgetting.

    Raises:
        ValueError: Fewer than two videos, unknown names, or a model without trained weights.
        FileNotFoundError: No videos.
    """
    location = f"folder:{videos}" if Path(videos).is_dir() else videos
    known = names_of(open_videos(location))
    if len(known) < 2:
        raise ValueError(
            f"{location} has {len(known)} video; fine-tuning needs two or more, since one is held out to "
            "tell whether it helped. Split a long video into two folders, far apart in time."
        )
    if not held_out:
        count = max(1, len(known) // HOLD_OUT)
        held_out = [known[i] for i in np.linspace(0, len(known) - 1, count + 2).round().astype(int)[1:-1]]
    if unknown := sorted(set(held_out) - set(known)):
        raise ValueError(f"{location} has no video {', '.join(unknown)}; it has {', '.join(known[:10])}.")
    start = _with_weights(model or DEFAULT_MODEL)
    return TrackTraining(
        model=start,
        data=PairData(
            sources={name: STILLS_SHARE / len(photographs) for name in photographs},
            videos={location: VideoSet(1 - STILLS_SHARE * bool(photographs), exclude=tuple(held_out))},
            batch_size=batch_size,
            frames=VideoConfig(gap=50, negative=0.05 if len(known) - len(held_out) > 1 else 0.0),
        ),
        validation=ValidationData(videos={location: VideoSet(names=tuple(held_out))}),
        optimizer=OptimizerConfig(lr=1e-4, backbone_lr=2e-5, weight_decay=1e-4, ema=0.99),
        schedule=ScheduleConfig(steps=steps, warmup=min(50, steps // 4), decay="cosine"),
        run=RunConfig(precision="bfloat16", log_every=10),
    )


def _with_weights(model: str) -> ModelConfig:
    config = ModelConfig(name=model)
    if config.start() is None:
        entry = default_entry(model)
        if entry is None:
            raise ValueError(
                f"{model} has no trained weights to start from; 'correlation-aware models --pretrained' "
                "lists models that have, and a folder of your own weights works too."
            )
        return replace(config, name=f"{entry.model}.{entry.tag}")
    return config
