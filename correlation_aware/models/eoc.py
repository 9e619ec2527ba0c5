"""Extract-or-Correlation (EoC) blocks and the layers around them, for every family that uses them.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
The blocks are those of `PVT v2: Improved Baselines with Pyramid Vision Transformer` (Wang et al.) -
https://arxiv.org/abs/2106.13797

Written for this package. Licensed under Apache-2.0.

The two streams share every weight, so their tokens travel in one packed tensor (see `ops/packed.py`), and
linear layers and norms run once for both streams whatever their sizes.

Every layer with weights is a plain `nn.Linear`, `nn.LayerNorm` or `nn.Conv2d`, so that tools which look for
these types (profilers, quantizers, LoRA) see all of them. In eager mode a faster operation of `ops/` works on
the layer's weights in place of the call, but only where `can_bypass` says that nobody would notice.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.models.attention_maps import (
    AttentionMap,
    ImageName,
    TokenGrid,
    softmax_weights,
    watch_calls,
)
from correlation_aware.ops import (
    Shape,
    add_norm,
    apply_linear,
    can_bypass,
    dwconv_gelu,
    eoc_attention,
    gather_patches,
    pack,
    unpack,
)
from correlation_aware.ops.eoc_attention.reference import split_heads

__all__ = [
    "DropPath",
    "EoCAttention",
    "EoCBlock",
    "Keys",
    "Mlp",
    "PatchEmbed",
    "concat_streams",
    "eoc_attention_maps",
    "init_weights",
]

Keys = Literal["other", "both"]
STANDARD = ((3, 3), (1, 1), (1, 1), (1, 1), "zeros")  # what dwconv_gelu computes, see _geometry


class DropPath(nn.Module):
    """Stochastic depth on packed tokens: drops a residual for a whole sample of a stream, not for a token."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return tokens
        keep = 1.0 - self.rate
        scale = [
            tokens.new_empty(b, 1).bernoulli_(keep).div_(keep).expand(b, h * w).reshape(-1, 1)
            for b, h, w in shapes
        ]
        return tokens * torch.cat(scale)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class PatchEmbed(nn.Module):
    """Convolution and LayerNorm that open a stage; the convolution runs per stream, the norm once."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
        # channels-last in makes channels-last out, so the permute is free
        maps = [self.proj(_channels_last(image)).permute(0, 2, 3, 1) for image in images]
        tokens, shapes = pack(maps)
        return self.norm(tokens), shapes


def _channels_last(image: Tensor) -> Tensor:
    """`image.contiguous(memory_format=torch.channels_last)`, which torch.func.vmap refuses."""
    return image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear, 3x3 depth-wise convolution (the position encoding), GELU, linear."""

    def __init__(self, dim: int, hidden: int, conv: bool, relu: bool) -> None:
        super().__init__()
        self.relu = relu  # before the convolution; PVTv2 has it beside pooled attention
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        tokens = apply_linear(self.fc1, tokens)  # T, hidden
        if self.relu:
            tokens = F.relu(tokens)
        # fc1's output is kept during fc2: glibc would give its memory back to the system, to be touched anew
        if self.dwconv is None:
            return apply_linear(self.fc2, F.gelu(tokens))
        if can_bypass(self.dwconv, nn.Conv2d) and _geometry(self.dwconv) == STANDARD:
            assert self.dwconv.bias is not None
            return apply_linear(self.fc2, dwconv_gelu(tokens, self.dwconv.weight, self.dwconv.bias, shapes))
        maps = [self.dwconv(m.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for m in unpack(tokens, shapes)]
        return apply_linear(self.fc2, F.gelu(pack(maps)[0]))


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode


class EoCAttention(nn.Module):
    """Extract-or-Correlation attention: queries of a stream, reduced keys of its own or of the other."""

    def __init__(self, dim: int, heads: int, sr_ratio: int, kind: str) -> None:
        super().__init__()
        self.heads = heads
        self.kind = kind
        self.sr_ratio = sr_ratio if kind == "spatial_reduction" else 1
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if self.sr_ratio > 1 or kind == "pooled":
            # a convolution with kernel = stride, on gathered patches
            self.sr = nn.Linear(dim * self.sr_ratio**2, dim)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def reduce_kv(self, tokens: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, list[Shape]]:
        """Fewer tokens to make keys and values from: (T, C) -> (T', C)."""
        if self.sr_ratio > 1:
            patches, shapes = gather_patches(tokens, shapes, self.sr_ratio)
            return self.norm(apply_linear(self.sr, patches)), shapes
        if self.kind == "pooled":
            maps = [
                F.adaptive_avg_pool2d(m.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1)
                for m in unpack(tokens, shapes)
            ]
            tokens, shapes = pack(maps)
            return F.gelu(self.norm(apply_linear(self.sr, tokens))), shapes
        return tokens, list(shapes)

    def forward(
        self,
        queries: Tensor,
        query_shapes: Sequence[Shape],
        sources: Tensor,
        source_shapes: Sequence[Shape],
        cross: bool,
    ) -> Tensor:
        q, kv, shapes = self._project(queries, sources, source_shapes)
        return apply_linear(self.proj, self._attend(q, kv, query_shapes, shapes, cross))

    def _project(
        self, queries: Tensor, sources: Tensor, source_shapes: Sequence[Shape]
    ) -> tuple[Tensor, Tensor, list[Shape]]:
        """Queries (T, C), keys and values (T', 2 C), and the shapes of the keys."""
        reduced, shapes = self.reduce_kv(sources, source_shapes)
        return apply_linear(self.q, queries), apply_linear(self.kv, reduced), shapes

    def _attend(
        self,
        q: Tensor,
        kv: Tensor,
        query_shapes: Sequence[Shape],
        key_shapes: Sequence[Shape],
        cross: bool,
    ) -> Tensor:
        return eoc_attention(q, kv, self.heads, query_shapes, key_shapes, cross)

    def _biases(self, query_shapes: Sequence[Shape]) -> Sequence[Tensor | None]:
        """Terms of the attention per stream, (heads, queries, keys), besides the products; None for none."""
        return [None] * len(query_shapes)

    def weights(
        self,
        queries: Tensor,
        query_shapes: Sequence[Shape],
        sources: Tensor,
        source_shapes: Sequence[Shape],
        cross: bool,
    ) -> list[tuple[Tensor, Shape]]:
        """Attention weights of `forward`: per stream (B, heads, queries, keys), and the shape of the keys.

        Raises:
            NotImplementedError: A derived class with another `forward`, and without `weights` of its own.
        """
        if type(self).forward is not EoCAttention.forward:
            raise NotImplementedError(f"{type(self).__name__} has no attention maps.")
        q, kv, shapes = self._project(queries, sources, source_shapes)
        q_maps = split_heads(q, self.heads, query_shapes)
        k_maps = split_heads(kv.chunk(2, dim=1)[0], self.heads, shapes)
        if cross:
            k_maps, shapes = k_maps[::-1], shapes[::-1]
        rows = zip(q_maps, k_maps, self._biases(query_shapes), shapes)
        return [(softmax_weights(q_map, k_map, bias), shape) for q_map, k_map, bias, shape in rows]


def join_streams(tokens: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, list[Shape]]:
    """Packed tokens of two streams as one stream, in which the tokens of a pair follow each other."""
    batch, lengths = shapes[0][0], [h * w for _, h, w in shapes]
    joined = [(batch, 1, sum(lengths))]
    if batch == 1 and not torch.compiler.is_compiling():  # they do already; a program may have any batch
        return tokens, joined
    parts = tokens.split([batch * length for length in lengths])
    maps = [part.unflatten(0, (batch, length)) for part, length in zip(parts, lengths)]
    return torch.cat(maps, dim=1).flatten(0, 1), joined


def split_streams(tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """The inverse of `join_streams`: packed tokens of two streams."""
    batch, lengths = shapes[0][0], [h * w for _, h, w in shapes]
    if batch == 1 and not torch.compiler.is_compiling():
        return tokens
    return torch.cat([part.flatten(0, 1) for part in tokens.unflatten(0, (batch, -1)).split(lengths, dim=1)])


class EoCBlock(nn.Module):
    """Extract-or-Correlation block: attention within an image (EoC-SA) or across (EoC-CA), then the MLP.

    Args:
        dim: Channels.
        heads: Attention heads.
        cross: Whether it is an EoC-CA block.
        keys: Keys of an EoC-CA block: `other`, the tokens of the other image, as in SBT; or `both`, the
            tokens of both images, without a reduction of keys.
        mlp_ratio: Hidden width of the MLP over `dim`.
        relu: ReLU before the depth-wise convolution, see `Mlp`.
        conv: Depth-wise convolution in the MLP, the position encoding.
        drop_path: Probability that a residual is dropped in training.
        attn: Attention, such as those of `models/attention.py`; None for global attention.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        cross: bool,
        mlp_ratio: float = 4.0,
        relu: bool = False,
        conv: bool = True,
        drop_path: float = 0.0,
        keys: Keys = "other",
        attn: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if keys == "both" and attn is not None:
            raise ValueError("keys='both' is for global attention, the default: leave out attn.")
        self.cross = cross
        self.keys = keys if cross else "other"
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EoCAttention(dim, heads, 1, "global") if attn is None else attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), conv, relu)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Tensor, residual: Tensor | None, shapes: list[Shape], search_only: bool = False
    ) -> tuple[Tensor, Tensor, list[Shape]]:
        """Maps packed tokens to packed tokens.

        What a block adds to the residual stream is returned apart, to be added by the norm that follows.

        Args:
            tokens: (T, C) packed tokens of one stream or of template and search.
            residual: (T, C) what the block before adds to them, or None.
            shapes: (batch, height, width) of every stream.
            search_only: Leave out what only the template would use.

        Returns:
            Tokens, what is to be added to them, and their shapes.
        """
        tokens, normed = add_norm(self.norm1, tokens, residual)
        queries = normed
        sources, query_shapes, source_shapes = queries, shapes, shapes
        if search_only:
            template_len = math.prod(shapes[0])
            sources, queries, tokens = queries[:template_len], queries[template_len:], tokens[template_len:]
            source_shapes, query_shapes = shapes[:1], shapes[1:]
        if self.keys == "both" and len(shapes) == 2:
            both, joined = join_streams(normed, shapes)
            if search_only:
                residual = self.attn(queries, query_shapes, both, joined, cross=False)
            else:
                residual = split_streams(self.attn(both, joined, both, joined, cross=False), shapes)
        else:
            residual = self.attn(queries, query_shapes, sources, source_shapes, self.cross)
        tokens, normed = add_norm(self.norm2, tokens, self.drop_path(residual, query_shapes))
        residual = self.drop_path(self.mlp(normed, query_shapes), query_shapes)
        return tokens, residual, query_shapes

    def attention_weights(
        self, tokens: Tensor, residual: Tensor | None, shapes: list[Shape]
    ) -> list[tuple[Tensor, list[tuple[int, Shape]]]]:
        """Attention weights of `forward` with the same arguments.

        Returns:
            For every stream (B, heads, queries, keys), and of the keys the numbers of their streams and their
            shapes.

        Raises:
            NotImplementedError: A form of attention whose weights are not known.
        """
        if not isinstance(self.attn, EoCAttention):
            raise NotImplementedError(f"{type(self.attn).__name__} has no attention maps.")
        normed = add_norm(self.norm1, tokens, residual)[1]
        if self.keys == "both" and len(shapes) == 2:
            both, joined = join_streams(normed, shapes)
            (weights, _), *_ = self.attn.weights(both, joined, both, joined, cross=False)
            rows = weights.split([h * w for _, h, w in shapes], dim=2)
            return [(part, list(enumerate(shapes))) for part in rows]
        streams = [1, 0] if self.cross and len(shapes) == 2 else list(range(len(shapes)))
        weights_of = self.attn.weights(normed, shapes, normed, shapes, self.cross)
        return [(weights, [(stream, shape)]) for (weights, shape), stream in zip(weights_of, streams)]


def eoc_attention_maps(net: Any, template: Any, search: Tensor) -> list[AttentionMap]:
    """The `attention_maps` of a network whose attention is in EoC blocks."""
    calls: dict[str, list[AttentionMap]] = {name: [] for name, _ in net.named_modules()}
    single: ImageName = "template"  # image of a call with one stream

    def record(name: str, block: EoCBlock, arguments: tuple[Any, ...], _: Any) -> None:
        tokens, residual, shapes = arguments[:3]
        images: list[ImageName] = ["template", "search"] if len(shapes) == 2 else [single]
        rows = block.attention_weights(tokens, residual, shapes)
        assert isinstance(block.attn, EoCAttention)  # or it would have raised
        ratio = block.attn.sr_ratio
        for i, (weights, keys) in enumerate(rows):
            grids = []
            for stream, (_, height, width) in keys:
                full = shapes[stream][1:]
                extent = (height * ratio / full[0], width * ratio / full[1]) if ratio > 1 else (1.0, 1.0)
                grids.append(TokenGrid(images[stream], (height, width), extent))
            calls[name].append(AttentionMap(name, TokenGrid(images[i], shapes[i][1:]), tuple(grids), weights))

    with watch_calls(net, EoCBlock, record):
        state = net.state_of(template)
        single = "search"
        net.forward_features(state, search)
    return [m for maps in calls.values() for m in _name_images(maps)]


def _name_images(maps: list[AttentionMap]) -> list[AttentionMap]:
    """The maps of one block. Of two search images of the same block, the first is the template.

    A neck after an embedded backbone gets the template's features together with the search image's.
    """
    if len(maps) == 2 and all(m.queries.image == "search" and m.kind == "self" for m in maps):
        first = maps[0]
        keys = tuple(replace(grid, image="template") for grid in first.keys)
        maps[0] = replace(first, queries=replace(first.queries, image="template"), keys=keys)
    return maps


def concat_streams(template: Tensor, search: Tensor) -> tuple[Tensor, list[Shape]]:
    """Packs two (B, H, W, C) maps; a batch of 1 is expanded to the other's."""
    batch = max(template.shape[0], search.shape[0])
    return pack([m if m.shape[0] == batch else m.expand(batch, -1, -1, -1) for m in (template, search)])


def init_weights(module: nn.Module) -> None:
    """PVTv2's initialization; for `nn.Module.apply`."""
    if isinstance(module, EoCAttention) and hasattr(module, "sr"):
        # `sr` is a kernel = stride convolution written as a linear layer: Kaiming init, fan_out
        nn.init.normal_(module.sr.weight, std=math.sqrt(2.0 / (module.sr_ratio**2 * module.sr.out_features)))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
