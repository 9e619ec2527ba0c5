"""Whether this process is our own command line, which imports PyTorch and timm only when it needs them."""

import sys
from itertools import pairwise
from pathlib import Path

__all__ = ["is_command_line"]


def is_command_line() -> bool:
    """Whether the program is `correlation-aware` or `python -m correlation_aware`."""
    program = (sys.argv or [""])[0]
    # while Python looks for the module of `python -m correlation_aware`, the program is "-m"
    is_module = program == "-m" and ("-m", "correlation_aware") in pairwise(sys.orig_argv)
    return Path(program).stem == "correlation-aware" or is_module
