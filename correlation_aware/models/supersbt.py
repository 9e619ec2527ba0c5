"""SuperSBT, the successor of SBT by the same authors: a hierarchical network with one joint stage.

Paper: `Correlation-Embedded Transformer Tracking: A Single-Branch Framework` (Xie et al., T-PAMI 2024) -
https://arxiv.org/abs/2401.12743. The layers are those of `HiViT: A Simpler and More Efficient Design of
Hierarchical Vision Transformer` (Zhang et al., ICLR 2023) - https://arxiv.org/abs/2205.14949

Written for this package and checked, number by number, against the outputs of the authors' released code
(https://github.com/phiphiphi31/SuperSBT, MIT). Licensed under Apache-2.0.

Stages 1 and 2, at strides 4 and 8, are MLPs on each location alone, and a merge of 2 x 2 locations follows
each. Stage 3, at stride 16, is a plain transformer over the tokens of the templates and of the search image
together. So the template's part of stages 1 and 2 and both merges is its cached state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from correlation_aware.models.attention_maps import AttentionMap, TokenGrid, softmax_weights, watch_calls
from correlation_aware.models.contract import (
    Sizes,
    TemplateState,
    TwoInputModel,
    check_image,
    choose_levels,
    common_batch,
    make_state,
)
from correlation_aware.models.registry import near_names, register_checkpoint_format, register_model
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import add_norm, apply_linear, can_bypass

__all__ = ["SuperSBT"]

PATCH = 16  # pixels per side of a token of stage 3
EPS = 1e-6  # of every LayerNorm
Grid = tuple[int, int]  # height and width in tokens


class PatchEmbed(nn.Module):
    """A 4 x 4 convolution of stride 4, and LayerNorm: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, image: Tensor) -> Tensor:
        image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last in and out
        features: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return features.permute(0, 3, 1, 2)


class PatchMerge(nn.Module):
    """Joins 2 x 2 locations into one of twice the channels: (B, C, H, W) -> (B, 2 C, H / 2, W / 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        batch, dim, height, width = features.shape
        squares = features.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, dim)
        # rows before columns: top left, bottom left, top right, bottom right
        squares = squares.permute(0, 1, 3, 4, 2, 5).reshape(-1, 4 * dim)
        merged = apply_linear(self.reduction, self.norm(squares))
        return merged.view(batch, height // 2, width // 2, 2 * dim).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = apply_linear(self.fc1, tokens)
        if can_bypass(self.fc1, nn.Linear) and not torch.is_grad_enabled():
            # in place, since nobody else sees it: on a CPU, new memory would cost more time than the GELU
            return apply_linear(self.fc2, torch.ops.aten.gelu_(hidden))
        return apply_linear(self.fc2, F.gelu(hidden))


class LocalBlock(nn.Module):
    """LayerNorm and MLP on each location alone; see `JointBlock` for what is returned."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(T, C) -> tokens (T, C), and what is to be added to them."""
        tokens, normed = add_norm(self.norm, tokens, residual)
        return tokens, self.mlp(normed)


