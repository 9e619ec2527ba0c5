"""Gathers square patches of tokens: the input of the linear layer that reduces keys and values."""

from collections.abc import Sequence

from torch import Tensor

from correlation_aware.ops.backend import use_triton
from correlation_aware.ops.gather_patches import reference
from correlation_aware.ops.packed import Shape, flat_shapes

__all__ = ["gather_patches"]


def gather_patches(tokens: Tensor, shapes: Sequence[Shape], ratio: int) -> tuple[Tensor, list[Shape]]:
    """Concatenates the tokens of each ratio x ratio patch along the channels, row by row.

    Args:
        tokens: (T, C), packed tokens.
        shapes: (batch, height, width) of each stream, every side at least `ratio`.
        ratio: Side of a patch in tokens; remaining rows and columns are dropped.

    Returns:
        (T', ratio * ratio * C), packed, and the shapes (batch, height // ratio, width // ratio).

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(tokens):
        from correlation_aware.ops.gather_patches import triton

        reduced = [(b, h // ratio, w // ratio) for b, h, w in shapes]
        return triton.gather_patches(tokens, flat_shapes(shapes), ratio), reduced
    return reference.gather_patches(tokens, shapes, ratio)
