"""File tools: atomic writing, JSON, hashes, and the frames of a folder in natural order."""

import contextlib
import errno
import fnmatch
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

if sys.platform != "win32":
    import fcntl

__all__ = [
    "IMAGE_SUFFIXES",
    "PLOT_SUFFIXES",
    "atomic_path",
    "check_output_file",
    "check_output_folder",
    "file_lock",
    "frame_numbers",
    "git_hash_file",
    "is_device",
    "is_file_name",
    "is_stdout",
    "list_frames",
    "natural_order",
    "open_device",
    "parse_json",
    "read_json",
    "read_text",
    "remove_leftovers",
    "sha256_file",
    "walk_files",
    "walk_folders",
    "write_text",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# images that are not read: a folder with some is refused, since frames would be missing without a word
UNREAD_SUFFIXES = (
    *(".avif", ".cr2", ".dng", ".exr", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".nef"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga"),
)
OPEN_FILE = re.compile(r"/(?:dev|proc/self)/fd/(\d+)|/dev/(stdout|stderr)")
PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary file in the folder of `path`, with its suffix.

    Where `path` is a link, the file that it leads to is written, and the link stays. The file is renamed to
    `path` at the end of the block, unless the block removed it, and is removed if the block raises. A device
    or pipe stays, too: at the end of the block it gets the bytes of the temporary file.

    Raises:
        ValueError: `path` exists and is a folder or a disk.
        OSError: The folder does not exist or is not writable.
    """
    path = Path(path)
    if is_device(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            temporary.touch()
            yield temporary
            if temporary.exists():
                with open_device(path) as device, temporary.open("rb") as file:
                    shutil.copyfileobj(file, device)
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} exists and is not a regular file; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist; create it first")
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        failure = type(error)(f"{path} cannot be written: {error.strerror}")
        failure.errno = error.errno
        raise failure from error
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def is_device(path: str | Path) -> bool:
    """Whether what is written to a path goes to a terminal, another device, a pipe or an open file."""
    path = Path(path)
    return bool(OPEN_FILE.fullmatch(str(path))) or path.is_fifo() or path.is_char_device()


def is_stdout(path: str | Path) -> bool:
    """Whether a path is the standard output."""
    return _descriptor(path) == 1


def open_device(path: str | Path) -> BinaryIO:
    """Opens a path of `is_device` for writing; a pipe waits for its reader.

    An open file is written where it stands, so that it keeps what is in it already.
    """
    descriptor = _descriptor(path)
    try:
        return open(path if descriptor is None else os.dup(descriptor), "wb")
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def _descriptor(path: str | Path) -> int | None:
    """Number of the open file that a path such as /dev/stdout names."""
    match = OPEN_FILE.fullmatch(str(path))
    return match and (int(match[1]) if match[1] else {"stdout": 1, "stderr": 2}[match[2]])


def remove_leftovers(path: str | Path) -> None:
    """Removes the temporary files of `atomic_path` that killed processes have left for a file."""
    path = Path(path)
    for leftover in path.parent.glob(f".????????.{glob.escape(path.name)}"):
        leftover.unlink(missing_ok=True)  # another process may remove it, too


def is_file_name(text: str) -> bool:
    """Whether results, and the temporary files beside them, can have a name on any system.

    It is not hidden, has no separators and wildcards, and at most 200 bytes: file systems have 255, and
    suffixes and temporary names need some.
    """
    return text[:1] not in ("", ".") and not set(text) & set('/\\:*?"<>|') and len(text.encode()) <= 200


def check_output_file(path: str | Path, suffixes: Sequence[str] = ()) -> None:
    """Checks that a file can be written, before the work whose result it is for.

    Args:
        path: Path of the file.
        suffixes: Allowed suffixes, in lower case; any by default.

    Raises:
        ValueError: Another suffix, or `path` exists and is a folder or a disk.
        OSError: The folder does not exist or is not writable.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name of the file must end in {', '.join(suffixes)}")
    with atomic_path(path) as temporary:
        temporary.unlink()  # a device gets nothing


def check_output_folder(path: str | Path) -> None:
    """Checks that a folder exists or can be made, before the work whose results it is for.

    Raises:
        ValueError: The path, or a part of it, is a file.
    """
    nearest = next(part for part in (Path(path), *Path(path).absolute().parents) if part.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; the output must be a folder. Choose another name.")


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = False, text: str = "") -> Iterator[bool]:
    """Yields whether no other process has the lock of a file, and keeps it inside the block.

    The operating system holds the lock: it ends with the process, however that ends, and a file that a killed
    process left is no obstacle. Forked processes do not inherit it. On Windows, which has no such locks, and
    on disks without them, of which a warning is logged, it is always free.

    Args:
        path: File to create and lock; it is removed at the end of the block.
        wait: Whether to wait until other processes have released it.
        text: Content of the file, for a reader.
    """
    if sys.platform == "win32":
        yield True
        return
    file = _lock(path, wait)
    if file is None:
        yield False
        return
    try:
        os.write(file, text.encode())
        yield True
    finally:
        path.unlink(missing_ok=True)  # before the lock ends, so that the file is not another process's
        os.close(file)


def _lock(path: Path, wait: bool) -> int | None:
    """Descriptor of the locked, empty file; None if another process has the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(file)
                return None
            _logger.warning("%s cannot be locked (%s): start no other process that uses it.", path, error)
        with contextlib.suppress(FileNotFoundError):  # one call: another process may remove it at any moment
            if os.path.samestat(os.fstat(file), path.stat()):
                os.ftruncate(file, 0)
                return file
        os.close(file)  # the process that had the lock has just removed its file


def write_text(text: str, path: str | Path) -> None:
    """Writes a UTF-8 text file atomically; an existing file is replaced."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Readable(Protocol):
    """A path, or a member of a tar shard. As text it is its name in messages."""

    def read_bytes(self) -> bytes: ...


def read_text(file: str | Readable) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: No such file, or no permission.
        ValueError: Not UTF-8.
    """
    data = (Path(file) if isinstance(file, str) else file).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8: {error.reason} at byte {error.start}.") from error


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: No such file, or no permission.
        ValueError: The file is not JSON.
    """
    return parse_json(read_text(Path(path)), str(path))


def parse_json(text: str, name: str, **options: Any) -> Any:
    """Parses JSON.

    Args:
        text: JSON.
        name: Name of the text in the message.
        **options: Options of `json.loads`.

    Raises:
        ValueError: Not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:  # the latter of ten thousand brackets
        raise ValueError(f"{name} is not JSON: {error}.") from error


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, 64 lower-case hexadecimal digits."""
    return _digest(hashlib.sha256(), Path(path))


def git_hash_file(path: str | Path) -> str:
    """Git blob hash of a file, 40 hexadecimal digits: the ETag of files on the Hub that are not in LFS."""
    path = Path(path)
    return _digest(hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), path)


def natural_order(path: str | Path) -> tuple[Any, ...]:
    """Sort key of paths: numbers in a name count as numbers, so that `frame2` comes before `frame10`."""
    names = ((_split(name), name) for name in Path(path).parts)
    return tuple(
        (tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces)), name)
        for pieces, name in names
    )