class Attention(nn.Module):
    """Multi-head attention over all tokens of a pair."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, batch: int, queries: int | None) -> Tensor:
        """(B * N, C) -> (B * N, C), or (B * queries, C) of the last `queries` tokens of each pair."""
        dim = tokens.shape[1]
        qkv = apply_linear(self.qkv, tokens).view(batch, -1, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # B, heads, N, C / heads
        if queries is not None:
            q = q[:, :, -queries:]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, dim)
        return apply_linear(self.proj, mixed)

    def weights(self, tokens: Tensor, batch: int) -> Tensor:
        """Attention weights of `forward`: (B, heads, N, N)."""
        qkv = apply_linear(self.qkv, tokens).view(batch, -1, 3, self.heads, tokens.shape[1] // self.heads)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind()
        return softmax_weights(q, k)


class JointBlock(nn.Module):
    """Pre-norm transformer block over the tokens of templates and search image together.

    What a block adds to the residual stream is returned apart, to be added by the norm that follows.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, tokens: Tensor, residual: Tensor | None, batch: int, queries: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps tokens to tokens.

        Args:
            tokens: (B * N, C) tokens of B pairs.
            residual: (B * N, C) what the block before adds to them, or None.
            batch: Number of pairs B.
            queries: Number of tokens of each pair, the last ones, that are computed; all if None.

        Returns:
            Tokens, (B * N, C) or (B * queries, C), and what is to be added to them.
        """
        tokens, normed = add_norm(self.norm1, tokens, residual)
        if queries is not None:
            dim = tokens.shape[1]
            tokens = tokens.view(batch, -1, dim)[:, -queries:].reshape(-1, dim)
        tokens, normed = add_norm(self.norm2, tokens, self.attn(normed, batch, queries))
        return tokens, self.mlp(normed)

    def attention_weights(self, tokens: Tensor, residual: Tensor | None, batch: int) -> Tensor:
        """Attention weights of `forward` with the same arguments: (B, heads, N, N)."""
        return self.attn.weights(add_norm(self.norm1, tokens, residual)[1], batch)


class LocalStage(nn.Module):
    """Blocks without any exchange between locations: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(LocalBlock(dim, mlp_ratio) for _ in range(depth))

    def forward(self, features: Tensor) -> Tensor:
        batch, dim, height, width = features.shape
        tokens, residual = features.permute(0, 2, 3, 1).reshape(-1, dim), None
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                tokens, residual = checkpoint(block, tokens, residual, use_reentrant=False)
            else:
                tokens, residual = block(tokens, residual)
        if residual is not None:
            tokens = tokens + residual
        return tokens.view(batch, height, width, dim).permute(0, 3, 1, 2)


