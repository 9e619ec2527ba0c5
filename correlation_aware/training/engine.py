"""The training loop on `accelerate`: one CPU, one GPU or many, with checkpoints that resume to the bit.

What a step of the run sees is a function of its number: batch n comes from the source by n, the learning
rate from the schedule by n. So the state to save is small: weights, their average, the optimiser's moments,
the random generators and n.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from correlation_aware._files import read_json, write_text
from correlation_aware.training import checkpoint
from correlation_aware.training.config import OptimizerConfig, RunConfig, ScheduleConfig
from correlation_aware.training.log import Means, RunLog
from correlation_aware.training.optimizer import learning_rate_factor, make_optimizer
from correlation_aware.weights import check_finite, save_pretrained

__all__ = ["Outcome", "Source", "Trainer", "make_accelerator"]

Record = dict[str, Any]


class Source(Protocol):
    """Where batches come from; `batch_size` samples each."""

    batch_size: int

    def batches(self, start: int, stride: int) -> Iterator[Any]:
        """The batches number start, start + stride, ... without end; they have a method `to(device)`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Steps done, those before a resume included.
        finished: Whether that is all of them.
        checkpoint: The newest checkpoint; its folder `weights` is a model that `create_model` takes.
    """

    step: int
    finished: bool
    checkpoint: Path


def make_accelerator(config: RunConfig, device: str | None = None) -> Accelerator:
    """The processes and the device of this run.

    Args:
        config: Its `precision` counts.
        device: `cpu` keeps away from GPUs; otherwise the launcher decides, a GPU if there is one.
    """
    precision = "bf16" if config.precision == "bfloat16" else "no"
    # accelerate joins processes on CPUs only where it is told that these are meant
    cpu = device == "cpu" or not torch.accelerator.is_available()
    return Accelerator(mixed_precision=precision, cpu=cpu)


class Trainer:
    """Trains one model.

    Args:
        model: A whole model of the zoo.
        compute: Loss and further scalars of a batch: `compute(model, batch)` returns them by name, `loss`
            among them.
        source: Batches; process r of p takes every p-th from number r on.
        folder: Of the run. Processes on several nodes must share it.
        accelerator: Of `make_accelerator`.
        optimizer: Optimiser, gradients, average.
        schedule: Steps and learning rate.
        run: The rest.
        text: The whole configuration, stored beside every checkpoint as `config.yaml`.
        validate: Scalars of the averaged model, for the log; runs in the main process.
        unit: What a sample is, for the log.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Callable[[nn.Module, Any], dict[str, Tensor]],
        source: Source,
        folder: str | Path,
        accelerator: Accelerator,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        run: RunConfig,
        text: str = "",
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        unit: str = "pairs",
    ) -> None:
        self.compute, self.source, self.validate, self.unit = compute, source, validate, unit
        self.schedule, self.run, self.clip, self.text = schedule, run, optimizer.clip, text
        self.folder, self.accelerator = Path(folder), accelerator
        self.checkpoints = self.folder / "checkpoints"
        self.step, self.seconds = 0, 0.0
        self._stop = False

        self.module = model.to(accelerator.device)
        self.ema = ModelEmaV3(self.module, optimizer.ema, use_warmup=True) if optimizer.ema else None
        if self.ema is not None:
            self.ema.requires_grad_(False)
            accelerator.register_for_checkpointing(self.ema)
        adamw = make_optimizer(self.module, optimizer)
        self._fresh = [{k: v for k, v in group.items() if k != "params"} for group in adamw.param_groups]
        if run.compile:
            self.module.compile()
        self.model, self.optimizer = accelerator.prepare(self.module, adamw)

    @property
    def averaged(self) -> nn.Module:
        """The model to publish: the moving average, or the model itself where there is none."""
        return self.module if self.ema is None else self.ema.module

    def request_stop(self) -> None:
        """Makes `fit` end after the step it is in, with a checkpoint; may be called from a signal handler."""
        self._stop = True

    def fit(
        self,
        resume: bool = False,
        max_minutes: float | None = None,
        on_record: Callable[[Record], None] = lambda record: None,
    ) -> Outcome:
        """Trains to the end of the schedule, or until time is up.

        Args:
            resume: Go on from the newest checkpoint, if there is one.
            max_minutes: Stop with a checkpoint after so many minutes of this call.
            on_record: Sees every record of the log, in the main process.

        Raises:
            ValueError: The folder holds a run and `resume` is false, or one with other processes.
            RuntimeError: The loss is not finite any more.
        """
        begin = time.perf_counter()
        deadline = math.inf if max_minutes is None else begin + 60 * max_minutes
        self._start(resume)
        self.model.train()
        processes, is_main = self.accelerator.num_processes, self.accelerator.is_main_process
        first = self.step * self.run.accumulate * processes + self.accelerator.process_index
        batches = self.source.batches(first, processes)
        means, window, saved_at = Means(), (self.step, begin), begin
        with RunLog(self.folder, self.step) if is_main else nullcontext() as log:

            def emit(record: Record) -> None:
                if log is not None:
                    log.write(record)
                    on_record(record)

            stop = False
            while self.step < self.schedule.steps and not stop:
                self._train_step(batches, means)
                self.step += 1
                done = self.step == self.schedule.steps
                beat = done or self._every(self.run.log_every)
                now = time.perf_counter()
                late = now - saved_at > 60 * self.run.checkpoint_minutes
                stop, save = self._agree(beat, self._stop or now > deadline, late)
                save = save or stop or done or self._every(self.run.checkpoint_steps)
                if beat or save:
                    emit(self._record(means, window))
                if self.validate and (done or self._every(self.run.validate_every)):
                    emit(self._validation())
                if save:
                    self._save()
                    saved_at = time.perf_counter()
                if beat or save:
                    window = self.step, time.perf_counter()
        newest = checkpoint.latest(self.checkpoints)
        assert newest is not None  # the last step saves
        return Outcome(self.step, self.step >= self.schedule.steps, newest)

    def _train_step(self, batches: Iterator[Any], means: Means) -> None:
        factor = learning_rate_factor(self.step, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for i in range(self.run.accumulate):
            batch = next(batches).to(self.accelerator.device)
            alone = i < self.run.accumulate - 1
            with self.accelerator.no_sync(self.model) if alone else nullcontext():
                values = self.compute(self.model, batch)
                self.accelerator.backward(values["loss"] / self.run.accumulate)
            means.add(values)
        limit = math.inf if self.clip is None else self.clip
        means.add({"grad_norm": self.accelerator.clip_grad_norm_(self.model.parameters(), limit)})
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.module, step=self.step + 1)

    def _every(self, steps: int) -> bool:
        return steps > 0 and self.step % steps == 0

    def _agree(self, beat: bool, *wishes: bool) -> list[bool]:
        """What any process wishes, all do; several processes ask each other at beats only."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        if not beat:
            return [False] * len(wishes)
        votes = torch.tensor(wishes, dtype=torch.float32, device=self.accelerator.device)
        return [bool(vote) for vote in self.accelerator.reduce(votes, "sum").tolist()]

    def _record(self, means: Means, window: tuple[int, float]) -> Record:
        first, begin = window
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        names, vector = means.take()
        values = dict(zip(names, self.accelerator.reduce(vector, "mean").tolist()))
        if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
            raise RuntimeError(
                f"The loss is not finite by step {self.step}. Resume from the last checkpoint "
                f"({checkpoint.latest(self.checkpoints)}) with lower learning rates or optimizer.clip."
            )
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        batches = (self.step - first) * self.run.accumulate * self.accelerator.num_processes
        return {
            "step": self.step,
            **{name: float(f"{value:.6g}") for name, value in values.items()},
            **{f"lr_{name}": lr for name, lr in rates.items() if not name.endswith("_no_decay")},
            f"{self.unit}_per_s": round(batches * self.source.batch_size / seconds, 2),
            "seconds": round(self.seconds, 2),
        }

    def _validation(self) -> Record:
        assert self.validate is not None
        values: dict[str, float] = {}
        if self.accelerator.is_main_process:
            with torch.random.fork_rng(), torch.no_grad():
                training = self.averaged.training
                values = self.validate(self.averaged.eval())
                self.averaged.train(training)
        self.accelerator.wait_for_everyone()
        return {"step": self.step, **{f"val_{name}": value for name, value in values.items()}}

    def _start(self, resume: bool) -> None:
        newest = checkpoint.latest(self.checkpoints)
        if newest is not None and not resume:
            raise ValueError(
                f"{self.folder} holds a run already ({newest.name}). Resume it, or name another."
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(self.checkpoints)
            write_text(self.text, self.folder / "config.yaml")
        set_seed(self.run.seed, device_specific=True)
        if newest is None:
            return
        state = read_json(newest / "state.json")
        for name, value in self._shape().items():
            if state[name] != value:
                raise ValueError(
                    f"{newest} was written with {name}={state[name]}, this run has {value}. "
                    f"Resume with the same, or start a new run with model.pretrained={newest / 'weights'}."
                )
        self.accelerator.load_state(str(newest))
        for group, fresh in zip(self.optimizer.param_groups, self._fresh):
            group.update(fresh)  # rates and decay are the configuration's, not the checkpoint's
        self.step, self.seconds = state["step"], state["seconds"]

    def _save(self) -> None:
        wait, is_main = self.accelerator.wait_for_everyone, self.accelerator.is_main_process
        check_finite(self.averaged.state_dict(), f"the weights at step {self.step}")
        target = checkpoint.temporary(self.checkpoints, self.step)
        if is_main:
            checkpoint.clean(self.checkpoints)
            target.mkdir()
        wait()
        self.accelerator.save_state(str(target))  # random states come from every process
        wait()
        if is_main:
            state = {"step": self.step, "seconds": self.seconds, **self._shape()}
            write_text(json.dumps(state, indent=2) + "\n", target / "state.json")
            write_text(self.text, target / "config.yaml")
            save_pretrained(self.averaged, target / "weights")
            checkpoint.publish(self.checkpoints, self.step)
            checkpoint.prune(self.checkpoints, self.run.keep)
        wait()

    def _shape(self) -> dict[str, int]:
        """What the numbers of the batches depend on."""
        return {"processes": self.accelerator.num_processes, "accumulate": self.run.accumulate}
