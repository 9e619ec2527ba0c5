"""Other people's checkpoints to ours: prefixes, formats, and the conversion that a family registered."""

from collections.abc import Mapping

from torch import Tensor

from correlation_aware._plugins import load_plugins
from correlation_aware.models.registry import CheckpointFormat, checkpoint_formats

__all__ = ["AUTO", "OWN", "convert_state_dict", "format_names"]

AUTO, OWN = "auto", "correlation_aware"

# put before every name by DataParallel, torch.compile and training code whose attribute the network is
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def format_names() -> list[str]:
    """Values of `source` that `convert_state_dict` takes."""
    load_plugins()
    return [AUTO, OWN, *checkpoint_formats()]


def convert_state_dict(
    state_dict: Mapping[str, Tensor], source: str = AUTO, own_names: Mapping[str, object] | None = None
) -> dict[str, Tensor]:
    """Renames and reshapes the tensors of a checkpoint to the names and layouts of this package.

    The prefixes `module.`, `_orig_mod.`, `model.`, `net.` and `network.` are removed where every name has
    them, also several, unless the model's own names have them too.

    Args:
        state_dict: Tensors by name.
        source: Format of the checkpoint: `sbt` for the authors' trackers (`backbone.*`, `box_head.*`),
            `pvt_v2` for PVTv2 classifiers in the original naming or timm's, other names of `format_names()`,
            `correlation_aware` for our own, `auto` to tell by the names.
        own_names: Names of the model that is to be filled. With `auto`, a checkpoint is converted unless more
            of its names fit as they are.

    Returns:
        Tensors by our names.

    Raises:
        ValueError: An unknown `source`, or names that fit no format or several.
    """
    if source not in format_names():
        raise ValueError(f"source={source!r} is not one of {', '.join(format_names())}.")
    formats = checkpoint_formats()
    candidates = _without_prefixes(state_dict)
    own = set(own_names or ())
    if source == OWN:
        return max(candidates, key=lambda names: _hits(names, own))
    if source == AUTO and own:
        for candidate in candidates:
            if _hits(candidate, own) == len(own):  # it fills the model as it is, whatever format it resembles
                return candidate
    chosen = list(formats.values()) if source == AUTO else [formats[source]]
    for candidate in candidates:
        matching = [known for known in chosen if known.matches(candidate)]
        if matching:
            converted = _convert(matching, candidate, own)
            unconverted = max(candidates, key=lambda names: _hits(names, own))
            as_it_is = source == AUTO and _hits(unconverted, own) > _hits(converted, own)
            return unconverted if as_it_is else converted
    if source != AUTO:
        return formats[source].convert(candidates[0])
    if not own:
        raise ValueError(
            f"The parameter names ({', '.join(list(state_dict)[:3]) or '-'}, ...) belong to no known "
            f"format: {', '.join(formats)}. Name the format (source=, in the command line --format), or for "
            "a checkpoint of this package its model (own_names=, in the command line --model)."
        )
    return max(candidates, key=lambda names: _hits(names, own))


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The checkpoint as it is, and with one shared prefix after the other removed."""
    candidates = [dict(state_dict)]
    while True:
        names = candidates[-1]
        prefix = next((p for p in _PREFIXES if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return candidates
        candidates.append({name.removeprefix(prefix): tensor for name, tensor in names.items()})


def _convert(
    matching: list[CheckpointFormat], state_dict: Mapping[str, Tensor], own: set[str]
) -> dict[str, Tensor]:
    """Converts by the one format that matches, or by that of several that fits the model best."""
    if len(matching) > 1 and not own:
        names = " or ".join(repr(known.name) for known in matching)
        raise ValueError(f"The parameter names fit several formats: name source={names}.")
    return max((known.convert(state_dict) for known in matching), key=lambda tensors: _hits(tensors, own))


def _hits(names: Mapping[str, object], own: set[str]) -> int:
    """Number of names that the model has too, with or without the `backbone.` of a tracker."""
    return max(
        sum(name in own for name in names),
        sum(f"backbone.{name}" in own for name in names),
        sum(name.removeprefix("backbone.") in own for name in names),
    )
