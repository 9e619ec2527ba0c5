"""What STARK and the trackers forked from it share: a package named `lib`, and checkpoints with a `net`."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from correlation_aware import weights

__all__ = ["import_lib", "load_stock"]


def import_lib(module: str, tracker: str, address: str) -> Any:
    """A module of the tracker's `lib`.

    Args:
        module: Without the leading `lib.`.
        tracker: Its name, for the error.
        address: Where its code is.

    Raises:
        ModuleNotFoundError: The tracker is not importable, or something that it needs.
    """
    try:
        return importlib.import_module(f"lib.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "lib":
            raise  # a dependency of the tracker
        raise ModuleNotFoundError(
            f"{tracker}'s lib.{module} is not importable ({error}). Get {address} and put the checkout first "
            "on PYTHONPATH, or run from its root.",
            name=error.name,
        ) from error


def load_stock(network: nn.Module, checkpoint: Mapping[str, Any]) -> weights.LoadReport:
    """Starts a tracker on our backbone from a checkpoint of the tracker on its own.

    Args:
        network: What the tracker's own builder returned, after `install`.
        checkpoint: What `torch.load` returned, or its `net`.

    Returns:
        What was taken: what lies behind the backbone, but for layers that its channels shape. What was left:
        the tracker's backbone. What is fresh: ours, and those layers.

    Raises:
        ValueError: Nothing fits.
    """
    return weights.load_state_dict(network, checkpoint.get("net", checkpoint), partial=True)
