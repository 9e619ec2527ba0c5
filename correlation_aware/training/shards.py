"""Random access to labeled images in WebDataset tar shards, for timm's `ImageDataset`."""

import io
import os
import tarfile
from pathlib import Path
from typing import IO

import numpy as np
from timm.data.readers.reader import Reader

from correlation_aware._extras import require
from correlation_aware._files import IMAGE_SUFFIXES, UNREAD_SUFFIXES

__all__ = ["ShardReader"]


class ShardReader(Reader):
    """Images `KEY.jpg` with their class, an integer from 0, as text in `KEY.cls` of the same shard.

    The headers of the shards are read once; images are then read at their offsets, in any order.

    Args:
        shards: Local tar files in WebDataset's notation, such as `train-{000000..001281}.tar`.

    Attributes:
        class_to_idx: Indices of the classes by their number as text, up to the largest class.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: A compressed or damaged shard, no images, an image without a class, or a class that is
            not an integer.
    """

    def __init__(self, shards: str) -> None:
        super().__init__()
        (shardlists,) = require("webdataset.shardlists", message="Tar shards need {names}")
        self.paths = [Path(path) for path in shardlists.expand_urls(shards)]
        self._names: list[str] = []
        rows: list[tuple[int, int, int, int]] = []  # shard, offset, bytes, class
        for number, path in enumerate(self.paths):
            for name, offset, size, label in _read_headers(path):
                self._names.append(name)
                rows.append((number, offset, size, label))
        if not rows:
            raise ValueError(f"{shards} contains no images ({', '.join(IMAGE_SUFFIXES)}).")
        self._index = np.array(rows)  # one array, whose memory worker processes share
        self.class_to_idx = {str(i): i for i in range(int(self._index[:, 3].max()) + 1)}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        shard, offset, size, label = self._index[index].tolist()
        with self.paths[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index]
        if basename:
            return os.path.basename(name)
        return f"{self.paths[self._index[index, 0]]}/{name}" if absolute else name


def _read_headers(path: Path) -> list[tuple[str, int, int, int]]:
    """Name, offset, size in bytes and class of every image of a shard."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no shard {path}; shards of `train classify` must be local files.")
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    unread: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed only: compressed files have no offsets
            for member in tar:
                key, suffix = os.path.splitext(member.name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = member.name, member.offset_data, member.size
                elif suffix.lower() in UNREAD_SUFFIXES:
                    unread.append(member.name)
                elif suffix == ".cls":
                    content = tar.extractfile(member)
                    assert content is not None  # None for a member that is not a file: a damaged shard
                    classes[key] = int(content.read())
    except (tarfile.ReadError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file whose .cls entries are integers: {error}"
        ) from error
    if unread:
        raise ValueError(
            f"{path}: {len(unread)} images are of a kind that is not read, such as {unread[0]}; convert them "
            f"to one of {', '.join(IMAGE_SUFFIXES)}"
        )
    unlabeled = sorted(images.keys() - classes.keys())
    if unlabeled:
        raise ValueError(f"{path}: {len(unlabeled)} images have no .cls entry, such as {unlabeled[0]}.")
    return [(*image, classes[key]) for key, image in images.items()]
