"""Forms of attention that SBT is compared with: windows, another spatial reduction, relative positions.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Table 1 - https://arxiv.org/abs/2203.01666.
Windows are those of `Swin Transformer` (Liu et al., ICCV 2021) - https://arxiv.org/abs/2103.14030, without
the shift those of `Twins` (Chu et al., NeurIPS 2021) - https://arxiv.org/abs/2104.13840; the depth-wise
reduction is from `ResT` (Zhang and Yang, NeurIPS 2021) - https://arxiv.org/abs/2105.13677.

Written for this package; windows are checked, number by number, against timm's `swin_transformer`
(Apache-2.0). Licensed under Apache-2.0.

Each class is called like `EoCAttention` of `models/eoc.py`, and is plain PyTorch, without kernels of `ops/`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.models.eoc import EoCAttention
from correlation_aware.ops import Shape, apply_linear, pack, unpack
from correlation_aware.ops.eoc_attention import reference

__all__ = [
    "WINDOWS",
    "AttentionForm",
    "DepthwiseReduction",
    "RelativeAttention",
    "RelativeBias",
    "WindowAttention",
    "make_attention",
]

AttentionForm = Literal[
    "spatial_reduction", "depthwise_reduction", "global", "pooled", "local", "shifted_window"
]
WINDOWS = ("local", "shifted_window")
MASKED = -100.0  # what Swin adds to the products of tokens that are no neighbors


class RelativeBias(nn.Module):
    """A learned term of the attention for every distance between a query and a key, as in Swin.

    Args:
        heads: Attention heads.
        side: Number of distances in each direction, in keys; larger distances count as the largest.
    """

    def __init__(self, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.empty(2 * side - 1, 2 * side - 1, heads))  # rows, columns
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, height: int, width: int, ratio: int = 1) -> Tensor:
        """The terms of a map of height x width queries.

        Args:
            height: Rows of the map.
            width: Columns of the map.
            ratio: Side of the square of queries that share a key.

        Returns:
            (heads, queries, keys).
        """
        rows, columns = (self._distances(length, ratio) for length in (height, width))
        terms = self.table[rows[:, None, :, None], columns[None, :, None, :]]  # H, W, h, w, heads
        return terms.flatten(2, 3).flatten(0, 1).permute(2, 0, 1)

    def _distances(self, length: int, ratio: int) -> Tensor:
        """(queries, keys) row or column of the table."""
        positions = torch.arange(length, device=self.table.device)
        distances = positions[:, None] // ratio - positions[: length // ratio]
        return distances.clamp(1 - self.side, self.side - 1) + self.side - 1


class RelativeAttention(EoCAttention):
    """Self-attention, global or with spatial reduction, with a relative position bias.

    Args:
        dim: Channels.
        heads: Attention heads.
        sr_ratio: Side of the square of tokens that spatial reduction turns into one key.
        kind: `spatial_reduction` or `global`.
        side: Height and width in tokens of the map that the table of distances is for.
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int, kind: str, side: int) -> None:
        super().__init__(dim, heads, sr_ratio, kind)
        self.relative = RelativeBias(heads, max(1, side // self.sr_ratio))

    def _attend(
        self,
        q: Tensor,
        kv: Tensor,
        query_shapes: Sequence[Shape],
        key_shapes: Sequence[Shape],
        cross: bool,
    ) -> Tensor:
        assert not cross
        biases = [bias.to(q.dtype) for bias in self._biases(query_shapes)]
        return reference.eoc_attention(q, kv, self.heads, query_shapes, key_shapes, cross, biases)

    def _biases(self, query_shapes: Sequence[Shape]) -> list[Tensor]:
        return [self.relative(height, width, self.sr_ratio) for _, height, width in query_shapes]


class DepthwiseReduction(EoCAttention):
    """Global attention whose keys come from a strided depth-wise convolution that overlaps, as in ResT.

    ResT's mixing of the heads is not part of it: SBT's paper takes its reduction alone.

    Args:
        dim: Channels.
        heads: Attention heads.
        sr_ratio: Stride of the convolution; its kernel has one more row and column.
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int) -> None:
        super().__init__(dim, heads, 1, "global")
        self.reduction: nn.Conv2d | None = None
        if sr_ratio > 1:
            kernel, padding = sr_ratio + 1, sr_ratio // 2
            self.reduction = nn.Conv2d(dim, dim, kernel, sr_ratio, padding, groups=dim)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def reduce_kv(self, tokens: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, list[Shape]]:
        """See `EoCAttention`."""
        if self.reduction is None:
            return tokens, list(shapes)
        maps = [self.reduction(m.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for m in unpack(tokens, shapes)]
        reduced, reduced_shapes = pack(maps)
        return self.norm(reduced), reduced_shapes


class WindowAttention(nn.Module):
    """Attention inside windows, of an image or between the windows of two images at the same place.

    Maps that the window does not divide are padded with zeros, as in Swin; a window larger than the map is as
    large as the map.

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in tokens.
        shifted: Whether windows are shifted by half their side.
        relative: Relative position bias.
    """

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, relative: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative = RelativeBias(heads, window) if relative else None

    def forward(
        self,
        queries: Tensor,
        query_shapes: Sequence[Shape],
        sources: Tensor,
        source_shapes: Sequence[Shape],
        cross: bool,
    ) -> Tensor:
        """See `EoCAttention`.

        Raises:
            ValueError: Cross-attention between maps of different sizes.
        """
        query_maps, source_maps = unpack(queries, query_shapes), unpack(sources, source_shapes)
        if cross:
            source_maps = source_maps[::-1]
        outputs = []
        for query_map, source_map in zip(query_maps, source_maps):
            if query_map.shape != source_map.shape:
                sizes = (f"{m.shape[1]} x {m.shape[2]}" for m in (query_map, source_map))
                raise ValueError(
                    f"Windows of two maps correspond if the maps have one size, not {' and '.join(sizes)}: "
                    "give template and search images of one size."
                )
            outputs.append(self._attend(query_map, source_map))
        return apply_linear(self.proj, pack(outputs)[0])

    def _attend(self, queries: Tensor, sources: Tensor) -> Tensor:
        """(B, H, W, C) maps -> (B, H, W, C)."""
        sides = queries.shape[1:3]
        window = tuple(min(self.window, side) for side in sides)
        shift = tuple(self.window // 2 if self.shifted and side > self.window else 0 for side in sides)
        q, kv = (
            linear(split_windows(pad_windows(m.roll((-shift[0], -shift[1]), (1, 2)), window), window))
            for linear, m in ((self.q, queries), (self.kv, sources))
        )  # B, windows, tokens, channels
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(2, 3) for t in (q, *kv.chunk(2, dim=-1))
        )
        bias = None if self.relative is None else self.relative(*window).to(q.dtype)
        if any(shift):
            mask = neighbor_mask(sides, window, shift, q)
            bias = mask if bias is None else bias + mask
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(2, 3).flatten(3)
        padded = [-(-side // w) * w for side, w in zip(sides, window)]
        merged = join_windows(mixed, (padded[0], padded[1]), window)
        return merged[:, : sides[0], : sides[1]].roll(shift, (1, 2))


def pad_windows(maps: Tensor, window: Sequence[int]) -> Tensor:
    """Zeros below and to the right of (B, H, W, C) maps, so that windows divide them."""
    bottom, right = (-side % w for side, w in zip(maps.shape[1:3], window))
    return F.pad(maps, (0, 0, 0, right, 0, bottom))


def split_windows(maps: Tensor, window: Sequence[int]) -> Tensor:
    """(B, H, W, C) -> (B, windows, tokens of a window, C)."""
    parts = maps.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # B, h, wh, w, ww, C
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def join_windows(windows: Tensor, sides: tuple[int, int], window: Sequence[int]) -> Tensor:
    """The inverse of `split_windows`, for maps of these sides."""
    parts = windows.unflatten(2, (window[0], window[1])).unflatten(1, (-1, sides[1] // window[1]))
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def neighbor_mask(sides: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor:
    """(windows, 1, tokens, tokens): 0 for tokens that are neighbors in the map, `MASKED` for others.

    After the shift by rolling, windows at the end hold tokens of both ends of the map.
    """
    regions = []
    for side, w, s in zip(sides, window, shift):
        positions = torch.arange(-(-side // w) * w, device=like.device)
        regions.append((positions >= len(positions) - w).int() + (positions >= len(positions) - s).int())
        if not s:
            regions[-1].zero_()
    numbers = split_windows((3 * regions[0][:, None] + regions[1])[None, :, :, None], window)[0, :, :, 0]
    different = numbers[:, :, None] != numbers[:, None, :]
    return torch.zeros_like(different, dtype=like.dtype).masked_fill(different, MASKED)[:, None]


def make_attention(
    form: AttentionForm,
    dim: int,
    heads: int,
    sr_ratio: int,
    window: int = 7,
    shifted: bool = False,
    relative: int | None = None,
) -> nn.Module:
    """Builds the attention of a block.

    Args:
        form: Form of the attention, see `SBTConfig`.
        dim: Channels.
        heads: Attention heads.
        sr_ratio: Side of the square of tokens of `spatial_reduction` and `depthwise_reduction`.
        window: Side of a window in tokens.
        shifted: Whether the windows of this block are shifted.
        relative: Height and width in tokens of the map that a relative position bias is for; None for no
            bias.
    """
    if form in WINDOWS:
        return WindowAttention(dim, heads, window, shifted, relative is not None)
    if form == "depthwise_reduction":
        return DepthwiseReduction(dim, heads, sr_ratio)
    if relative is not None:
        return RelativeAttention(dim, heads, sr_ratio, form, relative)
    return EoCAttention(dim, heads, sr_ratio, form)
