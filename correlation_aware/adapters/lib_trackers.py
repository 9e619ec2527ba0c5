"""Common parts for STARK and the trackers forked from it: package `lib`, TYPE, checkpoints."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from correlation_aware import weights
from correlation_aware.zoo import is_location

__all__ = ["import_lib", "load_stock", "name_and_weights"]


def import_lib(module: str, tracker: str, address: str) -> Any:
    """A module of the tracker's `lib`.

    Args:
        module: Name of the module without the leading `lib.`.
        tracker: Name of the tracker, for the error.
        address: Address of its code, for the error.

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


def name_and_weights(type_name: str, default: str) -> tuple[str, bool]:
    """Name of the network for a TYPE of a tracker's configuration, and whether it says which weights to load.

    Args:
        type_name: A name of `create_model`, with or without a tag, a location, or `SBT`.
        default: Name of the network for `SBT`.
    """
    head, dot, tag = type_name.partition(".")
    if head.upper() == "SBT":
        return f"{default}{dot}{tag}", bool(tag)
    return type_name, bool(tag) or is_location(type_name)


def load_stock(network: nn.Module, checkpoint: Mapping[str, Any]) -> weights.LoadReport:
    """Loads the tracker's own checkpoint into a tracker with our backbone, as far as it fits.

    Args:
        network: Network of the tracker's own builder, after `install`.
        checkpoint: Checkpoint of `torch.load`, or its `net`.

    Returns:
        Names of the tensors that were loaded (everything after the backbone, except layers whose shape
        depends on its channels), unexpected (the tracker's backbone), and missing (our backbone, and those
        layers).

    Raises:
        ValueError: Nothing fits.
    """
    return weights.load_state_dict(network, checkpoint.get("net", checkpoint), partial=True)
