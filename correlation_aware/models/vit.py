"""One-stream ViT: template and search tokens go through the blocks of a plain Vision Transformer together.

Paper: `Joint Feature Learning and Relation Modeling for Tracking: A One-Stream Framework` (OSTrack; Ye et
al., ECCV 2022) - https://arxiv.org/abs/2203.11991. The variant whose template attends to itself alone is that
of `MixFormer: End-to-End Tracking with Iterative Mixed Attention` (Cui et al., CVPR 2022) -
https://arxiv.org/abs/2203.11082.

Written for this package and checked, number by number, against the outputs of the authors' released code
(https://github.com/botaoye/OSTrack, MIT) and of timm's `vision_transformer` (Apache-2.0), whose parameter
names the blocks have. Licensed under Apache-2.0.

Both images are cut into patches of 16 px, and each has a position table of its own. There is no class token.
With candidate elimination some blocks keep, between their attention and their MLP, only the search tokens
that the template attends to most; the features of the others are 0 in the output. `DropPath` is timm's.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, resample_patch_embed
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
from correlation_aware.models.registry import (
    refuse_arguments,
    register_checkpoint_format,
    register_model,
    take_fields,
)
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import apply_linear

__all__ = ["OneStreamViT", "ViTConfig"]

PATCH = 16  # side of a patch in pixels, and the stride of the features
Grid = tuple[int, int]  # height and width of an image in tokens


@dataclass(frozen=True)
class ViTConfig:
    """Every choice of the family.

    Attributes:
        dim: Channels.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over `dim`.
        template_attends: `both`: template tokens attend to both images in every block, as in OSTrack. `self`:
            to the template alone, so that its keys and values in all blocks are the cached state.
        elimination_blocks: 0-indexed blocks with candidate elimination.
        keep_ratio: Fraction of the search tokens that each of these blocks keeps, rounded up.
        elimination_query: Template tokens whose attention decides: the one in the `center` (of an even number
            of rows the upper one, of columns the left one), or the mean of `all`.
        pre_norm: LayerNorm before the first block, as in CLIP.
        drop_path_rate: Stochastic depth of the last block; earlier blocks grow linearly from 0.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    template_attends: Literal["both", "self"] = "both"
    elimination_blocks: tuple[int, ...] = ()
    keep_ratio: float = 0.7
    elimination_query: Literal["center", "all"] = "center"
    pre_norm: bool = False
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} must be divisible by heads={self.heads}.")
        for name, options in (
            ("template_attends", ("both", "self")),
            ("elimination_query", ("center", "all")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(options)}.")
        if any(not 0 <= block < self.depth for block in self.elimination_blocks):
            raise ValueError(
                f"elimination_blocks={self.elimination_blocks} must be in 0..{self.depth - 1}, the blocks."
            )
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio={self.keep_ratio} must be above 0 and at most 1.")
        if self.template_attends == "self" and self.elimination_blocks:
            raise ValueError(
                "template_attends='self' has no candidate elimination, which needs the template's attention "
                f"to the search image: leave it out, or set elimination_blocks=() (now "
                f"{self.elimination_blocks})."
            )


class PatchEmbed(nn.Module):
    """A linear layer on patches of 16 px, as a convolution: (B, 3, H, W) -> (B, H / 16, W / 16, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).permute(0, 2, 3, 1).contiguous()


class Attention(nn.Module):
    """Multi-head attention between all tokens, and to the cached keys and values of a template."""

    def __init__(self, dim: int, heads: int, elimination_query: str) -> None:
        super().__init__()
        self.heads = heads
        self.elimination_query = elimination_query
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Tensor,
        template: Grid = (0, 0),
        memory: Tensor | None = None,
        keep_ratio: float = 1.0,
        search_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """See `Block.forward`; returns what the attention adds to the tokens, before elimination."""
        count = template[0] * template[1]
        qkv = apply_linear(self.qkv, tokens).unflatten(2, (3, self.heads, -1))  # B, N, 3, heads, d
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, heads, N, d
        kept = None
        search_len = tokens.shape[1] - count
        keep = math.ceil(keep_ratio * search_len)
        if keep < search_len:
            kept = self.search_attention(q, k, template).topk(keep, dim=1).indices
        if search_only:
            q = q[:, :, count:]
        keys, values = k, v
        if memory is not None:
            keys, values = (torch.cat([m, own], dim=2) for m, own in zip(memory.unbind(1), (k, v)))
        mixed = F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)
        return apply_linear(self.proj, mixed), (k, v), kept

    def weights(self, tokens: Tensor, memory: Tensor | None) -> Tensor:
        """Attention weights of `forward`: (B, heads, N, M + N), with a memory of M tokens, else M = 0."""
        qkv = apply_linear(self.qkv, tokens).unflatten(2, (3, self.heads, -1))
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return softmax_weights(q, k if memory is None else torch.cat([memory[:, 0], k], dim=2))

    def search_attention(self, q: Tensor, k: Tensor, template: Grid) -> Tensor:
        """How much the template attends to each search token: (B, heads, N, d) twice -> (B, N_search)."""
        height, width = template
        first, last = 0, height * width
        if self.elimination_query == "center":
            first = (height - 1) // 2 * width + (width - 1) // 2
            last = first + 1
        logits = (q[:, :, first:last] * q.shape[-1] ** -0.5) @ k.mT  # B, heads, queries, N
        # in float32, since in bfloat16 many tokens would share a value
        return logits.float().softmax(dim=-1)[..., height * width :].mean(dim=2).mean(dim=1)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return apply_linear(self.fc2, F.gelu(apply_linear(self.fc1, tokens)))


class Block(nn.Module):
    """Attention and MLP, each on normalized tokens and added to them; candidates are eliminated in between.

    Args:
        cfg: The variant.
        drop_path: Probability that what is added is dropped in training.
    """

    def __init__(self, cfg: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.attn = Attention(cfg.dim, cfg.heads, cfg.elimination_query)
        self.norm2 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.mlp = Mlp(cfg.dim, int(cfg.dim * cfg.mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        tokens: Tensor,
        template: Grid = (0, 0),
        memory: Tensor | None = None,
        keep_ratio: float = 1.0,
        search_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Maps tokens to tokens.

        Args:
            tokens: (B, N, C), those of the template first.
            template: Height and width of the template's tokens; (0, 0) if all tokens are of one image.
            memory: (B, 2, heads, M, d), keys and values of a template whose tokens are not among `tokens`.
            keep_ratio: Fraction of the search tokens to keep.
            search_only: Leave out the template's tokens.

        Returns:
            Tokens; keys and values of `tokens`, (B, heads, N, d) each; and (B, K), which search tokens were
            kept, in the order of falling attention, which the tokens have then. None if all were.
        """
        attended, keys_values, kept = self.attn(self.norm1(tokens), template, memory, keep_ratio, search_only)
        count = template[0] * template[1]
        if search_only:
            tokens, count = tokens[:, count:], 0
        tokens = tokens + self.drop_path(attended)
        if kept is not None:
            search = tokens[:, count:].gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([tokens[:, :count], search], dim=1) if count else search
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens, keys_values, kept

    def attention_weights(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """Attention weights of `forward` with the same arguments, see `Attention.weights`."""
        return self.attn.weights(self.norm1(tokens), memory)


class OneStreamViT(TwoInputModel):
    """Two-input feature network: the search tokens of a ViT that the template's tokens went through with.

    The levels of features are the blocks, all of stride 16. Position tables are resized, bicubic, for images
    of other sizes than `sizes`, and for checkpoints of other sizes.

    Args:
        cfg: The variant.
        in_chans: Channels of both images.
        sizes: Image sizes, multiples of 16 px, and crop factors.

    Attributes:
        keep_ratio: See `ViTConfig`; it may be changed at any time, for example by a schedule in training. At
            1 nothing is eliminated.

    Raises:
        ValueError: An image size that is not a multiple of 16.

    Examples:
        >>> x = net(template, search)  # (B, 3, 128, 128), (B, 3, 256, 256) -> (B, 768, 16, 16)
        >>> state = net.encode_template(template)  # once per target
        >>> x = net(state, search)  # once per frame, same numbers
    """

    def __init__(self, cfg: ViTConfig, in_chans: int = 3, sizes: Sizes | None = None) -> None:
        levels = [{"num_chs": cfg.dim, "reduction": PATCH, "module": f"blocks.{i}"} for i in range(cfg.depth)]
        super().__init__(levels, in_chans, sizes)
        for name in ("template_size", "search_size"):
            if getattr(self.sizes, name) % PATCH:
                raise ValueError(f"{name}={getattr(self.sizes, name)} must be a multiple of {PATCH} px.")
        self.config = cfg
        self.keep_ratio = cfg.keep_ratio
        self.grad_checkpointing = False
        z_side, x_side = self.sizes.template_size // PATCH, self.sizes.search_size // PATCH
        self.patch_embed = PatchEmbed(in_chans, cfg.dim)
        self.template_pos_embed = nn.Parameter(torch.zeros(1, cfg.dim, z_side, z_side))
        self.search_pos_embed = nn.Parameter(torch.zeros(1, cfg.dim, x_side, x_side))
        self.norm_pre = nn.LayerNorm(cfg.dim, eps=1e-6) if cfg.pre_norm else nn.Identity()
        rates = torch.linspace(0, cfg.drop_path_rate, cfg.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(cfg, rate) for rate in rates)
        self.norm: nn.Module = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.apply(_init_weights)
        for table in (self.template_pos_embed, self.search_pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image.

        Args:
            template: (B, 3, Hz, Wz), sides multiples of 16 px.

        Returns:
            With `template_attends="both"` the embedded tokens, (B, Hz / 16, Wz / 16, C). With `"self"` keys
            and values in all blocks, (B, depth, 2, heads, N, d), and the features, (B, Hz / 16, Wz / 16, C).
        """
        embedded = self._embed(template, self.template_pos_embed, "template")
        if self.config.template_attends == "both":
            return make_state([embedded])
        tokens, memory = embedded.flatten(1, 2), []
        for block in self.blocks:
            tokens, keys_values, _ = self._run(block, tokens)
            memory.append(torch.stack(keys_values, dim=1))
        return make_state([torch.stack(memory, dim=1), self.norm(tokens).reshape(embedded.shape)])

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """Search features that depend on the template: (B, C, Hx / 16, Wx / 16), contiguous.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, or the state that `encode_template` returned. Its batch
                may be 1 where the search batch is N (one target, N images), and the other way round.
            search: (B, 3, Hx, Wx) normalized RGB.

        Raises:
            ValueError: Wrong number of channels, a side that is not a multiple of 16 px, batches that do not
                fit, a state of another network.
        """
        return self._forward_pair(self.state_of(template), search)[0][-1]

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both images: (B, C, Hz / 16, Wz / 16), (B, C, Hx / 16, Wx / 16), contiguous."""
        state = self.state_of(template)
        (search_features,), tokens, _ = self._forward_pair(state, search, search_only=False)
        grid = state[-1].shape[1:3]
        batch = search_features.shape[0]
        if self.config.template_attends == "both":
            tokens = self.norm(tokens[:, : grid[0] * grid[1]])
        else:
            tokens = state[1].flatten(1, 2).expand(batch, -1, -1)
        return _as_map(tokens, grid), search_features

    def forward_intermediates(
        self, template: Tensor | TemplateState, search: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Search features after the blocks `indices`, all by default: (B, C, Hx / 16, Wx / 16) each.

        The last block's features are normalized, those of the others are not, as in timm.

        Raises:
            ValueError: A block that does not exist.
        """
        chosen = choose_levels(indices, len(self.blocks), "indices")
        order = sorted(set(chosen))
        maps = dict(zip(order, self._forward_pair(self.state_of(template), search, order)[0]))
        return [maps[i] for i in chosen]

    def kept_locations(self, template: Tensor | TemplateState, search: Tensor) -> list[Tensor]:
        """Which locations each candidate elimination keeps, for a look at what it does.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, or its state.
            search: (B, 3, Hx, Wx) normalized RGB.

        Returns:
            For every elimination (B, K) positions, row * width + column, in the order of falling attention.
        """
        return self._forward_pair(self.state_of(template), search)[2]

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`."""
        calls: list[tuple[str, Tensor, bool, Tensor | None]] = []
        positions: Tensor | None = None  # (B, K) of the search tokens that are left

        def record(name: str, block: Block, arguments: tuple[Any, ...], output: Any) -> None:
            nonlocal positions
            tokens, _, memory, *_ = (*arguments, None, None)
            calls.append((name, block.attention_weights(tokens, memory), memory is not None, positions))
            if output[2] is not None:
                positions = output[2] if positions is None else positions.gather(1, output[2])

        with watch_calls(self, Block, record):
            state = self.state_of(template)
            self.forward_features(state, search)
        z = TokenGrid("template", (state[-1].shape[1], state[-1].shape[2]))
        x = TokenGrid("search", (search.shape[2] // PATCH, search.shape[3] // PATCH))
        maps: list[AttentionMap] = []
        for name, weights, has_memory, kept in calls:
            if kept is not None:
                for dim in (2, 3):
                    weights = _spread(weights, kept, len(z), len(x), dim)
            queries, keys = ((z, x), (z, x)) if self.config.template_attends == "both" else ((z,), (z,))
            if has_memory:
                queries, keys = (x,), (z, x)
            rows = weights.split([len(grid) for grid in queries], dim=2)
            maps += [AttentionMap(name, grid, keys, part) for grid, part in zip(queries, rows)]
        return sorted(maps, key=lambda m: int(m.block.rpartition(".")[2]))

    def prune_intermediate_layers(self, indices: Sequence[int]) -> None:
        """Removes the blocks after the last of `indices`, and the final norm with the last block."""
        last = max(indices)
        if last < len(self.blocks) - 1:
            self.blocks, self.norm = self.blocks[: last + 1], nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass."""
        self.grad_checkpointing = enable

    def extra_repr(self) -> str:
        return f"keep_ratio={self.keep_ratio}, {self.config}"  # what exported files are cached by

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return {"template_pos_embed", "search_pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay, in timm's format: one for every block.

        Args:
            coarse: No difference: the blocks are all of one stage, as in timm.
        """
        return {
            "stem": r"^(?:patch_embed|norm_pre|template_pos_embed|search_pos_embed)",
            "blocks": [
                (r"^blocks\.(\d+)", None),
                (r"^norm\.", (99999,)),
            ],  # timm's sign for "the group before"
        }

    def fit_checkpoint(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resizes the position tables of a checkpoint, bicubic, to those of the network.

        Raises:
            ValueError: The checkpoint has a norm before the first block and the network has none, or the
                other way round.
        """
        has_norm = any(name.startswith("norm_pre.") for name in state_dict)
        if "blocks.0.norm1.weight" in state_dict and has_norm != self.config.pre_norm:
            raise ValueError(
                f"The checkpoint has {'a' if has_norm else 'no'} norm before the first block (norm_pre): "
                f"create the network with pre_norm={has_norm}."
            )
        fitted = dict(state_dict)
        for name in ("template_pos_embed", "search_pos_embed"):
            size = getattr(self, name).shape[2:]
            if name in fitted and fitted[name].ndim == 4 and fitted[name].shape[2:] != size:
                fitted[name] = _resize(fitted[name], size)
        return fitted

    def _embed(self, image: Tensor, table: Tensor, name: str) -> Tensor:
        """(B, 3, H, W) -> (B, H / 16, W / 16, C), with positions."""
        check_image(image, name, self.in_chans, multiple=PATCH)
        tokens = self.patch_embed(image)
        tokens = tokens + _resize(table, tokens.shape[1:3]).permute(0, 2, 3, 1)
        return cast(Tensor, self.norm_pre(tokens))

    def _run(self, block: nn.Module, *arguments: Any) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        if self.grad_checkpointing and self.training:
            output: Any = checkpoint(block, *arguments, use_reentrant=False)
        else:
            output = block(*arguments)
        return cast(tuple[Tensor, tuple[Tensor, Tensor], Tensor | None], output)

    def _forward_pair(
        self,
        state: TemplateState,
        search: Tensor,
        indices: Collection[int] | None = None,
        search_only: bool = True,
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Runs the search image with a template.

        Args:
            state: State of the template.
            search: (B, 3, Hx, Wx).
            indices: Blocks whose search features are returned, in rising order; the last one by default.
            search_only: Leave out what only the template's features need.

        Returns:
            Maps (B, C, Hx / 16, Wx / 16), the tokens after the last of these blocks, and the positions that
            each elimination kept.
        """
        embedded = self._embed(search, self.search_pos_embed, "search")
        self._check_state(state)
        batch = common_batch(state, search)
        grid, joint = embedded.shape[1:3], self.config.template_attends == "both"
        tokens = embedded.flatten(1, 2).expand(batch, -1, -1)
        template: Grid = (0, 0)
        memory: Sequence[Tensor | None] = [None] * len(self.blocks)
        if joint:
            template = (state[0].shape[1], state[0].shape[2])
            tokens = torch.cat([state[0].flatten(1, 2).expand(batch, -1, -1), tokens], dim=1)
        else:
            memory = state[0].expand(batch, *state[0].shape[1:]).unbind(1)
        last = len(self.blocks) - 1
        chosen = (last,) if indices is None else indices
        maps: list[Tensor] = []
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks[: max(chosen) + 1]):
            keep_ratio = self.keep_ratio if i in self.config.elimination_blocks else 1.0
            drop = joint and search_only and i == max(chosen)
            tokens, _, order = self._run(block, tokens, template, memory[i], keep_ratio, drop)
            if order is not None:
                kept.append(kept[-1].gather(1, order) if kept else order)
            if i in chosen:
                features = tokens if drop else tokens[:, template[0] * template[1] :]
                features = self.norm(features) if i == last else features
                maps.append(_as_map(_put_back(features, kept[-1], grid) if kept else features, grid))
        return maps, tokens, kept

    def _check_state(self, state: TemplateState) -> None:
        shapes = [tuple(tensor.shape) for tensor in state]
        c = self.config
        if c.template_attends == "both":
            fits = len(state) == 1 and state[0].ndim == 4 and state[0].shape[3] == c.dim
            expected = f"one of (B, H, W, {c.dim})"
        else:
            head = (len(self.blocks), 2, c.heads), c.dim // c.heads
            fits = len(state) == 2 and state[0].ndim == 6
            fits = fits and (shapes[0][1:4], shapes[0][5]) == head
            expected = f"(B, {len(self.blocks)}, 2, {c.heads}, N, {head[1]}) and (B, H, W, {c.dim})"
        if not fits:
            raise ValueError(
                f"The template state has tensors of shape {', '.join(map(str, shapes))}; this network needs "
                f"{expected}: it comes from another network. Call encode_template of this one."
            )


def _init_weights(module: nn.Module) -> None:
    """Initialization of timm's ViT; convolutions keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _resize(table: Tensor, size: Sequence[int]) -> Tensor:
    """A position table (1, C, H, W) at another height and width, as OSTrack resizes them."""
    if tuple(table.shape[2:]) == tuple(size):
        return table
    return F.interpolate(table, tuple(size), mode="bicubic", align_corners=False)


def _put_back(tokens: Tensor, positions: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, K, C) tokens at their positions (B, K) among H * W, zeros elsewhere."""
    zeros = tokens.new_zeros(tokens.shape[0], grid[0] * grid[1], tokens.shape[2])
    return zeros.scatter(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]), tokens)


def _spread(weights: Tensor, positions: Tensor, first: int, count: int, dim: int) -> Tensor:
    """Puts the rows or columns of search tokens, which follow `first` others, at their positions.

    Args:
        weights: (B, heads, first + K, first + K); one of the two may be first + count already.
        positions: (B, K).
        first: Number of template tokens.
        count: Number of search tokens of the whole image.
        dim: 2 for rows, 3 for columns.

    Returns:
        The weights, with first + count along `dim` and 0 where there is no token.
    """
    start, rest = weights.split([first, positions.shape[1]], dim)
    index = positions[:, None, :, None] if dim == 2 else positions[:, None, None, :]
    shape = (*rest.shape[:dim], count, *rest.shape[dim + 1 :])
    return torch.cat([start, rest.new_zeros(shape).scatter(dim, index.expand_as(rest), rest)], dim)


def _as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W), contiguous."""
    return tokens.mT.unflatten(2, (grid[0], grid[1])).contiguous()


# checkpoints of others


def _is_ostrack(names: Iterable[str]) -> bool:
    return {"backbone.pos_embed_z", "backbone.pos_embed_x"} <= set(names)


@register_checkpoint_format("ostrack", matches=_is_ostrack)
def convert_ostrack(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames and reshapes the trackers of OSTrack's code (`backbone.*`, `box_head.*`), of either head.

    Args:
        state_dict: Tensors by the original names.

    Returns:
        Tensors by the names of this file. `pos_embed` and `cls_token` are left out, which the forward pass of
        the authors never uses, and segment embeddings are added to the position tables.

    Raises:
        ValueError: A class token in the sequence, norms after inner blocks, or a table that is not square.
    """
    extra = [n for n in state_dict if re.match(r"backbone\.(cls_pos_embed|norm\d+\.)", n)]
    if extra:
        raise ValueError(
            f"{', '.join(extra[:3])}: a class token in the sequence (ADD_CLS_TOKEN) and features of inner "
            "blocks (RETURN_INTER) are not supported."
        )
    converted = {}
    for name, tensor in state_dict.items():
        if name in ("backbone.pos_embed", "backbone.cls_token") or "segment_pos_embed" in name:
            continue
        if match := re.fullmatch(r"backbone\.pos_embed_([zx])", name):
            stream = {"z": "template", "x": "search"}[match[1]]
            segment = state_dict.get(f"backbone.{stream}_segment_pos_embed")
            table = tensor if segment is None else tensor + segment
            converted[f"backbone.{stream}_pos_embed"] = _square(table, name)
        elif match := re.fullmatch(r"box_head\.conv(\d)_(ctr|offset|size|tl|br)\.(.+)", name):
            branch = {"ctr": "score", "tl": "top_left", "br": "bottom_right"}.get(match[2], match[2])
            converted[f"head.{branch}.{int(match[1]) - 1}.{match[3]}"] = tensor
        else:
            converted[name] = tensor
    return converted


# what a ViT of timm may have and this one has not: pattern of the names, and the reason
_REFUSED = (
    (r"\.(q_norm|k_norm)\.", "it normalizes queries and keys"),
    (r"(^|\.)(rope|rel_pos|relative_position)", "its positions are relative or rotary"),
    (r"\.mlp\.(w1|w2|w3|w12|fc1_g|fc1_x|norm)\.", "its MLP is gated, or has a norm"),
    (r"\.attn\.(norm|q_proj|k_proj|v_proj|q_bias|v_bias|gate|sink)", "its attention has other layers"),
)
_BLOCK = r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
_OWN = rf"{_BLOCK}|patch_embed\.proj\.(weight|bias)|norm_pre\.(weight|bias)|norm\.(weight|bias)"
_HEADS = r"(head|head_dist|fc_norm|attn_pool|pre_logits)(\.|$)"  # after the last block
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


def _is_timm_vit(names: Iterable[str]) -> bool:
    known = set(names)
    others = {"absolute_pos_embed", "template_pos_embed", "search_pos_embed"}
    return "patch_embed.proj.weight" in known and "blocks.0.attn.proj.weight" in known and not known & others


@register_checkpoint_format("vit", matches=_is_timm_vit)
def convert_timm_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fits a plain ViT in timm's naming, of any patch size, to this file's names and patches of 16 px.

    Layer scale is multiplied into the layers before it. Patches of another size are resampled as timm does.
    Both position tables start as the one of the checkpoint, without the rows of its class and register
    tokens; they have its size, see `OneStreamViT.fit_checkpoint`. Class and register tokens and everything
    after the blocks are left out, as in OSTrack.

    Args:
        state_dict: Tensors by timm's names.

    Raises:
        ValueError: A ViT with layers that this one does not have; the message names them.
    """
    for pattern, reason in _REFUSED:
        matching = [name for name in state_dict if re.search(pattern, name)]
        if matching:
            raise ValueError(f"This ViT does not fit: {reason} ({matching[0]}).")
    if "pos_embed" not in state_dict:
        raise ValueError("This ViT does not fit: it has no position table (pos_embed).")
    converted = {name: tensor for name, tensor in state_dict.items() if re.fullmatch(_OWN, name)}
    rest = [
        name
        for name in state_dict
        if name not in converted
        and not re.match(_HEADS, name)
        and not re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)
        and name not in ("pos_embed", "mask_token", *_PREFIX_TOKENS)
    ]
    if rest:
        raise ValueError(
            f"This ViT does not fit: it has layers that are not known here ({', '.join(rest[:3])})."
        )
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            layer = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            converted[f"{layer}.weight"] = converted[f"{layer}.weight"] * tensor[:, None]
            converted[f"{layer}.bias"] = converted[f"{layer}.bias"] * tensor
    if "norm.weight" not in converted and "fc_norm.weight" in state_dict:  # pooled before the norm
        for kind in ("weight", "bias"):
            converted[f"norm.{kind}"] = state_dict[f"fc_norm.{kind}"]
    kernel = converted["patch_embed.proj.weight"]
    if kernel.ndim != 4:
        raise ValueError("This ViT does not fit: its patch embedding is not a convolution.")
    if tuple(kernel.shape[2:]) != (PATCH, PATCH):
        converted["patch_embed.proj.weight"] = resample_patch_embed(kernel, [PATCH, PATCH])
    converted.setdefault("patch_embed.proj.bias", kernel.new_zeros(kernel.shape[0]))
    for name, tensor in list(converted.items()):
        if name.endswith(".attn.qkv.weight"):
            converted.setdefault(name.replace("weight", "bias"), tensor.new_zeros(tensor.shape[0]))
        if (
            name.endswith(".mlp.fc1.weight")
            and tensor.shape != converted[name.replace("fc1", "fc2")].mT.shape
        ):
            raise ValueError(f"This ViT does not fit: its MLP is gated ({name}).")
    table = _square(_without_prefix(state_dict), "pos_embed")
    return {**converted, "template_pos_embed": table, "search_pos_embed": table.clone()}


def _without_prefix(state_dict: Mapping[str, Tensor]) -> Tensor:
    """The rows of `pos_embed` that belong to patches."""
    table = state_dict["pos_embed"]
    if table.ndim != 3:
        raise ValueError(f"This ViT does not fit: its position table has shape {tuple(table.shape)}.")
    prefix = sum(state_dict[name].shape[1] for name in _PREFIX_TOKENS if name in state_dict)
    # some tables have no rows for these tokens
    return table if math.isqrt(table.shape[1]) ** 2 == table.shape[1] else table[:, prefix:]


def _square(table: Tensor, name: str) -> Tensor:
    """(1, H * W, C) of a square grid -> (1, C, H, W)."""
    side = math.isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(f"{name} has {table.shape[1]} positions, which are no square.")
    return table.mT.unflatten(2, (side, side)).contiguous()


TINY = ViTConfig(192, heads=3)
SMALL = ViTConfig(384, heads=6)
BASE = ViTConfig()
TEST = ViTConfig(48, depth=4, heads=3)  # for tests
ELIMINATION = (3, 6, 9)  # OSTrack's blocks with candidate elimination
SIZES_384 = {"template_size": 192, "search_size": 384, "search_factor": 5.0}
SIZES_TEST = {"template_size": 64, "search_size": 128}


def _features(config: ViTConfig, arguments: Mapping[str, Any], **sizes: Any) -> OneStreamViT:
    rest, config = take_fields({**sizes, **arguments}, config)
    rest, image_sizes = take_fields(rest, Sizes())
    in_chans = rest.pop("in_chans", 3)
    refuse_arguments(rest, ["in_chans", *(f.name for kind in (ViTConfig, Sizes) for f in fields(kind))])
    return OneStreamViT(config, in_chans, image_sizes)


def _tracker(config: ViTConfig, arguments: Mapping[str, Any], **sizes: Any) -> TrackModel:
    rest = {name: value for name, value in arguments.items() if name != "head"}
    return TrackModel.build(_features(config, rest, **sizes), arguments.get("head", "center"))


def _ce(config: ViTConfig, blocks: tuple[int, ...] = ELIMINATION) -> ViTConfig:
    return replace(config, elimination_blocks=blocks)


@register_model
def onestream_vit_tiny_256(**kwargs: Any) -> OneStreamViT:
    """ViT-Tiny/16 for images of 128 and 256 px."""
    return _features(TINY, kwargs)


@register_model
def onestream_vit_tiny_256_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_tiny_256` with OSTrack's center head."""
    return _tracker(TINY, kwargs)


@register_model
def onestream_vit_tiny_256_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Tiny/16 for images of 128 and 256 px, with candidate elimination."""
    return _features(_ce(TINY), kwargs)


@register_model
def onestream_vit_tiny_256_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_tiny_256_ce` with OSTrack's center head."""
    return _tracker(_ce(TINY), kwargs)


@register_model
def onestream_vit_tiny_384_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Tiny/16 for images of 192 and 384 px, with candidate elimination."""
    return _features(_ce(TINY), kwargs, **SIZES_384)


@register_model
def onestream_vit_tiny_384_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_tiny_384_ce` with OSTrack's center head."""
    return _tracker(_ce(TINY), kwargs, **SIZES_384)


@register_model
def onestream_vit_small_256(**kwargs: Any) -> OneStreamViT:
    """ViT-Small/16 for images of 128 and 256 px."""
    return _features(SMALL, kwargs)


@register_model
def onestream_vit_small_256_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_small_256` with OSTrack's center head."""
    return _tracker(SMALL, kwargs)


@register_model
def onestream_vit_small_256_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Small/16 for images of 128 and 256 px, with candidate elimination."""
    return _features(_ce(SMALL), kwargs)


@register_model
def onestream_vit_small_256_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_small_256_ce` with OSTrack's center head."""
    return _tracker(_ce(SMALL), kwargs)


@register_model
def onestream_vit_small_384_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Small/16 for images of 192 and 384 px, with candidate elimination."""
    return _features(_ce(SMALL), kwargs, **SIZES_384)


@register_model
def onestream_vit_small_384_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_small_384_ce` with OSTrack's center head."""
    return _tracker(_ce(SMALL), kwargs, **SIZES_384)


@register_model
def onestream_vit_base_256(**kwargs: Any) -> OneStreamViT:
    """ViT-Base/16 for images of 128 and 256 px; OSTrack-256 without elimination."""
    return _features(BASE, kwargs)


@register_model
def onestream_vit_base_256_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_base_256` with OSTrack's center head."""
    return _tracker(BASE, kwargs)


@register_model
def onestream_vit_base_256_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Base/16 for images of 128 and 256 px, with candidate elimination: OSTrack-256."""
    return _features(_ce(BASE), kwargs)


@register_model
def onestream_vit_base_256_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_base_256_ce` with OSTrack's center head."""
    return _tracker(_ce(BASE), kwargs)


@register_model
def onestream_vit_base_384_ce(**kwargs: Any) -> OneStreamViT:
    """ViT-Base/16 for images of 192 and 384 px, with candidate elimination: OSTrack-384."""
    return _features(_ce(BASE), kwargs, **SIZES_384)


@register_model
def onestream_vit_base_384_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_base_384_ce` with OSTrack's center head."""
    return _tracker(_ce(BASE), kwargs, **SIZES_384)


@register_model
def onestream_vit_test(**kwargs: Any) -> OneStreamViT:
    """A tiny network for tests."""
    return _features(TEST, kwargs, **SIZES_TEST)


@register_model
def onestream_vit_test_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_test` with OSTrack's center head."""
    return _tracker(TEST, kwargs, **SIZES_TEST)


@register_model
def onestream_vit_test_ce(**kwargs: Any) -> OneStreamViT:
    """A tiny network for tests, with candidate elimination."""
    return _features(_ce(TEST, (1, 2)), kwargs, **SIZES_TEST)


@register_model
def onestream_vit_test_ce_track(**kwargs: Any) -> TrackModel:
    """`onestream_vit_test_ce` with OSTrack's center head."""
    return _tracker(_ce(TEST, (1, 2)), kwargs, **SIZES_TEST)
