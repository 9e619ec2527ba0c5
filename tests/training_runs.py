"""Short training runs for tests: four synthetic pairs, a tiny model, and a script that trains on them."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from correlation_aware.data.pairs import PairBatch
from correlation_aware.training import engine
from correlation_aware.training.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from correlation_aware.training.engine import Trainer
from correlation_aware.training.losses import best_location_iou  # noqa: F401
from correlation_aware.training.track import PairData, TrackTraining, make_track_trainer
from correlation_aware.weights import read_state_dict


class SyntheticPairs:
    """Bright discs on noise, two pairs per batch; batch n is one of two, which depends only on n."""

    def __init__(self, batch_size: int = 2, different: int = 2) -> None:
        self.batch_size, self.different = batch_size, different

    def batch(self, number: int) -> PairBatch:
        generator = torch.Generator().manual_seed(number % self.different)
        n = self.batch_size
        template, search = (
            torch.randn(n, 3, side, side, generator=generator).mul_(0.3) for side in (64, 128)
        )
        size = torch.rand(n, generator=generator) * 0.1 + 0.2
        center = torch.rand(n, 2, generator=generator) * 0.4 + 0.3
        color = torch.randn(n, 3, generator=generator).sign() * 2
        boxes = torch.cat([center, size[:, None], size[:, None]], dim=1)
        centered = torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(n, 4)
        for images, discs in ((template, centered), (search, boxes)):
            grid = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
            dx, dy = grid - discs[:, :1], grid - discs[:, 1:2]
            disc = dx[:, None, :] ** 2 + dy[:, :, None] ** 2 < (discs[:, 2] / 2)[:, None, None] ** 2
            images += disc[:, None] * color[:, :, None, None]
        return PairBatch(template, search, boxes, torch.ones(n, dtype=torch.bool))


def make_trainer(
    folder: Path, steps: int = 6, accumulate: int = 1, drop_path: float = 0.1, lr: float = 1e-3, **run: Any
) -> Trainer:
    config = TrackTraining(
        model=ModelConfig("sbt_test_track", overrides={"drop_path_rate": drop_path}),
        data=PairData(batch_size=2),
        optimizer=OptimizerConfig(lr=lr, backbone_lr=lr, ema=0.9),
        schedule=ScheduleConfig(steps=steps, warmup=min(2, steps)),
        run=RunConfig(accumulate=accumulate, **{"log_every": 1, **run}),
    )
    return make_track_trainer(config, folder, "cpu", SyntheticPairs())


def checkpoint_at(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, their moving average, the optimizer's moments."""
    tensors = {f"model.{k}": v for k, v in read_state_dict(path / "model.safetensors").items()}
    tensors |= {f"ema.{k}": v for k, v in read_state_dict(path / "weights" / "model.safetensors").items()}
    return tensors | read_state_dict(path / "optimizer.safetensors")


def stall(*arguments: object) -> None:
    time.sleep(600)


if __name__ == "__main__":  # FOLDER STEPS [stall | two]: one process, one to be killed, or two of one run
    torch.set_num_threads(1)
    folder, steps, *rest = sys.argv[1:]
    if rest == ["two"]:  # a copy of this process, which has imported everything, is the second one
        child = os.fork()
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(int(child == 0))
        make_trainer(Path(folder), int(steps), drop_path=0.0).fit()
        assert not child or os.waitpid(child, 0)[1] == 0
    elif rest:
        trainer = make_trainer(Path(folder), 6, checkpoint_steps=1)
        trainer.fit(
            on_record=lambda r: setattr(engine, "save_pretrained", stall) if r["step"] == int(steps) else None
        )
    else:
        make_trainer(Path(folder), int(steps), drop_path=0.0).fit()
