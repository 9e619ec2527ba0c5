"""The switch between the kernels and their plain form, where this version has kernels."""

import importlib
import importlib.util
from typing import Any

__all__ = ["kernels", "use_backend"]


def kernels() -> Any | None:
    """The module `correlation_aware.ops`, or None."""
    return (
        importlib.import_module("correlation_aware.ops")
        if importlib.util.find_spec("correlation_aware.ops")
        else None
    )


def use_backend(name: str) -> None:
    """Chooses `auto`, `reference` or `triton` for all that runs from now on."""
    ops = kernels()
    if ops is not None:
        ops.set_backend(name)
