"""AdamW, its parameter groups, and the learning rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from correlation_aware.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["learning_rate_factor", "make_optimizer", "parameter_groups"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=config.betas, fused=True)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups of backbone and head, each with and without weight decay; empty groups are left out.

    Parameters under `head.` belong to the head, all others to the backbone. Norms, biases and the names of
    the model's `no_weight_decay()` have no weight decay. The schedule multiplies a group's `initial_lr`.
    """
    no_decay = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
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
            group = groups[part, parameter.ndim > 1 and name not in no_decay]
            group["params"].append(parameter)  # type: ignore[attr-defined]
    return [group for group in groups.values() if group["params"]]


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """Factor of the learning rates at a step, counted from 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "step":
        return config.drop ** sum(step >= share * config.steps for share in config.drops)
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
