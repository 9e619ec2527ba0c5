"""Pairs per second of making training pairs, of a training step, and of both as in a training run.

    python benchmarks/training_speed.py SOURCE... [--model sbt_light_cell_track] [--batch 32] [--device cuda]

Sources are folders or tar shards of photographs. A step is forward, backward, gradient clipping and AdamW,
under bfloat16 autocast. On a CPU pairs are made with one thread, as in `train track`.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import correlation_aware as ca
from correlation_aware.data.stills.pool import read_pool
from correlation_aware.data.stills.still_pairs import StillPairs
from correlation_aware.models.contract import Sizes
from correlation_aware.training.batches import PairBatches
from correlation_aware.training.config import OptimizerConfig
from correlation_aware.training.losses import LossConfig, track_loss
from correlation_aware.training.optimizer import make_optimizer


def pairs_per_second(run: Callable[[], object], pairs: int, rounds: int, device: str) -> float:
    """Throughput of `rounds` calls after two warm-up calls; `pairs` is the number of pairs per call."""
    for i in range(rounds + 2):
        if i == 2:
            _wait(device)
            start = time.perf_counter()
        run()
    _wait(device)
    return rounds * pairs / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--model", default="sbt_light_cell_track")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--template-size", type=int, default=128)
    parser.add_argument("--search-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    sizes = {"template_size": args.template_size, "search_size": args.search_size}
    model = ca.create_model(args.model, **sizes).to(args.device)
    pool = read_pool(dict.fromkeys(args.sources, 1.0), 320, args.device)
    on_cpu = args.device == "cpu"
    source = PairBatches(StillPairs(pool, args.batch, Sizes(**sizes)), args.batch, ahead=not on_cpu)
    batches = source.batches(0, 1)
    optimizer, first = make_optimizer(model, OptimizerConfig()), next(batches)

    def step(batch=first) -> None:
        attention = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()  # as in `train track`
        with torch.autocast(args.device.split(":")[0], torch.bfloat16), attention:
            output = model(batch.template, batch.search)
        track_loss(output, batch.boxes, batch.positive, LossConfig()).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {args.model} {sizes}"
    )
    for name, run in (
        ("generator", lambda: next(batches)),
        ("step", step),
        ("both", lambda: step(next(batches))),
    ):
        print(f"{name:10}{pairs_per_second(run, args.batch, args.rounds, args.device):10.1f} pairs/s")


if __name__ == "__main__":
    main()
