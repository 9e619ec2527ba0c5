"""SBT, the Single Branch Transformer: a two-input feature network that correlates while it extracts.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666
The blocks are those of `PVT v2: Improved Baselines with Pyramid Vision Transformer` (Wang et al.) -
https://arxiv.org/abs/2106.13797

Written for this package and checked, number by number, against the outputs of the authors' released code
(https://github.com/phiphiphi31/SBT, MIT) and of timm's `pvt_v2` (Apache-2.0). Licensed under Apache-2.0.

Layout. Up to the first EoC-CA block each picture goes alone, and the template's part of that is its cached
state. From there on the two share every weight, so their tokens travel in one packed tensor (see
`ops/packed.py`), and linear layers and norms run once for both streams whatever their sizes. What is not a
linear layer is an operation of `ops/`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from correlation_aware.ops import (
    Shape,
    add_layer_norm,
    dwconv_gelu,
    eoc_attention,
    gather_patches,
    linear,
    pack,
    unpack,
)

__all__ = ["SBT", "SBTClassifier", "SBTConfig", "SBTFeatures", "TemplateState"]

MIN_SIZE = 32  # pixels; below this the spatial reduction leaves no key


@dataclass(frozen=True)
class SBTConfig:
    """Every choice of the paper's study. Tuples have one entry per stage.

    Attributes:
        dims: Channels.
        heads: Attention heads.
        depths: Number of EoC blocks.
        mlp_ratios: Hidden width of the MLP over its input width.
        sr_ratios: Side of the square of tokens that spatial reduction turns into one key.
        strides: Stride of each stage's patch embedding.
        cross_blocks: 0-indexed positions of the EoC-CA blocks; every other block is EoC-SA.
        attention: `spatial_reduction` as in SBT, `global` (every token is a key) or `pooled` (7 x 7 keys,
            as PVTv2-Li).
        position: `conv` (3 x 3 depth-wise convolution in the MLP), `absolute` (learned table, resized) or
            `none`.
        patch_embed: `overlap` (7 x 7, then 3 x 3) or `patchify` (kernel = stride).
        stage_norms: Closing LayerNorm after every stage (PVTv2) instead of after the last one only (SBT).
        drop_path_rate: Stochastic depth of the last block; earlier blocks grow linearly from 0.
        template_size: Side in pixels of the template the network is meant for.
        search_size: Side in pixels of the search picture the network is meant for.
        template_factor: Side of the template over sqrt(w * h) of the target that the network is meant for.
        search_factor: The same for the search picture: 4 in the paper, 5 in the authors' configuration.
    """

    dims: tuple[int, ...] = (64, 128, 320)
    heads: tuple[int, ...] = (1, 2, 5)
    depths: tuple[int, ...] = (3, 4, 10)
    mlp_ratios: tuple[float, ...] = (4, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2)
    strides: tuple[int, ...] = (4, 2, 1)
    cross_blocks: tuple[tuple[int, ...], ...] = ((), (), (1, 3, 5, 7, 9))
    attention: Literal["spatial_reduction", "global", "pooled"] = "spatial_reduction"
    position: Literal["conv", "absolute", "none"] = "conv"
    patch_embed: Literal["overlap", "patchify"] = "overlap"
    stage_norms: bool = False
    drop_path_rate: float = 0.0
    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0

    def __post_init__(self) -> None:
        stages = len(self.dims)
        for name in ("heads", "depths", "mlp_ratios", "sr_ratios", "strides", "cross_blocks"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name}={getattr(self, name)} must have {stages} entries, as many as dims={self.dims}."
                )
        for dim, heads in zip(self.dims, self.heads):
            if dim % heads:
                raise ValueError(
                    f"dims={self.dims} must be divisible by heads={self.heads}: {dim} is not by {heads}."
                )
        for stage, (blocks, depth) in enumerate(zip(self.cross_blocks, self.depths)):
            if any(not 0 <= block < depth for block in blocks):
                raise ValueError(
                    f"cross_blocks[{stage}]={blocks} must lie in 0..{depth - 1}, the blocks of that stage."
                )
        for name, options in (
            ("attention", ("spatial_reduction", "global", "pooled")),
            ("position", ("conv", "absolute", "none")),
            ("patch_embed", ("overlap", "patchify")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(options)}.")
        for name in ("template_factor", "search_factor"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1: the crop holds the target."
                )


class TemplateState(NamedTuple):
    """What a network remembers of a template: all that does not depend on the search picture.

    Attributes:
        features: (B, H, W, C) channels-last map that enters the first EoC-CA block.
    """

    features: Tensor


class DropPath(nn.Module):
    """Stochastic depth on packed tokens: a branch is dropped for a whole sample of a stream, not a token."""

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


class Linear(nn.Linear):
    """A linear layer of packed tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(tokens, self.weight, self.bias)


