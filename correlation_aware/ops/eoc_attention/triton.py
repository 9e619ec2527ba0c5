"""Extract-or-Correlation attention as one kernel for both streams, forward and backward.

A program takes a block of one picture's queries and walks over that picture's keys with a running softmax, so
that scores never leave the chip; after spatial reduction most pictures have one or two blocks of keys. The
backward pass has no atomic adds: one kernel owns the queries' gradients, the other the keys' and values'.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from correlation_aware.ops.packed import streams

__all__ = ["eoc_attention"]

LOG2_E = 1.4426950408889634


@triton.jit
def _stream(
    program, programs0, blocks0, blocks1, queries0, queries1, keys0, keys1,
    query_start1, key_start0, key_start1,
):  # fmt: skip
    """What a program works on: block, number of queries and keys, first row of each in the packs."""
    second = program >= programs0
    local = program - tl.where(second, programs0, 0)
    blocks = tl.where(second, blocks1, blocks0)
    queries, keys = tl.where(second, queries1, queries0), tl.where(second, keys1, keys0)
    picture = local // blocks
    query_row = tl.where(second, query_start1, 0) + picture * queries
    key_row = tl.where(second, key_start1, key_start0) + picture * keys
    return local % blocks, queries, keys, query_row.to(tl.int64), key_row.to(tl.int64)


@triton.jit
def _forward(
    q, kv, out, lse, scale, total,
    programs0, blocks0, blocks1, queries0, queries1, keys0, keys1, query_start1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _stream(
        tl.program_id(0), programs0, blocks0, blocks1, queries0, queries1, keys0, keys1,
        query_start1, key_start0, key_start1,
    )  # fmt: skip
    head = tl.program_id(1)
    d = tl.arange(0, D)
    m = block * M + tl.arange(0, M)
    rows = (m < queries)[:, None] & (d < HEAD)[None, :]
    at = (query_row + m)[:, None] * C + head * HEAD + d[None, :]
    qs = tl.load(q + at, rows, 0.0)
    top = tl.full([M], -float("inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        n = start + tl.arange(0, N)
        columns = (n < keys)[:, None] & (d < HEAD)[None, :]
        key = (key_row + n)[:, None] * (2 * C) + head * HEAD + d[None, :]
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
    tl.store(lse + head * total + query_row + m, top + tl.log2(norm), m < queries)


@triton.jit
def _backward_queries(
    grad, q, kv, out, lse, delta, grad_q, scale, slope, total,
    programs0, blocks0, blocks1, queries0, queries1, keys0, keys1, query_start1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _stream(
        tl.program_id(0), programs0, blocks0, blocks1, queries0, queries1, keys0, keys1,
        query_start1, key_start0, key_start1,
    )  # fmt: skip
    head = tl.program_id(1)
    d = tl.arange(0, D)
    m = block * M + tl.arange(0, M)
    rows = (m < queries)[:, None] & (d < HEAD)[None, :]
    at = (query_row + m)[:, None] * C + head * HEAD + d[None, :]
    qs = tl.load(q + at, rows, 0.0)
    g = tl.load(grad + at, rows, 0.0)
    norm = tl.load(lse + head * total + query_row + m, m < queries, 0.0)
    mean = tl.sum(g.to(tl.float32) * tl.load(out + at, rows, 0.0).to(tl.float32), 1)
    tl.store(delta + head * total + query_row + m, mean, m < queries)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        n = start + tl.arange(0, N)
        columns = (n < keys)[:, None] & (d < HEAD)[None, :]
        key = (key_row + n)[:, None] * (2 * C) + head * HEAD + d[None, :]
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
    programs0, blocks0, blocks1, queries0, queries1, keys0, keys1, query_start1, key_start0, key_start1,
    C: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, queries, keys, query_row, key_row = _stream(
        tl.program_id(0), programs0, blocks0, blocks1, queries0, queries1, keys0, keys1,
        query_start1, key_start0, key_start1,
    )  # fmt: skip
    head = tl.program_id(1)
    d = tl.arange(0, D)
    n = block * N + tl.arange(0, N)
    columns = (n < keys)[:, None] & (d < HEAD)[None, :]
    key = (key_row + n)[:, None] * (2 * C) + head * HEAD + d[None, :]
    k = tl.load(kv + key, columns, 0.0)
    v = tl.load(kv + key + C, columns, 0.0)
    grad_k = tl.zeros([N, D], tl.float32)
    grad_v = tl.zeros([N, D], tl.float32)
    for start in range(0, queries, M):
        m = start + tl.arange(0, M)
        rows = (m < queries)[:, None] & (d < HEAD)[None, :]
        at = (query_row + m)[:, None] * C + head * HEAD + d[None, :]
        qs = tl.load(q + at, rows, 0.0)
        g = tl.load(grad + at, rows, 0.0)
        norm = tl.load(lse + head * total + query_row + m, m < queries, 0.0)
        mean = tl.load(delta + head * total + query_row + m, m < queries, 0.0)
        s = tl.dot(k, tl.trans(qs), input_precision=PRECISION) * scale  # N, M
        p = tl.where((m < queries)[None, :], tl.exp2(s - norm[None, :]), 0.0)
        grad_v += tl.dot(p.to(g.dtype), g, input_precision=PRECISION)
        ds = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - mean[None, :])
        grad_k += tl.dot(ds.to(qs.dtype), qs, input_precision=PRECISION)
    tl.store(grad_kv + key, (grad_k * slope).to(grad_kv.dtype.element_ty), columns)
    tl.store(grad_kv + key + C, grad_v.to(grad_kv.dtype.element_ty), columns)


def _pairs(query_shapes: Sequence[int], key_shapes: Sequence[int], cross: bool) -> dict[str, int]:
    """Numbers of queries and keys a picture, and where they start; stream 1 is empty if there is only one."""
    (b0, h0, w0), (b1, h1, w1) = streams(query_shapes)
    (c0, i0, j0), (c1, i1, j1) = streams(key_shapes)
    keys, starts = [i0 * j0, i1 * j1], [0, c0 * i0 * j0]
    if cross and len(key_shapes) > 3:
        keys, starts, c0, c1 = keys[::-1], starts[::-1], c1, c0
    assert (b0, b1) == (c0, c1), "batches of queries and keys that meet are equal"
    return {
        "batch0": b0,
        "batch1": b1,
        "queries0": h0 * w0,
        "queries1": h1 * w1,
        "keys0": keys[0],
        "keys1": keys[1],
        "query_start1": b0 * h0 * w0,
        "key_start0": starts[0],
        "key_start1": starts[1],
    }


def _launch(
    kernel: Any, tensors: Sequence[Tensor], scales: Sequence[float], q: Tensor, heads: int,
    pairs: dict[str, int], along: str, block: int,
) -> None:  # fmt: skip
    """Runs a kernel with one program a block of `along` (queries or keys), picture and head."""
    dim = q.shape[1] // heads
    counts = {name: value for name, value in pairs.items() if not name.startswith("batch")}
    blocks = [triton.cdiv(pairs[f"{along}{i}"], block) for i in (0, 1)]
    programs = [pairs[f"batch{i}"] * blocks[i] for i in (0, 1)]
    kernel[(sum(programs), heads)](
        *tensors,
        *scales,
        len(q),
        programs0=programs[0],
        blocks0=blocks[0],
        blocks1=blocks[1],
        **counts,
        C=q.shape[1],
        HEAD=dim,
        D=max(16, triton.next_power_of_2(dim)),
        **_tile(q),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",  # of float32 alone; others have one way
    )


def _tile(q: Tensor) -> dict[str, int]:
    """Queries and keys a block, and warps; products of float32 need more registers."""
    m, n, warps = (32, 32, 8) if q.dtype == torch.float32 else (64, 64, 4)
    return {"M": m, "N": n, "num_warps": warps}


SHAPES = "int heads, SymInt[] query_shapes, SymInt[] key_shapes, bool cross"  # the end of both schemas


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
    """Attention (T, C), and log2 of the softmax's norm (heads, T) for the backward pass."""
    q, kv = q.contiguous(), kv.contiguous()
    out = torch.empty_like(q)
    lse = torch.empty(heads, len(q), dtype=torch.float32, device=q.device)
    scale = (q.shape[1] // heads) ** -0.5 * LOG2_E
    pairs = _pairs(query_shapes, key_shapes, cross)
    _launch(_forward, (q, kv, out, lse), (scale,), q, heads, pairs, "queries", _tile(q)["M"])
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
    scales = (slope * LOG2_E, slope)
    pairs = _pairs(query_shapes, key_shapes, cross)
    tile = _tile(q)
    _launch(
        _backward_queries,
        (grad, q, kv, out, lse, delta, grad_q),
        scales,
        q,
        heads,
        pairs,
        "queries",
        tile["M"],
    )
    _launch(_backward_keys, (grad, q, kv, lse, delta, grad_kv), scales, q, heads, pairs, "keys", tile["N"])
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
