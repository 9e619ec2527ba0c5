"""Extract-or-Correlation attention as one kernel for both streams, forward and backward.

A program computes a block of queries of one image with a running softmax over the keys of that image, so the
attention matrix is not written to memory; after spatial reduction most images have one or two blocks of keys.
The backward pass has no atomic additions: one kernel computes the gradients of the queries, another those of
keys and values.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from correlation_aware.ops.packed import streams

__all__ = ["eoc_attention"]

LOG2_E = 1.4426950408889634


@triton.jit
def _locate(
    along0, along1, batch0, queries0, queries1, keys0, keys1, key_start0, key_start1, BLOCK: tl.constexpr
):  # fmt: skip
    """The work of a program: index of its block, numbers of queries and keys, first row of queries and keys.

    Blocks are of queries or of keys; an image has `along0` of these in the first stream, else `along1`.
    """
    program = tl.program_id(0)
    blocks0 = tl.cdiv(along0, BLOCK)
    second = program >= batch0 * blocks0
    local = program - tl.where(second, batch0 * blocks0, 0)
    blocks = tl.where(second, tl.cdiv(along1, BLOCK), blocks0)
    queries, keys = tl.where(second, queries1, queries0), tl.where(second, keys1, keys0)
    image = local // blocks
    query_row = tl.where(second, batch0 * queries0, 0) + image * queries
    key_row = tl.where(second, key_start1, key_start0) + image * keys
    return local % blocks, queries, keys, query_row.to(tl.int64), key_row.to(tl.int64)


@triton.jit
def _tokens(first, index, count, WIDTH: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr):
    """Offsets of one head of an image's tokens in the packed tensor, and the mask of the valid ones."""
    d = tl.arange(0, D)
    at = (first + index)[:, None] * WIDTH + tl.program_id(1) * HEAD + d[None, :]
    return at, (index < count)[:, None] & (d < HEAD)[None, :]


