"""A static web page that tracks in a browser with exported ONNX files: `browser/` is its source.

onnxruntime-web and mediabunny, which reads video files, are packages of the npm registry. They are downloaded
once, checked against their hashes, kept in the export cache, and copied into the page.
"""

import base64
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from correlation_aware._files import atomic_path, check_output_folder, write_text
from correlation_aware.models.tracker import TrackModel
from correlation_aware.runtime.export import metadata
from correlation_aware.runtime.graphs import description
from correlation_aware.runtime.session import export_cache
from correlation_aware.tracking.tracker import TrackerConfig
from correlation_aware.weights.hub import copy_url

__all__ = ["PACKAGES", "NpmPackage", "check_page_model", "fetch_package", "write_page"]

SOURCES = Path(__file__).parent / "browser"
REGISTRY = "https://registry.npmjs.org"
LARGEST_PACKAGE = 200_000_000  # bytes
# of TrackerConfig, those that browser/tracker.js has
SETTINGS = ("window_weight", "scale_penalty", "damp_size", "box_vote", "lost_threshold", "margin", "min_size")


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, and which of its files the page contains.

    Attributes:
        name: Name of the package.
        version: Version.
        integrity: Hash of the package's file, as npm writes it: `sha512-` and base64.
        license: License of the package.
        files: Names in the folder `vendor` of the page, by paths in the package.
    """

    name: str
    version: str
    integrity: str
    license: str
    files: Mapping[str, str]

    @property
    def url(self) -> str:
        """Address of the package's file; `NPM_CONFIG_REGISTRY` of the environment replaces the registry."""
        registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
        return f"{registry.rstrip('/')}/{self.name}/-/{self.name}-{self.version}.tgz"

    @property
    def path(self) -> Path:
        """Path of the package's file in the cache."""
        return export_cache() / "npm" / f"{self.name}-{self.version}.tgz"


PACKAGES = (
    NpmPackage(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        "MIT",
        {
            "package/dist/ort.wasm.bundle.min.mjs": "ort.js",
            "package/dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
        },
    ),
    NpmPackage(
        "mediabunny",
        "1.61.0",
        "sha512-WciPOYwKZwgYkoBKcEK6JzzIf+w5whypPzFdOihOylZ/5Qv19FmNfRnTcaprH+jD136YpEASU30Eb6VNCJiz3A==",
        "MPL-2.0",
        {"package/dist/bundles/mediabunny.min.mjs": "mediabunny.js", "package/LICENSE": "mediabunny.LICENSE"},
    ),
)


def fetch_package(package: NpmPackage) -> Path:
    """Downloads a package unless it is cached, and checks its hash in every case.

    Args:
        package: Package of the npm registry.

    Returns:
        Path of the verified file.

    Raises:
        ConnectionError: The registry cannot be reached or has no such file.
        RuntimeError: The file has another hash than expected. It is removed.
    """
    path = package.path
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as temporary:
                copy_url(package.url, temporary, LARGEST_PACKAGE)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"{package.url} cannot be downloaded: {error}. The page in a browser needs it once: try "
                f"again with a network, or put the file at {path} by hand. NPM_CONFIG_REGISTRY in the "
                "environment sets a mirror of the npm registry."
            ) from error
    algorithm, _, expected = package.integrity.partition("-")
    actual = base64.b64encode(hashlib.new(algorithm, path.read_bytes()).digest()).decode()
    if actual != expected:
        path.unlink()
        raise RuntimeError(
            f"{path} has another hash than expected: expected {expected}, actual {actual}. The file was "
            f"removed. Get it again from {package.url}."
        )
    return path


def check_page_model(model: nn.Module) -> TrackModel:
    """The model, if the page can track with it.

    Raises:
        ValueError: A model without a prediction head, of gray images, or whose template changes with time.
    """
    if not isinstance(model, TrackModel):
        raise ValueError(
            f"{type(model).__name__} has no prediction head: a page in a browser needs a `_track` model."
        )
    if model.in_chans != 3:
        raise ValueError(f"The page in a browser gives images of 3 channels, not in_chans={model.in_chans}.")
    if model.update_interval:
        raise ValueError(
            f"{type(model.backbone).__name__} updates its template every {model.update_interval} frames, "
            "which the page in a browser does not do: take another, such as siam_lite0_ca_half_track."
        )
    return model


def write_page(
    model: nn.Module, folder: str | Path, graphs: Mapping[str, Path], config: TrackerConfig | None = None
) -> list[Path]:
    """Writes a page that tracks one target with exported files, for any server of static files.

    Args:
        model: The model that was exported.
        folder: Folder of the page, in which the exported files are.
        graphs: Paths of the ONNX files of the graphs `template` and `search`.
        config: Settings of the choice of the best location; the defaults with `redetect=False` if None.
            `redetect` and `template_update` are not supported.

    Returns:
        The files that were written.

    Raises:
        ValueError: A model or a setting that the page does not support, or files in another folder.
        ConnectionError, RuntimeError: As `fetch_package`.
    """
    folder, config = Path(folder), config or TrackerConfig(redetect=False)
    network = check_page_model(model)
    if config.redetect or config.template_update != "none":
        raise ValueError(
            "The page in a browser has neither redetect nor template_update: set redetect=False, and leave "
            "template_update out."
        )
    if any(path.parent.resolve() != folder.resolve() for path in graphs.values()):
        raise ValueError(f"The exported files have to be in {folder}, the folder of the page.")
    check_output_folder(folder / "vendor")
    settings = asdict(config)
    if config.box_vote is None:
        settings["box_vote"] = getattr(network.head, "box_vote", 0.0)
    names, about, sizes = metadata(network), description(network), network.sizes
    content = {
        **{key: names[key] for key in ("model", "tag", "library", "weights_sha256")},
        "graphs": {graph: path.name for graph, path in graphs.items()},
        "bytes": sum(path.stat().st_size for path in graphs.values()),
        **asdict(sizes),
        **{key: [float(value) for value in about[key]] for key in ("mean", "std")},
        "config": {key: settings[key] for key in SETTINGS},
    }
    written = [folder / "model.json"]
    (folder / "vendor").mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        with tarfile.open(fetch_package(package)) as archive:
            for inside, name in package.files.items():
                member = archive.extractfile(inside)
                assert member is not None
                with atomic_path(folder / "vendor" / name) as temporary:
                    temporary.write_bytes(member.read())
                written.append(folder / "vendor" / name)
    write_text("".join(map(_origin, PACKAGES)), folder / "vendor" / "README.txt")
    written.append(folder / "vendor" / "README.txt")
    for source in sorted(SOURCES.iterdir()):
        if source.is_file():
            with atomic_path(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)
            written.append(folder / source.name)
    write_text(json.dumps(content, indent=2) + "\n", folder / "model.json")
    return written


def _origin(package: NpmPackage) -> str:
    files = ", ".join(package.files.values())
    return (
        f"{files}: {package.name} {package.version} of the npm registry ({package.license}), "
        f"{package.integrity}\n"
    )
