"""Tar shards by path or URL: their names, and bytes of any part of them."""

import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from correlation_aware._extras import require

__all__ = ["ShardFile", "expand_shards"]

SCHEMES = ("file", "http", "https")  # of shards
TIMEOUT = 30.0  # seconds without an answer
WAITS = (1.0, 4.0)  # seconds before the second and the third try


def expand_shards(source: str) -> list[str]:
    """Paths or URLs of shards in WebDataset's notation, such as `shard-{000000..000041}.tar`.

    Raises:
        ValueError: A scheme other than `file`, `http` and `https`.
        ModuleNotFoundError: webdataset is not installed; the message has the command to install it.
    """
    (shardlists,) = require("webdataset.shardlists", message="Tar shards need {names}")
    urls: list[str] = shardlists.expand_urls(source)
    for url in urls:
        _check_scheme(url)
    return urls


def _check_scheme(url: str) -> None:
    """Refuses shards that webdataset would open by running a command, such as `pipe:COMMAND`."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", url)  # two letters or more: c:/shards is a path
    if scheme and scheme[1] not in SCHEMES:
        raise ValueError(
            f"{url} has the scheme {scheme[1]}:, which could run a program; shards are paths or "
            f"{', '.join(SCHEMES)} URLs. Download the shards, and name their files."
        )
    if scheme and re.search(r"""['"`$\\\s;|&<>]""", url):
        raise ValueError(f"{url} has a character that a shell could interpret; download the shard instead.")


@dataclass(frozen=True)
class ShardFile:
    """A file on disk, or on a web server that answers requests for parts of files (`Range`).

    Attributes:
        location: Path or URL.
    """

    location: str

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        """Whether it is read over the network."""
        return self.location.startswith(("http://", "https://"))

    def size(self) -> int:
        """Number of bytes.

        Raises:
            FileNotFoundError: There is no such file.
            ConnectionError, ValueError: No answer of the server, or one without parts of files.
        """
        if not self.is_remote:
            path = self._path()
            if not path.is_file():
                raise FileNotFoundError(f"There is no shard {path}.")
            return path.stat().st_size
        _, headers = self._request(0, 1)
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise ValueError(f"{self.location}: the server does not tell the size of the file.")
        return int(total)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset on.

        Raises:
            ValueError: The file ends before.
            OSError: The file cannot be read.
        """
        if size == 0:
            return b""
        if self.is_remote:
            data = self._request(offset, size)[0]
        else:
            with self._path().open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        if len(data) != size:
            raise ValueError(f"the shard ends after {len(data)} of {size} bytes")
        return data

    def read_whole(self) -> bytes | None:
        """All bytes, None if there is no such file."""
        if not self.is_remote:
            return self._path().read_bytes() if self._path().is_file() else None
        try:
            return _get(urllib.request.Request(self.location))[1]
        except FileNotFoundError:
            return None

    def _path(self) -> Path:
        return Path(self.location.removeprefix("file:"))

    def _request(self, offset: int, size: int) -> tuple[bytes, Message]:
        part = {"Range": f"bytes={offset}-{offset + size - 1}"}
        status, data, headers = _get(urllib.request.Request(self.location, headers=part), size)
        if status != 206:
            raise ValueError(
                f"{self.location}: the server sends whole files only, no parts (HTTP Range), as python -m "
                "http.server does. Use another server, or download the shards and name their files."
            )
        return data, headers


def _get(request: urllib.request.Request, limit: int | None = None) -> tuple[int, bytes, Message]:
    """Status, at most `limit` bytes and headers of the answer; tries three times."""
    for wait in (*WAITS, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, answer.read(limit), answer.headers
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(f"There is no shard {request.full_url} ({error}).") from error
            if wait is None or error.code < 500:
                raise ConnectionError(f"{request.full_url} cannot be read: {error}.") from error
        except OSError as error:
            if wait is None:
                raise ConnectionError(f"{request.full_url} cannot be read: {error}.") from error
        time.sleep(wait)
    raise AssertionError  # the last try returns or raises
