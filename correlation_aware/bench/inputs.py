"""Pairs of pictures to run networks on: drawn ones, or real crops as a tracker cuts them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from correlation_aware.evaluation.got10k import open_dataset
from correlation_aware.runtime.graphs import SessionModel, split_graphs
from correlation_aware.tracking.crop import Crop

__all__ = ["drawn_pairs", "real_pairs"]

Pair = tuple[Tensor, Tensor]


def drawn_pairs(model: SessionModel, batch: int, count: int) -> list[Pair]:
    """Soft blobs and noise from seeds, on the CPU: (B, 3, Hz, Wz) and (B, 3, Hx, Wx).

    Args:
        model: On the CPU; its sizes are those of the pictures.
        batch: Pictures in each.
        count: Number of pairs.
    """
    graph = split_graphs(model)["pair"]
    made = []
    for seed in range(count):
        template, search = graph.example(seed, batch)
        made.append((template, search))
    return made


def real_pairs(model: SessionModel, root: Path, per_sequence: int = 3) -> list[Pair]:
    """Crops of annotated sequences, normalised, in batches of 1.

    The template is cut around the first frame's box. Search pictures are spread over the sequence, each cut
    around the box of some frames before, so that the target is not in the middle.

    Args:
        model: Says how large to cut.
        root: In GOT-10k's layout, with a subset `val`.
        per_sequence: Search pictures from each sequence.

    Raises:
        ModuleNotFoundError, FileNotFoundError: See `open_dataset`.
    """
    config: Any = model.pretrained_cfg
    mean, std = (np.array(config[key], np.float32) * 255 for key in ("mean", "std"))
    sizes = model.sizes.template_size, model.sizes.search_size
    factors = model.sizes.template_factor, model.sizes.search_factor

    def picture(file: str, box: ArrayLike, which: int) -> Tensor:
        frame = np.asarray(Image.open(file).convert("RGB"))
        cut_out = Crop.around(box, factors[which]).cut(frame, sizes[which])
        return torch.from_numpy(((cut_out - mean) / std).transpose(2, 0, 1).copy())[None]

    def pairs() -> Iterator[Pair]:
        dataset = open_dataset(root)
        for name in dataset.seq_names:
            files, boxes, *_ = dataset[name]
            template = picture(files[0], boxes[0], 0)
            for i in np.linspace(len(files) - 1, 1, per_sequence).round().astype(int):
                yield template, picture(files[i], boxes[max(0, i - 3)], 1)

    return list(pairs())