class JointStage(nn.Module):
    """Blocks over the tokens of templates and search image together."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(JointBlock(dim, heads, mlp_ratio) for _ in range(depth))

    def forward(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """Runs the blocks.

        Args:
            tokens: (B, N, C) tokens of B pairs: those of the templates, then those of the search image.
            queries: Number of tokens of each pair, the last ones, that are returned; all if None. The last
                block leaves out the others.

        Returns:
            (B, N, C) or (B, queries, C).
        """
        batch, _, dim = tokens.shape
        residual: Any = None
        tokens = tokens.reshape(-1, dim)
        for i, block in enumerate(self.blocks):
            kept = queries if i == len(self.blocks) - 1 else None
            if self.grad_checkpointing and self.training:
                tokens, residual = checkpoint(block, tokens, residual, batch, kept, use_reentrant=False)
            else:
                tokens, residual = block(tokens, residual, batch, kept)
        return (tokens + residual).view(batch, -1, dim)


class SuperSBT(TwoInputModel):
    """Two-input feature network: search features that depend on one template or on several.

    Args:
        depths: Number of blocks of each stage.
        dim: Channels of stage 3; stage 2 has half as many and stage 1 a quarter.
        heads: Attention heads of stage 3.
        template_grid: Side of the table of template positions, in tokens.
        search_grid: Side of the table of search positions, in tokens.
        templates: Templates of a target: the first one, and with 2 or more recent ones. All are the first one
            until `update_template`.
        in_chans: Channels of both images.
        sizes: Image sizes and crop factors; the sizes must be multiples of 16.

    Raises:
        ValueError: A depth or number of templates below 1, channels that the heads or stages do not divide,
            or an image size that is no multiple of 16.

    Examples:
        >>> x = net(template, search)  # (B, 3, 128, 128), (B, 3, 256, 256) -> (B, 512, 16, 16)
        >>> state = net.encode_template(template)  # once per target
        >>> x = net(state, search)  # once per frame, same numbers
        >>> both = net.join_templates([state, net.encode_template(another)])
        >>> x = net(both, search)  # two templates, as in the authors' tracker

    Note:
        The positions of all images are one parameter, as in the authors' code: a row per template token, then
        one per search token. For images of another size than that of the tables (128 and 256 px by default)
        each of the two tables is resized to its image's grid, bicubic with aligned corners, as the authors
        make them from a pretrained one. Their code has no images of other sizes than its tables.

        With several templates the rows of both tables, joined, are stretched linearly to the number of
        tokens, as one axis and across the border between them. That is what the authors' code does in
        training and tracking: of two templates the first gets rows 0 to 52 of 320, the second 53 to 106.
    """

    def __init__(
        self,
        depths: Sequence[int] = (4, 4, 20),
        dim: int = 512,
        heads: int = 8,
        template_grid: int = 8,
        search_grid: int = 16,
        templates: int = 1,
        in_chans: int = 3,
        sizes: Sizes | None = None,
    ) -> None:
        dims = (dim // 4, dim // 2, dim)
        levels = [{"num_chs": d, "reduction": 4 << i, "module": f"stages.{i}"} for i, d in enumerate(dims)]
        super().__init__(levels, in_chans, sizes)
        if len(depths) != 3 or min(depths) < 1:
            raise ValueError(f"depths={tuple(depths)} must have 3 entries, one per stage, of at least 1.")
        if dim % 4 or dim % heads:
            raise ValueError(f"dim={dim} must be divisible by 4 and by heads={heads}.")
        if min(template_grid, search_grid, templates) < 1:
            raise ValueError(
                f"template_grid={template_grid}, search_grid={search_grid} and templates={templates} must be "
                "at least 1."
            )
        for name in ("template_size", "search_size"):
            if getattr(self.sizes, name) % PATCH:
                raise ValueError(f"{name}={getattr(self.sizes, name)} must be a multiple of {PATCH} px.")
        self.templates = templates
        self.grids: tuple[Grid, Grid] = (template_grid, template_grid), (search_grid, search_grid)
        self.patch_embed = PatchEmbed(in_chans, dims[0])
        self.merges = nn.ModuleList(PatchMerge(d) for d in dims[:2])
        stages: list[nn.Module] = [LocalStage(d, depth, 3.0) for d, depth in zip(dims[:2], depths[:2])]
        self.stages = nn.ModuleList([*stages, JointStage(dim, depths[2], heads, 4.0)])
        self.pos_embed = nn.Parameter(torch.empty(1, template_grid**2 + search_grid**2, dim))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_weights)

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image: (B, H, W, C) tokens without positions.

        Args:
            template: (B, 3, Hz, Wz), each side a multiple of 16 px.

        Returns:
            One map for each of `templates`, all of this image.

        Raises:
            ValueError: Wrong number of channels, or a size that is no multiple of 16.
        """
        tokens = self._tokens(template, "template")[-1]
        return make_state([tokens.permute(0, 2, 3, 1)] * self.templates)

    def update_template(self, state: TemplateState, new: TemplateState) -> TemplateState:
        """Adds a recent template in place of the oldest but the first one, which stays.

        The authors' tracker gives up the first one too, at its second update.

        Raises:
            NotImplementedError: `templates` is 1.
        """
        if self.templates == 1:
            return super().update_template(state, new)
        return TemplateState([state[0], *state[2:], new[0]])

    def join_templates(self, states: Sequence[TemplateState]) -> TemplateState:
        """Several templates of one target as one state, which has one map per template.

        With `templates` of 2 or more, whose states have as many maps, the first one of each is used.

        Raises:
            ValueError: Templates of different sizes or batches.
        """
        if len(states) == 1:
            return states[0]
        maps = [features for state in states for features in (state if self.templates == 1 else state[:1])]
        if any(features.shape[1:] != maps[0].shape[1:] for features in maps):
            shapes = ", ".join(str(tuple(features.shape)) for features in maps)
            raise ValueError(f"Templates that are joined need one size; their maps are {shapes}.")
        return TemplateState(maps)

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """Search features that depend on the template.

        Args:
            template: (B, 3, Hz, Wz), or the state of `encode_template` or `join_templates`. Its batch may be
                1 where the search batch is N (one target, N images), and the other way round.
            search: (B, 3, Hx, Wx).

        Returns:
            (B, C, Hx / 16, Wx / 16), contiguous NCHW.

        Raises:
            ValueError: Wrong number of channels, a size that is no multiple of 16, batches that do not fit, a
                state of another network.
        """
        return self.forward_intermediates(template, search, (-1,))[0]

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both, correlated with each other: (B, C, Hz / 16, Wz / 16), (B, C, Hx / 16, Wx / 16).

        Several templates are one above the other: (B, C, templates * Hz / 16, Wz / 16). The authors' code
        computes features of the template, but neither normalizes nor uses them.
        """
        state = self._checked_state(template)
        x = self._tokens(search, "search")[-1]
        height, width = x.shape[2:]
        tokens = self.norm(self.stages[2](self._join(state, x)))
        z, x = (
            part.unflatten(1, (-1, w)).permute(0, 3, 1, 2).contiguous()
            for part, w in (
                (tokens[:, : -height * width], state[0].shape[2]),
                (tokens[:, -height * width :], width),
            )
        )
        return z, x

    def forward_intermediates(
        self, template: Tensor | TemplateState, search: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Search features after the stages `indices` (all by default), at strides 4, 8 and 16.

        Only those of the last stage depend on the template.
        """
        chosen = choose_levels(indices, len(self.stages), "indices")
        state = self._checked_state(template)
        *early, x = self._tokens(search, "search")
        height, width = x.shape[2:]
        tokens = self.norm(self.stages[2](self._join(state, x), queries=height * width))
        maps = (*early, tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        return [maps[i].contiguous() for i in chosen]

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`; stages 1 and 2 have no attention."""
        calls: list[tuple[str, Tensor]] = []

        def record(name: str, block: JointBlock, arguments: tuple[Any, ...], _: Any) -> None:
            calls.append((name, block.attention_weights(*arguments[:3])))

        state = self._checked_state(template)
        with watch_calls(self, JointBlock, record):
            self.forward_features(state, search)
        grids = (
            TokenGrid("template", (len(state) * state[0].shape[1], state[0].shape[2])),
            TokenGrid("search", (search.shape[2] // PATCH, search.shape[3] // PATCH)),
        )
        lengths = [len(grid) for grid in grids]
        return [
            AttentionMap(name, grid, grids, rows)
            for name, weights in calls
            for grid, rows in zip(grids, weights.split(lengths, dim=2))
        ]

    def prune_intermediate_layers(self, indices: Sequence[int]) -> None:
        """Removes nothing: the last stage is needed in any case.

        Raises:
            ValueError: Stages that do not depend on the template.
        """
        if max(indices) < 2:
            raise ValueError(
                f"out_indices={tuple(indices)}: only features of level 2, the last, depend on the template."
            )

    def positions(self, templates: int, template_grid: Grid, search_grid: Grid) -> Tensor:
        """The positional embedding of all tokens of a pair; see the note of the class.

        Args:
            templates: Number of templates.
            template_grid: Height and width of a template in tokens.
            search_grid: Height and width of the search image in tokens.

        Returns:
            (1, N, C): the rows of the templates, then those of the search image.
        """
        table: Tensor = self.pos_embed
        grids = template_grid, search_grid
        if grids != self.grids:
            parts = table.split([h * w for h, w in self.grids], dim=1)
            table = torch.cat([_resize(*part) for part in zip(parts, self.grids, grids)], dim=1)
        if templates > 1:
            count = templates * template_grid[0] * template_grid[1] + search_grid[0] * search_grid[1]
            table = F.interpolate(table.float().mT, size=count, mode="linear").mT.to(table.dtype)
        return table

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass."""
        for stage in self.stages:
            cast(LocalStage | JointStage, stage).grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return {"pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay, in timm's format.

        Args:
            coarse: A group per stage instead of one per block. A merge belongs to the stage before it, and
                the last norm to the last block.
        """
        stem = r"^patch_embed|^pos_embed"
        if coarse:
            return {"stem": stem, "blocks": [(r"^(?:stages|merges)\.(\d+)", None), (r"^norm", (99999,))]}
        return {
            "stem": stem,
            "blocks": [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^merges\.(\d+)", (99999,)),  # timm's sign for "the group before"
                (r"^norm", (99999,)),
            ],
        }

    def _tokens(self, image: Tensor, name: str) -> list[Tensor]:
        """(B, 3, H, W) -> features after stages 1 and 2, and the tokens that enter stage 3, (B, C, h, w)."""
        check_image(image, name, self.in_chans, multiple=PATCH)
        maps, features = [], self.patch_embed(image)
        for stage, merge in zip(self.stages, self.merges):
            features = stage(features)
            maps.append(features)
            features = merge(features)
        return [*maps, features]

    def _checked_state(self, template: Tensor | TemplateState) -> TemplateState:
        state = self.state_of(template)
        if any(m.ndim != 4 or m.shape[1:] != (*state[0].shape[1:3], self.num_features) for m in state):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in state)
            raise ValueError(
                f"The template state has tensors of shape {shapes}; this network needs (B, H, W, "
                f"{self.num_features}) of every template: it comes from another network. Call "
                "encode_template of this one."
            )
        return state

    def _join(self, state: TemplateState, search: Tensor) -> Tensor:
        """Maps of the templates and (B, C, h, w) of the search image -> tokens with positions (B, N, C)."""
        batch = common_batch(state, search)
        grids: list[Grid] = [(state[0].shape[1], state[0].shape[2]), (search.shape[2], search.shape[3])]
        maps = [features.flatten(1, 2) for features in (*state, search.permute(0, 2, 3, 1))]
        tokens = torch.cat([m if m.shape[0] == batch else m.expand(batch, -1, -1) for m in maps], dim=1)
        return tokens + self.positions(len(state), *grids)


def _resize(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resizes a table of positions (1, h * w, C) to another grid."""
    if old == new:
        return table
    image = table.float().mT.unflatten(2, old)
    resized = F.interpolate(image, new, mode="bicubic", align_corners=True)
    return resized.flatten(2).mT.to(table.dtype)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _is_supersbt(names: Iterable[str]) -> bool:
    known = {name.removeprefix("backbone.") for name in names}
    return "absolute_pos_embed" in known and any(name.endswith(".reduction.weight") for name in known)


@register_checkpoint_format("supersbt", matches=_is_supersbt)
def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the authors' trackers (`backbone.*`, `box_head.*`) and pretrained HiViT networks.

    Of a masked autoencoder the encoder is taken. Its one square table of positions becomes that of a template
    of 8 x 8 tokens and of a search image of 16 x 16, resized as the authors do it. Its last norm, where it
    has more channels since it was on features of all stages, is cut to the first ones, as the authors do it.

    Args:
        state_dict: Tensors by the original names.

    Returns:
        Tensors by the names of this file.

    Raises:
        ValueError: A table of positions that is not square, in a file that is not a tracker.
    """
    tracker = any(name.startswith("backbone.") for name in state_dict)
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state_dict.items()
        if not name.startswith(("box_head.", "decoder_", "mask_token"))
    }
    merges = sorted(int(name.split(".")[1]) for name in backbone if name.endswith(".reduction.weight"))
    if not tracker:
        table = backbone["absolute_pos_embed"]
        backbone["absolute_pos_embed"] = _pair_table(table)
        for name in {"norm.weight", "norm.bias"} & backbone.keys():
            backbone[name] = backbone[name][: table.shape[2]]
    prefix = "backbone." if tracker else ""
    converted = {f"{prefix}{_rename(name, merges)}": tensor for name, tensor in backbone.items()}
    for name, tensor in state_dict.items():
        if name.startswith("box_head."):
            converted[_rename_head(name)] = tensor
    return converted


def _rename(name: str, merges: Sequence[int]) -> str:
    """`blocks.12.attn...` -> `stages.2.blocks.2.attn...`: the authors' blocks and merges are one list."""
    if name == "absolute_pos_embed":
        return "pos_embed"
    if not name.startswith("blocks."):
        return name
    _, number, rest = name.split(".", 2)
    index = int(number)
    stage = sum(merge < index for merge in merges)
    if index in merges:
        return f"merges.{stage}.{rest}"
    first = merges[stage - 1] + 1 if stage else 0
    if stage < len(merges):
        rest = rest.replace("norm2.", "norm.")
    return f"stages.{stage}.blocks.{index - first}.{rest}"


def _rename_head(name: str) -> str:
    """`box_head.conv1_ctr.0...` -> `head.score.0.0...`."""
    _, layer, rest = name.split(".", 2)
    number, branch = layer.removeprefix("conv").split("_")
    return f"head.{'score' if branch == 'ctr' else branch}.{int(number) - 1}.{rest}"


def _pair_table(table: Tensor) -> Tensor:
    """(1, side * side, C) of one image -> (1, 8 * 8 + 16 * 16, C) of a template and a search image."""
    side = round(table.shape[1] ** 0.5)
    if side * side != table.shape[1]:
        raise ValueError(
            f"absolute_pos_embed has {table.shape[1]} positions, which is no square; a pretrained network "
            "has one square table. Of a tracker, convert the complete file (backbone.*, box_head.*)."
        )
    return torch.cat([_resize(table, (side, side), (new, new)) for new in (8, 16)], dim=1)


def _features(arguments: Mapping[str, Any], **own: Any) -> SuperSBT:
    """The network of a name, with the arguments of `create_model` in place of its own."""
    known = [*SuperSBT.__init__.__annotations__, *(field.name for field in fields(Sizes))]
    known = [name for name in known if name not in ("sizes", "return")]
    for name in set(arguments) - set(known):
        raise TypeError(f"Unknown argument {name!r}. Near: {', '.join(near_names(name, known))}.")
    chosen = {**own, **arguments}
    sizes = {field.name: chosen.pop(field.name) for field in fields(Sizes) if field.name in chosen}
    return SuperSBT(**chosen, sizes=Sizes(**sizes))


def _tracker(arguments: Mapping[str, Any], **own: Any) -> TrackModel:
    rest = dict(arguments)
    head = rest.pop("head", "center")
    return TrackModel.build(_features(rest, **own), head)


LIGHT, SMALL, BASE = ({"depths": (4, 4, depth)} for depth in (6, 10, 20))
BASE_2TEMP = {**BASE, "templates": 2}
TEST = {  # tiny, for tests
    "depths": (1, 2, 2),
    "dim": 32,
    "heads": 2,
    "template_grid": 4,
    "search_grid": 8,
    "template_size": 64,
    "search_size": 128,
}


@register_model
def supersbt_light(**kwargs: Any) -> SuperSBT:
    """SuperSBT-light: 6 joint blocks."""
    return _features(kwargs, **LIGHT)


@register_model
def supersbt_light_track(**kwargs: Any) -> TrackModel:
    """`supersbt_light` with the authors' center head."""
    return _tracker(kwargs, **LIGHT)


@register_model
def supersbt_small(**kwargs: Any) -> SuperSBT:
    """SuperSBT-small: 10 joint blocks."""
    return _features(kwargs, **SMALL)


@register_model
def supersbt_small_track(**kwargs: Any) -> TrackModel:
    """`supersbt_small` with the authors' center head."""
    return _tracker(kwargs, **SMALL)


@register_model
def supersbt_base(**kwargs: Any) -> SuperSBT:
    """SuperSBT-base: 20 joint blocks."""
    return _features(kwargs, **BASE)


@register_model
def supersbt_base_track(**kwargs: Any) -> TrackModel:
    """`supersbt_base` with the authors' center head."""
    return _tracker(kwargs, **BASE)


@register_model
def supersbt_base_2temp(**kwargs: Any) -> SuperSBT:
    """`supersbt_base` with two templates, of which the tracker may replace the second."""
    return _features(kwargs, **BASE_2TEMP)


@register_model
def supersbt_base_2temp_track(**kwargs: Any) -> TrackModel:
    """`supersbt_base_2temp` with the authors' center head."""
    return _tracker(kwargs, **BASE_2TEMP)


@register_model
def supersbt_test(**kwargs: Any) -> SuperSBT:
    """A tiny network for tests."""
    return _features(kwargs, **TEST)


@register_model
def supersbt_test_track(**kwargs: Any) -> TrackModel:
    """`supersbt_test` with the authors' center head."""
    return _tracker(kwargs, **TEST)
