"""Other people's checkpoints to ours: which format one has, and the conversion its family registered."""

from collections.abc import Mapping

from torch import Tensor

from correlation_aware._plugins import load_plugins
from correlation_aware.models.registry import checkpoint_formats

__all__ = ["AUTO", "OWN", "convert_state_dict", "format_names"]

AUTO, OWN = "auto", "correlation_aware"


def format_names() -> list[str]:
    """Values of `source` that `convert_state_dict` takes."""
    load_plugins()
    return [AUTO, OWN, *checkpoint_formats()]


def convert_state_dict(
    state_dict: Mapping[str, Tensor], source: str = AUTO, own_names: Mapping[str, object] | None = None
) -> dict[str, Tensor]:
    """Renames and reshapes the tensors of a checkpoint to the names and layouts of this package.

    Args:
        state_dict: Tensors by name.
        source: Format of the checkpoint: `sbt` for the authors' trackers (`backbone.*`, `box_head.*`), `pvt_v2`
            for PVTv2 classifiers in the original naming or timm's, other names of `format_names()`,
            `correlation_aware` for our own (returned as they are), `auto` to tell by the names.
        own_names: Names of the model that is to be filled. With `auto`, a checkpoint with no other names than
            these is our own, whatever format it may resemble.

    Returns:
        Tensors by our names.

    Raises:
        ValueError: An unknown `source`, or names that fit no format.
    """
    formats = checkpoint_formats()
    if source not in format_names():
        raise ValueError(f"source={source!r} is not one of {', '.join(format_names())}.")
    if source == AUTO and not _is_own(state_dict, own_names):
        matching = [known for known in formats.values() if known.matches(state_dict)]
        if matching:
            return matching[0].convert(state_dict)
        if own_names is None and not _looks_own(state_dict):
            raise ValueError(
                f"The parameter names ({', '.join(list(state_dict)[:3]) or 'none at all'}, ...) belong to no known "
                f"format. Name it with source={' or '.join(map(repr, formats))} if you know it."
            )
    return dict(state_dict) if source in (AUTO, OWN) else formats[source].convert(state_dict)


def _is_own(state_dict: Mapping[str, Tensor], own_names: Mapping[str, object] | None) -> bool:
    """Whether all names are the model's own, with or without the `backbone.` of a tracker."""
    if not own_names or not state_dict:
        return False
    bare = {name.removeprefix("backbone.") for name in own_names}
    return all(name.removeprefix("backbone.") in bare for name in state_dict)


def _looks_own(state_dict: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("stages.0.embed.", "backbone.stages.0.embed.")) for name in state_dict)
