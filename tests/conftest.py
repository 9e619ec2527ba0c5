"""Fixtures and options of the tests. PyTorch runs with one thread, the fastest for small networks."""

import functools
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

collect_ignore = ["plugin_package"]  # a package of its own, which test_plugin.py installs and tests


# The files that take longest, for pytest-xdist, which then has short ones left to fill the last minute.
LONGEST = (
    "test_plugin",
    "test_timm_suite",
    "test_runtime_export",
    "test_models",
    "test_ops",
    "test_supersbt",
    "test_siamese",
    "test_vit",
    "test_training_engine",
    "test_runtime_session",
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would start with the files of most tests
    if not torch.cuda.is_available():
        # Runs kernels on the CPU. Triton reads it at import, which the package's imports cause: so the
        # fixtures import the package, not this file.
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peers",
        metavar="DIR",
        help="Folder with checkouts of other trackers' repositories (video_analyst, pytracking, Stark, STM, "
        "OSTrack, SuperSBT), for the tests marked `peers`.",
    )
    parser.addoption(
        "--peers-data",
        metavar="DIR",
        help="A sequence in GOT-10k's layout for the tests marked `peers`; they draw a clip without it.",
    )
    parser.addoption(
        "--golden",
        metavar="DIR",
        help="Folder with the complete outputs of other people's code, of which tests/data has a part.",
    )


@pytest.fixture
def peer(request):
    """A function from the name of a checkout, such as `Stark`, to its folder; skips without --peers."""

    def find(name: str) -> Path:
        root = request.config.getoption("--peers")
        if root is None:
            pytest.skip(f"needs a checkout of {name}: pytest tests -m peers --peers DIR")
        folder = Path(root).resolve() / name
        assert folder.is_dir(), f"There is no folder {folder}: --peers must contain one folder per tracker."
        return folder

    return find


@pytest.fixture
def golden_folder(request) -> Path:
    """The folder of --golden; skips without it."""
    folder = request.config.getoption("--golden")
    if folder is None:
        pytest.skip("needs the complete golden outputs (tests/data has a part of them): pytest --golden DIR")
    return Path(folder)


@pytest.fixture(scope="session")
def make_clip(request):
    """`make_clip(folder, frames)` writes a short sequence for other people's trackers, see `write_clip`."""
    from peer_clip import write_clip

    source = request.config.getoption("--peers-data")
    return functools.partial(write_clip, source=None if source is None else Path(source))


@pytest.fixture
def needs():
    """A function that skips the test if the packages of an export format or runtime are missing."""
    packages = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "openvino")}

    def skip_without(name: str) -> None:
        for package in packages.get(name, ()):
            pytest.importorskip(package)

    return skip_without


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four smooth color images of 160 x 120 px."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def acme(monkeypatch):
    """Registers `acme` and `acme_rigid`, networks of another family than SBT, for one test."""
    import acme_family

    from correlation_aware.models import registry

    for function in (acme_family.acme, acme_family.acme_rigid):
        monkeypatch.setitem(registry._MODELS, function.__name__, function)
