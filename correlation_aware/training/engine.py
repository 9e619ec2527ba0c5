"""The training loop on `accelerate`: a CPU, one or several GPUs, with checkpoints that resume bit-exactly.

Batch n and learning rate n depend only on n, so the state to save is small: the weights, their moving
average, the optimizer's moments, the states of the random generators and n.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from correlation_aware.training.lora import add_lora, merge_lora
from correlation_aware.training.optimizer import freeze, learning_rate_factor, make_optimizer
from correlation_aware.training.run_lock import describe_holder, run_lock
from correlation_aware.training.run_state import (
    RunState,
    read_run_state,
    write_process_state,
    write_run_state,
)
from correlation_aware.weights import check_finite, save_pretrained

__all__ = ["Outcome", "Source", "Trainer"]

Record = dict[str, Any]

_logger = logging.getLogger(__name__)


class Source(Protocol):
    """An endless source of batches with `batch_size` samples each."""

    batch_size: int

    def batches(self, start: int, stride: int) -> Iterator[Any]:
        """Yields batch `start`, `start + stride`, ... without end; a batch has a method `to(device)`."""


@dataclass(frozen=True)
class Outcome:
    """Result of `Trainer.fit`.

    Attributes:
        step: Number of completed steps, including those before a resume.
        finished: Whether all steps of the schedule are completed.
        checkpoint: Newest checkpoint; its folder `weights` is a model for `create_model`.
    """

    step: int
    finished: bool
    checkpoint: Path


class Trainer:
    """Trains one model.

    Args:
        model: Model of `create_model`.
        compute: Function `compute(model, batch)` that returns scalars by name; `loss` is minimized, all are
            logged.
        source: Source of the batches; process r of p takes the batches r, r + p, ...
        folder: Output folder of the run, shared by all processes and nodes.
        accelerator: Accelerator of `make_accelerator`.
        optimizer: Configuration of optimizer, gradient clipping and weight averaging.
        schedule: Number of steps or epochs, and learning rate schedule.
        run: Configuration of seed, logging and checkpoints.
        text: Whole configuration as YAML, saved in every checkpoint as `config.yaml`.
        validate: Function from the averaged model to scalars for the log; runs in the main process only.
        unit: Plural name of a sample in the log, as in `pairs_per_s`.
        best: Name of the figure of `validate` that decides which weights are kept in `checkpoints/best`.
        optional: Names of scalars that `compute` returns for some batches only.
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
        best: str | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        self.compute, self.source, self.validate, self.unit = compute, source, validate, unit
        self.run, self.clip, self.text = run, optimizer.clip, text
        samples = accelerator.num_processes * run.accumulate * source.batch_size
        self.schedule = schedule.in_steps(samples)
        self.folder, self.accelerator = Path(folder), accelerator
        self.checkpoints = self.folder / "checkpoints"
        self.step, self.seconds = 0, 0.0
        self.best, self.optional = best, (*optional, "grad_norm")
        self._stop = False

        self.module = model.to(accelerator.device)
        self.lora = optimizer.lora is not None
        if optimizer.lora is not None:
            add_lora(self.module, optimizer.lora)
        self._frozen = freeze(self.module, optimizer.frozen)
        self.ema = ModelEmaV3(self.module, optimizer.ema, use_warmup=True) if optimizer.ema else None
        if self.ema is not None:
            self.ema.requires_grad_(False)
        self._adamw = make_optimizer(self.module, optimizer)
        groups = self._adamw.param_groups
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        if run.compile:
            self.module.compile()
        self.model, self.optimizer = accelerator.prepare(self.module, self._adamw)

    @property
    def averaged(self) -> nn.Module:
        """The moving average of the weights, or the model itself without averaging."""
        return self.module if self.ema is None else self.ema.module

    def published(self) -> nn.Module:
        """The model to publish: the averaged weights, with low-rank matrices merged into them."""
        return merge_lora(self.averaged) if self.lora else self.averaged

    def request_stop(self) -> None:
        """Makes `fit` end after the current step, with a checkpoint; safe to call from a signal handler."""
        self._stop = True

    def fit(
        self,
        resume: bool = False,
        max_minutes: float | None = None,
        on_record: Callable[[Record], None] = lambda record: None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Outcome:
        """Trains to the end of the schedule or up to a time limit.

        Args:
            resume: Whether to continue from the newest checkpoint, if there is one.
            max_minutes: Time limit in minutes, after which training stops with a checkpoint.
            on_record: Function called with every record of the log, in the main process.
            on_step: Function called with the number of completed steps at the start and after every step.

        Raises:
            ValueError: The folder contains a run and `resume` is false, or a run with another model, other
                trained parameters, or another number of processes or accumulated batches; a time limit below
                0, or NaN. Nothing is written.
            RuntimeError: The loss is not finite, no checkpoint of the run can be read, or another process
                trains in the folder.
        """
        if max_minutes is not None and not max_minutes >= 0:
            raise ValueError(f"max_minutes={max_minutes} must be at least 0, or None for no time limit.")
        with run_lock(self.folder) if self.accelerator.is_main_process else nullcontext(True) as free:
            taken = torch.tensor(float(not free), device=self.accelerator.device)
            if self.accelerator.reduce(taken, "sum").item():
                raise RuntimeError(
                    f"Another run is in {self.folder} ({describe_holder(self.folder)}): both would write "
                    "the same checkpoints. Stop it or wait for its end, or name another folder."
                )
            return self._fit(resume, max_minutes, on_record, on_step)

    def _fit(
        self,
        resume: bool,
        max_minutes: float | None,
        on_record: Callable[[Record], None],
        on_step: Callable[[int], None],
    ) -> Outcome:
        begin = time.perf_counter()
        deadline = math.inf if max_minutes is None else begin + 60 * max_minutes
        self._start(resume)
        _logger.info("%s", self._summary())
        on_step(self.step)
        self.model.train()
        for module in self._frozen:  # their batch norms and drop paths too
            module.eval()
        processes, is_main = self.accelerator.num_processes, self.accelerator.is_main_process
        first = self.step * self.run.accumulate * processes + self.accelerator.process_index
        batches = self.source.batches(first, processes)
        means, saved_at = Means(self.optional), begin
        logged = self.step, begin  # step and time of the last record
        with RunLog(self.folder, self.step) if is_main else nullcontext() as log:

            def emit(record: Record) -> None:
                if log is not None:
                    log.write(record)
                    on_record(record)

            stop = False
            while self.step < self.schedule.steps and not stop:
                self._train_step(batches, means)
                self.step += 1
                on_step(self.step)
                done = self.step == self.schedule.steps
                log_due = done or self._every(self.run.log_every)
                now = time.perf_counter()
                checkpoint_overdue = now - saved_at > 60 * self.run.checkpoint_minutes
                stop, save = self._agree(log_due, self._stop or now > deadline, checkpoint_overdue)
                save = save or stop or done or self._every(self.run.checkpoint_steps)
                if log_due or save:
                    emit(self._record(means, logged))
                if save:
                    self._save()
                    saved_at = time.perf_counter()
                if self.validate and (done or self._every(self.run.validate_every)):
                    emit(self._validation())
                if log_due or save:
                    logged = self.step, time.perf_counter()
        newest = checkpoint.latest(self.checkpoints)
        assert newest is not None  # the last step saves a checkpoint
        return Outcome(self.step, self.step >= self.schedule.steps, newest)

    def _summary(self) -> str:
        """Device, processes, samples per step and parameters to train, in one line."""
        sizes = [(p.numel(), p.requires_grad) for p in self.module.parameters()]
        trained, total = sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
        processes, accumulate = self.accelerator.num_processes, self.run.accumulate
        batch = self.source.batch_size
        return (
            f"Device {self.accelerator.device}, {processes} process{'es' * (processes > 1)}, "
            f"{self.run.precision}; {processes * accumulate * batch} {self.unit} per step ({processes} x "
            f"{accumulate} batches of {batch}); {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters are "
            f"trained; steps {self.step} to {self.schedule.steps}"
        )

    def _train_step(self, batches: Iterator[Any], means: Means) -> None:
        factor = learning_rate_factor(self.step, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for i in range(self.run.accumulate):
            batch = next(batches).to(self.accelerator.device)
            is_last = i == self.run.accumulate - 1  # gradients are reduced over the processes once per step
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                values = self.compute(self.model, batch)
                self.accelerator.backward(values["loss"] / self.run.accumulate)
            means.add(values)
        limit = math.inf if self.clip is None else self.clip
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # float16 skips a step whose gradients overflow
            means.add({"grad_norm": norm})
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.module, step=self.step + 1)

    def _every(self, steps: int) -> bool:
        return steps > 0 and self.step % steps == 0

    def _agree(self, log_due: bool, *requests: bool) -> list[bool]:
        """Logical or of each request over all processes.

        Several processes synchronize on logging steps only; on other steps all requests are False.
        """
        if self.accelerator.num_processes == 1:
            return list(requests)
        if not log_due:
            return [False] * len(requests)
        counts = torch.tensor(requests, dtype=torch.float32, device=self.accelerator.device)
        return [bool(count) for count in self.accelerator.reduce(counts, "sum").tolist()]

    def _record(self, means: Means, logged: tuple[int, float]) -> Record:
        first, begin = logged
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        names, table = means.take()
        sums, counts = self.accelerator.reduce(table, "sum").tolist()
        values = {name: total / n for name, total, n in zip(names, sums, counts) if n}
        if not all(math.isfinite(values.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise RuntimeError(
                f"The loss is not finite at step {self.step}. Resume from the last checkpoint "
                f"({checkpoint.latest(self.checkpoints)}) with lower learning rates or optimizer.clip."
            )
        rates: dict[str, float] = {}  # the largest of each part
        for group in self.optimizer.param_groups:
            rates[group["part"]] = max(group["lr"], rates.get(group["part"], 0.0))
        batches = (self.step - first) * self.run.accumulate * self.accelerator.num_processes
        return {
            "step": self.step,
            **{name: float(f"{value:.6g}") for name, value in values.items()},
            **{f"lr_{part}": lr for part, lr in rates.items()},
            f"{self.unit}_per_s": round(batches * self.source.batch_size / seconds, 2),
            "seconds": round(self.seconds, 2),
        }

    def _validation(self) -> Record:
        assert self.validate is not None
        values: dict[str, float] = {}
        if self.accelerator.is_main_process:
            with torch.random.fork_rng(), torch.no_grad():
                model = self.published()
                training = model.training
                values = self.validate(model.eval())
                model.train(training)
            if self.best in values:
                self._keep_best(values[self.best], model)
        self.accelerator.wait_for_everyone()
        return {"step": self.step, **{f"val_{name}": value for name, value in values.items()}}

    def _keep_best(self, value: float, model: nn.Module) -> None:
        """Saves the model to publish in `checkpoints/best` if this is their highest value so far."""
        folder = self.checkpoints / checkpoint.BEST
        before = read_json(folder / "best.json") if (folder / "best.json").is_file() else {}
        if before.get("step", math.inf) < self.step and before.get("value", -math.inf) >= value:
            return
        target = checkpoint.temporary(self.checkpoints, self.step)
        save_pretrained(model, target / "weights")
        facts = {"step": self.step, "name": self.best, "value": value}
        write_text(json.dumps(facts, indent=2) + "\n", target / "best.json")
        checkpoint.publish_best(self.checkpoints, self.step)

    def _start(self, resume: bool) -> None:
        complete = checkpoint.complete(self.checkpoints)
        if complete and not resume:
            raise ValueError(
                f"{self.folder} already contains a run ({complete[-1].name}). Resume it, or name another "
                "folder."
            )
        set_seed(self.run.seed, device_specific=True)
        damaged: list[Path] = []
        if complete:
            state, damaged = self._newest_readable(complete)
            self._restore(state)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:  # nothing is written before the checkpoint is loaded
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(self.checkpoints)
            for path in damaged:
                checkpoint.set_aside(path)
            write_text(self.text, self.folder / "config.yaml")

    def _newest_readable(self, complete: list[Path]) -> tuple[RunState, list[Path]]:
        """The newest checkpoint that all processes can read, and the newer, damaged ones."""
        damaged: list[Path] = []
        reasons: list[str] = []
        for path in reversed(complete):
            state: RunState | None = None
            try:
                state = read_run_state(path, self.accelerator.process_index)
            except (ValueError, OSError, KeyError, RuntimeError) as error:
                reasons.append(f"{path.name}: {error}")
            failed = torch.tensor(float(state is None), device=self.accelerator.device)
            failures = self.accelerator.reduce(failed, "sum").item()
            if state is not None and not failures:
                if damaged:
                    _logger.warning(
                        "%s cannot be read (%s); training continues from %s.",
                        ", ".join(p.name for p in damaged),
                        "; ".join(reasons) or "in another process",
                        path.name,
                    )
                return state, damaged
            damaged.append(path)
        raise RuntimeError(
            f"No checkpoint of {self.folder} can be read ({'; '.join(reasons)}). Start a new run in another "
            "folder, with model.pretrained set to the weights of one whose folder `weights` is whole."
        )

    def _restore(self, state: RunState) -> None:
        for name, value in self._batch_layout().items():
            if state.facts[name] != value:
                raise ValueError(
                    f"{state.path} was written with {name}={state.facts[name]}, this run has {value}. Resume "
                    f"with the same value, or start a new run with model.pretrained={state.path / 'weights'}."
                )
        average = None if self.ema is None else self.ema.module
        state.restore(self.module, average, self._adamw)
        for group, configured in zip(self._adamw.param_groups, self._configured):
            group.update(configured)  # learning rates and decay come from the configuration on resume too
        if self.accelerator.scaler is not None and state.facts.get("scale"):
            self.accelerator.scaler.load_state_dict(state.facts["scale"])
        self.step, self.seconds = int(state.facts["step"]), float(state.facts["seconds"])

    def _save(self) -> None:
        wait, is_main = self.accelerator.wait_for_everyone, self.accelerator.is_main_process
        check_finite(self.averaged.state_dict(), f"the weights at step {self.step}")
        target = checkpoint.temporary(self.checkpoints, self.step)
        if is_main:
            checkpoint.clean(self.checkpoints)
            target.mkdir()
        wait()
        write_process_state(target, self.accelerator.process_index)
        wait()
        if is_main:
            scaler = self.accelerator.scaler  # of float16 only
            scale = {} if scaler is None else {"scale": scaler.state_dict()}
            facts = {"step": self.step, "seconds": self.seconds, **self._batch_layout(), **scale}
            average = self.averaged if self.lora else None
            write_run_state(target, self.module, self._adamw, facts, average)
            write_text(self.text, target / "config.yaml")
            save_pretrained(self.published(), target / "weights")
            checkpoint.publish(self.checkpoints, self.step)
            checkpoint.prune(self.checkpoints, self.run.keep)
        wait()

    def _batch_layout(self) -> dict[str, int]:
        """Settings that decide which batches a step uses; they cannot change on resume."""
        return {"processes": self.accelerator.num_processes, "accumulate": self.run.accumulate}
