"""From a manifest entry or a repository's name to a verified file on this machine."""

import hashlib
import http.client
import logging
import os
import re
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    tqdm,
)

from correlation_aware._files import (
    atomic_path,
    file_lock,
    git_hash_file,
    read_json,
    remove_leftovers,
    sha256_file,
)
from correlation_aware._version import __version__
from correlation_aware.weights.manifest import WeightsEntry

__all__ = ["copy_url", "fetch", "fetch_file", "fetch_repository", "hash_in_name"]

_logger = logging.getLogger(__name__)

# The hub client changed its HTTP library (requests, httpx); its error's first base is that library's own.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_FAILURES = (OSError, RuntimeError, EntryNotFoundError, TRANSPORT_ERROR)
_BY_HAND = (
    "Or download the file on another machine and pass its path as `pretrained=` (--weights of a command), or "
    "copy that machine's HF_HOME here."
)


def fetch(entry: WeightsEntry, cache_dir: str | Path | None = None) -> Path:
    """Downloads the file of an entry unless it is cached or bundled, and checks its hash in every case.

    Args:
        entry: Entry of the manifest.
        cache_dir: Folder for downloads; by default the Hugging Face cache, and torch.hub's for `url` entries.

    Returns:
        Path of the verified file.

    Raises:
        FileNotFoundError: There is no such file, it needs a login, or it is not cached and HF_HUB_OFFLINE is
            set.
        ConnectionError: The server cannot be reached, or the connection was cut.
        RuntimeError: The file has another hash than expected. A download is removed then.
    """
    if entry.source == "hub":
        assert entry.repository is not None  # the entry has checked it
        return _fetch_from_hub(entry.repository, entry.file, entry.revision, entry.sha256, cache_dir)
    assert entry.sha256 is not None
    if entry.source == "url":
        return _fetch_from_url(entry, cache_dir)
    path = entry.root / entry.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} of {entry.name} should have come with the package. Install the package again."
        )
    _check(path, entry.sha256, "Install the package again.", remove=False)
    return path


def fetch_repository(
    repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], Path]:
    """Fetches and verifies `config.json` and `model.safetensors` of one commit of a repository on the Hub.

    Args:
        repo_id: `organisation/name`, also as `hf-hub:organisation/name@revision`.
        revision: Branch, tag or commit; `main` by default.
        cache_dir: Folder for downloads instead of the Hugging Face cache.

    Returns:
        The configuration, and the path of the weights.

    Raises:
        ValueError: Not a repository's name, two revisions, or a configuration that is not a JSON object.
        FileNotFoundError, ConnectionError, RuntimeError: As `fetch`.
    """
    name, _, inner = repo_id.removeprefix("hf-hub:").partition("@")
    if inner and revision not in (None, inner):
        raise ValueError(f"{repo_id!r} and revision={revision!r} name two revisions. Give one.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"{repo_id!r} is not the name of a repository: 'hf-hub:organisation/name[@revision]'."
        )
    config_path = _fetch_from_hub(name, "config.json", inner or revision, None, cache_dir)
    commit = config_path.parent.name  # both files from one commit, even if somebody pushes in between
    path = _fetch_from_hub(name, "model.safetensors", commit, None, cache_dir)
    config = read_json(config_path)
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {name} is not a JSON object but {type(config).__name__}.")
    return config, path


