"""Low-rank adaptation of linear layers: small matrices are trained in place of the backbone's weights.

Paper: `LoRA: Low-Rank Adaptation of Large Language Models` (Hu et al., ICLR 2022) -
https://arxiv.org/abs/2106.09685
"""

import copy
import re

from torch import nn

from correlation_aware._extras import require
from correlation_aware.training.config import LoraConfig
from correlation_aware.training.optimizer import names_with, part_of

__all__ = ["add_lora", "merge_lora"]


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Adds low-rank matrices to linear layers; only they and the head are trained then.

    The layer `x` becomes a layer of peft: its weight is `x.base_layer.weight`, the matrices are
    `x.lora_A.default.weight` and `x.lora_B.default.weight`. Outputs are the same until the first step.

    Args:
        model: Model to train.
        config: Rank, scale and layers.

    Raises:
        ValueError: A prefix without linear layers, or one of the head.
        ModuleNotFoundError: peft is not installed; the message has the command to install it.
    """
    (peft,) = require("peft", message="optimizer.lora needs {names}")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets: set[str] = set()
    for prefix in config.targets:
        if part_of(prefix + ".") == "head":
            raise ValueError(
                f"optimizer.lora.targets: {prefix!r} is of the head, all of whose parameters are trained; "
                "name parts of the backbone."
            )
        targets.update(names_with(linear, prefix, "optimizer.lora.targets", "linear layer"))
    pattern = "|".join(re.escape(name) for name in sorted(targets))
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern), model
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) != "backbone")


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of the model with plain linear layers, whose weights have the low-rank products added.

    Raises:
        ValueError: A product that is not finite.
    """
    (layers,) = require("peft.tuners.lora", message="optimizer.lora needs {names}")
    merged = copy.deepcopy(model)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, layers.LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(merged.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged
