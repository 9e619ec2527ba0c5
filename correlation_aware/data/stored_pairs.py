"""Pairs that are made once and stored in a folder, for trainings that share them."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from correlation_aware._files import read_json, write_text
from correlation_aware.data.pairs import PairBatch, PairSource, denormalize, normalize
from correlation_aware.models.contract import Sizes

__all__ = ["StoredPairs"]

FACTS = "pairs.json"


class StoredPairs:
    """An endless source of the batches of a folder, in their order, and then from the first one again.

    `create` makes the files, `fill` writes batches, in several processes if they write different ones, and
    `finish` says that all are there. Images are stored as uint8, so that they differ from those of the source
    by up to half a gray level. Processes that read a folder share its memory.

    Args:
        folder: Folder of the pairs.

    Raises:
        ValueError: A folder without pairs, or whose pairs are not all there.
    """

    def __init__(self, folder: str | Path) -> None:
        if not self.is_complete(folder):
            raise ValueError(f"{folder} has no pairs, or not all: there is no {FACTS}.")
        self.names: list[str] = read_json(Path(folder) / FACTS)["names"]
        self._arrays = _open(Path(folder), "r")
        self.batches = len(self._arrays["source"])

    @staticmethod
    def is_complete(folder: str | Path) -> bool:
        """Whether a folder has all its pairs."""
        return (Path(folder) / FACTS).is_file()

    @staticmethod
    def create(folder: str | Path, batches: int, batch_size: int, sizes: Sizes) -> None:
        """Makes the files of so many batches, without their content.

        Raises:
            OSError: No space, or no permission.
        """
        folder = Path(folder)
        folder.mkdir(parents=True)
        shape = (batches, batch_size)
        for name, size in (("template", sizes.template_size), ("search", sizes.search_size)):
            open_memmap(folder / f"{name}.npy", "w+", np.uint8, (*shape, 3, size, size))
        open_memmap(folder / "boxes.npy", "w+", np.float32, (*shape, 4))
        open_memmap(folder / "positive.npy", "w+", np.bool_, shape)
        open_memmap(folder / "source.npy", "w+", np.int64, (batches,))

    @staticmethod
    def fill(folder: str | Path, pairs: PairSource, numbers: Iterable[int]) -> None:
        """Writes batches of a source, normalized with ImageNet's statistics, to the files of `create`."""
        arrays = _open(Path(folder), "r+")
        for number in numbers:
            batch = pairs.batch(number)
            for name in ("template", "search"):
                arrays[name][number] = denormalize(getattr(batch, name)).cpu().numpy()
            for name in ("boxes", "positive", "source"):
                arrays[name][number] = getattr(batch, name).cpu().numpy()
        for array in arrays.values():
            array.flush()

    @staticmethod
    def finish(folder: str | Path, names: Iterable[str] = ()) -> None:
        """Marks the pairs of a folder as complete.

        Args:
            folder: Folder of the pairs.
            names: Names of the sources in the log.
        """
        write_text(json.dumps({"names": list(names)}) + "\n", Path(folder) / FACTS)

    def batch(self, number: int) -> PairBatch:
        """Batch `number`, counted from 0, modulo the number of batches."""
        template, search, boxes, positive, source = (
            torch.from_numpy(np.array(self._arrays[name][number % self.batches]))
            for name in PairBatch._fields
        )
        return PairBatch(normalize(template.float()), normalize(search.float()), boxes, positive, source)


def _open(folder: Path, mode: str) -> dict[str, "np.memmap"]:
    return {name: open_memmap(folder / f"{name}.npy", mode) for name in PairBatch._fields}
