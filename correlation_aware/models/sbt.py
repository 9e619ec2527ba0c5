"""SBT, the Single Branch Transformer: a two-input feature network that correlates while it extracts.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666

Written for this package and checked, number by number, against the outputs of the authors' released code
(https://github.com/phiphiphi31/SBT, MIT) and of timm's `pvt_v2` (Apache-2.0). Licensed under Apache-2.0.

To add a variant: a configuration and one function per name at the end of this file, the names in
`tests/test_models.py`, and its row in the table of `docs/zoo.md`, which a test compares with the code.

Where an entry point names no image sizes and crop factors, they are the defaults of `Sizes` in
`models/contract.py`: a template of 128 px, a search image of 256 px, two and four times the target's size.

Up to the first EoC-CA block each image is processed alone, and the template's part of that is its cached
state. From there on the tokens of both travel in one packed tensor through the blocks of `models/eoc.py`,
which has attention, MLP, patch embedding and `DropPath`. Forms of attention that the paper compares are in
`models/attention.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from timm.models import FeatureInfo, register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from correlation_aware.models.attention import WINDOWS, AttentionForm, make_attention
from correlation_aware.models.attention_maps import AttentionMap
from correlation_aware.models.contract import (
    Sizes,
    TemplateState,
    TwoInputModel,
    check_image,
    choose_levels,
    common_batch,
    make_state,
)
from correlation_aware.models.eoc import (
    EoCBlock,
    PatchEmbed,
    concat_streams,
    eoc_attention_maps,
    init_weights,
)
from correlation_aware.models.registry import (
    CLASSIFIER_ARGUMENTS,
    refuse_arguments,
    register_checkpoint_format,
    register_model,
    take_fields,
)
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import Shape, add_norm, pack, unpack

__all__ = ["SBT", "SBTClassifier", "SBTConfig"]

Position = Literal["conv", "absolute", "sinusoidal", "relative", "none"]
Embedding = Literal["overlap", "overlap_unpadded", "patchify"]
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
        attention: Form of the attention. Every token is a query; keys are, by form, `spatial_reduction`: a
            token for each square of tokens, by a linear layer, as in SBT; `depthwise_reduction`: the same by
            a depth-wise convolution, as in ResT; `global`: all tokens; `pooled`: 7 x 7 tokens, as in
            PVTv2-Li; `local`: the tokens of the query's window; `shifted_window`: likewise, windows of every
            other block being shifted. EoC-CA with windows needs template and search images of one size.
        cross_attention: Form of the attention of EoC-CA blocks; None for that of `attention`.
        window_size: Side of a window in tokens, of `local` and `shifted_window`.
        position: Position encoding. `conv`: 3 x 3 depth-wise convolution in the MLP; `absolute`: learned
            table for every stage, resized; `sinusoidal`: sines and cosines of the coordinates, for every
            stage; `relative`: learned bias for every distance between query and key, in EoC-SA blocks, since
            locations of two images have no distance; `none`.
        patch_embed: `overlap`: convolutions with kernel 7, then 3; `overlap_unpadded`: the same without zero
            padding, so that features are smaller than the image over the stride, see `sides`; `patchify`:
            kernel = stride, a linear layer on patches.
        stage_norms: LayerNorm at the end of every stage (PVTv2) instead of the last one only (SBT).
        drop_path_rate: Stochastic depth of the last block; earlier blocks grow linearly from 0.
    """

    dims: tuple[int, ...] = (64, 128, 320)
    heads: tuple[int, ...] = (1, 2, 5)
    depths: tuple[int, ...] = (3, 4, 10)
    mlp_ratios: tuple[float, ...] = (4, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2)
    strides: tuple[int, ...] = (4, 2, 1)
    cross_blocks: tuple[tuple[int, ...], ...] = ((), (), (1, 3, 5, 7, 9))
    attention: AttentionForm = "spatial_reduction"
    cross_attention: AttentionForm | None = None
    window_size: int = 7
    position: Position = "conv"
    patch_embed: Embedding = "overlap"
    stage_norms: bool = False
    drop_path_rate: float = 0.0

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
                    f"cross_blocks[{stage}]={blocks} must be in 0..{depth - 1}, the blocks of that stage."
                )
        for name, options in (
            ("attention", get_args(AttentionForm)),
            ("cross_attention", (None, *get_args(AttentionForm))),
            ("position", get_args(Position)),
            ("patch_embed", get_args(Embedding)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, options))}."
                )
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raises ValueError for values that exclude each other, or that would have no effect."""
        if self.position == "relative" and self.attention in ("pooled", "depthwise_reduction"):
            raise ValueError(
                f"position='relative' is not defined for attention={self.attention!r}, whose keys overlap or "
                "have no fixed distance. Take spatial_reduction, global, local or shifted_window."
            )
        if self.position == "sinusoidal" and any(dim % 4 for dim in self.dims):
            raise ValueError(
                f"position='sinusoidal' needs dims={self.dims} that 4 divides: sine and cosine of two axes."
            )
        if self.window_size < 2:
            raise ValueError(f"window_size={self.window_size} must be at least 2 tokens.")
        default = type(self).window_size
        if self.window_size != default and not {self.attention, self.cross_attention} & set(WINDOWS):
            raise ValueError(
                f"window_size={self.window_size} has no effect: neither attention={self.attention!r} nor "
                f"cross_attention={self.cross_attention!r} is one of {', '.join(WINDOWS)}."
            )

    def attention_of(self, stage: int, block: int) -> AttentionForm:
        """Form of the attention of a block."""
        cross = block in self.cross_blocks[stage]
        return self.cross_attention if cross and self.cross_attention is not None else self.attention

    def embedding(self, stage: int) -> tuple[int, int]:
        """Kernel and padding of the patch embedding of a stage."""
        if self.patch_embed == "patchify":
            return self.strides[stage], 0
        kernel = 7 if stage == 0 else 3
        return kernel, kernel // 2 if self.patch_embed == "overlap" else 0

    def sides(self, size: int) -> list[int]:
        """Height or width of the features of every stage, for an image of this height or width in pixels."""
        sides = []
        for stage, stride in enumerate(self.strides):
            kernel, padding = self.embedding(stage)
            size = (size + 2 * padding - kernel) // stride + 1
            sides.append(size)
        return sides

    @property
    def cross_positions(self) -> list[tuple[int, int]]:
        """(stage, block) of every EoC-CA block, in order."""
        return sorted((stage, block) for stage, blocks in enumerate(self.cross_blocks) for block in blocks)

    @property
    def reduction(self) -> int:
        """Stride of the last stage in pixels."""
        return math.prod(self.strides)

    def levels(self) -> list[dict[str, Any]]:
        """Channels, stride and module of every stage, for timm's `FeatureInfo`."""
        return [
            {"num_chs": dim, "reduction": math.prod(self.strides[: i + 1]), "module": f"stages.{i}"}
            for i, dim in enumerate(self.dims)
        ]


