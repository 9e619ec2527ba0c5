"""Whether a process only prints the help of our own command line, which needs neither PyTorch nor timm."""

import os
import sys
from itertools import pairwise
from pathlib import Path

__all__ = ["is_help"]

COMMAND = "correlation-aware"


def is_help() -> bool:
    """Whether this is `correlation-aware` with `--help`, `--version` or nothing, or completes a command."""
    program, *words = sys.argv or [""]
    # while Python looks for the module of `python -m correlation_aware`, the program is "-m"
    is_module = program == "-m" and ("-m", "correlation_aware") in pairwise(sys.orig_argv)
    if Path(program).stem != COMMAND and not is_module:
        return False
    is_completion = f"_{COMMAND.replace('-', '_').upper()}_COMPLETE" in os.environ
    return is_completion or not words or words[-1] in ("--help", "--version")
