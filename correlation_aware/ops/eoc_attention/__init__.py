"""Extract-or-Correlation attention: queries of a stream, keys and values of the same or the other stream."""

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
    """softmax(q k^T / sqrt(d)) v, for each image and head.

    Args:
        q: (T, C), packed queries.
        kv: (T', 2 C), packed keys and values, concatenated along the channels.
        heads: Number of heads, a divisor of C.
        query_shapes: (batch, height, width) of the queries of each stream.
        key_shapes: (batch, height, width) of the keys of each stream, as many streams as of queries. The
            batch of a stream equals that of the keys it attends to.
        cross: Whether each stream attends to the keys of the other one (EoC-CA). Without effect if there is
            only one stream.

    Returns:
        (T, C), packed like the queries.

    Raises:
        RuntimeError: See `use_triton`.
    """
    if use_triton(q):
        from correlation_aware.ops.eoc_attention import triton

        return triton.eoc_attention(q, kv, heads, flat_shapes(query_shapes), flat_shapes(key_shapes), cross)[
            0
        ]
    return reference.eoc_attention(q, kv, heads, query_shapes, key_shapes, cross)
