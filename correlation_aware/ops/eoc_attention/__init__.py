"""Extract-or-Correlation attention: a stream's queries, reduced keys and values of its own or the other's."""

from collections.abc import Sequence

from torch import Tensor

from correlation_aware.ops.backend import use_triton
from correlation_aware.ops.eoc_attention import reference
from correlation_aware.ops.packed import Shape, flat_shapes

__all__ = ["eoc_attention"]


def eoc_attention(
    q: Tensor,
    kv: Tensor,
    heads: int,
    query_shapes: Sequence[Shape],
    key_shapes: Sequence[Shape],
    cross: bool,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, for each picture and head.

    Args:
        q: (T, C), packed queries.
        kv: (T', 2 C), packed keys and values side by side.
        heads: Divides C.
        query_shapes: (batch, height, width) of each stream of queries.
        key_shapes: The same of keys, as many streams; batches are equal where they meet.
        cross: EoC-CA: a stream's keys are the other's. With one stream each, they meet in either case.

    Returns:
        (T, C), packed as the queries.

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(q):
        from correlation_aware.ops.eoc_attention import triton

        return triton.eoc_attention(q, kv, heads, flat_shapes(query_shapes), flat_shapes(key_shapes), cross)[
            0
        ]
    return reference.eoc_attention(q, kv, heads, query_shapes, key_shapes, cross)
