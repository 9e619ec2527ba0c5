"""Costs of five public trackers, stock and with our adapter: the table of docs/adapters_costs.md.

    python benchmarks/adapter_costs.py --peers DIR [--trackers STM STARK-S50] [--rounds 12]

DIR holds their checkouts (video_analyst, pytracking, Stark, STM, OSTrack). Each runs with its own test-time
code over a drawn clip, with random weights. Parameters and multiply-accumulates of convolutions and linear
layers are counted in that run, as in the paper; "in all" counts every product of a frame, attention included.
Frames per second are of the process time of one thread: stock and ours take turns, and the table has the
median frame.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.trackers import TRACKERS, Contender, prepare
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from correlation_aware.demo_clip import draw_clip

SIZE = 480, 864  # of the frames; STM sees them whole
PAPER = {  # Table 6: parameters in M, G of the first pair, of the stock tracker and of the CA one
    "SiamFC++": (("13.9", "19.8"), ("16.3", "14.1")),
    "DiMP-50": (("26.1", ""), ("26.3", "")),
    "STARK-S50": (("23.3", "11.5"), ("23.6", "8.7")),
    "STM": (("24.5", ""), ("25.1", "")),
    "OSTrack ViT-B": (("", ""), ("", "")),
}
ALONE = ("DiMP-50", "STM")  # the first two frames are no pair: DiMP augments the first, STM memorizes it
HEAD = ("", "params, M", "paper", "GMACs, first pair", "paper", "GMACs, a later frame", "in all", "frames/s")


def count(contender: Contender, run: Callable[[], object]) -> int:
    """Multiply-accumulates of the counted convolutions and linear layers."""
    skipped = {id(m) for module in contender.left_out for m in module.modules()}
    macs = 0

    def add(module: Any, _: object, output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    layers = {m for part in contender.parts for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [m.register_forward_hook(add) for m in layers if id(m) not in skipped]
    run()
    for hook in hooks:
        hook.remove()
    return macs


def count_all(run: Callable[[], object]) -> int:
    """Multiply-accumulates of all operations."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def parameters(contender: Contender) -> int:
    left = {id(p) for module in contender.left_out for p in module.parameters()}
    return sum(p.numel() for part in contender.parts for p in part.parameters() if id(p) not in left)


def measure(contenders: tuple[Contender, Contender], rounds: int) -> list[dict[str, Any]]:
    """`params`, `first`, `later` and `all` of each contender as counts, and `seconds` per frame."""
    clip = list(draw_clip(rounds + 4, SIZE))
    frames = [frame for frame, _ in clip]
    results: list[dict[str, Any]] = []
    for c in contenders:
        first = count(c, lambda c=c: c.start(*clip[0])) + count(c, lambda c=c: c.step(frames[1]))
        later = count(c, lambda c=c: c.step(frames[2]))
        everything = count_all(lambda c=c: c.step(frames[3]))
        results.append({"params": parameters(c), "first": first, "later": later, "all": everything})
    spent: list[list[float]] = [[], []]
    for frame in frames[4:]:
        for c, seconds in zip(contenders, spent):
            begin = time.process_time()
            c.step(frame)
            seconds.append(time.process_time() - begin)
    for result, seconds in zip(results, spent):
        result["seconds"] = statistics.median(seconds) if seconds else None
    return results


def rows(name: str, results: list[dict[str, Any]]) -> list[list[str]]:
    """The two rows of a tracker."""
    table = []
    for title, r, (params, macs) in zip((name, f"{re.split('[- ]', name)[0]}-CA"), results, PAPER[name]):
        pair = "" if name in ALONE else f"{r['first'] / 1e9:.2f}"
        speed = f"{1 / r['seconds']:.2f}" if r["seconds"] else ""
        if table and speed:
            speed += f", {results[0]['seconds'] / r['seconds']:.2f}x"
        figures = [f"{r['params'] / 1e6:.2f}", params, pair, macs, f"{r['later'] / 1e9:.2f}"]
        table.append([title, *figures, f"{r['all'] / 1e9:.2f}", speed])
    return table


def run_apart(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """`measure` in a process of its own."""
    path = [str(Path(__file__).resolve().parent.parent)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--inside", name],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "CUDA_VISIBLE_DEVICES": "",
            "MPLBACKEND": "agg",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, help="folder of the trackers' checkouts")
    parser.add_argument("--trackers", nargs="+", choices=TRACKERS, default=list(TRACKERS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--inside", choices=TRACKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        torch.set_num_threads(1)
        tracker, checkout = TRACKERS[args.inside], args.peers.resolve() / TRACKERS[args.inside].checkout
        prepare(tracker, checkout)
        with tempfile.TemporaryDirectory() as folder:
            results = measure(tracker.make(checkout, Path(folder)), args.rounds)
        print("\n" + json.dumps(results))
        return
    print(f"torch {torch.__version__}, one thread, median of {args.rounds} frames")
    for line in (HEAD, ["---"] * len(HEAD)):
        print("|", " | ".join(line), "|")
    for name in args.trackers:
        for row in rows(name, run_apart(name, args)):
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
