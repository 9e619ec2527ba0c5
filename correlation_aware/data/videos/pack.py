"""Annotated videos of any dataset into WebDataset tar shards, see `tar_shards`."""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from correlation_aware._files import atomic_path, write_text
from correlation_aware.data.videos.sequences import SequenceSet, Video
from correlation_aware.data.videos.tar_shards import GROUND_TRUTH, INDEX_SUFFIX

__all__ = ["Packed", "pack_videos"]

PREFIX = "videos-"


@dataclass
class Packed:
    """What was written.

    Attributes:
        shards: Paths of the shards.
        videos: Number of videos.
        frames: Number of frames.
        left_out: Reason by name of every frame and video that was left out.
    """

    shards: list[Path] = field(default_factory=list)
    videos: int = 0
    frames: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The shards as a source of videos, `tar:` in WebDataset's notation."""
        if len(self.shards) == 1:
            return f"tar:{self.shards[0]}"
        first, last = (path.stem.removeprefix(PREFIX) for path in (self.shards[0], self.shards[-1]))
        return f"tar:{self.shards[0].parent / f'{PREFIX}{{{first}..{last}}}.tar'}"


def pack_videos(dataset: SequenceSet, folder: str | Path, shard_bytes: int = 10**9) -> Packed:
    """Writes videos into tar shards with an index each; files of frames are copied as they are.

    Args:
        dataset: Dataset to pack.
        folder: Folder of the shards, created if it does not exist.
        shard_bytes: Size from which on the next video starts another shard.

    Raises:
        ValueError: The folder has shards already, or no video can be read.
    """
    folder = Path(folder)
    if before := sorted(folder.glob(f"{PREFIX}*.tar")):
        raise ValueError(f"{folder} has shards already, such as {before[0].name}; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    packed, keys = Packed(), _keys(dataset)
    index = 0
    while index < len(dataset):
        path = folder / f"{PREFIX}{len(packed.shards):06d}.tar"
        count = packed.videos
        with _Shard.open(path) as shard:
            while index < len(dataset) and shard.size < shard_bytes:
                name = keys[index]
                try:
                    _write_video(shard, name, dataset[index], packed)
                except (OSError, ValueError) as error:
                    packed.left_out[f"video {name}"] = str(error).rstrip(".")
                index += 1
            if packed.videos == count:
                shard.discard()
        if packed.videos > count:
            packed.shards.append(path)
    if not packed.shards:
        reason = next(iter(packed.left_out.values()), "there are none")
        raise ValueError(f"No video could be packed: {reason}.")
    return packed


def _write_video(shard: "_Shard", key: str, video: Video, packed: Packed) -> None:
    """A video whose files can be read; boxes of an invisible target are written as nan."""
    content: list[tuple[str, bytes]] = []
    lines: list[str] = []
    for frame, box, visible in zip(video.frames, video.boxes.tolist(), video.visible):
        try:
            data = frame.read_bytes()
        except (OSError, ValueError) as error:
            packed.left_out[str(frame)] = str(error)
            continue
        suffix = str(frame).rpartition(".")[2].lower()
        content.append((f"{len(content):08d}.{suffix}", data))
        lines.append(",".join(f"{value:.10g}" for value in box) if visible else "nan,nan,nan,nan")
    if not content:
        raise ValueError("no frame can be read")
    if video.remark:
        packed.left_out[video.name] = video.remark
    shard.add(key, GROUND_TRUTH, ("\n".join(lines) + "\n").encode())
    for name, data in content:
        shard.add(key, name, data)
    packed.videos += 1
    packed.frames += len(content)


def _keys(dataset: SequenceSet) -> list[str]:
    """A key for every video, its name where possible: unique, and without the dot that ends a key."""
    names = getattr(dataset, "names", None) or [f"{i:06d}" for i in range(len(dataset))]
    plain = [re.sub(r"[^\w/-]", "_", name).strip("/") for name in names]
    counts, seen = Counter(plain), Counter[str]()
    keys = []
    for name in plain:
        keys.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
        seen[name] += 1
    return keys


class _Shard:
    """A tar file that is written, and its index."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar, self._discarded = tar, False
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["_Shard"]:
        """Both files appear when they are complete."""
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(path))
            with tarfile.open(temporary, "w") as tar:
                shard = cls(tar)
                yield shard
            if shard._discarded:
                temporary.unlink()
                return
            facts = {"bytes": temporary.stat().st_size, "samples": shard._samples}
            write_text(json.dumps(facts), path.with_name(path.name + INDEX_SUFFIX))

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.offset

    def discard(self) -> None:
        """Writes nothing."""
        self._discarded = True

    def add(self, key: str, name: str, data: bytes) -> None:
        """Adds a file to a sample."""
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self._samples.setdefault(key, {})[name] = (self._tar.offset - padded, len(data))
