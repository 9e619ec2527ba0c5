"""Residual add and LayerNorm as one kernel, with both outputs written in one pass over the rows."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_layer_norm"]

TILE = 2048  # values per program
PARTS = 256  # programs of the backward pass; each sums the gradients of weight and bias over its rows


@triton.jit
def _forward(
    tokens, branch, weight, bias, total, normed, rows, dim, eps, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < dim)[None, :]
    at = row.to(tl.int64)[:, None] * dim + col[None, :]
    x = tl.load(tokens + at, inside, 0.0).to(tl.float32) + tl.load(branch + at, inside, 0.0).to(tl.float32)
    x = x.to(total.dtype.element_ty)  # normalize the sum in the dtype in which it is stored
    tl.store(total + at, x, inside)
    x = x.to(tl.float32)
    centered = tl.where(inside, x - (tl.sum(x, 1) / dim)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / dim + eps)
    w = tl.load(weight + col, col < dim, 0.0).to(tl.float32)
    b = tl.load(bias + col, col < dim, 0.0).to(tl.float32)
    tl.store(
        normed + at, (centered * rstd[:, None] * w[None, :] + b[None, :]).to(normed.dtype.element_ty), inside
    )


@triton.jit
def _backward(
    grad_total, grad_normed, total, weight, grad, grad_weight, grad_bias, rows, dim, eps,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    col = tl.arange(0, COLS)
    w = tl.load(weight + col, col < dim, 0.0).to(tl.float32)
    sum_w = tl.zeros([ROWS, COLS], tl.float32)
    sum_b = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(part * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (col < dim)[None, :]
        at = row.to(tl.int64)[:, None] * dim + col[None, :]
        x = tl.load(total + at, inside, 0.0).to(tl.float32)
        dy = tl.load(grad_normed + at, inside, 0.0).to(tl.float32)
        centered = tl.where(inside, x - (tl.sum(x, 1) / dim)[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centered * centered, 1) / dim + eps)[:, None]
        unit = centered * rstd
        sum_w += dy * unit
        sum_b += dy
        dy = dy * w[None, :]
        dx = (dy - (tl.sum(dy, 1) / dim)[:, None] - unit * (tl.sum(dy * unit, 1) / dim)[:, None]) * rstd
        dx += tl.load(grad_total + at, inside, 0.0).to(tl.float32)
        tl.store(grad + at, dx.to(grad.dtype.element_ty), inside)
    tl.store(grad_weight + part * dim + col, tl.sum(sum_w, 0), col < dim)
    tl.store(grad_bias + part * dim + col, tl.sum(sum_b, 0), col < dim)


def _tile(dim: int) -> dict[str, int]:
    cols = triton.next_power_of_2(dim)
    return {"ROWS": max(1, TILE // cols), "COLS": cols, "num_warps": 4}


@torch.library.custom_op("correlation_aware::add_layer_norm", mutates_args=())
def add_layer_norm(
    tokens: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    tokens, branch = tokens.contiguous(), branch.contiguous()
    rows, dim = tokens.shape
    total = torch.empty_like(tokens, dtype=torch.promote_types(tokens.dtype, branch.dtype))
    normed = torch.empty_like(total)
    tile = _tile(dim)
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    _forward[grid](tokens, branch, weight, bias, total, normed, rows, dim, eps, **tile)
    return total, normed


@add_layer_norm.register_fake
def _(tokens: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(tokens.dtype, branch.dtype)
    return tokens.new_empty(tokens.shape, dtype=dtype), tokens.new_empty(tokens.shape, dtype=dtype)


@torch.library.custom_op("correlation_aware::add_layer_norm_backward", mutates_args=())
def _add_layer_norm_backward(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_total, grad_normed = grad_total.contiguous(), grad_normed.contiguous()
    rows, dim = total.shape
    tile = _tile(dim)
    parts = min(PARTS, triton.cdiv(rows, tile["ROWS"]))
    grad = torch.empty_like(total)
    sums = torch.empty(2, parts, dim, dtype=torch.float32, device=total.device)
    _backward[(parts,)](
        grad_total, grad_normed, total, weight, grad, sums[0], sums[1], rows, dim, eps, **tile
    )
    grad_weight, grad_bias = sums.sum(1).to(weight.dtype)
    return grad, grad_weight.clone(), grad_bias.clone()


@_add_layer_norm_backward.register_fake
def _(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, branch, weight, bias, eps = inputs
    ctx.save_for_backward(output[0], weight)
    ctx.eps, ctx.dtypes = eps, (tokens.dtype, branch.dtype, bias.dtype)


def _gradients(ctx: Any, grad_total: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    grad, grad_weight, grad_bias = _add_layer_norm_backward(grad_total, grad_normed, total, weight, ctx.eps)
    tokens_dtype, branch_dtype, bias_dtype = ctx.dtypes
    return grad.to(tokens_dtype), grad.to(branch_dtype), grad_weight, grad_bias.to(bias_dtype), None


add_layer_norm.register_autograd(_gradients, setup_context=_setup)
