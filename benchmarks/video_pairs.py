"""Pairs per second from annotated videos, as `train track` makes them.

    python benchmarks/video_pairs.py LAYOUT:ROOT [--workers 2] [--batch 16] [--search-size 128] ...

Batches come in order from worker processes of one thread; 0 workers make them in this process. Prints the
throughput by wall clock and, without workers, per second of processor time, which other load on the machine
does not change.
"""

import argparse
import time

import cv2
import torch

from correlation_aware.data.videos.subsets import open_videos
from correlation_aware.data.videos.video_pairs import VideoPairs
from correlation_aware.models.contract import Sizes
from correlation_aware.training.batches import PairBatches


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--template-size", type=int, default=64)
    parser.add_argument("--search-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sizes = Sizes(args.template_size, args.search_size)
    pairs = VideoPairs([(open_videos(args.videos), 1.0)], args.batch, sizes, workers=1)
    batches = PairBatches(pairs, args.batch, workers=args.workers).batches(0, 1)
    for _ in range(20):  # annotations are parsed, the workers run
        next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < wall + args.seconds:
        next(batches)
        count += args.batch
    print(f"{count / (time.perf_counter() - wall):.0f} pairs/s by wall clock, {args.workers} workers")
    if not args.workers:
        print(f"{count / (time.process_time() - cpu):.0f} pairs per second of processor time")


if __name__ == "__main__":
    main()
