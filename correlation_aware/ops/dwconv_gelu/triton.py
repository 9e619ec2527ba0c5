"""Depth-wise convolution and GELU on the token layout: one kernel for both streams, no transposes.

The backward pass recomputes the convolution. A first kernel computes the gradient of the convolution's output
and sums the gradients of the filters, a second one convolves the former with the flipped filters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from correlation_aware.ops.packed import streams

__all__ = ["dwconv_gelu"]

ROWS, COLS = 32, 64  # tokens and channels per program
BACKWARD_ROWS = 16
PARTS = 64  # programs along the tokens, each with partial sums of the gradients of the filters


@triton.jit
def _position(row, first_tokens, h0, w0, h1, w1):
    """Height and width of the maps of tokens (rows of the packed tensor), and the tokens' y and x."""
    second = row >= first_tokens
    local = row - tl.where(second, first_tokens, 0)
    h, w = tl.where(second, h1, h0), tl.where(second, w1, w0)
    return h, w, local // w % h, local % w


@triton.jit
def _neighbor(tokens, row, col, inside, dim, h, w, y, x, DY: tl.constexpr, DX: tl.constexpr):
    """Tokens at (y + DY, x + DX), zero outside the map."""
    exists = (y + DY >= 0) & (y + DY < h) & (x + DX >= 0) & (x + DX < w)
    at = (row + DY * w + DX).to(tl.int64)[:, None] * dim + col[None, :]
    return tl.load(tokens + at, inside & exists[:, None], 0.0).to(tl.float32)


@triton.jit
def _tap(weight, col, dim, K: tl.constexpr):
    """Filter weight K of 9 of each channel."""
    return tl.load(weight + col * 9 + K, col < dim, 0.0).to(tl.float32)[None, :]


@triton.jit
def _gelu(u):
    return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))


@triton.jit
def _convolve(
    tokens, weight, bias, out, rows, dim, first_tokens, h0, w0, h1, w1,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Convolution, bias and GELU. BACKWARD: convolution with the flipped filters only."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < dim)[None, :]
    h, w, y, x = _position(row, first_tokens, h0, w0, h1, w1)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            value = _neighbor(tokens, row, col, inside, dim, h, w, y, x, dy - 1, dx - 1)
            total += value * _tap(weight, col, dim, 8 - 3 * dy - dx if BACKWARD else 3 * dy + dx)
    if not BACKWARD:
        total = _gelu(total + tl.load(bias + col, col < dim, 0.0).to(tl.float32)[None, :])
    tl.store(out + row.to(tl.int64)[:, None] * dim + col[None, :], total.to(out.dtype.element_ty), inside)


@triton.jit
def _gelu_backward(
    grad, tokens, weight, bias, grad_conv, sums, rows, dim, first_tokens, h0, w0, h1, w1,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's output (T, C), and 10 sums per part and channel: 9 taps and the bias."""
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    b = tl.load(bias + col, col < dim, 0.0).to(tl.float32)[None, :]
    s0 = tl.zeros([ROWS, COLS], tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, s9 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (col < dim)[None, :]
        at = row.to(tl.int64)[:, None] * dim + col[None, :]
        h, w, y, x = _position(row, first_tokens, h0, w0, h1, w1)
        n0 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, -1, -1)
        n1 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, -1, 0)
        n2 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, -1, 1)
        n3 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 0, -1)
        n4 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 0, 0)
        n5 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 0, 1)
        n6 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 1, -1)
        n7 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 1, 0)
        n8 = _neighbor(tokens, row, col, inside, dim, h, w, y, x, 1, 1)
        u = b + n0 * _tap(weight, col, dim, 0) + n1 * _tap(weight, col, dim, 1)
        u += n2 * _tap(weight, col, dim, 2) + n3 * _tap(weight, col, dim, 3) + n4 * _tap(weight, col, dim, 4)
        u += n5 * _tap(weight, col, dim, 5) + n6 * _tap(weight, col, dim, 6)
        u += n7 * _tap(weight, col, dim, 7) + n8 * _tap(weight, col, dim, 8)
        slope = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)
        g = tl.load(grad + at, inside, 0.0).to(tl.float32) * slope
        tl.store(grad_conv + at, g.to(grad_conv.dtype.element_ty), inside)
        s0 += g * n0
        s1 += g * n1
        s2 += g * n2
        s3 += g * n3
        s4 += g * n4
        s5 += g * n5
        s6 += g * n6
        s7 += g * n7
        s8 += g * n8
        s9 += g
    to = sums + (tl.program_id(0) * 10) * dim + col
    tl.store(to, tl.sum(s0, 0), col < dim)
    tl.store(to + dim, tl.sum(s1, 0), col < dim)
    tl.store(to + 2 * dim, tl.sum(s2, 0), col < dim)
    tl.store(to + 3 * dim, tl.sum(s3, 0), col < dim)
    tl.store(to + 4 * dim, tl.sum(s4, 0), col < dim)
    tl.store(to + 5 * dim, tl.sum(s5, 0), col < dim)
    tl.store(to + 6 * dim, tl.sum(s6, 0), col < dim)
    tl.store(to + 7 * dim, tl.sum(s7, 0), col < dim)
    tl.store(to + 8 * dim, tl.sum(s8, 0), col < dim)
    tl.store(to + 9 * dim, tl.sum(s9, 0), col < dim)