@triton.jit
def _forward(
    q, kv, out, lse, scale, total,
    batch0, queries0, queries1, keys0, keys1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _locate(
        queries0, queries1, batch0, queries0, queries1, keys0, keys1, key_start0, key_start1, M
    )
    m = block * M + tl.arange(0, M)
    at, rows = _tokens(query_row, m, queries, C, HEAD, D)
    qs = tl.load(q + at, rows, 0.0)
    top = tl.full([M], -float("inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        n = start + tl.arange(0, N)
        key, columns = _tokens(key_row, n, keys, 2 * C, HEAD, D)
        k = tl.load(kv + key, columns, 0.0)
        v = tl.load(kv + key + C, columns, 0.0)
        s = tl.dot(qs, tl.trans(k), input_precision=PRECISION) * scale
        s = tl.where((n < keys)[None, :], s, -float("inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        shrink = tl.exp2(top - new)
        norm = norm * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = new
    tl.store(out + at, (acc / norm[:, None]).to(out.dtype.element_ty), rows)
    tl.store(lse + tl.program_id(1) * total + query_row + m, top + tl.log2(norm), m < queries)


@triton.jit
def _backward_queries(
    grad, q, kv, out, lse, delta, grad_q, scale, slope, total,
    batch0, queries0, queries1, keys0, keys1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _locate(
        queries0, queries1, batch0, queries0, queries1, keys0, keys1, key_start0, key_start1, M
    )
    m = block * M + tl.arange(0, M)
    at, rows = _tokens(query_row, m, queries, C, HEAD, D)
    one = tl.program_id(1) * total + query_row + m  # one value per head and query
    qs = tl.load(q + at, rows, 0.0)
    g = tl.load(grad + at, rows, 0.0)
    norm = tl.load(lse + one, m < queries, 0.0)
    mean = tl.sum(g.to(tl.float32) * tl.load(out + at, rows, 0.0).to(tl.float32), 1)
    tl.store(delta + one, mean, m < queries)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        n = start + tl.arange(0, N)
        key, columns = _tokens(key_row, n, keys, 2 * C, HEAD, D)
        k = tl.load(kv + key, columns, 0.0)
        v = tl.load(kv + key + C, columns, 0.0)
        s = tl.dot(qs, tl.trans(k), input_precision=PRECISION) * scale
        p = tl.where((n < keys)[None, :], tl.exp2(s - norm[:, None]), 0.0)
        ds = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - mean[:, None])
        acc += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    tl.store(grad_q + at, (acc * slope).to(grad_q.dtype.element_ty), rows)


@triton.jit
def _backward_keys(
    grad, q, kv, lse, delta, grad_kv, scale, slope, total,
    batch0, queries0, queries1, keys0, keys1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _locate(
        keys0, keys1, batch0, queries0, queries1, keys0, keys1, key_start0, key_start1, N
    )
    n = block * N + tl.arange(0, N)
    key, columns = _tokens(key_row, n, keys, 2 * C, HEAD, D)
    k = tl.load(kv + key, columns, 0.0)
    v = tl.load(kv + key + C, columns, 0.0)
    grad_k = tl.zeros([N, D], tl.float32)
    grad_v = tl.zeros([N, D], tl.float32)
    for start in range(0, queries, M):
        m = start + tl.arange(0, M)
        at, rows = _tokens(query_row, m, queries, C, HEAD, D)
        one = tl.program_id(1) * total + query_row + m
        qs = tl.load(q + at, rows, 0.0)
        g = tl.load(grad + at, rows, 0.0)
        norm = tl.load(lse + one, m < queries, 0.0)
        mean = tl.load(delta + one, m < queries, 0.0)
        s = tl.dot(k, tl.trans(qs), input_precision=PRECISION) * scale  # N, M
        p = tl.where((m < queries)[None, :], tl.exp2(s - norm[None, :]), 0.0)
        grad_v += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
        ds = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - mean[None, :])
        grad_k += tl.dot(ds.to(qs.dtype), qs, input_precision=PRECISION)
    tl.store(grad_kv + key, (grad_k * slope).to(grad_kv.dtype.element_ty), columns)
    tl.store(grad_kv + key + C, grad_v.to(grad_kv.dtype.element_ty), columns)


class _Pairs(NamedTuple):
    """Queries of each of two streams, and the keys they attend to; a missing second stream has batch 0.

    Attributes:
        batch: Number of images.
        queries: Number of queries per image.
        keys: Number of keys per image.
        key_start: First row of the keys in the packed tensor.
    """

    batch: tuple[int, int]
    queries: tuple[int, int]
    keys: tuple[int, int]
    key_start: tuple[int, int]

    @classmethod
    def of(cls, query_shapes: Sequence[int], key_shapes: Sequence[int], cross: bool) -> "_Pairs":
        (b0, h0, w0), (b1, h1, w1) = streams(query_shapes)
        (c0, i0, j0), (c1, i1, j1) = streams(key_shapes)
        batch, keys, start = (c0, c1), (i0 * j0, i1 * j1), (0, c0 * i0 * j0)
        if cross and len(key_shapes) > 3:
            batch, keys, start = batch[::-1], keys[::-1], start[::-1]
        assert (b0, b1) == batch, "queries and their keys need equal batches"
        return cls(batch, (h0 * w0, h1 * w1), keys, start)

    def programs(self, along: tuple[int, int], block: int) -> int:
        """Number of blocks of queries or keys in all images."""
        return sum(batch * triton.cdiv(count, block) for batch, count in zip(self.batch, along))


def _arguments(q: Tensor, heads: int, pairs: _Pairs) -> dict[str, Any]:
    """Arguments that all kernels share, without tensors and scales."""
    dim = q.shape[1] // heads
    # block sizes of queries and keys, and warps; float32 products need more registers
    m, n, warps = (32, 32, 8) if q.dtype == torch.float32 else (64, 64, 4)
    return {
        "total": len(q),
        "batch0": pairs.batch[0],
        "queries0": pairs.queries[0],
        "queries1": pairs.queries[1],
        "keys0": pairs.keys[0],
        "keys1": pairs.keys[1],
        "key_start0": pairs.key_start[0],
        "key_start1": pairs.key_start[1],
        "C": q.shape[1],
        "HEAD": dim,
        "D": max(16, triton.next_power_of_2(dim)),
        "M": m,
        "N": n,
        "num_warps": warps,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",  # affects float32 only
    }


SHAPES = "int heads, SymInt[] query_shapes, SymInt[] key_shapes, bool cross"  # last arguments of both schemas


@torch.library.custom_op(
    "correlation_aware::eoc_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor kv, {SHAPES}) -> (Tensor, Tensor)",
)
def eoc_attention(
    q: Tensor,
    kv: Tensor,
    heads: int,
    query_shapes: Sequence[int],
    key_shapes: Sequence[int],
    cross: bool,
) -> tuple[Tensor, Tensor]:
    """Attention (T, C), and log2 of the softmax denominator (heads, T) for the backward pass."""
    q, kv = q.contiguous(), kv.contiguous()
    out = torch.empty_like(q)
    lse = torch.empty(heads, len(q), dtype=torch.float32, device=q.device)
    scale = (q.shape[1] // heads) ** -0.5 * LOG2_E
    pairs = _Pairs.of(query_shapes, key_shapes, cross)
    arguments = _arguments(q, heads, pairs)
    _forward[pairs.programs(pairs.queries, arguments["M"]), heads](q, kv, out, lse, scale, **arguments)
    return out, lse


@eoc_attention.register_fake
def _(
    q: Tensor,
    kv: Tensor,
    heads: int,
    query_shapes: Sequence[int],
    key_shapes: Sequence[int],
    cross: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(heads, q.shape[0], dtype=torch.float32)


@torch.library.custom_op(
    "correlation_aware::eoc_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor q, Tensor kv, Tensor out, Tensor lse, {SHAPES}) -> (Tensor, Tensor)",
)
def _eoc_attention_backward(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    query_shapes: Sequence[int],
    key_shapes: Sequence[int],
    cross: bool,
) -> tuple[Tensor, Tensor]:
    grad, q, kv = grad.contiguous(), q.contiguous(), kv.contiguous()
    grad_q, grad_kv, delta = torch.empty_like(q), torch.empty_like(kv), torch.empty_like(lse)
    slope = (q.shape[1] // heads) ** -0.5
    scales = slope * LOG2_E, slope
    pairs = _Pairs.of(query_shapes, key_shapes, cross)
    arguments = _arguments(q, heads, pairs)
    by_queries = pairs.programs(pairs.queries, arguments["M"]), heads
    _backward_queries[by_queries](grad, q, kv, out, lse, delta, grad_q, *scales, **arguments)
    by_keys = pairs.programs(pairs.keys, arguments["N"]), heads
    _backward_keys[by_keys](grad, q, kv, lse, delta, grad_kv, *scales, **arguments)
    return grad_q, grad_kv


@_eoc_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    query_shapes: Sequence[int],
    key_shapes: Sequence[int],
    cross: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, kv, *ctx.arguments = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, kv, out, lse)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_q, grad_kv = _eoc_attention_backward(grad, *ctx.saved_tensors, *ctx.arguments)
    return grad_q, grad_kv, None, None, None, None


eoc_attention.register_autograd(_gradients, setup_context=_setup)
