"""Acme's dataset: images beside one table of boxes."""

import csv
from pathlib import Path

import numpy as np

import correlation_aware as ca


@ca.register_reader("acme")
class AcmeVideos:
    """`ROOT/boxes.csv` with the columns video, image, x, y, w, h; images are relative to ROOT."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.videos: dict[str, list[dict[str, str]]] = {}
        with (self.root / "boxes.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                self.videos.setdefault(row["video"], []).append(row)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ca.Video:
        name, rows = list(self.videos.items())[index]
        boxes = np.array([[float(row[key]) for key in ("x", "y", "w", "h")] for row in rows])
        return ca.Video(name, [self.root / row["image"] for row in rows], boxes, visible=boxes[:, 2] > 0)
