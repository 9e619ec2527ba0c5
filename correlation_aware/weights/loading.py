"""Tensors into modules, strictly or in part, and a report on what was loaded."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from correlation_aware.models.contract import TwoInputModel
from correlation_aware.weights.files import dense, finite

__all__ = ["LoadReport", "load_state_dict"]


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors after a load, in torch's and timm's words.

    Attributes:
        loaded: Tensors of the model that were loaded.
        unexpected: Tensors of the checkpoint that the model does not have, or has with another shape.
        missing: Tensors of the model that the checkpoint does not fill; they keep their values.
    """

    loaded: tuple[str, ...]
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def taken(self) -> tuple[str, ...]:
        """Former name of `loaded`."""
        return self._renamed("taken", "loaded")

    @property
    def left(self) -> tuple[str, ...]:
        """Former name of `unexpected`."""
        return self._renamed("left", "unexpected")

    @property
    def fresh(self) -> tuple[str, ...]:
        """Former name of `missing`."""
        return self._renamed("fresh", "missing")

    def _renamed(self, old: str, new: str) -> tuple[str, ...]:
        message = (
            f"LoadReport.{old} is called {new} now; the old name will be removed after the next release."
        )
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        names: tuple[str, ...] = getattr(self, new)
        return names

    def __str__(self) -> str:
        parts = (f"{len(keys)} {name}{_groups(keys)}" for name, keys in vars(self).items())
        return f"tensors: {'; '.join(parts)}"


def load_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    partial: bool = False,
    source: str = "The checkpoint",
    pruned: bool = False,
) -> LoadReport:
    """Loads tensors by name.

    A checkpoint of a tracker (`backbone.*`, `head.*`) also fills a bare backbone, and one of a backbone or a
    classifier the backbone of a tracker, if `partial` allows the names that are unexpected or missing then.

    Args:
        model: Any module with our parameter names.
        state_dict: Tensors in our names, see `convert_state_dict`.
        partial: Load what fits by name and shape. Otherwise every name must fit; only the head of a tracker's
            checkpoint may be unexpected, to a network without one.
        source: Name of the checkpoint for messages.
        pruned: The model is a part of the checkpoint's by design: names may be unexpected, none missing.

    Raises:
        ValueError: Not `partial` and the names or shapes differ, nothing fits, or a tensor has another kind
            of numbers (whole or complex ones for real ones) or is sparse. The model is unchanged then.
        RuntimeError: A tensor with a NaN or an infinity; likewise.
    """
    own = model.state_dict()
    incoming = _fit(_align(state_dict, own), model)
    loaded = [k for k in own if k in incoming and incoming[k].shape == own[k].shape]
    unexpected = [k for k in incoming if k not in own or incoming[k].shape != own[k].shape]
    missing = [k for k in own if k not in set(loaded)]
    report = LoadReport(tuple(loaded), tuple(unexpected), tuple(missing))
    headless = not any(name.startswith("head.") for name in own)  # of a tracker it takes the backbone alone
    surplus = [name for name in unexpected if not (headless and name.startswith("head."))]
    misfit = missing or (surplus and not pruned)
    if not loaded or (not partial and misfit):
        wrong = [f"{k} {tuple(incoming[k].shape)} for {tuple(own[k].shape)}" for k in unexpected if k in own]
        raise ValueError(
            f"{source} does not fit {type(model).__name__}, {report}."
            + (f" Shapes that differ: {', '.join(wrong[:3])}." if wrong else "")
            + " Check the model's name and arguments, or load in part: load_pretrained(..., partial=True)."
        )
    for name in loaded:
        _check_values(name, incoming[name], own[name], source)
    model.load_state_dict({k: incoming[k] for k in loaded}, strict=False)
    return report


def _check_values(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    """Refuses what a copy would change silently, and numbers that make every output NaN."""
    if not own.is_meta:
        dense(name, tensor, source)
    if _kind(tensor) != _kind(own):
        raise ValueError(
            f"{source}: {name!r} has {_kind(tensor)} numbers ({tensor.dtype}), the model {_kind(own)} ones "
            f"({own.dtype}). Convert the tensor before it is loaded."
        )
    if tensor.is_meta or own.is_meta or not tensor.is_floating_point():
        return
    is_finite = finite(tensor)  # but a mask may have infinities
    if not is_finite.all() and not (is_finite | (tensor == own.to(tensor.device))).all():
        raise RuntimeError(f"{source}: {name!r} has numbers that are not finite. Nothing was loaded.")


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"


def _align(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds or removes `backbone.`, the difference between a tracker's names and a bare network's."""
    candidates = [
        dict(state_dict),
        {name.removeprefix("backbone."): tensor for name, tensor in state_dict.items()},
        {f"backbone.{name}": tensor for name, tensor in state_dict.items()},
    ]
    return max(candidates, key=lambda names: sum(name in own for name in names))


def _fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Lets the model's two-input network resize what depends on image sizes."""
    for path, network in model.named_modules():
        if isinstance(network, TwoInputModel):
            prefix = f"{path}." if path else ""
            inner = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            rest = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
            return rest | {prefix + k: v for k, v in network.fit_checkpoint(inner).items()}
    return state_dict


def _groups(keys: tuple[str, ...]) -> str:
    """Stages, blocks and modules of parameter names: ' (stages.2: blocks 6-9, head)'."""
    blocks: dict[str, list[int]] = {}
    others: list[str] = []
    for key in keys:
        stage, _, rest = key.partition(".blocks.")
        index = rest.partition(".")[0]
        if index.isdecimal():
            blocks.setdefault(stage, []).append(int(index))
        else:
            others.append(key.rpartition(".")[0] or key)
    named = [f"{stage}: blocks {min(i)}-{max(i)}" for stage, i in blocks.items()]
    named += list(dict.fromkeys(others))
    return f" ({', '.join(named[:6])}{', ...' if len(named) > 6 else ''})" if named else ""
