"""Still images from WebDataset shards or a folder, with the mask and the class where they have one."""

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._extras import require
from correlation_aware._files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, walk_files
from correlation_aware._images import decode_image, decode_mask
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.shard_files import expand_shards

__all__ = ["Still", "read_stills"]

MASK = ".mask.png"
META = re.compile(r"__[^/]*__($|/)")  # files of WebDataset's own
MOST_BYTES = 2**28  # of an image in a shard

Image = NDArray[np.uint8]
Entry = tuple[str, str, bytes, bytes | None]  # name, class, encoded image and mask


class Still(NamedTuple):
    """A photograph.

    Attributes:
        image: uint8 RGB (H, W, 3).
        mask: uint8 (H, W), 255 on the object; None if there is no mask.
        label: Name of the class, "" if unknown.
    """

    image: Image
    mask: Image | None = None
    label: str = ""


def read_stills(source: str | Path, max_side: int, errors: ErrorBudget | None = None) -> Iterator[Still]:
    """Reads all images of a source.

    Files are named `KEY.jpg`, with an optional mask `KEY.mask.png` of the same size. Both are read as they
    are displayed, with the orientation of their EXIF data. The class is the part of the key after
    its first underscore, `n01440764_tench` in `000017_n01440764_tench`, or the name of the subfolder.

    Args:
        source: A folder, or tar shards in WebDataset notation: a path, `shard-{000000..000041}.tar`, a URL.
        max_side: Longest side in pixels; larger images are downscaled.
        errors: Counter of files that cannot be used, such as damaged ones, images of more than 8 bits or of
            another kind, and masks of another size; by default the first one raises.

    Yields:
        The images, folders in natural order and through links to folders.

    Raises:
        FileNotFoundError: The source has no readable image.
        ValueError: A shard with a scheme other than `file`, `http` and `https`.
        RuntimeError: More unreadable files than `errors` allows.
    """
    errors = errors or ErrorBudget(limit=0)
    path = Path(source)
    raw = _folder(path, errors) if path.is_dir() else _shards(str(source), errors)

    def decode(entry: Entry) -> Still | None:
        name, label, image, mask = entry
        try:
            return _decode(image, mask, label, max_side)
        except (ValueError, cv2.error) as error:
            errors.add(name, error)
            return None

    empty = True
    with ThreadPoolExecutor() as pool:
        for chunk in _chunks(raw):
            errors.files += len(chunk)
            for still in pool.map(decode, chunk):
                if still is not None:
                    empty = False
                    yield still
    if empty:
        raise FileNotFoundError(f"{source} has no readable images ({', '.join(IMAGE_SUFFIXES)}).")


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Lists of entries, whose encoded images take a limited memory."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry[2])
        if len(chunk) == 256 or size > MOST_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _folder(root: Path, errors: ErrorBudget) -> Iterator[Entry]:
    for path in walk_files(root):
        if path.suffix.lower() in UNREAD_SUFFIXES:
            errors.add(str(path), ValueError(f"not of a kind that is read: {', '.join(IMAGE_SUFFIXES)}"))
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.endswith(MASK):
            mask = path.with_name(path.stem + MASK)
            label = path.parent.name if path.parent != root else _label(path.stem)
            try:
                image, mask_bytes = path.read_bytes(), mask.read_bytes() if mask.is_file() else None
            except OSError as error:  # a broken link, or no permission
                errors.add(str(path), error)
                continue
            yield str(path), label, image, mask_bytes


def _shards(urls: str, errors: ErrorBudget) -> Iterator[Entry]:
    if not set(":{") & set(urls[2:]) and not Path(urls).exists():  # neither a URL nor several shards
        raise FileNotFoundError(f"There is no folder or shard {urls}.")
    for sample in _webdataset(urls, errors):
        name = f"{sample['__url__']}: {sample['__key__']}"
        image = next((sample[s[1:]] for s in IMAGE_SUFFIXES if s[1:] in sample), None)
        if image is None:
            errors.add(name, ValueError("no image with this key"))
        else:
            key = str(sample["__key__"]).rsplit("/")[-1]
            yield name, _label(key), image, sample.get(MASK[1:])


def _webdataset(source: str, errors: ErrorBudget) -> Iterator[Mapping[str, Any]]:
    """Files of shards by key. Every process reads all shards into its own pool: they are not split."""
    (tariterators,) = require("webdataset.tariterators", message="Tar shards need {names}")

    def handler(error: Exception) -> bool:
        errors.add(f"{source}: {error}", type(error).__name__)  # webdataset names the shard in the message
        return True

    opened = tariterators.url_opener(({"url": url} for url in expand_shards(source)), handler)
    files = (file for shard in opened for file in _files(shard["stream"], shard["url"], errors))
    yield from tariterators.group_by_keys(files, handler=handler)


def _files(stream: Any, url: str, errors: ErrorBudget) -> Iterator[dict[str, Any]]:
    """Files of a shard, and {} at its end; of those that are no images and masks only the names."""
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # it would keep all of them
                if not member.isreg() or META.match(member.name):
                    continue
                if member.issparse() or member.size > MOST_BYTES:  # it claims what the shard need not have
                    kind = "a sparse file" if member.issparse() else "a file"
                    reason = f"{kind} of {member.size} bytes; images have at most {MOST_BYTES} and no holes"
                    errors.add(f"{url}: {member.name}", ValueError(reason))
                    continue
                is_image = member.name.lower().endswith(IMAGE_SUFFIXES)
                content = tar.extractfile(member) if is_image else None
                data = b"" if content is None else content.read()
                yield {"fname": member.name, "data": data, "__url__": url}
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        errors.add(url, error)
    yield {}


def _label(key: str) -> str:
    return key.partition("_")[2]


def _decode(image: bytes, mask: bytes | None, label: str, max_side: int) -> Still:
    rgb = decode_image(image)
    shape = rgb.shape[:2]
    scale = min(1.0, max_side / max(rgb.shape[:2]))
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    if mask is None:
        return Still(rgb, None, label)
    gray = decode_mask(mask)
    if gray.shape != shape:
        raise ValueError(
            f"the mask has {gray.shape[1]} x {gray.shape[0]} pixels and the image {shape[1]} x {shape[0]}, "
            "both as displayed, with the orientation of their EXIF data"
        )
    return Still(rgb, np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8), label)
