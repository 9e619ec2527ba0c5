"""Residual add and LayerNorm."""

from torch import Tensor

from correlation_aware.ops.add_layer_norm import reference
from correlation_aware.ops.backend import use_triton

__all__ = ["add_layer_norm"]


def add_layer_norm(
    tokens: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream and normalizes the sum.

    Args:
        tokens: (T, C), residual stream.
        branch: (T, C), output of the previous layer.
        weight: (C,), weight of the LayerNorm.
        bias: (C,), bias of the LayerNorm.
        eps: Epsilon of the LayerNorm.

    Returns:
        The sum and its LayerNorm, both (T, C).

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(tokens):
        from correlation_aware.ops.add_layer_norm import triton

        return triton.add_layer_norm(tokens, branch, weight, bias, eps)
    return reference.add_layer_norm(tokens, branch, weight, bias, eps)
