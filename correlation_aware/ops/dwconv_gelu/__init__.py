"""3x3 depth-wise convolution and GELU on packed tokens: the position encoding in the MLP."""

from collections.abc import Sequence

from torch import Tensor

from correlation_aware.ops.backend import use_triton
from correlation_aware.ops.dwconv_gelu import reference
from correlation_aware.ops.packed import Shape, flat_shapes

__all__ = ["dwconv_gelu"]


def dwconv_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Applies a 3x3 depth-wise convolution with zero padding, then GELU, to each stream.

    Args:
        tokens: (T, C), packed tokens.
        weight: (C, 1, 3, 3), filters.
        bias: (C,), bias of the convolution.
        shapes: (batch, height, width) of each stream.

    Returns:
        (T, C).

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(tokens):
        from correlation_aware.ops.dwconv_gelu import triton

        return triton.dwconv_gelu(tokens, weight, bias, flat_shapes(shapes))
    return reference.dwconv_gelu(tokens, weight, bias, shapes)
