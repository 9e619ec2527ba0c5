"""A run as frozen dataclasses, and the way to YAML and back. What a file leaves out keeps its default."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from correlation_aware._deprecation import current_fields

__all__ = ["ModelConfig", "OptimizerConfig", "RunConfig", "ScheduleConfig", "from_mapping", "load", "to_yaml"]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        name: Name of the model; with a tag, training starts from those weights.
        pretrained: Weights to start from: a tag, `model.tag`, an `hf-hub:` name, a file or a folder. Tensors
            that fit are loaded, and the run says which are not.
        overrides: Further arguments of `create_model`.
    """

    name: str = "sbt_light_track"
    pretrained: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def start(self) -> str | None:
        """The weights to start from, if any.

        Raises:
            ValueError: The name has a tag, and `pretrained` names weights too.
        """
        tagged = "." in self.name and not Path(self.name).exists()
        if tagged and self.pretrained is not None:
            raise ValueError(
                f"model.name={self.name} and model.pretrained={self.pretrained} both name weights: drop one."
            )
        return self.name if tagged else self.pretrained


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW in two parameter groups, and what is done to gradients and weights around it.

    Attributes:
        lr: Learning rate of the head.
        backbone_lr: Learning rate of the rest.
        weight_decay: Not applied to norms, biases and what the model excludes.
        betas: Decay of the two moments.
        clip: Largest norm of the gradient; none if null.
        ema: Decay of the moving average of the weights, which is what gets published; 0 for none. It warms
            up: early averages are short.
    """

    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    ema: float = 0.9998


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps, as a factor.

    Attributes:
        steps: Optimiser steps in all.
        warmup: Steps of linear growth from 0.
        decay: `cosine` down to `floor`, or `step`: times `drop` at each of `drops`.
        floor: Last factor of the cosine.
        drops: Shares of all steps.
        drop: Factor at each of them.
    """

    steps: int = 100_000
    warmup: int = 1000
    decay: Literal["cosine", "step"] = "cosine"
    floor: float = 0.01
    drops: tuple[float, ...] = (0.8,)
    drop: float = 0.1


@dataclass(frozen=True)
class RunConfig:
    """How the run is carried out.

    Attributes:
        seed: Of weights, data and drop-outs.
        precision: Of the forward and backward pass; weights are always float32.
        compile: Compile the model with `torch.compile`; worth it on a GPU only.
        accumulate: Batches a process adds up before a step.
        log_every: Steps between two lines of the log.
        validate_every: Steps between two validations, where there is one; 0 for the end only.
        checkpoint_steps: Steps between two checkpoints; 0 for by time only.
        checkpoint_minutes: Minutes between two checkpoints.
        keep: Checkpoints that are kept; older ones are removed.
    """

    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    accumulate: int = 1
    log_every: int = 50
    validate_every: int = 0
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 10.0
    keep: int = 3


def load(kind: type[T], path: str | Path | None = None, changes: Sequence[str] = ()) -> T:
    """Reads a configuration.

    Args:
        kind: The dataclass.
        path: A YAML file; all defaults without one.
        changes: `section.key=value`, the value in YAML; they win over the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not YAML, an unknown key, a value of the wrong type.
    """
    content: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no configuration {path}.")
        content = _parse(Path(path).read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a mapping of sections, but {type(content).__name__}.")
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is not key=value, such as optimizer.lr=1e-4.")
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place[section] = place.get(section) or {}
            place = place[section]
            if not isinstance(place, dict):
                raise ValueError(f"{change!r}: {section} is a value and has no keys.")
        place[last] = _parse(text, change)
    return from_mapping(kind, content)


def from_mapping(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """Builds a dataclass of dataclasses from nested mappings.

    Args:
        kind: The dataclass.
        content: Fields by name.
        where: What to put before a key in messages.

    Raises:
        ValueError: An unknown key (the message names the near ones), a value of the wrong type.
    """
    hints = get_type_hints(kind)
    content = current_fields(kind, content)
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or known
            raise ValueError(f"Unknown key {where}{key}. Near: {', '.join(where + n for n in near)}.")
    return kind(**{key: _coerce(hints[key], value, where + key) for key, value in content.items()})


def to_yaml(config: Any) -> str:
    """All of a configuration, defaults included, as `load` reads it."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is a section with keys, not {value!r}.")
        return from_mapping(hint, value, f"{where}.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _coerce(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where}={value!r} is not one of {', '.join(map(str, options))}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) == len(value):
            return tuple(_coerce(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    elif hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-4 as text
        except (TypeError, ValueError):
            number = float("nan")
        if hint is float and number == number:
            return number
        if hint is int and number.is_integer():
            return int(number)
    elif hint is Any or (isinstance(origin or hint, type) and isinstance(value, origin or hint)):
        return value
    name = hint.__name__ if isinstance(hint, type) and not options else str(hint)
    raise ValueError(f"{where}={value!r} is not of type {name}.")


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