class PatchEmbed(nn.Module):
    """Convolution and LayerNorm that open a stage; the convolution runs per stream, the norm once."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
        # channels_last in makes channels_last out, so the permute below is free
        maps = [
            self.proj(image.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
            for image in images
        ]
        tokens, shapes = pack(maps)
        return self.norm(tokens), shapes


class Mlp(nn.Module):
    """Linear, 3x3 depth-wise convolution (the position encoding), GELU, linear."""

    def __init__(self, dim: int, hidden: int, conv: bool, relu: bool) -> None:
        super().__init__()
        self.relu = relu  # before the convolution; PVTv2 has it beside pooled attention
        self.fc1 = Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor, shapes: Sequence[Shape]) -> Tensor:
        tokens = self.fc1(tokens)  # T, hidden
        if self.relu:
            tokens = F.relu(tokens)
        if self.dwconv is None:
            return self.fc2(F.gelu(tokens))
        assert self.dwconv.bias is not None
        return self.fc2(dwconv_gelu(tokens, self.dwconv.weight, self.dwconv.bias, shapes))


class EoCAttention(nn.Module):
    """Extract-or-Correlation attention: queries of a stream, reduced keys of its own or of the other."""

    def __init__(self, dim: int, heads: int, sr_ratio: int, kind: str) -> None:
        super().__init__()
        self.heads = heads
        self.kind = kind
        self.sr_ratio = sr_ratio if kind == "spatial_reduction" else 1
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        if self.sr_ratio > 1 or kind == "pooled":
            self.sr = Linear(
                dim * self.sr_ratio**2, dim
            )  # a convolution with kernel = stride, on gathered patches
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def reduce(self, tokens: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, list[Shape]]:
        """Fewer tokens to make keys and values from: (T, C) -> (T', C)."""
        if self.sr_ratio > 1:
            patches, shapes = gather_patches(tokens, shapes, self.sr_ratio)
            return self.norm(self.sr(patches)), shapes
        if self.kind == "pooled":
            maps = [
                F.adaptive_avg_pool2d(m.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1)
                for m in unpack(tokens, shapes)
            ]
            tokens, shapes = pack(maps)
            return F.gelu(self.norm(self.sr(tokens))), shapes
        return tokens, list(shapes)

    def forward(
        self,
        queries: Tensor,
        query_shapes: Sequence[Shape],
        sources: Tensor,
        source_shapes: Sequence[Shape],
        cross: bool,
    ) -> Tensor:
        reduced, reduced_shapes = self.reduce(sources, source_shapes)
        q, kv = self.q(queries), self.kv(reduced)
        return self.proj(eoc_attention(q, kv, self.heads, query_shapes, reduced_shapes, cross))


class EoCBlock(nn.Module):
    """Extract-or-Correlation block: attention within a picture (EoC-SA) or across (EoC-CA), then the MLP."""

    def __init__(self, cfg: SBTConfig, stage: int, index: int, drop_path: float) -> None:
        super().__init__()
        dim = cfg.dims[stage]
        self.cross = index in cfg.cross_blocks[stage]
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EoCAttention(dim, cfg.heads[stage], cfg.sr_ratios[stage], cfg.attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(
            dim, int(dim * cfg.mlp_ratios[stage]), cfg.position == "conv", cfg.attention == "pooled"
        )
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Tensor, branch: Tensor | None, shapes: list[Shape], search_only: bool = False
    ) -> tuple[Tensor, Tensor, list[Shape]]:
        """Maps packed tokens to packed tokens; `search_only` leaves out what only the template would use.

        What a block adds to the residual stream comes out as a branch, to be added by the norm that follows.
        """
        tokens, queries = _add_norm(self.norm1, tokens, branch)
        sources, query_shapes, source_shapes = queries, shapes, shapes
        if search_only:
            template_len = math.prod(shapes[0])
            sources, queries, tokens = queries[:template_len], queries[template_len:], tokens[template_len:]
            source_shapes, query_shapes = shapes[:1], shapes[1:]
        branch = self.attn(queries, query_shapes, sources, source_shapes, self.cross)
        tokens, normed = _add_norm(self.norm2, tokens, self.drop_path(branch, query_shapes))
        return tokens, self.drop_path(self.mlp(normed, query_shapes), query_shapes), query_shapes


def _add_norm(norm: nn.LayerNorm, tokens: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
    """The residual stream with a branch added, and its norm."""
    if branch is None:
        return tokens, norm(tokens)
    return add_layer_norm(tokens, branch, norm.weight, norm.bias, norm.eps)


class Stage(nn.Module):
    """Patch embedding, EoC blocks and, where the configuration has one, a closing norm."""

    def __init__(self, cfg: SBTConfig, index: int, in_chans: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        dim, stride = cfg.dims[index], cfg.strides[index]
        kernel = stride if cfg.patch_embed == "patchify" else (7 if index == 0 else 3)
        padding = 0 if cfg.patch_embed == "patchify" else kernel // 2
        self.embed = PatchEmbed(in_chans, dim, kernel, stride, padding)
        if cfg.position == "absolute":
            side = cfg.search_size // math.prod(cfg.strides[: index + 1])
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, dim, side, side))
        else:
            self.pos_embed = None
        self.blocks = nn.ModuleList(EoCBlock(cfg, index, i, rate) for i, rate in enumerate(drop_path))
        self.norm = nn.LayerNorm(dim, eps=1e-6) if cfg.stage_norms or index == len(cfg.dims) - 1 else None

    def open(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
        """(B, C, H, W) per stream -> packed tokens that enter the first block."""
        tokens, shapes = self.embed(images)
        if self.pos_embed is None:
            return tokens, shapes
        tables = [
            F.interpolate(self.pos_embed, (h, w), mode="bicubic").permute(0, 2, 3, 1) for _, h, w in shapes
        ]
        maps = [m + table for m, table in zip(unpack(tokens, shapes), tables)]
        return pack(maps)

    def close(self, tokens: Tensor, branch: Tensor | None) -> Tensor:
        """What the last block left, added, and normed where the configuration says so."""
        if self.norm is not None:
            return _add_norm(self.norm, tokens, branch)[1]
        return tokens if branch is None else tokens + branch


class Trunk(nn.Module):
    """The stages and the walk through them; the base of the two-input network and of the classifier."""

    pretrained_cfg: dict[str, Any]  # set by the zoo, as timm does
    model_args: dict[str, Any]
    first_cross: tuple[int, int] | None
    last_cross: tuple[int, int] | None

    def __init__(self, cfg: SBTConfig, in_chans: int) -> None:
        super().__init__()
        self.config = cfg
        self.in_chans = in_chans
        self.num_features = cfg.dims[-1]
        self.grad_checkpointing = False
        rates = torch.linspace(0, cfg.drop_path_rate, sum(cfg.depths), device="cpu").split(list(cfg.depths))
        self.stages = nn.ModuleList(
            Stage(cfg, i, in_chans if i == 0 else cfg.dims[i - 1], rate.tolist())
            for i, rate in enumerate(rates)
        )
        self.crosses = sorted(
            (stage, block) for stage, blocks in enumerate(cfg.cross_blocks) for block in blocks
        )
        self.first_cross, self.last_cross = (
            (self.crosses[0], self.crosses[-1]) if self.crosses else (None, None)
        )
        self.feature_info = FeatureInfo(
            [
                {"num_chs": dim, "reduction": math.prod(cfg.strides[: i + 1]), "module": f"stages.{i}"}
                for i, dim in enumerate(cfg.dims)
            ],
            out_indices=tuple(range(len(cfg.dims))),
        )
        self.apply(_init_weights)

    def check_size(self, image: Tensor, name: str) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}; expected (batch, {self.in_chans}, height, width)."
            )
        if min(image.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"{name} is {image.shape[2]} x {image.shape[3]} px; each side must be at least {MIN_SIZE}. "
                "Resize the picture, or crop a larger region."
            )

    def walk(
        self,
        image: Tensor,
        template: Tensor | None = None,
        search_only: bool = False,
    ) -> list[list[Tensor]]:
        """Runs a picture through the stages: to the end, or without a template to the first EoC-CA block.

        Args:
            image: (B, C, H, W), template or search.
            template: Template features (B', H', W', C') that enter the first EoC-CA block.
            search_only: Drop the template stream where nothing depends on it any more.

        Returns:
            For each stage that was entered the streams' (B, H, W, C) maps behind it: search, or template
            and search.
        """
        outputs: list[list[Tensor]] = []
        images = [image]
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            tokens, shapes = stage.open(images)
            branch = None
            for j, block in enumerate(stage.blocks):
                if (i, j) == self.first_cross:
                    alone = unpack(tokens if branch is None else tokens + branch, shapes)
                    if template is None:
                        return [*outputs, alone]
                    (tokens, shapes), branch = _meet(template, *alone), None
                drop_template = search_only and (i, j) == self.last_cross
                if self.grad_checkpointing and self.training:
                    arguments = tokens, branch, shapes, drop_template
                    tokens, branch, shapes = checkpoint(block, *arguments, use_reentrant=False)
                else:
                    tokens, branch, shapes = block(tokens, branch, shapes, drop_template)
            maps = unpack(stage.close(tokens, branch), shapes)
            outputs.append(maps)
            images = [m.permute(0, 3, 1, 2) for m in maps]
        return outputs

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone (besides biases and norms)."""
        return {name for name, _ in self.named_parameters() if name.endswith("pos_embed")}

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, None]]]:
        """Layer groups for layer-wise learning-rate decay, in timm's format."""
        return {
            "stem": r"^stages\.0\.embed",
            "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)",
        }


