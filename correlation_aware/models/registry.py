"""The tables that families and plug-ins add to: models, heads and checkpoint formats, each by its name.

Who reads a table sees the plug-ins' entries too: they are imported at the first look.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, overload

import timm.models
from torch import Tensor, nn

from correlation_aware._fields import check_values
from correlation_aware._plugins import load_plugins, plugin_packages

__all__ = [
    "CLASSIFIER_ARGUMENTS",
    "CheckpointFormat",
    "EntryPoint",
    "checkpoint_formats",
    "head_class",
    "head_names",
    "near_names",
    "on_register",
    "refuse_arguments",
    "register_checkpoint_format",
    "register_head",
    "register_model",
    "registered_models",
    "reported_costs",
    "take_fields",
    "timm_models",
    "timm_tags",
]

EntryPoint = Callable[..., nn.Module]
Observer = Callable[[str, EntryPoint], None]
Function = TypeVar("Function", bound=EntryPoint)
Head = TypeVar("Head", bound=type[nn.Module])
Fields = TypeVar("Fields", bound=Any)  # a dataclass instance

CLASSIFIER_ARGUMENTS = ("num_classes", "drop_rate", "global_pool")

_MODELS: dict[str, EntryPoint] = {}
_REPORTED: dict[str, tuple[float, float]] = {}
_HEADS: dict[str, type[nn.Module]] = {}
_FORMATS: dict[str, "CheckpointFormat"] = {}
_observers: list[Observer] = []


@overload
def register_model(function: Function) -> Function: ...
@overload
def register_model(*, reported: tuple[float, float] | None = None) -> Callable[[Function], Function]: ...
def register_model(
    function: Function | None = None, *, reported: tuple[float, float] | None = None
) -> Function | Callable[[Function], Function]:
    """Decorator: makes a function that builds a model known to the zoo and to timm, under its own name.

    The function takes keyword arguments and returns a model with fresh weights: a `TwoInputModel`, a
    `TrackModel` (its name should end in `_track`) or a one-input classifier (`_cls`). Loading weights is the
    zoo's part; a parameter `pretrained`, if there is one, is never passed.

    Args:
        function: Function that builds the model.
        reported: Parameters in millions and GMACs as the model's paper reports them, for comparison.

    Raises:
        ValueError: The name is taken.

    Examples:
        >>> @register_model
        ... def acme_base(**kwargs) -> AcmeNet:
        ...     return AcmeNet(width=64, **kwargs)
    """

    def add(function: Function) -> Function:
        name = function.__name__
        if name in _MODELS:
            raise ValueError(f"There is a model {name!r} already, of {_MODELS[name].__module__}.")
        for observer in _observers:
            observer(name, function)
        _MODELS[name] = function
        if reported is not None:
            _REPORTED[name] = reported
        return function

    return add if function is None else add(function)


def register_head(name: str) -> Callable[[Head], Head]:
    """Decorator: makes a head class known as `create_model(..., head=name)`.

    The class is called with `dim`, the channels of the search features, and `feature_size`, their height and
    width at the model's search size; it maps (B, dim, H, W) to `TrackOutput`.

    Args:
        name: Name of the head.

    Raises:
        ValueError: The name is taken.
    """

    def add(head: Head) -> Head:
        if name in _HEADS:
            raise ValueError(f"There is a head {name!r} already, {_HEADS[name].__qualname__}.")
        _HEADS[name] = head
        return head

    return add


@dataclass(frozen=True)
class CheckpointFormat:
    """Somebody's names and layouts of parameters, and the way from there to ours.

    Attributes:
        name: As in `weights convert --format`.
        matches: Whether a checkpoint with these parameter names has this format.
        convert: Renames and reshapes the tensors.
    """

    name: str
    matches: Callable[[Iterable[str]], bool]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def register_checkpoint_format(
    name: str, matches: Callable[[Iterable[str]], bool]
) -> Callable[
    [Callable[[Mapping[str, Tensor]], dict[str, Tensor]]], Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
]:
    """Decorator: makes a function that converts a checkpoint known by the name of the format.

    Args:
        name: Name of the format.
        matches: Whether a checkpoint with these parameter names has this format.

    Raises:
        ValueError: The name is taken.
    """

    def add(
        convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    ) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        if name in _FORMATS:
            raise ValueError(f"There is a checkpoint format {name!r} already.")
        _FORMATS[name] = CheckpointFormat(name, matches, convert)
        return convert

    return add


def on_register(observer: Observer) -> None:
    """Calls `observer(name, function)` for every model, those to come included."""
    for name, function in _MODELS.items():
        observer(name, function)
    _observers.append(observer)


def registered_models() -> dict[str, EntryPoint]:
    """Functions that build models, by name, in the order of registration."""
    load_plugins()
    return dict(_MODELS)


def timm_models() -> dict[str, str]:
    """Models that plug-ins registered with timm alone, and their modules."""
    packages = plugin_packages()
    names = [name for name in timm.models.list_models() if name not in _MODELS] if packages else []
    modules = {name: timm.models.model_entrypoint(name).__module__ for name in names}
    return {name: module for name, module in modules.items() if module.partition(".")[0] in packages}


def timm_tags(name: str) -> list[str]:
    """Tags of the weights of a model of `timm_models()`, the default first; none of other models."""
    if not timm.models.is_model_pretrained(name) or name not in timm_models():
        return []
    tags = [full.partition(".")[2] for full in timm.models.list_pretrained(f"{name}.*")]
    default = timm.models.get_pretrained_cfg(name)
    return sorted(tags, key=lambda tag: default is None or tag != default.tag)


def reported_costs(name: str) -> tuple[float, float] | None:
    """Parameters in millions and GMACs of a model as its paper reports them; None where it does not."""
    return _REPORTED.get(name)


def checkpoint_formats() -> dict[str, CheckpointFormat]:
    """Formats of other people's checkpoints, by name."""
    load_plugins()
    return dict(_FORMATS)


