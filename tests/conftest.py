"""One thread for all tests: their networks are small, and threads of a busy machine wait for each other."""

import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
