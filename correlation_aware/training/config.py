"""Training configurations: frozen dataclasses, read from YAML and written back.

Keys that a file leaves out keep their defaults.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from torch import nn

from correlation_aware._deprecation import current_fields
from correlation_aware._files import read_text
from correlation_aware.zoo import create_model, is_location

__all__ = [
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "change",
    "check_values",
    "from_mapping",
    "load",
    "to_yaml",
]

T = TypeVar("T")
# in a configuration file
MOST_VALUES, MOST_LEVELS, MOST_BRACKETS, MOST_CHARACTERS = 100_000, 50, 1000, 2**18


@dataclass(frozen=True)
class ModelConfig:
    """The model to train and the weights to start from.

    Attributes:
        name: Architecture name. With a tag, such as `sbt_light_cell_track.video`, training starts from
            those weights; with a saved model (a folder, `local-dir:`, `hf-hub:`) from its weights.
        pretrained: Weights to start from, for a name without a tag: a tag, `model.tag`, an `hf-hub:` name, a
            file or a folder; or weights of the image backbone alone, `timm:resnet50` by a name of timm or
            `backbone:FILE`; null for random weights. Tensors that fit are loaded, the others are logged.
        overrides: Further arguments of `create_model`.
        pretrained_blocks: Number of blocks of the backbone, from the image on and with the stem, that start
            from these weights; the others and the head stay random. null for all that fits. Blocks are the
            layer groups of the model's `group_matcher()`.
        pretrained_stages: Likewise of stages.
    """

    name: str = "sbt_light_track"
    pretrained: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    pretrained_blocks: int | None = None
    pretrained_stages: int | None = None

    def __post_init__(self) -> None:
        check_values("model", self, pretrained_blocks=(1, math.inf), pretrained_stages=(1, math.inf))

    def create(self, **arguments: Any) -> nn.Module:
        """Creates the model with random weights.

        Args:
            arguments: Arguments of `create_model` that `overrides` may replace.

        Raises:
            ValueError: An unknown model, or an unknown or invalid override.
        """
        try:
            return create_model(self.name, **{**arguments, **self.overrides})
        except TypeError as error:
            raise ValueError(f"model.overrides={self.overrides}: {error}") from error

    def start(self) -> str | None:
        """Name of the weights to start from, None for random ones.

        Raises:
            ValueError: Both `name`, by its tag or as a saved model, and `pretrained` name weights.
        """
        tagged = is_location(self.name) or "." in self.name
        if tagged and self.pretrained is not None:
            raise ValueError(
                f"model.name={self.name} and model.pretrained={self.pretrained} both name weights: "
                "remove one of them."
            )
        return self.name if tagged else self.pretrained

    def pretrained_part(self) -> "PretrainedPart | None":
        """Part of the backbone that starts from weights, None for all that fits.

        Raises:
            ValueError: Both a number of blocks and one of stages.
        """
        counts = {"blocks": self.pretrained_blocks, "stages": self.pretrained_stages}
        parts = [PretrainedPart(f"model.pretrained_{kind}", n) for kind, n in counts.items() if n is not None]
        if len(parts) > 1:
            raise ValueError("Both model.pretrained_blocks and model.pretrained_stages are set: remove one.")
        return parts[0] if parts else None


class PretrainedPart(NamedTuple):
    """Key of the configuration that is set, and its number of blocks or stages."""

    key: str
    number: int


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (LoRA): linear layers keep their weights, and the product of two matrices is added.

    Checkpoints publish plain weights with the products added, which load without peft.

    Attributes:
        rank: Rank of the products.
        alpha: Scale: the products are multiplied by `alpha / rank`.
        targets: Prefixes of the linear layers to adapt, see `OptimizerConfig`.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("backbone",)

    def __post_init__(self) -> None:
        check_values("optimizer.lora", self, rank=(1, math.inf), alpha=(0, math.inf))


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with learning rates per part of the model, gradient clipping and weight averaging.

    A prefix is the start of parameter names up to a dot, such as `backbone.stages.0`, or a whole name.

    Attributes:
        lr: Learning rate of the head, and of the matrices of `lora`.
        backbone_lr: Learning rate of all other parameters.
        lora: Low-rank adaptation of the backbone's linear layers, of which nothing else is trained then; null
            to train the weights themselves.
        frozen: Prefixes of parameters that are not trained. Modules of frozen parameters alone stay in
            evaluation mode.
        factors: Factors of the learning rate by prefix; of several prefixes of a name the longest counts.
        layer_decay: Factor of the backbone's learning rate from each layer group to the one before it, in the
            groups of the model's `group_matcher()`; the last group keeps its learning rate. 1 for none.
        weight_decay: Weight decay; not applied to norms, biases and the names of `no_weight_decay()`.
        betas: Decay rates of AdamW's two moments.
        clip: Maximum norm of the gradient; null for no clipping.
        ema: Decay of the exponential moving average of the weights, which checkpoints publish; 0 for none.
            The decay is smaller in the first steps (warm-up).
    """

    lr: float = 1e-4
    backbone_lr: float = 1e-5
    lora: LoraConfig | None = None
    frozen: tuple[str, ...] = ()
    factors: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    ema: float = 0.9998

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "backbone_lr", "factors", "weight_decay"), (0, math.inf))
        check_values("optimizer", self, **rates, layer_decay=(0, 1), betas=(0, 1), ema=(0, 1))
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"optimizer.clip={self.clip} must be above 0, or null for no clipping.")


