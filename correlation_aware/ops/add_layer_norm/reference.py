"""Residual add and LayerNorm in plain PyTorch: the definition."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_layer_norm"]


def add_layer_norm(
    tokens: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = tokens + branch
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)