def _meet(template: Tensor, search: Tensor) -> tuple[Tensor, list[Shape]]:
    """Brings template and search into one pack; a batch of 1 is expanded to the other's."""
    batch = max(template.shape[0], search.shape[0])
    return pack([m if m.shape[0] == batch else m.expand(batch, -1, -1, -1) for m in (template, search)])


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, EoCAttention) and hasattr(module, "sr"):  # a convolution in disguise: He, fan out
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


class SBT(Trunk):
    """Two-input feature network: search features that already know the template.

    Args:
        cfg: The variant.
        in_chans: Channels of both pictures.

    Raises:
        ValueError: A configuration without any EoC-CA block.

    Example:
        >>> x = net(template, search)  # (B, 3, 128, 128), (B, 3, 256, 256) -> (B, C, 32, 32)
        >>> state = net.encode_template(template)  # once per target
        >>> x = net(state, search)  # once per frame, same numbers
    """

    def __init__(self, cfg: SBTConfig, in_chans: int = 3) -> None:
        super().__init__(cfg, in_chans)
        if self.first_cross is None:
            raise ValueError(
                f"cross_blocks={cfg.cross_blocks} names no EoC-CA block: the template would have no effect."
            )

    def encode_template(self, template: Tensor) -> TemplateState:
        """Computes all that does not depend on the search picture.

        Args:
            template: (B, 3, Hz, Wz), each side at least 32 px.
        """
        self.check_size(template, "template")
        return TemplateState(self.walk(template)[-1][0])

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """Search features that depend on the template.

        Args:
            template: (B, 3, Hz, Wz), or the state that `encode_template` returned. Its batch may be 1 where
                the search batch is N (one target, N pictures), and the other way round (N targets in one
                picture).
            search: (B, 3, Hx, Wx).

        Returns:
            (B, C, Hx / 8, Wx / 8) with the default strides, contiguous NCHW.

        Raises:
            ValueError: Wrong number of channels, a side under 32 px, batches that do not fit, a state of
                another network.
        """
        return _nchw(self._walk_pair(template, search, search_only=True)[-1][-1])

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both, correlated with each other: (B, C, Hz / 8, Wz / 8), (B, C, Hx / 8, Wx / 8)."""
        z, x = self._walk_pair(template, search)[-1]
        return _nchw(z), _nchw(x)

    def forward_template(self, state: TemplateState) -> Tensor:
        """Features of the template correlated with itself: (B, C, Hz / 8, Wz / 8), contiguous NCHW.

        The numbers of `net(template, template)` at a fraction of the cost, for trackers that need a map of
        the template before there is a search picture.
        """
        (first, block), (tokens, shapes) = self.crosses[0], pack([state.features])
        for i, stage in enumerate(self.stages[first:]):
            assert isinstance(stage, Stage)
            if i > 0:
                tokens, shapes = stage.open([m.permute(0, 3, 1, 2) for m in unpack(tokens, shapes)])
            branch = None
            for eoc in stage.blocks[block if i == 0 else 0 :]:
                tokens, branch, shapes = eoc(tokens, branch, shapes)
            tokens = stage.close(tokens, branch)
        return _nchw(unpack(tokens, shapes)[0])

    def forward_intermediates(
        self, template: Tensor | TemplateState, search: Tensor, indices: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Search features behind the stages `indices` (all by default), contiguous NCHW."""
        outputs = self._walk_pair(template, search, search_only=True)
        return [_nchw(outputs[i][-1]) for i in (range(len(outputs)) if indices is None else indices)]

    def _walk_pair(
        self, template: Tensor | TemplateState, search: Tensor, search_only: bool = False
    ) -> list[list[Tensor]]:
        self.check_size(search, "search")
        state = template if isinstance(template, TemplateState) else self.encode_template(template)
        batch, channels = state.features.shape[0], state.features.shape[-1]
        if channels != self._state_dim:
            raise ValueError(
                f"The template state has {channels} channels, this network needs {self._state_dim}: "
                "it comes from another network. Call encode_template of this one."
            )
        if batch != search.shape[0] and 1 not in (batch, search.shape[0]):
            raise ValueError(
                f"template batch {batch} and search batch {search.shape[0]} must be equal, or one of them 1."
            )
        return self.walk(search, state.features, search_only=search_only)

    @property
    def _state_dim(self) -> int:
        return self.config.dims[self.crosses[0][0]]

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A feature network has no classifier: only `num_classes=0` is possible."""
        if num_classes:
            raise ValueError(
                f"num_classes={num_classes}: this network has no classifier. Use the model's `_cls` name."
            )


class SBTFeatures(nn.Module):
    """`features_only`: the search features of chosen stages; stages behind the last of them do not exist.

    Args:
        net: The network to take over; it is pruned.
        out_indices: Stages, 0-indexed; negative ones count from the end.
    """

    def __init__(self, net: SBT, out_indices: Sequence[int]) -> None:
        super().__init__()
        stages = len(net.stages)
        if not out_indices or any(not -stages <= i < stages for i in out_indices):
            raise ValueError(f"out_indices={tuple(out_indices)} must name stages in {-stages}..{stages - 1}.")
        self.out_indices = tuple(i % stages for i in out_indices)
        last = max(self.out_indices)
        first_stage = net.crosses[0][0]
        if first_stage > last:
            raise ValueError(
                f"out_indices={tuple(out_indices)} end before the first EoC-CA block, in stage {first_stage}."
            )
        net.stages = net.stages[: last + 1]
        net.last_cross = max(cross for cross in net.crosses if cross[0] <= last)
        self.feature_info = net.feature_info.from_other(self.out_indices)
        self.model = net

    def encode_template(self, template: Tensor) -> TemplateState:
        """See `SBT.encode_template`."""
        return self.model.encode_template(template)

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> list[Tensor]:
        """See `SBT.forward`; one (B, C, H, W) per index."""
        return self.model.forward_intermediates(template, search, self.out_indices)


class SBTClassifier(Trunk):
    """One-stream classifier for ImageNet pretraining: a fourth stage, mean pooling, a linear layer.

    Args:
        cfg: The variant; `cross_blocks` must be empty.
        in_chans: Channels of the picture.
        num_classes: Classes; 0 returns pooled features.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self, cfg: SBTConfig, in_chans: int = 3, num_classes: int = 1000, drop_rate: float = 0.0
    ) -> None:
        super().__init__(cfg, in_chans)
        if self.first_cross is not None:
            raise ValueError(f"cross_blocks={cfg.cross_blocks} must be empty: a classifier has one stream.")
        self.num_classes = num_classes
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes)

    def _make_head(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        return head.apply(_init_weights)

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32)."""
        self.check_size(image, "image")
        return _nchw(self.walk(image)[-1][0])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        pooled = self.head_drop(features.mean(dim=(2, 3)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a fresh one."""
        self.num_classes = num_classes
        self.head = self._make_head(num_classes).to(next(self.parameters()))


def _nchw(m: Tensor) -> Tensor:
    return m.permute(0, 3, 1, 2).contiguous()
