"""Patches of tokens as one kernel for both streams: a gather of rows, and its inverse."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from correlation_aware.ops.packed import streams

__all__ = ["gather_patches"]

TILE = 4096  # values per program


@triton.jit
def _move(
    source, target, rows, dim, ratio, first_patch_rows, first_tokens,
    h0, w0, h1, w1, FORWARD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Copies source row j to target row i, which is a token of a patch (FORWARD) or of a map."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    second = i >= (first_patch_rows if FORWARD else first_tokens)
    h = tl.where(second, h1, h0)
    w = tl.where(second, w1, w0)
    columns = w // ratio
    area = ratio * ratio
    if FORWARD:
        local = i - tl.where(second, first_patch_rows, 0)
        patch, offset = local // area, local % area
        x = patch % columns * ratio + offset % ratio
        row = patch // columns  # row of patches, over the whole batch
        per_map = h // ratio
        y = row % per_map * ratio + offset // ratio
        j = (row // per_map * h + y) * w + x + tl.where(second, first_tokens, 0)
        valid = i < rows
    else:
        local = i - tl.where(second, first_tokens, 0)
        x = local % w
        row = local // w
        y = row % h
        patch = (row // h * (h // ratio) + y // ratio) * columns + x // ratio
        j = patch * area + y % ratio * ratio + x % ratio + tl.where(second, first_patch_rows, 0)
        valid = (i < rows) & (y < h // ratio * ratio) & (x < columns * ratio)  # other tokens were dropped: 0
    columns_mask = (col < dim)[None, :]
    moved = tl.load(source + j.to(tl.int64)[:, None] * dim + col[None, :], valid[:, None] & columns_mask, 0.0)
    tl.store(target + i.to(tl.int64)[:, None] * dim + col[None, :], moved, (i < rows)[:, None] & columns_mask)


def _launch(
    source: Tensor, target: Tensor, shapes: Sequence[int], ratio: int, dim: int, forward: bool
) -> None:
    (b0, h0, w0), (b1, h1, w1) = streams(shapes)
    first, second = (b * (h // ratio) * (w // ratio) * ratio**2 for b, h, w in ((b0, h0, w0), (b1, h1, w1)))
    cols = triton.next_power_of_2(dim)
    tile = max(1, TILE // cols)
    rows = first + second if forward else b0 * h0 * w0 + b1 * h1 * w1
    _move[(triton.cdiv(rows, tile),)](
        source, target, rows, dim, ratio, first, b0 * h0 * w0, h0, w0, h1, w1,
        FORWARD=forward, ROWS=tile, COLS=cols,
    )  # fmt: skip


def _patches(shapes: Sequence[int], ratio: int) -> int:
    return sum(b * (h // ratio) * (w // ratio) for b, h, w in streams(shapes))


@torch.library.custom_op(
    "correlation_aware::gather_patches",
    mutates_args=(),
    schema="(Tensor tokens, SymInt[] shapes, int ratio) -> Tensor",
)
def gather_patches(tokens: Tensor, shapes: Sequence[int], ratio: int) -> Tensor:
    dim = tokens.shape[1]
    target = tokens.new_empty(_patches(shapes, ratio), ratio**2 * dim)
    _launch(tokens.contiguous(), target, shapes, ratio, dim, forward=True)
    return target


@gather_patches.register_fake
def _(tokens: Tensor, shapes: Sequence[int], ratio: int) -> Tensor:
    return tokens.new_empty(_patches(shapes, ratio), ratio**2 * tokens.shape[1])


@torch.library.custom_op(
    "correlation_aware::gather_patches_backward",
    mutates_args=(),
    schema="(Tensor grad, SymInt[] shapes, int ratio) -> Tensor",
)
def _gather_patches_backward(grad: Tensor, shapes: Sequence[int], ratio: int) -> Tensor:
    dim = grad.shape[1] // ratio**2
    target = grad.new_empty(sum(b * h * w for b, h, w in streams(shapes)), dim)
    _launch(grad.contiguous(), target, shapes, ratio, dim, forward=False)
    return target


@_gather_patches_backward.register_fake
def _(grad: Tensor, shapes: Sequence[int], ratio: int) -> Tensor:
    return grad.new_empty(sum(b * h * w for b, h, w in streams(shapes)), grad.shape[1] // ratio**2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.shapes, ctx.ratio = inputs


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _gather_patches_backward(grad, ctx.shapes, ctx.ratio), None, None


gather_patches.register_autograd(_gradients, setup_context=_setup)