def head_names() -> list[str]:
    """Names that `create_model(..., head=...)` takes."""
    load_plugins()
    return list(_HEADS)


def head_class(name: str) -> type[nn.Module]:
    """The class of a head.

    Raises:
        ValueError: There is no such head; the message lists all.
    """
    if name not in head_names():
        raise ValueError(f"head={name!r} is not one of {', '.join(_HEADS)}.")
    return _HEADS[name]


def take_fields(arguments: Mapping[str, Any], default: Fields) -> tuple[dict[str, Any], Fields]:
    """Splits the arguments of a model's function.

    Args:
        arguments: Arguments by name.
        default: A dataclass instance, such as a configuration of the family or `Sizes()`.

    Returns:
        The arguments that are no fields of `default`, and `default` with those that are; lists become tuples.

    Raises:
        ValueError: A value that does not fit the annotation of its field.
    """
    names = {field.name for field in fields(default)}
    chosen = {name: _as_tuple(value) for name, value in arguments.items() if name in names}
    check_values(type(default), chosen)
    return {k: v for k, v in arguments.items() if k not in names}, replace(default, **chosen)


def refuse_arguments(arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises for arguments that are left over; those of classifiers may be there if they are empty.

    Args:
        arguments: Arguments by name, without those that the model takes.
        known: Names that it takes, for the message.

    Raises:
        TypeError: There is one.
    """
    for name, value in arguments.items():
        if name not in CLASSIFIER_ARGUMENTS:
            near = near_names(name, (other for other in known if other != name))  # of models with a head
            raise TypeError(f"Unknown argument {name!r}. Near: {', '.join(near)}.")
        if value:
            raise TypeError(f"{name}={value!r} is for the classifiers, whose names end in _cls.")


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


def near_names(name: str, known: Iterable[str], limit: int = 4) -> list[str]:
    """Names of `known` that resemble `name`; all of them where none does."""
    names = list(known)
    return difflib.get_close_matches(name, names, n=limit, cutoff=0.5) or names
