"""One thread for all tests: their networks are small, and threads of a busy machine wait for each other."""

from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peers",
        metavar="DIR",
        help="Folder with checkouts of other people's trackers (video_analyst, pytracking, Stark, STM, "
        "OSTrack), for the tests marked `peers`.",
    )


@pytest.fixture
def peer(request):
    """`peer("Stark")` is the folder of that checkout; without --peers the test is skipped."""

    def find(name: str) -> Path:
        root = request.config.getoption("--peers")
        if root is None:
            pytest.skip(f"needs a checkout of {name}: pytest -m peers --peers DIR")
        folder = Path(root).resolve() / name
        assert folder.is_dir(), f"{folder} is no folder: --peers holds one per tracker"
        return folder

    return find