def list_frames(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The frames of a video in a folder: all its images in natural order, without hidden files.

    Args:
        folder: Folder.
        pattern: Pattern of the names of the images, such as `left_*.png`.

    Raises:
        ValueError: Images of a kind that is not read, or names that leave doubt about their order.
        OSError: No such folder.
    """
    names = fnmatch.filter(os.listdir(folder), pattern)
    visible = [Path(folder, name) for name in names if not name.startswith(".")]
    unread = sorted(path.name for path in visible if path.suffix.lower() in UNREAD_SUFFIXES)
    if unread:
        raise ValueError(
            f"{folder} has {len(unread)} images of a kind that is not read, such as {unread[0]}; convert "
            f"them to one of {', '.join(IMAGE_SUFFIXES)}, or move them to another folder"
        )
    images = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    images.sort(key=lambda path: natural_order(path.name))
    doubt = _doubt(images)
    if doubt:
        raise ValueError(
            f"the order of the frames in {folder} is unknown: {doubt}; rename the frames to their numbers, "
            "such as 000001.jpg, or move other images to another folder"
        )
    return images


def frame_numbers(names: Sequence[str]) -> list[int] | None:
    """The number in every name that increases from each frame to the next; None if there is none.

    Args:
        names: Names of frames without suffix, in order.
    """
    digits = [[int(piece) for piece in _split(name)[1::2]] for name in names]
    columns = [list(column) for column in zip(*digits)]
    return next((c for c in columns if all(a < b for a, b in itertools.pairwise(c))), None)


def _doubt(frames: Sequence[Path]) -> str:
    """Why the natural order of names may not be that of time; empty if there is no doubt."""
    pieces = [_split(path.stem) for path in frames]  # text, digits, text, ...
    patterns: dict[tuple[str, ...], str] = {}
    numbers: dict[tuple[int, ...], str] = {}
    for path, parts in zip(frames, pieces):
        patterns.setdefault(tuple(parts[::2]), path.name)
        numbers.setdefault(tuple(int(part) for part in parts[1::2]), path.name)
    if all(len(parts) == 1 for parts in pieces):  # without numbers, in the order of the alphabet
        return "two images differ only in their suffixes" if len(patterns) < len(frames) else ""
    if len(patterns) > 1:
        first, second = itertools.islice(patterns.values(), 2)
        return f"{first} and {second} are named by different rules"
    if len(numbers) < len(frames):
        twin = next(path.name for path in frames if path.name not in numbers.values())
        return f"the number of {twin} is that of another image"
    (pattern,) = patterns
    if pattern[0] == "-" and len(frames) > 1:
        return f"the number of {frames[0].name} may be negative"
    columns = [list(column) for column in zip(*(parts[1::2] for parts in pieces))]
    for index, column in enumerate(columns):
        values = [int(digits) for digits in column]
        is_count = len(set(values)) == len(values) == max(values) - min(values) + 1
        turns = sum(after < before for before, after in itertools.pairwise(values))
        if index > 0 and pattern[index] == ".":
            fractions = [(*map(int, row[:-1]), float(f"0.{row[-1]}")) for row in zip(*columns[: index + 1])]
            if not is_count and fractions != sorted(fractions):
                return f"the numbers of {frames[0].name} and the others may be times with decimal fractions"
        elif is_count and turns > 1:  # one turn: seconds of the next minute
            return f"the two numbers of {frames[0].name} and the others have different orders"
    return ""


def _split(name: str) -> list[str]:
    """Pieces of a name: text at even positions, digits at odd ones."""
    return re.split("([0-9]+)", name)


def walk_files(root: str | Path) -> Iterator[Path]:
    """All files below a folder in natural order, through links to folders too, without hidden ones."""
    for folder, names in walk_folders(root):
        for name in sorted(names, key=natural_order):
            yield folder / name


def walk_folders(root: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all folders below it in natural order, each with the names of its files.

    Links to folders are followed, except for a link to one of its own parents. Hidden folders and files are
    left out.
    """
    yield from _walk(Path(root), ())


def _walk(folder: Path, parents: tuple[str, ...]) -> Iterator[tuple[Path, list[str]]]:
    real = os.path.realpath(folder)
    if real in parents:
        return
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    yield folder, files
    for name in sorted(folders, key=natural_order):
        yield from _walk(folder / name, (*parents, real))


def _digest(digest: "hashlib._Hash", path: Path) -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
