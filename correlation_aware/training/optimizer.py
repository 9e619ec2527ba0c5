"""AdamW, its parameter groups, and the learning rate schedule."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from correlation_aware.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["freeze", "learning_rate_factor", "make_optimizer", "names_with", "parameter_groups", "part_of"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=config.betas, fused=True)


def freeze(model: nn.Module, prefixes: Sequence[str]) -> list[nn.Module]:
    """Excludes parameters from the training: they require no gradient, so that it is not computed.

    Args:
        model: Model to train.
        prefixes: Prefixes of parameter names, see `OptimizerConfig`.

    Returns:
        Modules whose parameters are all frozen, which should stay in evaluation mode.

    Raises:
        ValueError: A prefix without parameters, or no parameter is left to train.
    """
    for prefix in prefixes:
        for name in names_with(_parameter_names(model), prefix, "optimizer.frozen"):
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"optimizer.frozen={list(prefixes)} freezes all parameters: leave out the parts to train."
        )
    frozen = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.append(module)
    return frozen


def part_of(name: str) -> str:
    """Part of the model that a parameter belongs to: `head`, `backbone`, or `lora`, the low-rank matrices."""
    if name.startswith("head."):
        return "head"
    return "lora" if ".lora_A." in name or ".lora_B." in name else "backbone"


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups by part of the model, weight decay and factor of the learning rate.

    Parts are those of `part_of`. Norms, biases and the names of the model's `no_weight_decay()` have no
    weight decay. Frozen parameters are left out. The schedule multiplies a group's `initial_lr`.

    Raises:
        ValueError: A prefix of `config.factors` without parameters to train, or a layer decay for a model
            without layer groups.
    """
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    factors = _learning_rate_factors(model, config)
    groups: dict[tuple[str, bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        lr = config.backbone_lr if part == "backbone" else config.lr
        decay, factor = parameter.ndim > 1 and name not in no_decay, factors[name]
        label = (part if factor == 1 else f"{part}_x{factor:g}") + ("" if decay else "_no_decay")
        group = {
            "name": label,
            "part": part,
            "params": [],
            "lr": lr * factor,
            "initial_lr": lr * factor,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        groups.setdefault((part, decay, factor), group)["params"].append(parameter)
    order = sorted(groups, key=lambda key: (key[0], not key[1], -key[2]))
    return [groups[key] for key in order]


def _learning_rate_factors(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """Factor of the learning rate by parameter name."""
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for prefix in sorted(config.factors, key=len):  # longer prefixes overwrite shorter ones
        names = names_with(_parameter_names(model), prefix, "optimizer.factors")
        if not any(model.get_parameter(name).requires_grad for name in names):
            raise ValueError(f"optimizer.factors: all parameters under {prefix!r} are frozen; remove it.")
        factors.update(dict.fromkeys(names, config.factors[prefix]))
    if config.layer_decay != 1:
        if not hasattr(model, "group_matcher"):
            raise ValueError(
                f"optimizer.layer_decay={config.layer_decay:g} needs a model with a group_matcher(); "
                f"{type(model).__name__} has none. Use optimizer.factors instead."
            )
        layers = group_parameters(model, model.group_matcher(), reverse=True)  # type: ignore[operator]
        last = max(layers.values())
        if last == 0:
            raise ValueError(
                f"optimizer.layer_decay={config.layer_decay:g} has no effect: all parameters of "
                f"{type(model).__name__} are in one layer group. Use optimizer.factors instead."
            )
        for name, layer in layers.items():
            factors[name] *= config.layer_decay ** (last - layer)
    return factors


def _parameter_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def names_with(known: Sequence[str], prefix: str, where: str, kind: str = "parameter") -> list[str]:
    """Names that are `prefix` or start with it up to a dot.

    Args:
        known: All names.
        prefix: Start of a name.
        where: Key of the configuration, for messages.
        kind: What the names are of, for messages.

    Raises:
        ValueError: No such name; the message lists similar ones.
    """
    names = [name for name in known if name == prefix or name.startswith(prefix + ".")]
    if not names:
        starts = {".".join(name.split(".")[: i + 1]) for name in known for i in range(name.count(".") + 1)}
        near = difflib.get_close_matches(prefix, sorted(starts), n=5, cutoff=0.5)
        near = near or sorted({name.split(".")[0] for name in known})
        raise ValueError(f"{where}: no {kind} starts with {prefix!r}. Near: {', '.join(near)}.")
    return names


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """Factor of the learning rates at a step, counted from 0, of a schedule with a number of steps."""
    warmup = config.warmup or 0
    if step < warmup:
        return (step + 1) / warmup
    if config.decay == "step":
        return config.drop ** sum(step >= round(share * config.steps) for share in config.drops)
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
