"""Pairs per second of the loader, of the training step, and of both as in a training run.

    python benchmarks/training_speed.py [--config track_cpu] [--set KEY=VALUE] ... [--device cpu]

Takes the configuration of `correlation-aware train track` and runs its own loader and step, so that sources,
workers, precision and sizes are those of the run to come. A step waits for its pairs where `both` is slower
than `step`: raise data.workers then. Without workers it also prints the loader's throughput per second of
processor time, which other load on the machine does not change.
"""

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from correlation_aware import training
from correlation_aware.training.config import load
from correlation_aware.training.log import Means
from correlation_aware.training.track import TrackTraining, make_track_trainer


def pairs_per_second(run: Callable[[], object], pairs: int, warmup: int, seconds: float) -> list[float]:
    """Pairs per second of wall-clock time and of processor time; `pairs` is the number of pairs per call."""
    for _ in range(warmup):
        run()
    _wait()
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < wall + seconds:
        run()
        count += pairs
    _wait()
    return [count / (time.perf_counter() - wall), count / max(1e-9, time.process_time() - cpu)]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="track_cpu", help="YAML file, or name of a shipped one")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    shipped = Path(training.__file__).with_name("configs") / f"{args.config}.yaml"
    config = load(TrackTraining, shipped if shipped.is_file() else args.config, args.changes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_track_trainer(config, folder, args.device)
        trainer.model.train()
        batches, means = trainer.source.batches(0, 1), Means(trainer.optional)
        first = itertools.repeat(next(batches))
        pairs = config.data.batch_size * config.run.accumulate
        queued = 2 + 2 * config.data.workers  # batches that the workers have prepared in advance
        device = trainer.accelerator.device
        print(f"torch {torch.__version__}, {device}, {args.threads} threads, {config.run.precision}")
        results = {}
        for name, number, run in (
            ("loader", config.data.batch_size, lambda: next(batches)),
            ("step", pairs, lambda: trainer._train_step(first, means)),
            ("both", pairs, lambda: trainer._train_step(batches, means)),
        ):
            results[name], cpu = pairs_per_second(run, number, queued, args.seconds)
            more = (
                f"  {cpu:.1f} per second of processor time"
                if name == "loader" and not config.data.workers
                else ""
            )
            print(f"{name:8}{results[name]:10.1f} pairs/s{more}")
    waiting = max(0.0, 1 - results["both"] / results["step"])
    print(f"the step waits for pairs in {waiting:.0%} of the time")


if __name__ == "__main__":
    main()
