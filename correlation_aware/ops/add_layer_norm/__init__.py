"""Residual add and LayerNorm."""

from torch import Tensor

from correlation_aware.ops.add_layer_norm import reference
from correlation_aware.ops.backend import use_triton

__all__ = ["add_layer_norm"]


def add_layer_norm(
    tokens: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream and normalises the sum.

    Args:
        tokens: (T, C), the residual stream.
        branch: (T, C), what the layer before computed.
        weight: (C,) of the norm.
        bias: (C,) of the norm.
        eps: Of the norm.

    Returns:
        The sum, and LayerNorm of the sum, both (T, C).

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(tokens):
        from correlation_aware.ops.add_layer_norm import triton

        return triton.add_layer_norm(tokens, branch, weight, bias, eps)
    return reference.add_layer_norm(tokens, branch, weight, bias, eps)
