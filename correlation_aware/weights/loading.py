"""Tensors into modules, strictly or in part, and a report on what was loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["LoadReport", "load_state_dict"]


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        taken: Names of the model's tensors that were loaded.
        left: Names in the checkpoint that the model does not have, or has with another shape.
        fresh: Names of the model's tensors that the checkpoint does not fill; they keep their values.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        parts = (f"{name} {len(keys)}{_groups(keys)}" for name, keys in vars(self).items())
        return "tensors " + "; ".join(parts)


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], partial: bool = False) -> LoadReport:
    """Loads tensors by name.

    A checkpoint of a tracker (`backbone.*`, `head.*`) fills a bare backbone too, and one of a backbone or a
    classifier the backbone of a tracker, if `partial` allows what is left and fresh.

    Args:
        model: Any module with our parameter names.
        state_dict: Tensors in our names, see `convert_state_dict`.
        partial: Load what fits by name and shape. Otherwise every name must fit; only the head of a tracker's
            checkpoint may be left over by a network without one.

    Raises:
        ValueError: Not `partial` and the names or shapes differ, or nothing fits. The model is unchanged
            then.
    """
    own = model.state_dict()
    incoming = _align(state_dict, own)
    taken = [k for k in own if k in incoming and incoming[k].shape == own[k].shape]
    left = [k for k in incoming if k not in own or incoming[k].shape != own[k].shape]
    fresh = [k for k in own if k not in set(taken)]
    report = LoadReport(tuple(taken), tuple(left), tuple(fresh))
    headless = not any(name.startswith("head.") for name in own)  # a tracker's backbone is all it can take
    misfit = fresh or any(not headless or not name.startswith("head.") for name in left)
    if not taken or (not partial and misfit):
        wrong = [f"{k} {tuple(incoming[k].shape)} for {tuple(own[k].shape)}" for k in left if k in own]
        raise ValueError(
            f"The checkpoint does not fit {type(model).__name__}: {report}."
            + (f" Shapes that differ: {', '.join(wrong[:3])}." if wrong else "")
            + " Check the model's name and arguments, or load in part: load_pretrained(model, ..., partial=True)."
        )
    model.load_state_dict({k: incoming[k] for k in taken}, strict=False)
    return report


def _align(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    has, wants = (any(k.startswith("backbone.") for k in keys) for keys in (state_dict, own))
    if has and not wants:
        return {k.removeprefix("backbone."): v for k, v in state_dict.items()}
    if wants and not has:
        return {f"backbone.{k}": v for k, v in state_dict.items()}
    return dict(state_dict)


def _groups(keys: tuple[str, ...]) -> str:
    """Names the stages and blocks behind parameter names: ' (stages.2: blocks 6-9, head)'."""
    blocks: dict[str, list[int]] = {}
    others: list[str] = []
    for key in keys:
        head, _, rest = key.partition(".blocks.")
        if rest:
            blocks.setdefault(head, []).append(int(rest.split(".")[0]))
        else:
            others.append(key.rpartition(".")[0] or key)
    named = [f"{stage}: blocks {min(i)}-{max(i)}" for stage, i in blocks.items()] + list(
        dict.fromkeys(others)
    )
    return f" ({', '.join(named[:6])}{', ...' if len(named) > 6 else ''})" if named else ""
