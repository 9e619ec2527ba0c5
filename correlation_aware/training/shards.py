"""Labelled pictures in WebDataset tar shards, in any order and not unpacked, for timm's `ImageDataset`."""

import io
import os
import tarfile
from pathlib import Path
from typing import IO

import numpy as np
from timm.data.readers.reader import Reader

from correlation_aware._extras import require
from correlation_aware._files import IMAGE_SUFFIXES

__all__ = ["ShardReader"]


class ShardReader(Reader):
    """Pictures `KEY.jpg` with their class, a whole number from 0, as text in `KEY.cls` beside them.

    Reads the tables of the shards once; a picture is then read from where it lies, so that a run can take
    them in random order and resume anywhere.

    Args:
        shards: Local tar files as WebDataset names them, such as `train-{000000..001281}.tar`.

    Attributes:
        class_to_idx: Every class by its number as text, up to the largest there is.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: A compressed or damaged shard, a picture without class or one that is no number.
    """

    def __init__(self, shards: str) -> None:
        super().__init__()
        (shardlists,) = require("webdataset.shardlists", message="Tar shards need {names}")
        self.paths = [Path(path) for path in shardlists.expand_urls(shards)]
        self._names: list[str] = []
        places: list[tuple[int, int, int, int]] = []  # shard, offset, bytes, class
        for number, path in enumerate(self.paths):
            for name, offset, size, label in _table(path):
                self._names.append(name)
                places.append((number, offset, size, label))
        if not places:
            raise ValueError(f"{shards} holds no picture ({', '.join(IMAGE_SUFFIXES)}).")
        self._places = np.array(places)  # one block, which worker processes share
        self.class_to_idx = {str(i): i for i in range(int(self._places[:, 3].max()) + 1)}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        shard, offset, size, label = self._places[index].tolist()
        with self.paths[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        if basename:
            return os.path.basename(name)
        return f"{self.paths[self._places[index, 0]]}/{name}" if absolute else name


def _table(path: Path) -> list[tuple[str, int, int, int]]:
    """Name, offset, bytes and class of every picture of a shard."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no shard {path}; shards to classify are local files.")
    pictures: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # a compressed one has no offsets
            for member in tar:
                key, suffix = os.path.splitext(member.name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    pictures[key] = member.name, member.offset_data, member.size
                elif suffix == ".cls":
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file, or the tar is damaged
                    classes[key] = int(content.read())
    except (tarfile.ReadError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{path} is not a plain tar file whose .cls entries are whole numbers: {error}"
        ) from error
    without = sorted(pictures.keys() - classes.keys())
    if without:
        raise ValueError(f"{path}: {len(without)} pictures have no .cls beside them, such as {without[0]}.")
    return [(*picture, classes[key]) for key, picture in pictures.items()]