def _sizes(tokens: Tensor, shapes: Sequence[int]) -> tuple[int, ...]:
    (b0, h0, w0), (_, h1, w1) = streams(shapes)
    return *tokens.shape, b0 * h0 * w0, h0, w0, h1, w1


@torch.library.custom_op(
    "correlation_aware::dwconv_gelu",
    mutates_args=(),
    schema="(Tensor tokens, Tensor weight, Tensor bias, SymInt[] shapes) -> Tensor",
)
def dwconv_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[int]) -> Tensor:
    tokens = tokens.contiguous()
    out = torch.empty_like(tokens)
    rows, dim = tokens.shape
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(dim, COLS))
    _convolve[grid](
        tokens, weight.contiguous(), bias, out, *_sizes(tokens, shapes), BACKWARD=False, ROWS=ROWS, COLS=COLS
    )
    return out


@dwconv_gelu.register_fake
def _(tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[int]) -> Tensor:
    return tokens.new_empty(tokens.shape)


@torch.library.custom_op(
    "correlation_aware::dwconv_gelu_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor tokens, Tensor weight, Tensor bias, SymInt[] shapes)"
    " -> (Tensor, Tensor, Tensor)",
)
def _dwconv_gelu_backward(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    grad, tokens, weight = grad.contiguous(), tokens.contiguous(), weight.contiguous()
    rows, dim = tokens.shape
    sizes = _sizes(tokens, shapes)
    parts, blocks = min(PARTS, triton.cdiv(rows, BACKWARD_ROWS)), triton.cdiv(dim, COLS)
    grad_conv, grad_tokens = torch.empty_like(tokens), torch.empty_like(tokens)
    sums = torch.empty(parts, 10, dim, dtype=torch.float32, device=tokens.device)
    _gelu_backward[(parts, blocks)](
        grad, tokens, weight, bias, grad_conv, sums, *sizes, ROWS=BACKWARD_ROWS, COLS=COLS
    )
    _convolve[(triton.cdiv(rows, ROWS), blocks)](
        grad_conv, weight, bias, grad_tokens, *sizes, BACKWARD=True, ROWS=ROWS, COLS=COLS
    )
    total = sums.sum(0)  # 10, C
    return grad_tokens, total[:9].T.reshape(weight.shape).to(weight.dtype), total[9].to(bias.dtype, copy=True)


@_dwconv_gelu_backward.register_fake
def _(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, weight, bias, ctx.shapes = inputs
    ctx.save_for_backward(tokens, weight, bias)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_dwconv_gelu_backward(grad, *ctx.saved_tensors, ctx.shapes), None


dwconv_gelu.register_autograd(_gradients, setup_context=_setup)
