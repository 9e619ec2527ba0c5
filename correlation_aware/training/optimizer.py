"""Parameter groups and the learning rate over steps."""

import math
from typing import Any

import torch
from torch import nn

from correlation_aware.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["learning_rate_factor", "make_optimizer", "parameter_groups"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in its fused form."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=config.betas, fused=True)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Backbone and head, each with and without weight decay; groups without parameters are left out.

    The head is whatever the model keeps under `head`. Norms, biases and the names of the model's
    `no_weight_decay()` do not decay. `initial_lr` is what the schedule multiplies.
    """
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    groups = {
        (part, decay): {
            "name": part if decay else f"{part}_no_decay",
            "params": [],
            "lr": lr,
            "initial_lr": lr,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for part, lr in (("backbone", config.backbone_lr), ("head", config.lr))
        for decay in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "head" if name.startswith("head.") else "backbone"
            group = groups[part, parameter.ndim > 1 and name not in spared]
            group["params"].append(parameter)  # type: ignore[attr-defined]
    return [group for group in groups.values() if group["params"]]


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """What the learning rates are multiplied by in a step, counted from 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "step":
        return config.drop ** sum(step >= share * config.steps for share in config.drops)
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