def fetch_file(
    hub_file: tuple[str, str, str | None] | None, url: str | None, cache_dir: str | Path | None = None
) -> Path:
    """Fetches the file that a timm `pretrained_cfg` names.

    Args:
        hub_file: (`organisation/name`, file, revision) on the Hub; verified by the Hub's own hash.
        url: Address of a file instead. If its name ends in a dash and eight or more hexadecimal digits of its
            sha256, as torch.hub's do (`net-0a1b2c3d.pth`), it is verified by them. Otherwise it is not, and a
            warning is logged.
        cache_dir: Folder for downloads; by default the Hugging Face cache, and torch.hub's for `url`.

    Raises:
        FileNotFoundError, ConnectionError, RuntimeError: As `fetch`.
    """
    if hub_file is not None:
        repository, file, revision = hub_file
        return _fetch_from_hub(repository, file, revision, None, cache_dir)
    assert url is not None
    name = url.partition("?")[0].rpartition("/")[2]
    digits = hash_in_name(url)
    if digits is None:  # the same name at another address may be another file
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    path = (Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints") / name
    if not path.is_file():
        _download(url, path)
    actual = sha256_file(path)
    if digits is None:
        _logger.warning(
            "%s was not verified: its address has no hash. Compare its sha256, %s, with the one its owner "
            "publishes, or list the file with that sha256 in a weights manifest (register_weights).",
            url,
            actual,
        )
    elif not actual.startswith(digits):
        _remove(path)
        raise RuntimeError(
            f"{path} does not have the hash in its name: its sha256 is {actual}. The file was removed. "
            f"Get it again from {url}."
        )
    return path


def hash_in_name(url: str) -> str | None:
    """The first digits of the sha256 in the name of a file such as `net-0a1b2c3d.pth`; None without them."""
    digits = re.search(r"-([0-9a-f]{8,64})\.", url.partition("?")[0].rpartition("/")[2])
    return digits[1] if digits else None


def _fetch_from_hub(
    repository: str, file: str, revision: str | None, sha256: str | None, cache_dir: str | Path | None
) -> Path:
    url = hf_hub_url(repository, file, revision=revision)
    try:
        path = Path(
            hf_hub_download(
                repository,
                file,
                revision=revision,
                cache_dir=cache_dir,
                library_name="correlation_aware",
                library_version=__version__,
            )
        )
    except (*_FAILURES, ValueError) as error:  # the latter of a length that cannot be
        _explain(error, url, f"{constants.ENDPOINT}/{repository}", _BY_HAND)
    advice = "If the hash stays wrong, the file on the Hub has changed, or a proxy changes it."
    expected = sha256 or _etag(path, url)
    if expected is not None:
        _check(path, expected, f"The file was removed. Get it again from {url}. {advice}")
    return path


def _fetch_from_url(entry: WeightsEntry, cache_dir: str | Path | None) -> Path:
    assert entry.url is not None and entry.sha256 is not None  # the entry has checked both
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"{entry.name}-{entry.sha256[:8]}{''.join(Path(entry.file).suffixes[-1:])}"
    if not path.is_file():
        _download(entry.url, path)
    _check(path, entry.sha256, f"The file was removed. Get it again from {entry.url}.")
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set.")
        with file_lock(path.with_name(f".{path.name}.lock"), wait=True):
            if path.is_file():  # another process had the lock
                return
            remove_leftovers(path)
            with atomic_path(path) as temporary:
                copy_url(url, temporary)
    except _FAILURES as error:
        _explain(error, url, url, f"Or put the file at {path} by hand.")


def copy_url(url: str, path: Path, limit: int | None = None) -> None:
    """Downloads to a file; unlike torch.hub's function it notices a connection that ends too early.

    Args:
        url: Address.
        path: File to write; a temporary one, see `atomic_path`.
        limit: Largest number of bytes; any by default.

    Raises:
        OSError: No answer, a connection that was cut, or more bytes than the limit.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"correlation_aware/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response, path.open("wb") as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length is not None and length.isdecimal() else None
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name[10:], disable=None) as bar:
                while block := response.read(1 << 17):
                    bar.update(file.write(block))
                    if limit is not None and file.tell() > limit:
                        raise ConnectionError(f"it has more than {limit} bytes")
    except http.client.HTTPException as error:
        raise ConnectionError(f"the connection was cut ({error!r})") from error
    actual = path.stat().st_size
    if total is not None and actual != total:
        raise ConnectionError(f"the connection was cut after {actual} of {total} bytes")


def _check(path: Path, expected: str, advice: str, remove: bool = True) -> None:
    actual = git_hash_file(path) if len(expected) == 40 else sha256_file(path)
    if actual == expected:
        return
    size = path.stat().st_size
    if remove:
        _remove(path)
    raise RuntimeError(
        f"{path} has another hash than expected: expected {expected}, actual {actual} ({size} bytes). "
        f"{advice}"
    )


def _etag(path: Path, url: str) -> str | None:
    """The Hub's own hash of a cached file: sha256 for LFS files, git's hash for the small ones.

    The cache links a file to a blob that has the hash as its name. Where links are not supported the Hub is
    asked. If it cannot be reached either, a warning is logged and the result is None.
    """
    folder = next(parent for parent in path.parents if parent.name == "snapshots").parent / "blobs"
    blobs = {blob.name for blob in folder.glob("*") if blob.suffix != ".incomplete"}
    etag: str | None = None
    if path.is_symlink():
        etag = Path(os.readlink(path)).name
    elif blobs:  # a copy of a cache, made with files in place of links
        etag = next((digest for digest in (sha256_file(path), git_hash_file(path)) if digest in blobs), None)
    if etag is None and not constants.HF_HUB_OFFLINE:
        try:
            etag = get_hf_file_metadata(url).etag or "none"
        except _FAILURES as error:
            _logger.debug("no metadata of %s: %s", url, error)
    if etag is None and not blobs:
        message = "%s was not verified: its cache has no hash of it, and %s cannot be asked."
        _logger.warning(message, path, constants.ENDPOINT)
    elif etag is None or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
        raise RuntimeError(
            f"{path} cannot be verified: neither the cache nor {url} gives its hash (ETag {etag}). Remove "
            "the file and download it again, or pass the path of a file or folder that you trust."
        )
    return etag


def _remove(path: Path) -> None:
    """Removes a file and, if it is a link, everything it points to on the way."""
    while path.is_symlink():
        link, path = path, path.parent / os.readlink(path)
        link.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _explain(error: Exception, url: str, page: str, by_hand: str) -> NoReturn:
    """Raises what a user can act on, for whatever the client raised."""
    if isinstance(error, GatedRepoError):
        raise FileNotFoundError(
            f"{url} needs permission. Ask for it at {page}, then `hf auth login`."
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise FileNotFoundError(
            f"{url} was not found: no such repository, or a private one. Check the name or log in. {by_hand}"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise FileNotFoundError(
            f"{url} was not found: there is no such revision. See {page}. {by_hand}"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{url} is not cached, and HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE to download it. {by_hand}"
        ) from error
    not_cached = isinstance(error, LocalEntryNotFoundError)  # the Hub could not be asked; the cause says why
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if (isinstance(error, EntryNotFoundError) and not not_cached) or status == 404:
        raise FileNotFoundError(
            f"{url} was not found: there is no such file. See {page}. {by_hand}"
        ) from error
    network = not_cached or isinstance(error, (ConnectionError, TimeoutError))
    if isinstance(error, OSError) and error.errno and not network:
        raise error  # a full disk, a folder that may not be written
    cause = error.__cause__ if not_cached and error.__cause__ else error
    reason = (str(cause).strip() or type(cause).__name__).split("\n")[0].rstrip(".")
    raise ConnectionError(
        f"{url} could not be downloaded: {reason}. Check network, proxy and HF_ENDPOINT, then try again."
        f" {by_hand}"
    ) from error
