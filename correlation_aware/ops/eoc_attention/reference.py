"""Extract-or-Correlation attention in plain PyTorch: the definition."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.ops.packed import Shape, unpack

__all__ = ["eoc_attention", "split_heads"]


def eoc_attention(
    q: Tensor,
    kv: Tensor,
    heads: int,
    query_shapes: Sequence[Shape],
    key_shapes: Sequence[Shape],
    cross: bool,
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """See `ops.eoc_attention`; `biases` are terms of the attention per stream, (heads, queries, keys)."""
    biases = [None] * len(query_shapes) if biases is None else biases
    queries = split_heads(q, heads, query_shapes)
    keys, values = (split_heads(t, heads, key_shapes) for t in kv.chunk(2, dim=1))
    if cross:
        keys, values = keys[::-1], values[::-1]
    out = [
        F.scaled_dot_product_attention(qi, ki, vi, attn_mask=bias).transpose(1, 2).flatten(2)
        for qi, ki, vi, bias in zip(queries, keys, values, biases)
    ]
    flat = [o.flatten(0, 1) for o in out]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def split_heads(tokens: Tensor, heads: int, shapes: Sequence[Shape]) -> list[Tensor]:
    """(T, C) -> per stream (B, heads, N, C / heads)."""
    return [m.flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2) for m in unpack(tokens, shapes)]
