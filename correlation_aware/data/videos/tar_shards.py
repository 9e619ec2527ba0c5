"""Annotated videos in WebDataset tar shards, on disk or on a web server, read frame by frame in any order.

A sample is a video: `KEY.groundtruth.txt`, as in the layout `folder`, and its frames `KEY.00000000.jpg` and
so on. `correlation-aware train pack` writes such shards, each with an index of its members beside it,
`SHARD.index.json`; without an index the headers of all members are read once.
"""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from correlation_aware._files import IMAGE_SUFFIXES, natural_order
from correlation_aware.data.shard_files import ShardFile, expand_shards
from correlation_aware.data.videos.sequences import AnnotationError, Video, match_lines, read_boxes

__all__ = ["GROUND_TRUTH", "INDEX_SUFFIX", "TarShards"]

GROUND_TRUTH = "groundtruth.txt"
INDEX_SUFFIX = ".index.json"
BUFFER = 1 << 22  # bytes of a shard that are read at once for its headers

Members = Mapping[str, Sequence[int]]  # offset and size in bytes by name, without the key


class Member(NamedTuple):
    """A file in a shard.

    Attributes:
        shard: Shard.
        key: Key of the sample.
        name: Name after the key, such as `00000000.jpg`.
        offset: Position of its first byte in the shard.
        size: Number of bytes.
    """

    shard: ShardFile
    key: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}.{self.name}"

    @property
    def stem(self) -> str:
        """Name without suffix."""
        return self.name.rpartition(".")[0]

    def read_bytes(self) -> bytes:
        """Content of the file."""
        return self.shard.read(self.offset, self.size)

    def read_text(self) -> str:
        """Content of the file as UTF-8 text."""
        return self.read_bytes().decode("utf-8")


class _Frames(Sequence[Member]):
    """The frames of a video, a few bytes each."""

    def __init__(self, shard: ShardFile, key: str, members: Members) -> None:
        names = sorted((n for n in members if n.lower().endswith(IMAGE_SUFFIXES)), key=natural_order)
        self.shard, self.key, self._names = shard, key, "\n".join(names)
        self._places: NDArray[np.int64] = np.array([members[name] for name in names], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        names = self._names.split("\n")
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, size = self._places[index].tolist()
        return Member(self.shard, self.key, names[index], offset, size)


class TarShards:
    """Videos in tar shards.

    Args:
        root: Shards in WebDataset's notation: a path, `videos-{000000..000009}.tar`, or an http(s) URL.

    Attributes:
        names: Keys of the videos.
        damaged: Reason by name of every shard that is not whole; its complete members are used.

    Raises:
        FileNotFoundError: A shard is missing, or there are no videos in them.
        ValueError: A scheme other than http(s), a server that sends no parts of files, or an index of another
            shard.
        ConnectionError: A server that does not answer.
    """

    def __init__(self, root: str) -> None:
        self.names: list[str] = []
        self.damaged: dict[str, str] = {}
        self._videos: list[tuple[_Frames, Member | None]] = []
        for location in expand_shards(str(root)):
            shard = ShardFile(location)
            for key, members in self._members(shard).items():
                frames = _Frames(shard, key, members)
                if len(frames) or GROUND_TRUTH in members:
                    boxes = members.get(GROUND_TRUTH)
                    self._videos.append(
                        (frames, None if boxes is None else Member(shard, key, GROUND_TRUTH, *boxes))
                    )
                    self.names.append(key)
        if not self._videos:
            raise FileNotFoundError(
                f"{root} has no videos: a video is KEY.{GROUND_TRUTH} with KEY.00000000.jpg and so on."
            )

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Video:
        frames, boxes = self._videos[index]
        name = f"{frames.shard}: {frames.key}"
        if boxes is None:
            raise AnnotationError(f"{name} has no {GROUND_TRUTH}.")
        return match_lines(name, frames, *read_boxes(boxes))

    def _members(self, shard: ShardFile) -> dict[str, dict[str, Sequence[int]]]:
        """Members of every sample, those beyond the end of a truncated shard left out."""
        size = shard.size()
        index = ShardFile(shard.location + INDEX_SUFFIX).read_whole()
        if index is None:
            return self._scan(shard, size)
        try:
            expected, samples = _read_index(index)
        except Exception as error:  # of another structure it raises anything
            raise ValueError(f"{shard}{INDEX_SUFFIX} is not an index of a shard; delete it.") from error
        if size > expected:
            raise ValueError(
                f"{shard} has {size} bytes, and its index {INDEX_SUFFIX} is of a shard of {expected}. Delete "
                "the index, or write the shard again with train pack."
            )
        if size < expected:
            self.damaged[str(shard)] = f"it has {size} of {expected} bytes"
        return {
            key: {name: place for name, place in members.items() if sum(place) <= size}
            for key, members in samples.items()
        }

    def _scan(self, shard: ShardFile, size: int) -> dict[str, dict[str, Sequence[int]]]:
        """Reads the headers of a shard, up to the first damage."""
        samples: dict[str, dict[str, Sequence[int]]] = {}
        try:
            with tarfile.open(fileobj=io.BufferedReader(_Reader(shard, size), BUFFER), mode="r:") as tar:
                for member in tar:
                    folder, slash, base = member.name.rpartition("/")
                    key, dot, name = base.partition(".")
                    if member.isfile() and dot and member.offset_data + member.size <= size:
                        place = (member.offset_data, member.size)
                        samples.setdefault(folder + slash + key, {})[name] = place
                end = tar.offset
        except (tarfile.TarError, ValueError, EOFError) as error:
            self.damaged[str(shard)] = f"not a whole, uncompressed tar file: {error}"
            return samples
        # tarfile takes a damaged header for the end, which has 512 zeros
        if end + 512 > size or any(shard.read(end, 512)):
            self.damaged[str(shard)] = f"the header at byte {end} of {size} is damaged"
        return samples


def _read_index(index: bytes) -> tuple[int, dict[str, dict[str, Sequence[int]]]]:
    """Size of the shard, and offset and size of the members of every sample."""
    content = json.loads(index)
    samples = {key: dict(members.items()) for key, members in content["samples"].items()}
    for members in samples.values():
        for place in members.values():
            offset, size = place
            if not (type(offset) is type(size) is int and min(offset, size) >= 0):
                raise ValueError(f"{place} is not an offset and a size")
    return int(content["bytes"]), samples


class _Reader(io.RawIOBase):
    """A shard as a file object, for tarfile."""

    def __init__(self, shard: ShardFile, size: int) -> None:
        self._shard, self._size, self._at = shard, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = self._shard.read(self._at, count)
        self._at += count
        return count
