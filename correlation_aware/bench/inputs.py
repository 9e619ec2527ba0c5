"""Input pairs of benchmarks: random images, or crops of annotated sequences as a tracker makes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from correlation_aware._images import File, read_image
from correlation_aware.evaluation.benchmarks import open_benchmark
from correlation_aware.runtime.graphs import SessionModel, split_graphs
from correlation_aware.tracking.crop import Crop

__all__ = ["random_pairs", "real_pairs"]

Pair = tuple[Tensor, Tensor]


def random_pairs(model: SessionModel, batch: int, count: int) -> list[Pair]:
    """Pairs of smooth random images on the CPU: (B, 3, Hz, Wz) and (B, 3, Hx, Wx).

    Args:
        model: Model on the CPU, which sets the sizes of the images.
        batch: Images per batch.
        count: Number of pairs of batches; pair n depends only on n.
    """
    graph = split_graphs(model)["pair"]
    pairs = []
    for seed in range(count):
        template, search = graph.example(seed, batch)
        pairs.append((template, search))
    return pairs


def real_pairs(model: SessionModel, root: Path, per_sequence: int = 3) -> list[Pair]:
    """Normalized crops of annotated sequences, in batches of 1.

    The template is cropped around the box of the first frame. Search images are spread over the sequence and
    cropped around the box of an earlier frame, so that the target is not centered.

    Args:
        model: Model that sets sizes, crop factors and normalization.
        root: Folder in GOT-10k's layout, with a subset `val`.
        per_sequence: Search images per sequence.

    Raises:
        FileNotFoundError: See `open_benchmark`.
    """
    config: Any = model.pretrained_cfg
    mean, std = (np.array(config[key], np.float32) * 255 for key in ("mean", "std"))
    template_crop = model.sizes.template_size, model.sizes.template_factor
    search_crop = model.sizes.search_size, model.sizes.search_factor

    def read_crop(file: File, box: ArrayLike, size: int, factor: float) -> Tensor:
        crop = Crop.around(box, factor).cut(read_image(file), size)
        return torch.from_numpy(((crop - mean) / std).transpose(2, 0, 1).copy())[None]

    def pairs() -> Iterator[Pair]:
        benchmark = open_benchmark("got10k", root)
        for name in benchmark.names:
            video = benchmark[name]
            files, boxes = video.frames, video.boxes
            template = read_crop(files[0], boxes[0], *template_crop)
            for i in np.linspace(len(files) - 1, 1, per_sequence).round().astype(int):
                yield template, read_crop(files[i], boxes[max(0, i - 3)], *search_crop)

    return list(pairs())
