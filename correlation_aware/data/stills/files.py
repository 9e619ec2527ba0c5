"""Still images from WebDataset shards or a folder, with a mask and a class where they have one."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require
from correlation_aware._files import IMAGE_SUFFIXES, natural_order
from correlation_aware.data.faults import Faults

__all__ = ["Still", "read_stills"]

MASK = ".mask.png"

Image = NDArray[np.uint8]


class Still(NamedTuple):
    """A photograph.

    Attributes:
        image: uint8 RGB (H, W, 3).
        mask: uint8 (H, W), 255 on the object; None if nothing is known about it.
        label: The class in the name, "" if there is none.
    """

    image: Image
    mask: Image | None = None
    label: str = ""


def read_stills(source: str | Path, max_side: int, faults: Faults | None = None) -> Iterator[Still]:
    """Reads every still of a source, each at most `max_side` pixels long.

    Names are `KEY.jpg`, with `KEY.mask.png` beside it where there is a mask. In a key such as
    `000017_n01440764_tench` what follows the first underscore is the class; so is a picture's subfolder.

    Args:
        source: A folder, or tar shards as WebDataset names them: a path, `shard-{000000..000041}.tar`, a URL.
        max_side: Larger pictures are shrunk.
        faults: Counts what cannot be read; by default nothing may fail.

    Raises:
        FileNotFoundError: There is nothing there.
        RuntimeError: Too much of it cannot be read.
    """
    faults = faults or Faults(limit=0)
    path = Path(source)
    raw = _folder(path) if path.is_dir() else _shards(str(source), faults)

    def decode(entry: tuple[str, str, bytes, bytes | None]) -> Still | None:
        name, label, image, mask = entry
        try:
            return _decode(image, mask, label, max_side)
        except (ValueError, cv2.error) as error:
            faults.add(name, error)
            return None

    found = False
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(raw, 256)):  # bounds what waits in memory
            for still in pool.map(decode, chunk):
                if still is not None:
                    found = True
                    yield still
    if not found:
        raise FileNotFoundError(f"{source} holds no picture that can be read ({', '.join(IMAGE_SUFFIXES)}).")


def _folder(root: Path) -> Iterator[tuple[str, str, bytes, bytes | None]]:
    for path in sorted(root.rglob("*"), key=natural_order):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.endswith(MASK):
            mask = path.with_name(path.stem + MASK)
            label = path.parent.name if path.parent != root else _label(path.stem)
            yield str(path), label, path.read_bytes(), mask.read_bytes() if mask.is_file() else None


def _shards(urls: str, faults: Faults) -> Iterator[tuple[str, str, bytes, bytes | None]]:
    for sample in _webdataset(urls, faults):
        where = f"{sample['__url__']}: {sample['__key__']}"
        image = next((sample[s[1:]] for s in IMAGE_SUFFIXES if s[1:] in sample), None)
        if image is None:
            faults.add(where, ValueError("no picture of this key"))
        else:
            key = str(sample["__key__"]).rsplit("/")[-1]
            yield where, _label(key), image, sample.get(MASK[1:])


def _webdataset(urls: str, faults: Faults) -> Iterable[Mapping[str, Any]]:
    (webdataset,) = require("webdataset", message="Tar shards need {names}")

    def handler(error: Exception) -> bool:
        faults.add(urls, error)
        return True

    # every process of a run fills its own pool with all shards, so none are dealt out
    return webdataset.WebDataset(
        urls, shardshuffle=False, handler=handler, nodesplitter=None, workersplitter=None, empty_check=False
    )


def _label(key: str) -> str:
    return key.partition("_")[2]


def _decode(image: bytes, mask: bytes | None, label: str, max_side: int) -> Still:
    rgb = _picture(image, cv2.IMREAD_COLOR_RGB)
    scale = min(1.0, max_side / max(rgb.shape[:2]))
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    if mask is None:
        return Still(rgb, None, label)
    grey = _picture(mask, cv2.IMREAD_GRAYSCALE)
    return Still(rgb, np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8), label)


def _picture(data: bytes, flags: int) -> Image:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if picture is None:
        raise ValueError("not a picture, or a damaged one")
    return np.asarray(picture, np.uint8)