@dataclass(frozen=True)
class ScheduleConfig:
    """Factor of the learning rates at every step.

    Attributes:
        steps: Total number of optimizer steps; 0 to compute it from `epochs`, and without these 100,000.
        epochs: Number of epochs instead of `steps`: the number of steps then depends on the samples per
            step, which are processes x `run.accumulate` x `data.batch_size`.
        samples_per_epoch: Pairs, or images of a classifier, per epoch.
        warmup: Steps of linear warm-up from 0; null for a tenth of the steps, at most 1000.
        decay: `cosine`: down to `floor`; `step`: multiplied by `drop` at each of `drops`.
        floor: Final factor of the cosine.
        drops: Positions of the drops: below 1 fractions of the schedule, from 1 on epochs.
        drop: Factor of each drop.
    """

    steps: int = 0
    epochs: int | None = None
    samples_per_epoch: int | None = None
    warmup: int | None = None
    decay: Literal["cosine", "step"] = "cosine"
    floor: float = 0.01
    drops: tuple[float, ...] = (0.8,)
    drop: float = 0.1

    def __post_init__(self) -> None:
        check_values("schedule", self, steps=(0, math.inf), warmup=(0, math.inf), drops=(0, math.inf))
        check_values("schedule", self, floor=(0, 1), drop=(0, 1))
        check_values("schedule", self, epochs=(1, math.inf), samples_per_epoch=(1, math.inf))
        if (self.epochs is None) != (self.samples_per_epoch is None):
            raise ValueError(
                f"schedule.epochs={self.epochs} and schedule.samples_per_epoch={self.samples_per_epoch}: "
                "one has no effect without the other. Set both, or neither."
            )
        if self.epochs is not None and self.steps:
            raise ValueError(
                f"Both schedule.steps={self.steps} and schedule.epochs={self.epochs} are set. Set "
                "schedule.epochs and schedule.samples_per_epoch to null, or schedule.steps to 0."
            )
        late = [position for position in self.drops if position >= (self.epochs or 1)]
        if late and self.decay == "step":
            end = f"schedule.epochs={self.epochs}" if self.epochs else "a schedule without epochs"
            raise ValueError(f"schedule.drops: {late[0]:g} is at or after the end of {end}.")
        if self.epochs is not None:
            return
        if not self.steps:
            object.__setattr__(self, "steps", 100_000)
        if self.warmup is None:
            object.__setattr__(self, "warmup", min(1000, self.steps // 10))
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(
                f"schedule.warmup={self.warmup} is more than schedule.steps={self.steps}: the learning rate "
                "would never be reached. Lower the warm-up, to 0 for none."
            )

    def in_steps(self, samples_per_step: int) -> "ScheduleConfig":
        """The same schedule with a number of steps instead of epochs, and drops as fractions.

        Args:
            samples_per_step: Pairs or images per optimizer step, of all processes together.
        """
        if self.epochs is None or self.samples_per_epoch is None:
            return self
        return dataclasses.replace(
            self,
            steps=max(1, round(self.epochs * self.samples_per_epoch / samples_per_step)),
            drops=tuple(drop if drop < 1 else drop / self.epochs for drop in self.drops),
            epochs=None,
            samples_per_epoch=None,
        )


@dataclass(frozen=True)
class RunConfig:
    """Seed, precision, logging and checkpoints of a run.

    Attributes:
        seed: Seed of the initial weights, the data and dropout.
        precision: Dtype of the forward and backward pass (autocast); weights are always float32. float16, for
            GPUs without bfloat16, scales the loss.
        compile: Whether to compile the model with `torch.compile`; faster on a GPU only.
        accumulate: Batches per process whose gradients are accumulated before an optimizer step.
        log_every: Steps between two lines of the log.
        validate_every: Steps between two validations, if there are validation data; 0 for one at the end.
        checkpoint_steps: Steps between two checkpoints; 0 to checkpoint by time alone.
        checkpoint_minutes: Minutes between two checkpoints.
        keep: Number of checkpoints to keep; older ones are deleted.
    """

    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    accumulate: int = 1
    log_every: int = 50
    validate_every: int = 0
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 10.0
    keep: int = 3

    def __post_init__(self) -> None:
        check_values("run", self, accumulate=(1, math.inf), log_every=(1, math.inf), keep=(1, math.inf))
        others = ("validate_every", "checkpoint_steps", "checkpoint_minutes")
        check_values("run", self, **dict.fromkeys(others, (0, math.inf)), seed=(0, 2**32 - 1))


def check_values(section: str, config: Any, **limits: tuple[float, float]) -> None:
    """Checks numbers of a section.

    Args:
        section: Name of the section, such as `schedule`.
        config: Its dataclass.
        limits: Smallest and largest value by name of the attribute, infinity for none; values that are no
            numbers pass.

    Raises:
        ValueError: A number outside its limits, infinity, or NaN.
    """
    for name, (low, high) in limits.items():
        values = getattr(config, name)
        if isinstance(values, Mapping):
            values = list(values.values())
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if isinstance(value, (int, float)) and not (low <= value <= high and value < math.inf):
                limit = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:.10g}"
                limit += " and finite" * (value == math.inf)
                raise ValueError(f"{section}.{name}={value} must be {limit}.")


def load(kind: type[T], path: str | Path | None = None, changes: Sequence[str] = ()) -> T:
    """Reads a configuration.

    Args:
        kind: Dataclass of the configuration.
        path: YAML file; None for the defaults.
        changes: `section.key=value` strings, values in YAML; they override the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Invalid YAML, an unknown key, or a value of the wrong type.
    """
    content: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no configuration file {path}.")
        content = _parse(read_text(Path(path)), str(path)) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a mapping of sections but a {type(content).__name__}.")
    return from_mapping(kind, _apply(content, changes))


def change(config: T, changes: Sequence[str]) -> T:
    """A configuration with `section.key=value` changes, see `load`."""
    return from_mapping(type(config), _apply(yaml.safe_load(to_yaml(config)), changes))


def _apply(content: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for setting in changes:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} is not key=value, such as optimizer.lr=1e-4.")
        *sections, last = key.split(".")
        mapping = content
        for section in sections:
            mapping[section] = mapping.get(section) or {}
            mapping = mapping[section]
            if not isinstance(mapping, dict):
                raise ValueError(f"{setting!r}: {section} is a value and has no keys.")
        mapping[last] = _parse(text, setting)
    return content


def from_mapping(kind: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """Builds a dataclass of dataclasses from nested mappings.

    Args:
        kind: Dataclass to build.
        content: Values of its fields by name.
        where: Prefix of the keys in error messages, such as `optimizer.`.

    Raises:
        ValueError: An unknown key (the message lists similar ones), or a value of the wrong type.
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
    """The whole configuration, defaults included, as YAML that `load` reads."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hasattr(hint, "of") and isinstance(value, (int, float)) and not isinstance(value, bool):
            return hint.of(value)
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is a section with keys, not the value {value!r}.")
        return from_mapping(hint, value, f"{where}.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _coerce(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where}={value!r} is not one of {', '.join(map(str, options))}.")
        return value
    if hint == tuple[str, ...] and isinstance(value, str):
        value = [value]
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(kinds) == len(value):
            return tuple(_coerce(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    elif origin is dict and isinstance(value, Mapping) and options[1] is not Any:
        return {key: _coerce(options[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-4 as text
        except (TypeError, ValueError, OverflowError):
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
    brackets = text.count("[") + text.count("{")
    if brackets > MOST_BRACKETS or len(text) > MOST_CHARACTERS:  # PyYAML's time grows with their square
        raise ValueError(
            f"{where} is not a configuration: {len(text)} characters, {brackets} opening brackets; at most "
            f"{MOST_CHARACTERS} and {MOST_BRACKETS} are read."
        )
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # of a wrong date or number PyYAML raises anything
        raise ValueError(f"{where} is not YAML: {error}") from error
    if not _is_small(content):
        raise ValueError(
            f"{where} is not a configuration: with its aliases it has more than {MOST_VALUES} values or "
            f"{MOST_LEVELS} levels."
        )
    return content


def _is_small(content: Any) -> bool:
    """Whether a tree is finite and small where every alias is a copy, as in messages and checkpoints."""
    stack, count = [(content, 0)], 0
    while stack:
        value, level = stack.pop()
        count += 1
        if count > MOST_VALUES or level > MOST_LEVELS:
            return False
        if isinstance(value, Mapping):
            value = [*value, *value.values()]
        if isinstance(value, (list, tuple, set)):
            stack += [(item, level + 1) for item in value]
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
