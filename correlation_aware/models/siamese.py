"""Siamese networks: any backbone on both images, then a neck that correlates their features.

Papers: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Table 7 and Fig. 9 -
https://arxiv.org/abs/2203.01666; the necks name theirs.

Written for this package. Backbones are timm's (Apache-2.0), by name. Licensed under Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.models.contract import (
    Sizes,
    TemplateState,
    TwoInputModel,
    common_batch,
    make_state,
)
from correlation_aware.models.eoc import EoCBlock, Keys, add_norm, apply_linear, concat_streams, init_weights
from correlation_aware.models.registry import near_names, register_model
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import pack, unpack

__all__ = ["SiameseConfig", "SiameseNet"]

Neck = Literal["cross_attention"]
MIN_SIZE = 32  # pixels
# EfficientNet-Lite's pixels are (pixel - 127) / 128
LITE_DATA = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


@dataclass(frozen=True)
class SiameseConfig:
    """A backbone and the neck after it.

    Attributes:
        backbone: Name of a model of timm.
        level: Level of the backbone whose features are correlated, as in timm's `out_indices`.
        lateral: Level of the backbone whose search features are added to the result, which is resized to
            them; None for none.
        neck: Form of the correlation.
        dim: Channels of neck and result.
        depth: Blocks of `cross_attention`: EoC-SA and EoC-CA in turn.
        heads: Attention heads of `cross_attention`.
        mlp_ratio: Hidden width of the MLP over `dim`, of `cross_attention`.
        keys: Keys of the EoC-CA blocks of `cross_attention`: the tokens of the `other` image, as in SBT, or
            of `both` images.
        frozen_norms: Whether the backbone's batch norms use their stored statistics in training too.
    """

    backbone: str = "resnet50"
    level: int = 3
    lateral: int | None = None
    neck: Neck = "cross_attention"
    dim: int = 256
    depth: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0
    keys: Keys = "other"
    frozen_norms: bool = True


class CrossAttention(nn.Module):
    """EoC-SA and EoC-CA blocks in turn.

    Args:
        channels: Channels of the backbone's features.
        cfg: Configuration.
    """

    def __init__(self, channels: int, cfg: SiameseConfig) -> None:
        super().__init__()
        self.adjust = nn.Linear(channels, cfg.dim)
        self.stream_embed = nn.Parameter(torch.zeros(2, cfg.dim))  # template, search
        self.blocks = nn.ModuleList(
            EoCBlock(cfg.dim, cfg.heads, cross=i % 2 == 1, mlp_ratio=cfg.mlp_ratio, keys=cfg.keys)
            for i in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.grad_checkpointing = False
        self.apply(init_weights)
        for block in self.blocks:  # the convolution starts as a residual one
            conv = cast(nn.Conv2d, cast(EoCBlock, block).mlp.dwconv)
            with torch.no_grad():
                conv.weight[:, :, 1, 1] += 1

    def encode(self, features: Tensor) -> list[Tensor]:
        """Template features (B, C, H, W) -> (B, H, W, dim) that enter the first EoC-CA block."""
        return [self._before_correlation(features, 0)]

    def forward(self, state: Sequence[Tensor], features: Tensor, search_only: bool = True) -> list[Tensor]:
        """Template state and search features (B, C, H, W) -> [template,] search features (B, dim, H, W)."""
        tokens, shapes = concat_streams(state[0], self._before_correlation(features, 1))
        residual: Tensor | None = None
        for i, block in enumerate(self.blocks[1:], start=1):
            tokens, residual, shapes = block(tokens, residual, shapes, search_only and i == self.last_cross)
        tokens = add_norm(self.norm, tokens, residual)[1]
        return [m.permute(0, 3, 1, 2) for m in unpack(tokens, shapes)]

    @property
    def last_cross(self) -> int:
        """Index of the last EoC-CA block."""
        return len(self.blocks) - 1 - len(self.blocks) % 2

    def _before_correlation(self, features: Tensor, stream: int) -> Tensor:
        tokens, shapes = pack([features.permute(0, 2, 3, 1)])
        tokens = apply_linear(self.adjust, tokens) + self.stream_embed[stream]
        tokens, residual, shapes = self.blocks[0](tokens, None, shapes)
        return unpack(tokens + residual, shapes)[0]


class SiameseNet(TwoInputModel):
    """Two-input feature network: a backbone on each image, then a neck.

    Args:
        cfg: The variant.
        in_chans: Channels of both images.
        sizes: Image sizes and crop factors.
        data: Mean and standard deviation of the images; those of the backbone in timm by default.

    Raises:
        ValueError: An unknown backbone or level.
    """

    def __init__(
        self,
        cfg: SiameseConfig,
        in_chans: int = 3,
        sizes: Sizes | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        extractor: Any = timm.create_model(cfg.backbone, in_chans=in_chans, num_classes=0)
        indices = sorted({cfg.level} | ({cfg.lateral} if cfg.lateral is not None else set()))
        info = extractor.feature_info
        channels = {i: info[i]["num_chs"] for i in indices}
        reductions = {i: info[i]["reduction"] for i in indices}
        output = cfg.level if cfg.lateral is None else cfg.lateral
        module = "necks" if cfg.lateral is None else "lateral"
        level = {"num_chs": cfg.dim, "reduction": reductions[output], "module": module}
        super().__init__([level], in_chans, sizes)
        self.config = cfg
        self.indices = indices
        self.default_data_cfg = dict(data or {})
        extractor.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
        self.extractor = extractor
        self.necks = nn.ModuleList([CrossAttention(channels[cfg.level], cfg)])
        self.lateral = None
        if cfg.lateral is not None:
            self.lateral = nn.Conv2d(channels[cfg.lateral], cfg.dim, 1)
        self.train()

    def train(self, mode: bool = True) -> "SiameseNet":
        """Sets training mode; with `frozen_norms` the backbone's batch norms stay in evaluation mode."""
        super().train(mode)
        if self.config.frozen_norms:
            for module in self.extractor.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def extract(self, image: Tensor) -> dict[int, Tensor]:
        """Features of one image, by level."""
        image = image.contiguous(memory_format=torch.channels_last)
        maps = self.extractor.forward_intermediates(image, indices=self.indices, intermediates_only=True)
        return dict(zip(self.indices, maps))

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image."""
        check_image(template, "template", self.in_chans)
        return make_state(
            cast(CrossAttention, self.necks[0]).encode(self.extract(template)[self.config.level])
        )

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """See `TwoInputModel.forward`."""
        return self._forward_pair(template, search, search_only=True)[-1]

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """See `TwoInputModel.forward_features`."""
        z, x = self._forward_pair(template, search, search_only=False)
        return z, x

    def _forward_pair(
        self, template: Tensor | TemplateState, search: Tensor, search_only: bool
    ) -> list[Tensor]:
        check_image(search, "search", self.in_chans)
        state = self.state_of(template)
        common_batch(state, search)
        features = self.extract(search)
        maps = self.necks[0](state, features[self.config.level], search_only)
        if self.lateral is not None:
            fine = features[cast(int, self.config.lateral)]
            added = self.lateral(fine)
            x = F.interpolate(maps[-1], fine.shape[2:], mode="bilinear")
            maps = [*(F.interpolate(m, scale_factor=2, mode="bilinear") for m in maps[:-1]), x + added]
        return [m.contiguous() for m in maps]


def check_image(image: Tensor, name: str, in_chans: int) -> None:
    """Raises ValueError for an image that is not (B, in_chans, H, W), or too small."""
    if image.ndim != 4 or image.shape[1] != in_chans:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; expected (batch, {in_chans}, height, width)."
        )
    if min(image.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"{name} is {image.shape[2]} x {image.shape[3]} px; each side must be at least {MIN_SIZE}. "
            "Resize the image, or crop a larger region."
        )


LITE0_CA = SiameseConfig(
    "tf_efficientnet_lite0", level=3, lateral=2, dim=128, depth=6, heads=4, mlp_ratio=3.0, keys="both"
)


def _network(cfg: SiameseConfig, arguments: Mapping[str, Any], data: Mapping[str, Any] | None) -> SiameseNet:
    own = {name: value for name, value in arguments.items() if name in {f.name for f in fields(cfg)}}
    sizes = {name: value for name, value in arguments.items() if name in {f.name for f in fields(Sizes)}}
    known = ["in_chans", *(f.name for kind in (SiameseConfig, Sizes) for f in fields(kind))]
    for name in arguments:
        if name not in known:
            raise TypeError(f"Unknown argument {name!r}. Near: {', '.join(near_names(name, known))}.")
    return SiameseNet(replace(cfg, **own), arguments.get("in_chans", 3), Sizes(**sizes), data)


def _tracker(
    cfg: SiameseConfig, arguments: Mapping[str, Any], data: Mapping[str, Any] | None, head: str
) -> TrackModel:
    rest = {name: value for name, value in arguments.items() if name != "head"}
    return TrackModel.build(_network(cfg, rest, data), arguments.get("head", head))


@register_model
def siam_lite0_ca(**kwargs: Any) -> SiameseNet:
    """EfficientNet-Lite0, six EoC blocks at stride 16, features at stride 8."""
    return _network(LITE0_CA, kwargs, LITE_DATA)


@register_model
def siam_lite0_ca_track(**kwargs: Any) -> TrackModel:
    """`siam_lite0_ca` with the tower head, a tracker for CPUs."""
    return _tracker(LITE0_CA, kwargs, LITE_DATA, head="tower")


@register_model
def siam_lite0_ca_half_track(**kwargs: Any) -> TrackModel:
    """`siam_lite0_ca_track` for images of half the size, at a quarter of the cost."""
    return _tracker(LITE0_CA, {"template_size": 64, "search_size": 128, **kwargs}, LITE_DATA, head="tower")