def _maps(tokens: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Packed tokens as a (B, C, H, W) view per stream."""
    return tuple(m.permute(0, 3, 1, 2) for m in unpack(tokens, shapes))


def make_block(cfg: SBTConfig, stage: int, block: int, side: int, drop_path: float) -> EoCBlock:
    """A block of a stage whose search features are side x side."""
    form, cross = cfg.attention_of(stage, block), block in cfg.cross_blocks[stage]
    dim, heads, sr_ratio = cfg.dims[stage], cfg.heads[stage], cfg.sr_ratios[stage]
    attn = make_attention(
        form,
        dim,
        heads,
        sr_ratio,
        window=cfg.window_size,
        shifted=form == "shifted_window" and block % 2 == 1,
        relative=side if cfg.position == "relative" and not cross else None,
    )
    return EoCBlock(
        dim,
        heads,
        cross,
        mlp_ratio=cfg.mlp_ratios[stage],
        relu=form == "pooled",
        conv=cfg.position == "conv",
        drop_path=drop_path,
        attn=attn,
    )


@register_notrace_module
class Stage(nn.Module):
    """Patch embedding, EoC blocks and, where the configuration has one, a final norm.

    Attributes:
        first_cross: Block that a template joins at, the first EoC-CA block of the network; None where that
            is in another stage.
        last_cross: Block after which a search image can do without its template; None likewise.
        grad_checkpointing: Whether blocks are computed again in the backward pass.
    """

    def __init__(
        self, cfg: SBTConfig, index: int, in_chans: int, drop_path: Sequence[float], image_size: int
    ) -> None:
        super().__init__()
        dim, stride = cfg.dims[index], cfg.strides[index]
        kernel, padding = cfg.embedding(index)
        side = cfg.sides(image_size)[index]
        self.first_cross: int | None = None
        self.last_cross: int | None = None
        self.grad_checkpointing = False
        self.embed = PatchEmbed(in_chans, dim, kernel, stride, padding)
        self.sinusoidal = cfg.position == "sinusoidal"
        if cfg.position == "absolute":
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, dim, side, side))
        else:
            self.pos_embed = None
        self.blocks = nn.ModuleList(
            make_block(cfg, index, block, side, rate) for block, rate in enumerate(drop_path)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6) if cfg.stage_norms or index == len(cfg.dims) - 1 else None

    def embed_images(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
        """(B, C, H, W) per stream -> packed tokens that enter the first block."""
        tokens, shapes = self.embed(images)
        if self.pos_embed is None and not self.sinusoidal:
            return tokens, shapes
        maps = unpack(tokens, shapes)
        return pack([m + self._position(m) for m in maps])

    def _position(self, features: Tensor) -> Tensor:
        """(1, H, W, C) position encoding of (B, H, W, C) features."""
        height, width, channels = features.shape[1:]
        if self.pos_embed is not None:
            return F.interpolate(self.pos_embed, (height, width), mode="bicubic").permute(0, 2, 3, 1)
        table = build_sincos2d_pos_embed([height, width], channels, device=features.device)
        return table.to(features.dtype).view(1, height, width, channels)

    def forward(
        self,
        *images: Tensor,
        template: Tensor | None = None,
        search_only: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> Any:
        """Runs one stream, or template and search, through the stage.

        In the stage of the first EoC-CA block `template` joins the stream at that block. Without `template`
        the stream ends there; without an image the template goes on alone, correlated with itself.

        Args:
            images: (B, C, H, W) of every stream.
            template: (B', H', W', C') features that enter the first EoC-CA block, see `SBT.encode_template`.
            search_only: Drop the template's stream after the last EoC-CA block.
            blocks: Blocks whose features are returned too. One stream then goes on to the end of the stage.

        Returns:
            (B, C', H', W') of the stream, or a tuple of template and search where there are two; views of
            channels-last maps. With `blocks` a pair of these and, per block, the tuple of the streams' maps.
        """
        if images and isinstance(images[0], torch.fx.Proxy):
            raise TypeError(
                "torch.fx cannot trace through a stage of SBT. Make `Stage` a leaf module, as "
                "timm.models.create_feature_extractor does, or use torch.export."
            )
        start = 0
        if images:
            tokens, shapes = self.embed_images(images)
        else:
            assert template is not None and self.first_cross is not None
            (tokens, shapes), start = pack([template]), self.first_cross
        residual = None
        tapped = []
        for i, block in enumerate(self.blocks):
            if i < start:
                continue
            if i == self.first_cross and images and (template is not None or blocks is None):
                (search,) = unpack(tokens if residual is None else tokens + residual, shapes)
                if template is None:
                    return search.permute(0, 3, 1, 2)
                check_dtype(template, search)
                (tokens, shapes), residual = concat_streams(template, search), None
            drop = search_only and i == self.last_cross
            if self.grad_checkpointing and self.training:
                tokens, residual, shapes = checkpoint(
                    block, tokens, residual, shapes, drop, use_reentrant=False
                )
            else:
                tokens, residual, shapes = block(tokens, residual, shapes, drop)
            if blocks is not None and i in blocks:
                tapped.append(_maps(tokens + residual, shapes))
        if self.norm is not None:
            tokens = add_norm(self.norm, tokens, residual)[1]
        elif residual is not None:
            tokens = tokens + residual
        maps = _maps(tokens, shapes)
        output = maps[0] if len(maps) == 1 else maps
        if blocks is None:
            return output
        last = len(self.blocks) - 1  # the norm belongs to the last block
        return output, [*tapped[:-1], maps] if last in blocks else tapped

    def __prepare_scriptable__(self) -> "Stage":
        """What `torch.jit.script` asks for.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "torch.jit.script cannot compile SBT: its operations are chosen in Python. Use torch.compile or "
            "torch.export, or torch.jit.trace for TorchScript."
        )


class StagedNetwork(nn.Module):
    """The stages and the pass through them; shared by the two-input network and the classifier."""

    in_chans: int
    config: SBTConfig

    def build_stages(self, cfg: SBTConfig, in_chans: int, image_size: int) -> None:
        self.config = cfg
        rates = torch.linspace(0, cfg.drop_path_rate, sum(cfg.depths), device="cpu").split(list(cfg.depths))
        stages = [
            Stage(cfg, i, in_chans if i == 0 else cfg.dims[i - 1], rate.tolist(), image_size)
            for i, rate in enumerate(rates)
        ]
        if crosses := cfg.cross_positions:
            (first, first_block), (last, last_block) = crosses[0], crosses[-1]
            stages[first].first_cross, stages[last].last_cross = first_block, last_block
        self.stages = nn.ModuleList(stages)
        self.apply(init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass."""
        for stage in self.stages:
            cast(Stage, stage).grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        tables = ("pos_embed", "relative.table")
        return {name for name, _ in self.named_parameters() if name.endswith(tables)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay, in timm's format.

        Args:
            coarse: A group per stage instead of one per block. A stage's embedding and norm belong to its
                first and last block.
        """
        stem = r"^stages\.0\.(?:embed|pos_embed)"
        if coarse:
            return {"stem": stem, "blocks": r"^stages\.(\d+)"}
        return {
            "stem": stem,
            "blocks": [
                (r"^stages\.(\d+)\.(?:embed|pos_embed)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),  # timm's sign for "the group before"
            ],
        }


def check_dtype(template: Tensor, search: Tensor) -> None:
    """Raises ValueError for a template state of another dtype than the search features, but for autocast."""
    if template.dtype != search.dtype and not torch.is_autocast_enabled(search.device.type):
        raise ValueError(
            f"The template state is {template.dtype}, the search features are {search.dtype}: convert it by "
            f"state.map(lambda t: t.to({search.dtype})), or encode the template again."
        )


torch.fx.wrap("check_image")  # not traced


class SBT(StagedNetwork, TwoInputModel):
    """Two-input feature network: search features that depend on the template.

    Args:
        cfg: The variant.
        in_chans: Channels of both images.
        sizes: Image sizes and crop factors.

    Raises:
        ValueError: A configuration without any EoC-CA block, or one whose EoC-CA blocks have windows for
            images of two sizes.

    Examples:
        >>> x = net(template, search)  # (B, 3, 128, 128), (B, 3, 256, 256) -> (B, C, 32, 32)
        >>> state = net.encode_template(template)  # once per target
        >>> x = net(state, search)  # once per frame, same numbers

    Note:
        A forward hook on `stages.i` gets (B, C, H, W) of the stage, from the first EoC-CA block on a tuple of
        template and search. It is called for the template, whose pass ends before that block, then for the
        search image. torch.compile, torch.export and torch.jit.trace work; torch.jit.script and torch.fx are
        refused.
    """

    def __init__(self, cfg: SBTConfig, in_chans: int = 3, sizes: Sizes | None = None) -> None:
        TwoInputModel.__init__(self, cfg.levels(), in_chans, sizes)
        if not cfg.cross_positions:
            raise ValueError(
                f"cross_blocks={cfg.cross_blocks} names no EoC-CA block: the template would have no effect. "
                "Networks with correlation after them are siam_sbt_base_dw, _ca and _dcf."
            )
        cross = cfg.attention_of(*cfg.cross_positions[0])
        if cross in WINDOWS and self.sizes.template_size != self.sizes.search_size:
            raise ValueError(
                f"EoC-CA blocks with {cross!r} attention need template and search images of one size, not "
                f"template_size={self.sizes.template_size} and search_size={self.sizes.search_size}: windows "
                "of two maps correspond by their place. Set both to 224, as the paper, or cross_attention to "
                "'spatial_reduction'."
            )
        self.build_stages(cfg, in_chans, self.sizes.search_size)

    def feature_side(self, size: int, level: int = -1) -> int:
        """See `TwoInputModel.feature_side`."""
        return self.config.sides(size)[level]

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image: one (B, H, W, C) map, which enters the first EoC-CA.

        Args:
            template: (B, 3, Hz, Wz), each side at least 32 px.
        """
        check_image(template, "template", self.in_chans, MIN_SIZE)
        (features,) = self.forward_stages(template)[-1]
        return make_state([features.permute(0, 2, 3, 1)])

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """Search features that depend on the template.

        Args:
            template: (B, 3, Hz, Wz), or the state that `encode_template` returned. Its batch may be 1 where
                the search batch is N (one target, N images), and the other way round (N targets in one
                image).
            search: (B, 3, Hx, Wx).

        Returns:
            (B, C, Hx / 8, Wx / 8) with the default strides, contiguous NCHW.

        Raises:
            ValueError: Wrong number of channels, a side under 32 px, batches that do not fit, a state of
                another shape or dtype. The state of another network with as many channels is not noticed.
        """
        return self._forward_pair(template, search, search_only=True)[-1][-1].contiguous()

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both, correlated with each other: (B, C, Hz / 8, Wz / 8), (B, C, Hx / 8, Wx / 8)."""
        z, x = self._forward_pair(template, search)[-1]
        return z.contiguous(), x.contiguous()

    def forward_template(self, template: Tensor, state: TemplateState | None = None) -> Tensor:
        """Features of the template correlated with itself: (B, C, Hz / 8, Wz / 8), contiguous NCHW.

        The values of `net(template, template)` at a fraction of the cost.
        """
        (features,) = self.encode_template(template) if state is None else state
        first = self.config.cross_positions[0][0]
        output: Tensor = self.stages[first](template=features)
        for stage in self.stages[first + 1 :]:
            output = stage(output)
        return output.contiguous()

    def forward_intermediates(
        self, template: Tensor | TemplateState, search: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Search features after the stages `indices` (all by default), contiguous NCHW.

        Args:
            template: As in `forward`.
            search: As in `forward`.
            indices: Stages, 0-indexed; the last n for a number.

        Raises:
            ValueError: As in `forward`, or a stage that does not exist.
        """
        chosen = choose_levels(indices, len(self.stages), "indices")
        outputs = self._forward_pair(template, search, search_only=True)
        return [outputs[i][-1].contiguous() for i in chosen]

    def forward_blocks(
        self, template: Tensor | TemplateState | None, search: Tensor, blocks: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, ...]]:
        """Features after single blocks, for trackers that correlate several levels once more.

        Args:
            template: (B, 3, Hz, Wz), or its state. None for the search image alone: the network without
                correlation, whose EoC-CA blocks are EoC-SA blocks then.
            search: (B, 3, Hx, Wx).
            blocks: (stage, block) of each, 0-indexed, in the order of the network.

        Returns:
            For each block (search,), or (template, search): (B, C, H, W), views of channels-last maps. After
            the last block of a stage they have the stage's norm.

        Raises:
            ValueError: As in `forward`; or with a template a block before the first EoC-CA block.
        """
        first = self.config.cross_positions[0]
        if template is not None and min(blocks) < first:
            raise ValueError(
                f"blocks={tuple(blocks)} begin before the first EoC-CA block, {first}: a template's state "
                "has no features of those."
            )
        features = None if template is None else self._checked_state(template, search)
        maps: tuple[Tensor, ...] = (search,)
        outputs: list[tuple[Tensor, ...]] = []
        check_image(search, "search", self.in_chans, MIN_SIZE)
        for i, stage in enumerate(self.stages):
            chosen = [block for index, block in blocks if index == i]
            output, tapped = stage(*maps, template=features, blocks=chosen)
            maps = output if isinstance(output, tuple) else (output,)
            outputs += tapped
        return outputs

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`."""
        return eoc_attention_maps(self, template, search)

    def prune_intermediate_layers(self, indices: Sequence[int]) -> None:
        """Removes the stages after the last of `indices`.

        Raises:
            ValueError: The last of them comes before the first EoC-CA block.
        """
        last, crosses = max(indices), self.config.cross_positions
        if crosses[0][0] > last:
            raise ValueError(
                f"out_indices={tuple(indices)} end before the first EoC-CA block, in stage {crosses[0][0]}."
            )
        self.stages = self.stages[: last + 1]
        stage, block = max(cross for cross in crosses if cross[0] <= last)
        cast(Stage, self.stages[stage]).last_cross = block
        self.num_features = self.config.dims[last]

    def join_templates(self, states: Sequence[TemplateState]) -> TemplateState:
        """Concatenates the templates' maps along height, so that search tokens attend to all of them."""
        return TemplateState([torch.cat([features for (features,) in states], dim=1)])

    def forward_stages(
        self, image: Tensor, template: Tensor | None = None, search_only: bool = False
    ) -> list[tuple[Tensor, ...]]:
        """Runs an image through the stages: to the end, or without a template to the first EoC-CA block.

        Args:
            image: (B, C, H, W), template or search.
            template: Template features (B', H', W', C') that enter the first EoC-CA block.
            search_only: Drop the template's stream where nothing depends on it any more.

        Returns:
            For each stage that ran the maps (B, C', H', W') after it: (search,) or (template, search).
        """
        outputs: list[tuple[Tensor, ...]] = []
        maps: tuple[Tensor, ...] = (image,)
        for stage in self.stages:
            output = stage(*maps, template=template, search_only=search_only)
            maps = output if isinstance(output, tuple) else (output,)
            outputs.append(maps)
            if template is None and stage.first_cross is not None:
                break
        return outputs

    def _forward_pair(
        self, template: Tensor | TemplateState, search: Tensor, search_only: bool = False
    ) -> list[tuple[Tensor, ...]]:
        if isinstance(search, torch.fx.Proxy):
            raise TypeError(
                "torch.fx cannot trace a two-input network. For features of its stages use "
                "create_model(..., features_only=True), for a graph torch.export."
            )
        check_image(search, "search", self.in_chans, MIN_SIZE)
        features = self._checked_state(template, search)
        return self.forward_stages(search, features, search_only=search_only)

    def _checked_state(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """The template's features that enter the first EoC-CA block; raises ValueError if they do not fit."""
        state = self.state_of(template)
        channels = self.config.dims[self.config.cross_positions[0][0]]
        if len(state) != 1 or state[0].ndim != 4 or state[0].shape[-1] != channels:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in state)
            raise ValueError(
                f"The template state has tensors of shape {shapes}; this network needs one of (B, H, W, "
                f"{channels}): it comes from another network. Call encode_template of this one."
            )
        common_batch(state, search)
        return state[0]


class SBTClassifier(StagedNetwork):
    """One-stream classifier for ImageNet pretraining: a fourth stage, mean pooling, a linear layer.

    It follows timm's contract. torch.fx takes its stages as leaves (`timm.models.create_feature_extractor`);
    torch.jit.script is refused.

    Args:
        cfg: The variant; `cross_blocks` must be empty.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for pooled features.
        drop_rate: Dropout before the classifier.
        global_pool: `avg`, or an empty string for no pooling, which needs `num_classes=0`.

    Attributes:
        num_features: Channels of the last stage.
        default_data_cfg: How images are prepared for it, in timm's terms: that of PVTv2.

    Raises:
        ValueError: An EoC-CA block, or an unknown `global_pool`.
    """

    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    weights_name: str = "unknown"
    default_data_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "first_conv": "stages.0.embed.proj",
        "classifier": "head",
    }

    def __init__(
        self,
        cfg: SBTConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if cfg.cross_positions:
            raise ValueError(f"cross_blocks={cfg.cross_blocks} must be empty: a classifier has one stream.")
        if cfg.cross_attention is not None:
            raise ValueError(f"cross_attention={cfg.cross_attention!r} has no effect in a classifier.")
        self.in_chans = in_chans
        self.num_features = cfg.dims[-1]
        self.feature_info = FeatureInfo(cfg.levels(), out_indices=tuple(range(len(cfg.dims))))
        self.build_stages(cfg, in_chans, self.default_data_cfg["input_size"][-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier works on; timm's name."""
        return self.num_features

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 32, W / 32), contiguous."""
        check_image(image, "image", self.in_chans, MIN_SIZE)
        for stage in self.stages:
            image = stage(image)
        return image.contiguous()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, num_classes).

        Args:
            features: (B, C, H, W) of `forward_features`.
            pre_logits: Return what enters the classifier: (B, C), unpooled (B, C, H, W).

        Raises:
            ValueError: There is a classifier, but no pooling.
        """
        if self.num_classes and not self.global_pool and not pre_logits:
            raise ValueError(
                f"num_classes={self.num_classes} needs pooled features, but global_pool='': call "
                f"reset_classifier({self.num_classes}, 'avg'), or reset_classifier(0) for the feature map."
            )
        pooled = self.head_drop(features.mean(dim=(2, 3)) if self.global_pool else features)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes); without a classifier pooled features, or their map."""
        return self.forward_head(self.forward_features(image))

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after several stages, as timm has it.

        Args:
            image: (B, 3, H, W).
            indices: Stages, 0-indexed; the last n for a number; all by default.
            norm: No difference: a stage's norm is part of the stage, as in timm's `pvt_v2`.
            stop_early: Leave out the stages after the last of `indices`.
            output_fmt: `NCHW`.
            intermediates_only: Return the intermediate features alone.

        Returns:
            (B, C_i, H / s_i, W / s_i) of each stage, contiguous, after the output of the last stage that ran.

        Raises:
            ValueError: A stage that does not exist, or another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW'.")
        check_image(image, "image", self.in_chans, MIN_SIZE)
        chosen = choose_levels(indices, len(self.stages), "indices")
        intermediates = []
        for i, stage in enumerate(self.stages):
            image = stage(image)
            if i in chosen:
                intermediates.append(image.contiguous())
            if stop_early and i == max(chosen):
                break
        return intermediates if intermediates_only else (image.contiguous(), intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the stages `indices` do not need, as timm has it.

        Args:
            indices: Stages, 0-indexed; the last n for a number.
            prune_norm: No difference: a stage's norm is part of the stage, as in timm's `pvt_v2`.
            prune_head: Remove the pooling and the classifier; they go in any case with the last stage.

        Returns:
            `indices`, each counted from the first stage.

        Raises:
            ValueError: A stage that does not exist.
        """
        chosen = list(choose_levels(indices, len(self.stages), "indices"))
        last_goes = max(chosen) < len(self.stages) - 1
        self.stages = self.stages[: max(chosen) + 1]
        self.num_features = self.config.dims[max(chosen)]
        if prune_head or last_goes:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a fresh one.

        Args:
            num_classes: Number of classes; 0 for no classifier.
            global_pool: `avg`, or an empty string for no pooling; by default it stays as it is.

        Raises:
            ValueError: An unknown `global_pool`.
        """
        if global_pool not in (None, "avg", ""):
            raise ValueError(f"global_pool={global_pool!r} must be 'avg', or '' for no pooling.")
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head: nn.Module = head.apply(init_weights).to(like.device, like.dtype).train(self.training)


# checkpoints of others: (pattern, replacement); \d is 1-indexed in the original code of PVTv2 and SBT,
# 0-indexed in timm and here
_RENAMES = (
    (r"patch_embed([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.embed."),
    (r"block([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"norm([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"patch_embed\.", lambda m: "stages.0.embed."),
    (r"(stages\.\d+)\.downsample\.", lambda m: f"{m[1]}.embed."),
    (r"box_head\.class_head\.", lambda m: "head.cls."),
    (r"box_head\.bbox_head\.", lambda m: "head.box."),
)


def _is_sbt(names: Iterable[str]) -> bool:
    return any(name.startswith(("backbone.patch_embed1.", "backbone.block1.")) for name in names)


def _is_pvt_v2(names: Iterable[str]) -> bool:
    known = list(names)
    original = any(name.startswith("patch_embed1.") for name in known)
    return original or ("patch_embed.proj.weight" in known and any(n.startswith("stages.0.") for n in known))


@register_checkpoint_format("pvt_v2", matches=_is_pvt_v2)
@register_checkpoint_format("sbt", matches=_is_sbt)
def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and reshapes the authors' trackers (`backbone.*`, `box_head.*`) and PVTv2 classifiers.

    Args:
        state_dict: Tensors by the original names, of PVTv2 also by timm's.

    Returns:
        Tensors by the names of this file. The final norms of the first two stages of the authors' trackers
        are left out: their forward pass never uses them.
    """
    norms = {m[1] for m in (re.match(r"backbone\.norm(\d)\.", name) for name in state_dict) if m}
    unused = tuple(f"backbone.norm{i}." for i in norms - {max(norms, default="")})
    return {
        _rename(name): _as_linear(tensor) if name.endswith("attn.sr.weight") else tensor
        for name, tensor in state_dict.items()
        if not name.startswith(unused)
    }


def _rename(name: str) -> str:
    prefix, rest = ("backbone.", name[9:]) if name.startswith("backbone.") else ("", name)
    for pattern, replacement in _RENAMES:
        rest, count = re.subn(f"^{pattern}", replacement, rest)
        if count:
            break
    rest = rest.replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
    rest = rest.replace("layers_channle.", "channel.").replace("layers_spatial.", "spatial.")
    return prefix + rest


def _as_linear(weight: Tensor) -> Tensor:
    """(out, in, r, r) of a convolution -> (out, r * r * in) of a linear layer on channels-last patches."""
    return weight.permute(0, 2, 3, 1).flatten(1).contiguous() if weight.ndim == 4 else weight


@dataclass(frozen=True)
class Variant:
    """A size of the family.

    Attributes:
        config: The two-input network.
        fourth: Channels, heads and depth of the stage that only the classifier has.
    """

    config: SBTConfig
    fourth: tuple[int, int, int]

    def classifier_config(self) -> SBTConfig:
        """The `_cls` network: a fourth stage, strides 4, 2, 2, 2, one stream, a norm after every stage."""
        c, (dim, heads, depth) = self.config, self.fourth
        return replace(
            c,
            dims=(*c.dims, dim),
            heads=(*c.heads, heads),
            depths=(*c.depths, depth),
            mlp_ratios=(*c.mlp_ratios, 4),
            sr_ratios=(*c.sr_ratios, 1),
            strides=(4, 2, 2, 2),
            cross_blocks=((), (), (), ()),
            stage_norms=True,
        )

    def pvt_v2(self, depth: int = 2) -> "Variant":
        """The same with PVTv2's MLP ratios, and `depth` blocks in the classifier's fourth stage."""
        return Variant(replace(self.config, mlp_ratios=(8, 8, 4)), (*self.fourth[:2], depth))

    def modified(self, **changes: Any) -> "Variant":
        """The same with other fields of the configuration."""
        return replace(self, config=replace(self.config, **changes))


LIGHT = Variant(SBTConfig((32, 64, 160), depths=(2, 2, 6), cross_blocks=((), (), (1, 3, 5))), (256, 8, 2))
SMALL = Variant(SBTConfig(depths=(2, 2, 6), cross_blocks=((), (), (1, 3, 5))), (512, 8, 2))
BASE = Variant(SBTConfig(depths=(3, 4, 10), cross_blocks=((), (), (1, 3, 5, 7, 9))), (512, 8, 2))
LARGE = Variant(SBTConfig(depths=(3, 4, 18), cross_blocks=((), (), tuple(range(5, 18, 2)))), (512, 8, 2))
HUGE = Variant(SBTConfig(depths=(3, 8, 27), cross_blocks=((), (), tuple(range(2, 27, 2)))), (512, 8, 3))
TEST = Variant(  # tiny, for tests
    SBTConfig((16, 32, 32), (1, 2, 2), (1, 1, 4), cross_blocks=((), (), (1, 3))), (32, 2, 1)
)
# The paper's "modified SBT" of Table 6, described there by parameters and MACs only; these come nearest
STARK = SMALL.pvt_v2().modified(depths=(2, 2, 4), strides=(4, 2, 2), cross_blocks=((), (), (1, 3)))
SIAMFCPP = SMALL.modified(depths=(2, 2, 5), cross_blocks=((), (), (0, 2, 4)))
STM = SMALL.modified(depths=(2, 2, 4), strides=(4, 2, 2), cross_blocks=((), (), (1, 3)))
DIMP = BASE.modified(depths=(3, 4, 3), strides=(4, 2, 2), cross_blocks=((), (), (0, 2)))


def _features(variant: Variant, arguments: Mapping[str, Any]) -> SBT:
    rest, config = take_fields(arguments, variant.config)
    rest, sizes = take_fields(rest, Sizes())
    if "output_stride" in rest:
        config = _set_output_stride(config, rest.pop("output_stride"), "strides" in arguments)
    _refuse(rest, SBTConfig, Sizes)
    return SBT(config, arguments.get("in_chans", 3), sizes)


def _tracker(variant: Variant, arguments: Mapping[str, Any], head: str = "mixer") -> TrackModel:
    rest = {name: value for name, value in arguments.items() if name != "head"}
    return TrackModel.build(_features(variant, rest), arguments.get("head", head))


def _classifier(variant: Variant, arguments: Mapping[str, Any]) -> SBTClassifier:
    rest, config = take_fields(arguments, variant.classifier_config())
    own = {name: rest.pop(name) for name in CLASSIFIER_ARGUMENTS if name in rest}
    _refuse(rest, SBTConfig)
    return SBTClassifier(config, arguments.get("in_chans", 3), **own)


def _set_output_stride(config: SBTConfig, output_stride: int, fixed: bool) -> SBTConfig:
    """Stride 8 or 16 of the last stage, timm's `output_stride`; `fixed`: the strides are an argument too."""
    before = math.prod(config.strides[:-1])
    if output_stride not in (8, 16) or output_stride not in (before, 2 * before):
        raise ValueError(f"output_stride={output_stride!r} is not one of 8, 16.")
    if fixed and output_stride != config.reduction:
        raise ValueError(
            f"strides={config.strides} have the output stride {config.reduction}, not "
            f"output_stride={output_stride}. Leave one of the two out."
        )
    return replace(config, strides=(*config.strides[:-1], 1 if output_stride == before else 2))


def _refuse(arguments: Mapping[str, Any], *known: type) -> None:
    names = ["in_chans", "output_stride", *(field.name for kind in known for field in fields(kind))]
    refuse_arguments({k: v for k, v in arguments.items() if k != "in_chans"}, names)


@register_model
def sbt_light(**kwargs: Any) -> SBT:
    """SBT-light, three stages."""
    return _features(LIGHT, kwargs)


@register_model(reported=(3.03, 3.81))  # Table 2
def sbt_light_track(**kwargs: Any) -> TrackModel:
    """`sbt_light` with the paper's mixer head."""
    return _tracker(LIGHT, kwargs)


@register_model
def sbt_light_cell_track(**kwargs: Any) -> TrackModel:
    """`sbt_light` with the cell head, which predicts every location from its own features."""
    return _tracker(LIGHT, kwargs, head="cell")


@register_model
def sbt_light_half_track(**kwargs: Any) -> TrackModel:
    """`sbt_light_cell_track` for images of half the size, at a quarter of the cost."""
    return _tracker(LIGHT, {"template_size": 64, "search_size": 128, **kwargs}, head="cell")


@register_model
def sbt_light_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_light`."""
    return _classifier(LIGHT, kwargs)


@register_model
def sbt_small(**kwargs: Any) -> SBT:
    """SBT-small, three stages."""
    return _features(SMALL, kwargs)


@register_model(reported=(13.80, 11.92))  # Table 2
def sbt_small_track(**kwargs: Any) -> TrackModel:
    """`sbt_small` with the paper's mixer head."""
    return _tracker(SMALL, kwargs)


@register_model
def sbt_small_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_small`."""
    return _classifier(SMALL, kwargs)


@register_model
def sbt_base(**kwargs: Any) -> SBT:
    """SBT-base, three stages."""
    return _features(BASE, kwargs)


@register_model(reported=(21.27, 19.27))  # Table 2
def sbt_base_track(**kwargs: Any) -> TrackModel:
    """`sbt_base` with the paper's mixer head."""
    return _tracker(BASE, kwargs)


@register_model
def sbt_base_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_base`."""
    return _classifier(BASE, kwargs)


@register_model
def sbt_large(**kwargs: Any) -> SBT:
    """SBT-large, three stages."""
    return _features(LARGE, kwargs)


@register_model(reported=(35.20, 31.46))  # Table 2
def sbt_large_track(**kwargs: Any) -> TrackModel:
    """`sbt_large` with the paper's mixer head."""
    return _tracker(LARGE, kwargs)


@register_model
def sbt_large_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_large`."""
    return _classifier(LARGE, kwargs)


@register_model
def sbt_light_pvtv2(**kwargs: Any) -> SBT:
    """SBT-light with PVTv2's MLP ratios, three stages."""
    return _features(LIGHT.pvt_v2(), kwargs)


@register_model
def sbt_light_pvtv2_track(**kwargs: Any) -> TrackModel:
    """`sbt_light_pvtv2` with the paper's mixer head."""
    return _tracker(LIGHT.pvt_v2(), kwargs)


@register_model
def sbt_light_pvtv2_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_light_pvtv2`."""
    return _classifier(LIGHT.pvt_v2(), kwargs)


@register_model
def sbt_small_pvtv2(**kwargs: Any) -> SBT:
    """SBT-small with PVTv2's MLP ratios, three stages."""
    return _features(SMALL.pvt_v2(), kwargs)


@register_model
def sbt_small_pvtv2_track(**kwargs: Any) -> TrackModel:
    """`sbt_small_pvtv2` with the paper's mixer head."""
    return _tracker(SMALL.pvt_v2(), kwargs)


@register_model
def sbt_small_pvtv2_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_small_pvtv2`."""
    return _classifier(SMALL.pvt_v2(), kwargs)


@register_model
def sbt_base_pvtv2(**kwargs: Any) -> SBT:
    """SBT-base with PVTv2's MLP ratios, three stages."""
    return _features(BASE.pvt_v2(), kwargs)


@register_model
def sbt_base_pvtv2_track(**kwargs: Any) -> TrackModel:
    """`sbt_base_pvtv2` with the paper's mixer head."""
    return _tracker(BASE.pvt_v2(), kwargs)


@register_model
def sbt_base_pvtv2_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_base_pvtv2`."""
    return _classifier(BASE.pvt_v2(), kwargs)


@register_model
def sbt_large_pvtv2(**kwargs: Any) -> SBT:
    """SBT-large with PVTv2's MLP ratios, three stages."""
    return _features(LARGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_large_pvtv2_track(**kwargs: Any) -> TrackModel:
    """`sbt_large_pvtv2` with the paper's mixer head."""
    return _tracker(LARGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_large_pvtv2_cls(**kwargs: Any) -> SBTClassifier:
    """PVTv2-B3, layer for layer."""
    return _classifier(LARGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_huge_pvtv2(**kwargs: Any) -> SBT:
    """A larger SBT with the depths of PVTv2-B4, three stages."""
    return _features(HUGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_huge_pvtv2_track(**kwargs: Any) -> TrackModel:
    """`sbt_huge_pvtv2` with the paper's mixer head."""
    return _tracker(HUGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_huge_pvtv2_cls(**kwargs: Any) -> SBTClassifier:
    """PVTv2-B4, layer for layer."""
    return _classifier(HUGE.pvt_v2(depth=3), kwargs)


@register_model
def sbt_small_stark(**kwargs: Any) -> SBT:
    """`sbt_small_pvtv2` with four blocks in its last stage and stride 16, for the adapter of STARK.

    The paper's "modified SBT" of STARK-CA: the tracker has the parameters and GMACs that the paper reports.
    """
    return _features(STARK, {"search_size": 320, "search_factor": 5.0, **kwargs})


@register_model
def sbt_base_dimp(**kwargs: Any) -> SBT:
    """`sbt_base` with three blocks in its last stage and stride 16, for the adapter of DiMP.

    The paper's "modified SBT-base" of DiMP-CA: the tracker has 0.5 % fewer parameters.
    """
    return _features(DIMP, {"search_size": 288, "search_factor": 5.0, **kwargs})


@register_model
def sbt_small_siamfcpp(**kwargs: Any) -> SBT:
    """`sbt_small` with five blocks in its last stage, for the adapter of SiamFC++.

    The paper's "modified SBT" of SiamFC++-CA: the tracker has 0.1 % fewer parameters and 1.4 % more GMACs.
    """
    return _features(SIAMFCPP, {"template_size": 127, "search_size": 303, **kwargs})


@register_model
def sbt_small_stm(**kwargs: Any) -> SBT:
    """`sbt_small` with four blocks in its last stage and stride 16, for the encoders of the adapter of STM.

    The paper's "modified SBT" of STM-CA: the tracker has 0.5 % fewer parameters.
    """
    return _features(STM, kwargs)


@register_model
def sbt_test(**kwargs: Any) -> SBT:
    """A tiny network for tests, three stages."""
    return _features(TEST, {"template_size": 64, "search_size": 128, **kwargs})


@register_model
def sbt_test_track(**kwargs: Any) -> TrackModel:
    """`sbt_test` with the paper's mixer head."""
    return _tracker(TEST, {"template_size": 64, "search_size": 128, **kwargs})


@register_model
def sbt_test_cls(**kwargs: Any) -> SBTClassifier:
    """The four-stage classifier of `sbt_test`."""
    return _classifier(TEST, kwargs)
