"""Siamese networks: a backbone on each image, then a neck that correlates the features of the two.

Papers: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Table 7 and Fig. 9 -
https://arxiv.org/abs/2203.01666. `dw_corr` is from `SiamRPN++` (Li et al., CVPR 2019) -
https://arxiv.org/abs/1812.11703; `pixel_corr` from `Alpha-Refine` (Yan et al., CVPR 2021) -
https://arxiv.org/abs/2012.06815; `dcf` from `DSST` (Danelljan et al., BMVC 2014), with
gradients as in `CFNet` (Valmadre et al., CVPR 2017) - https://arxiv.org/abs/1704.06036; `cross_attention` has
SBT's blocks, `EoCBlock` of `models/eoc.py`.

Written for this package. Backbones are timm's (Apache-2.0), by name, or SBT. Licensed under Apache-2.0.

All that a neck computes from the template alone is the cached state: whole kernels, or for `cross_attention`
the tokens that enter the first EoC-CA block.
"""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, cast, get_args

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from correlation_aware.models.attention_maps import AttentionMap
from correlation_aware.models.contract import (
    Sizes,
    TemplateState,
    TwoInputModel,
    check_image,
    common_batch,
    make_state,
    prefix_groups,
)
from correlation_aware.models.eoc import EoCBlock, Keys, concat_streams, eoc_attention_maps, init_weights
from correlation_aware.models.registry import (
    near_names,
    refuse_arguments,
    register_checkpoint_format,
    register_model,
    registered_models,
    take_fields,
)
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import add_norm, apply_linear, pack, unpack

__all__ = ["SiameseConfig", "SiameseNet"]

NeckName = Literal["dw_corr", "pixel_corr", "cross_attention", "dcf"]
Level = int | str
MIN_SIZE = 32  # pixels
# arguments that only some necks have
NECK_ARGUMENTS = {
    "crop": ("dw_corr", "pixel_corr", "dcf"),
    **dict.fromkeys(("depth", "heads", "mlp_ratio", "keys"), ("cross_attention",)),
    **dict.fromkeys(("label_sigma", "update_interval", "update_rate"), ("dcf",)),
}
# normalization that timm does not know: its own is (pixel - 127.5) / 127.5
EFFICIENTNET_LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


@dataclass(frozen=True)
class SiameseConfig:
    """A backbone and the neck after it.

    Attributes:
        backbone: Name of a model of timm that gives features, or of SBT.
        levels: Levels of the backbone that are correlated, each by a neck of its own; the results are added
            with learned weights. A level is an index as in timm's `out_indices`, or for SBT a block such as
            `S3B6`, the 6th block of the 3rd stage.
        lateral: Level whose search features are added to the result, resized to theirs; None for none.
        output_stride: Stride of the backbone's last levels, by dilation; None for the backbone's own.
        backbone_dims: Channels of the stages of an SBT backbone; None for its own.
        embedded: Whether the backbone correlates the images itself, which SBT does; otherwise it sees one
            image at a time.
        neck: `dw_corr` (depth-wise), `pixel_corr` (pixel-wise), `cross_attention` (EoC-SA and EoC-CA blocks
            in turn) or `dcf` (discriminative correlation filter).
        dim: Channels of the necks and of the result.
        crop: Side of the central template features of `dw_corr` and `pixel_corr`, or of the filter of `dcf`,
            in locations.
        depth: Blocks of `cross_attention`.
        heads: Attention heads of `cross_attention`.
        mlp_ratio: Hidden width of the MLP over `dim`, of `cross_attention`.
        keys: Keys of the EoC-CA blocks of `cross_attention`: tokens of the `other` image, as in SBT, or of
            `both` images.
        label_sigma: Standard deviation of the desired response of `dcf` over the side of the target.
        update_interval: Frames from one update of the filter of `dcf` by the tracker to the next; 0 for none.
        update_rate: Weight of the new sample in an update of `dcf`.
        frozen_norms: Whether the backbone's batch norms use their stored statistics in training, too. Their
            weights are trained in any case.
    """

    backbone: str = "resnet50"
    levels: tuple[Level, ...] = (3,)
    lateral: Level | None = None
    output_stride: int | None = None
    backbone_dims: tuple[int, ...] | None = None
    embedded: bool = False
    neck: NeckName = "dw_corr"
    dim: int = 256
    crop: int = 7
    depth: int = 2
    heads: int = 8
    mlp_ratio: float = 4.0
    keys: Keys = "other"
    label_sigma: float = 0.1
    update_interval: int = 6
    update_rate: float = 0.05
    frozen_norms: bool = True

    def __post_init__(self) -> None:
        for name, options in (("neck", get_args(NeckName)), ("keys", get_args(Keys))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(options)}.")
        if not self.levels:
            raise ValueError("levels=() names no level of the backbone to correlate.")
        if self.crop < 1 or self.crop % 2 == 0:
            raise ValueError(f"crop={self.crop} must be an odd number of locations.")
        if self.depth < 2:
            raise ValueError(f"depth={self.depth} must be at least 2: the second block is the first EoC-CA.")
        if self.dim % self.heads and self.neck == "cross_attention":
            raise ValueError(f"dim={self.dim} must be divisible by heads={self.heads}.")
        if self.update_interval < 0 or not 0 < self.update_rate <= 1:
            raise ValueError(
                f"update_interval={self.update_interval} must be at least 0, and update_rate="
                f"{self.update_rate} above 0 and at most 1."
            )


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, and ReLU where `relu` says so."""

    def __init__(self, channels: int, dim: int, kernel_size: int, relu: bool = True) -> None:
        conv = nn.Conv2d(channels, dim, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(dim), *([nn.ReLU(inplace=True)] if relu else []))


class CorrelationNeck(nn.Module, ABC):
    """Base class of the necks whose template becomes a kernel.

    The state is the kernel's tensors and the template's own features, which `forward_features` needs.

    Args:
        channels: Channels of the backbone's features.
        cfg: Configuration.
        sizes: Image sizes and crop factors.
        reduction: Stride of the backbone's features.
    """

    state_size: ClassVar[int] = 2  # tensors of the state

    def __init__(self, channels: int, cfg: SiameseConfig, sizes: Sizes, reduction: int) -> None:
        super().__init__()
        self.crop = cfg.crop
        self.adjust = ConvNorm(channels, cfg.dim, 1, relu=False)

    @abstractmethod
    def make_kernel(self, template: Tensor) -> list[Tensor]:
        """Template features (B, dim, H, W) -> the kernel's tensors."""

    @abstractmethod
    def correlate(self, kernel: Sequence[Tensor], features: Tensor) -> Tensor:
        """Features (B, dim, H, W) -> correlated features (B, dim, H, W)."""

    def encode(self, features: Tensor) -> list[Tensor]:
        """Template features of the backbone (B, C, H, W) -> state."""
        features = self.adjust(features)
        return [*self.make_kernel(features), features]

    def forward(self, state: Sequence[Tensor], features: Tensor, search_only: bool = True) -> list[Tensor]:
        """State and search features of the backbone -> [template,] search features (B, dim, H, W)."""
        search = self.correlate(state[:-1], self.adjust(features))
        return [search] if search_only else [self.correlate(state[:-1], state[-1]), search]


class DepthwiseCorrelation(CorrelationNeck):
    """Depth-wise cross-correlation: each channel of the template is a filter for that of the search image."""

    def __init__(self, channels: int, cfg: SiameseConfig, sizes: Sizes, reduction: int) -> None:
        super().__init__(channels, cfg, sizes, reduction)
        self.template_conv = ConvNorm(cfg.dim, cfg.dim, 3)
        self.search_conv = ConvNorm(cfg.dim, cfg.dim, 3)
        self.fuse = ConvNorm(cfg.dim, cfg.dim, 1)

    def make_kernel(self, template: Tensor) -> list[Tensor]:
        """See `CorrelationNeck`; one (B, dim, 7, 7) with the default crop."""
        return [self.template_conv(center_crop(template, self.crop))]

    def correlate(self, kernel: Sequence[Tensor], features: Tensor) -> Tensor:
        """See `CorrelationNeck`."""
        output: Tensor = self.fuse(depthwise_correlation(self.search_conv(features), kernel[0]))
        return output


class PixelCorrelation(CorrelationNeck):
    """Pixel-wise correlation: each location of the template is a 1x1 filter, and gives a channel."""

    def __init__(self, channels: int, cfg: SiameseConfig, sizes: Sizes, reduction: int) -> None:
        super().__init__(channels, cfg, sizes, reduction)
        self.side = min(cfg.crop, -(-sizes.template_size // reduction))
        self.fuse = ConvNorm(self.side**2, cfg.dim, 1)

    def make_kernel(self, template: Tensor) -> list[Tensor]:
        """See `CorrelationNeck`; one (B, 49, dim) with the default crop.

        Raises:
            ValueError: A template smaller than the network was built for.
        """
        kernel = center_crop(template, self.side).flatten(2).mT
        if kernel.shape[1] != self.side**2:
            raise ValueError(
                f"The template features are {template.shape[2]} x {template.shape[3]}; pixel_corr needs "
                f"{self.side} x {self.side}. Resize the template, or give create_model another template_size."
            )
        return [kernel]

    def correlate(self, kernel: Sequence[Tensor], features: Tensor) -> Tensor:
        """See `CorrelationNeck`."""
        output: Tensor = self.fuse(pixel_correlation(features, kernel[0]))
        return output


class CorrelationFilter(CorrelationNeck):
    """Discriminative correlation filter: ridge regression from template features to a Gaussian response.

    With circular shifts as samples the solution is conj(Y) Z_c / (sum_c |Z_c|^2 + penalty), per frequency.
    Numerator and denominator are the state; their average over several templates is an online update. The
    responses of the channels, whose sum is that of the filter, and the features are fused.

    The discrete Fourier transform is a product with cosines and sines, so that every runtime has it.
    """

    state_size: ClassVar[int] = 3

    def __init__(self, channels: int, cfg: SiameseConfig, sizes: Sizes, reduction: int) -> None:
        super().__init__(channels, cfg, sizes, reduction)
        self.label_sigma = cfg.label_sigma / sizes.template_factor  # over the side of the template
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.fuse = ConvNorm(2 * cfg.dim, cfg.dim, 1)

    def make_kernel(self, template: Tensor) -> list[Tensor]:
        """See `CorrelationNeck`; numerator (B, 2, dim, H, W), real and imaginary, denominator (B, H, W)."""
        height, width = template.shape[2:]
        like = torch.empty(0, dtype=torch.float32, device=template.device)
        windows = [_hann_window(n, like.device) for n in (height, width)]
        z = template.float() * torch.outer(*windows) / template.shape[1] ** 0.5
        labels = [self._label(n, like.device) for n in (height, width)]
        (zr, zi), (yr, yi) = _dft(z), _dft(torch.outer(*labels))
        numerator = torch.stack([yr * zr + yi * zi, yr * zi - yi * zr], dim=1)  # conj(Y) Z
        denominator = (zr.square() + zi.square()).sum(dim=1)
        return [numerator.to(template.dtype), denominator.to(template.dtype)]

    def solve(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """The filter's central values: (B, dim, crop, crop), or less of a smaller template; float32."""
        ratio = numerator.float() / (denominator.float() + self.log_penalty.float().exp())[:, None, None]
        return _inverse_dft(ratio[:, 0], ratio[:, 1], self.crop)

    def correlate(self, kernel: Sequence[Tensor], features: Tensor) -> Tensor:
        """See `CorrelationNeck`."""
        filters = self.solve(*kernel).to(features.dtype)
        responses = depthwise_correlation(features / features.shape[1] ** 0.5, filters)
        features = features.expand(responses.shape)
        output: Tensor = self.fuse(torch.cat([features, responses], dim=1))
        return output

    def _label(self, length: int, device: torch.device) -> Tensor:
        """The desired response along one side: a Gaussian around the center of the target."""
        offset = torch.arange(length, device=device) - (length - 1) / 2
        return torch.exp(-0.5 * (offset / (self.label_sigma * length)).square())


class CrossAttention(nn.Module):
    """EoC-SA and EoC-CA blocks in turn, on the tokens of both images.

    An `EoCBlock`, that of `sbt`, is `x + attention(norm(x))`, then `x + mlp(norm(x))`, with a 3x3 depth-
    wise convolution between the two linear layers of the MLP, which is also the position encoding. The
    queries are all tokens; those of an image meet the keys of the same image in EoC-SA, and in EoC-CA the
    keys of the other image (`keys="other"`) or of both (`keys="both"`). Tokens are (T, C): all locations of
    the template images, then all of the search images (`pack`, `concat_streams`), with their shapes beside
    them. A block returns `x` and the output of its MLP apart; the sum of the two is made with the next norm
    (`add_norm`).

    Args:
        channels: Channels of the backbone's features.
        cfg: Configuration.
        sizes: Of no effect; it takes any size.
        reduction: Of no effect.
    """

    state_size: ClassVar[int] = 1

    def __init__(self, channels: int, cfg: SiameseConfig, sizes: Sizes, reduction: int) -> None:
        super().__init__()
        self.adjust = nn.Linear(channels, cfg.dim)
        self.stream_embed = nn.Parameter(torch.zeros(2, cfg.dim))  # template, search
        self.blocks = nn.ModuleList(
            EoCBlock(cfg.dim, cfg.heads, cross=i % 2 == 1, mlp_ratio=cfg.mlp_ratio, keys=cfg.keys)
            for i in range(cfg.depth)
        )
        self.last_cross = cfg.depth // 2 * 2 - 1
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.grad_checkpointing = False
        self.apply(init_weights)
        for block in self.blocks:  # the position encoding starts as a residual
            conv = cast(nn.Conv2d, cast(EoCBlock, block).mlp.dwconv)
            nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
            with torch.no_grad():
                conv.weight[:, :, 1, 1] += 1

    def encode(self, features: Tensor) -> list[Tensor]:
        """Template features of the backbone (B, C, H, W) -> (B, H, W, dim) that enter the first EoC-CA."""
        return [self._before_cross(features, 0)]

    def forward(self, state: Sequence[Tensor], features: Tensor, search_only: bool = True) -> list[Tensor]:
        """State and search features of the backbone -> [template,] search features (B, dim, H, W)."""
        tokens, shapes = concat_streams(state[0], self._before_cross(features, 1))
        residual: Tensor | None = None
        for i, block in enumerate(self.blocks):
            if i > 0:
                drop = search_only and i == self.last_cross
                tokens, residual, shapes = self._run(block, tokens, residual, shapes, drop)
        tokens = add_norm(self.norm, tokens, residual)[1]
        return [m.permute(0, 3, 1, 2) for m in unpack(tokens, shapes)]

    def _before_cross(self, features: Tensor, stream: int) -> Tensor:
        tokens, shapes = pack([features.permute(0, 2, 3, 1)])
        tokens = apply_linear(self.adjust, tokens) + self.stream_embed[stream]
        tokens, residual, shapes = self._run(self.blocks[0], tokens, None, shapes, False)
        return unpack(tokens + residual, shapes)[0]

    def _run(self, block: nn.Module, *arguments: Any) -> Any:
        if self.grad_checkpointing and self.training:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


NECKS: dict[str, type[CorrelationNeck] | type[CrossAttention]] = {
    "dw_corr": DepthwiseCorrelation,
    "pixel_corr": PixelCorrelation,
    "cross_attention": CrossAttention,
    "dcf": CorrelationFilter,
}


def center_crop(features: Tensor, side: int) -> Tensor:
    """The central side x side locations of (B, C, H, W), or all along a side that has no more."""
    height, width = features.shape[2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return features[:, :, top : top + side, left : left + side]


def depthwise_correlation(features: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlation of each channel with a filter of its own, with zero padding.

    Args:
        features: (B, C, H, W); B may be 1 where there are more kernels.
        kernel: (B, C, h, w); B may be 1 likewise.

    Returns:
        (B, C, H, W).
    """
    (height, width), (h, w) = features.shape[2:], kernel.shape[2:]
    padded = F.pad(features, ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2))
    if torch.compiler.is_compiling():  # the number of groups must not depend on the batch in a program
        output = features.new_zeros(())
        for i, j in itertools.product(range(h), range(w)):
            shifted = padded[:, :, i : i + height, j : j + width]
            output = output + shifted * kernel[:, :, i : i + 1, j : j + 1]
        return output
    batch = max(len(features), len(kernel))
    padded, kernel = (t.expand(batch, -1, -1, -1).flatten(0, 1) for t in (padded, kernel))
    return F.conv2d(padded[None], kernel[:, None], groups=len(kernel))[0].unflatten(0, (batch, -1))


def pixel_correlation(features: Tensor, kernel: Tensor) -> Tensor:
    """Scaled products of every location's features with those of every location of a template.

    Args:
        features: (B, C, H, W).
        kernel: (B, N, C), features of N locations.

    Returns:
        (B, N, H, W).
    """
    products = kernel @ features.flatten(2) / features.shape[1] ** 0.5
    return products.unflatten(2, features.shape[2:])


def _hann_window(length: int, device: torch.device) -> Tensor:
    """A Hann window whose zeros are just outside: (length,)."""
    # not torch.hann_window, for which PyTorch 2.11 has no ONNX operator
    steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    return 0.5 - 0.5 * torch.cos(steps * (2 * math.pi / (length + 1)))


def _waves(frequencies: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi f p / n for f = 0..n-1 and all positions: (n, P) each."""
    f = torch.arange(frequencies, device=positions.device)
    angle = (2 * math.pi / frequencies) * (f[:, None] * positions[None, :])
    return angle.cos(), angle.sin()


def _dft(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Discrete Fourier transform of (..., H, W), real and imaginary."""
    (ch, sh), (cw, sw) = (_waves(n, torch.arange(n, device=maps.device)) for n in maps.shape[-2:])
    real, imaginary = ch @ maps, -(sh @ maps)
    return real @ cw.T + imaginary @ sw.T, imaginary @ cw.T - real @ sw.T


def _inverse_dft(real: Tensor, imaginary: Tensor, side: int) -> Tensor:
    """The inverse transform of (..., H, W), real, at the side x side positions around 0."""
    radii = [min(side // 2, (n - 1) // 2) for n in real.shape[-2:]]
    (ch, sh), (cw, sw) = (
        _waves(n, torch.arange(-radius, radius + 1, device=real.device))
        for n, radius in zip(real.shape[-2:], radii)
    )
    rows_real, rows_imaginary = ch.T @ real - sh.T @ imaginary, ch.T @ imaginary + sh.T @ real
    return (rows_real @ cw - rows_imaginary @ sw) / (real.shape[-2] * real.shape[-1])


class SiameseNet(TwoInputModel):
    """Two-input feature network: a backbone, then a neck for every level.

    Args:
        cfg: The variant.
        in_chans: Channels of both images.
        sizes: Image sizes and crop factors.

    Raises:
        ValueError: An unknown backbone or level, levels of different strides, or a backbone that cannot do
            what `cfg` says.

    Examples:
        >>> x = net(template, search)  # (B, 3, 128, 128), (B, 3, 256, 256) -> (B, C, 32, 32)
        >>> net.image_backbone  # the part that weights of an image classifier fit
    """

    extractor: Any
    necks: Any

    def __init__(self, cfg: SiameseConfig, in_chans: int = 3, sizes: Sizes | None = None) -> None:
        sizes = sizes or Sizes()
        extractor = _make_backbone(cfg, in_chans)
        is_pair = hasattr(extractor, "forward_blocks")
        levels = [*cfg.levels, *([] if cfg.lateral is None else [cfg.lateral])]
        places = [_place(level, extractor) for level in levels]
        info = [extractor.feature_info[place[0] if is_pair else place] for place in places]
        count = len(cfg.levels)
        reductions = {i["reduction"] for i in info[:count]}
        if len(reductions) > 1:
            raise ValueError(
                f"levels={cfg.levels} of {cfg.backbone} have the strides {sorted(reductions)}, but must have "
                "the same: choose others, or set output_stride."
            )
        (reduction,) = reductions
        module = "necks" if cfg.lateral is None else "lateral"
        level_info = {"num_chs": cfg.dim, "reduction": info[-1]["reduction"], "module": module}
        super().__init__([level_info], in_chans, sizes)
        self.config = cfg
        self.default_data_cfg = _normalization(cfg.backbone)
        self.places = places
        self.lateral_ratio = reduction // info[-1]["reduction"]
        if not is_pair:
            extractor.prune_intermediate_layers(sorted(set(places)), prune_norm=True, prune_head=True)
        self.extractor = extractor
        neck = NECKS[cfg.neck]
        self.necks = nn.ModuleList(neck(i["num_chs"], cfg, sizes, reduction) for i in info[:count])
        self.level_logits = nn.Parameter(torch.zeros(count)) if count > 1 else None
        self.lateral = None if cfg.lateral is None else nn.Conv2d(info[-1]["num_chs"], cfg.dim, 1)
        self.train()

    @property
    def image_backbone(self) -> nn.Module:
        """See `TwoInputModel.image_backbone`; here the backbone."""
        return self.extractor

    @property
    def update_interval(self) -> int:  # type: ignore[override]
        """See `TwoInputModel.update_interval`."""
        return self.config.update_interval if self._is_filter else 0

    @property
    def _is_filter(self) -> bool:
        return self.config.neck == "dcf" and not self.config.embedded

    def train(self, mode: bool = True) -> "SiameseNet":
        """Sets training mode; with `frozen_norms` the backbone's batch norms stay in evaluation mode."""
        super().train(mode)
        if self.config.frozen_norms:
            for module in self.extractor.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def extract(self, image: Tensor) -> list[Tensor]:
        """Features of one image at `levels`, then `lateral`: (B, C_i, H / s_i, W / s_i) each."""
        if hasattr(self.extractor, "forward_blocks"):
            return [maps[-1] for maps in self.extractor.forward_blocks(None, image, self.places)]
        image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last
        indices = sorted(set(self.places))
        maps = self.extractor.forward_intermediates(image, indices=indices, intermediates_only=True)
        return [maps[indices.index(place)] for place in self.places]

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image.

        That is the state of an embedded backbone; otherwise, level by level, that of the neck: see its
        `encode`.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, each side at least 32 px.
        """
        check_image(template, "template", self.in_chans, MIN_SIZE)
        if self.config.embedded:
            return self.extractor.encode_template(template)
        return make_state(self._encode(self.extract(template)))

    def update_template(self, state: TemplateState, new: TemplateState) -> TemplateState:
        """Averages the filters of `dcf`; see `TwoInputModel.update_template`.

        Raises:
            NotImplementedError: Another neck, or correlation that is embedded in the backbone.
        """
        if not self._is_filter:
            return super().update_template(state, new)
        return make_state(torch.lerp(a, b, self.config.update_rate) for a, b in zip(state, new, strict=True))

    def join_templates(self, states: Sequence[TemplateState]) -> TemplateState:
        """Several templates as one: keys and values of all for `cross_attention`.

        Raises:
            NotImplementedError: Another neck.
        """
        if self.config.embedded:
            return self.extractor.join_templates(states)
        if self.config.neck != "cross_attention":
            return super().join_templates(states)
        return TemplateState(torch.cat(maps, dim=1) for maps in zip(*states, strict=True))

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """See `TwoInputModel.forward`."""
        return self._forward_pair(template, search, search_only=True)[-1]

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """See `TwoInputModel.forward_features`.

        Template features are correlated with the template itself by every neck but `cross_attention`, and
        never have lateral features.
        """
        z, x = self._forward_pair(template, search, search_only=False)
        return z, x

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`; attention inside a backbone of timm is not included.

        Raises:
            NotImplementedError: Neither backbone nor neck has EoC blocks.
        """
        if not any(isinstance(module, EoCBlock) for module in self.modules()):
            return super().attention_maps(template, search)
        return eoc_attention_maps(self, template, search)

    def _encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [t for neck, features in zip(self.necks, maps) for t in neck.encode(features)]

    def _forward_pair(
        self, template: Tensor | TemplateState, search: Tensor, search_only: bool
    ) -> list[Tensor]:
        check_image(search, "search", self.in_chans, MIN_SIZE)
        state: Sequence[Tensor] = self.state_of(template)
        common_batch(cast(TemplateState, state), search)
        if self.config.embedded:
            pairs = self.extractor.forward_blocks(state, search, self.places)
            state, maps = self._encode([pair[0] for pair in pairs]), [pair[-1] for pair in pairs]
        else:
            maps = self.extract(search)
        self._check_state(state)
        outputs = []
        for i, neck in enumerate(self.necks):
            size = neck.state_size
            outputs.append(neck(state[i * size : (i + 1) * size], maps[i], search_only))
        return [m.contiguous() for m in self._add_lateral(self._weighted_sum(outputs), maps[-1])]

    def _weighted_sum(self, outputs: Sequence[list[Tensor]]) -> list[Tensor]:
        """[template,] search features of every level -> their sum."""
        if self.level_logits is None:
            return outputs[0]
        weights = self.level_logits.softmax(dim=0)
        return [torch.stack([w * m for w, m in zip(weights, maps)]).sum(dim=0) for maps in zip(*outputs)]

    def _add_lateral(self, maps: list[Tensor], fine: Tensor) -> list[Tensor]:
        if self.lateral is None:
            return maps
        *template, x = maps
        x = F.interpolate(x, fine.shape[2:], mode="bilinear") + self.lateral(fine)
        return [*(F.interpolate(z, scale_factor=self.lateral_ratio, mode="bilinear") for z in template), x]

    def _check_state(self, state: Sequence[Tensor]) -> None:
        expected = sum(neck.state_size for neck in self.necks)
        channels_last = self.config.neck == "cross_attention"
        fits = len(state) == expected and state[-1].ndim == 4
        if not fits or state[-1].shape[3 if channels_last else 1] != self.config.dim:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in state)
            raise ValueError(
                f"The template state has tensors of shape {shapes}; this network needs {expected}: it comes "
                "from another network. Call encode_template of this one."
            )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: in the backbone, where it can, and the EoC blocks of necks."""
        if hasattr(self.extractor, "set_grad_checkpointing"):
            self.extractor.set_grad_checkpointing(enable)
        for neck in self.necks:
            if isinstance(neck, CrossAttention):
                neck.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        inner = self.extractor.no_weight_decay() if hasattr(self.extractor, "no_weight_decay") else ()
        own = {name for name, _ in self.named_parameters() if name.endswith(("stream_embed", "level_logits"))}
        return own | {f"extractor.{name}" for name in inner}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay: the backbone's in timm, then the rest."""
        matcher = getattr(self.extractor, "group_matcher", None)
        return (
            super().group_matcher(coarse) if matcher is None else prefix_groups(matcher(coarse), "extractor.")
        )


def _make_backbone(cfg: SiameseConfig, in_chans: int) -> Any:
    arguments: dict[str, Any] = {"in_chans": in_chans}
    if cfg.output_stride is not None:
        arguments["output_stride"] = cfg.output_stride
    if cfg.backbone_dims is not None:
        arguments["dims"] = cfg.backbone_dims
    function = registered_models().get(cfg.backbone)
    if function is not None:
        backbone: Any = function(**arguments)
        if hasattr(backbone, "forward_blocks"):
            return backbone
        raise ValueError(f"backbone={cfg.backbone!r} of this package gives no features of single images.")
    if cfg.embedded:
        raise ValueError(
            f"embedded=True needs a backbone with two inputs, such as sbt_base, not {cfg.backbone!r}."
        )
    if cfg.backbone_dims is not None:
        raise ValueError(
            f"backbone_dims={cfg.backbone_dims} is for backbones of SBT, such as sbt_base: the width of "
            f"{cfg.backbone!r} is part of its name."
        )
    if not timm.is_model(cfg.backbone):
        near = near_names(cfg.backbone, timm.list_models())
        raise ValueError(f"timm has no model backbone={cfg.backbone!r}. Near: {', '.join(near[:4])}.")
    backbone = timm.create_model(cfg.backbone, num_classes=0, **arguments)
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"backbone={cfg.backbone!r} has no forward_intermediates in timm {timm.__version__}."
        )
    return backbone


def _place(level: Level, backbone: Any) -> Any:
    """Where a level is: an index of timm's, or (stage, block) of SBT.

    Raises:
        ValueError: There is no such level.
    """
    count = len(backbone.feature_info)
    if not hasattr(backbone, "forward_blocks"):
        if isinstance(level, str) or not 0 <= level < count:
            raise ValueError(f"level {level!r} is not one of 0..{count - 1} of {type(backbone).__name__}.")
        return level
    depths: tuple[int, ...] = backbone.config.depths
    match = re.fullmatch(r"S(\d+)B(\d+)", level) if isinstance(level, str) else None
    stage = int(match[1]) - 1 if match else level
    if not isinstance(stage, int) or not 0 <= stage < count:
        raise ValueError(f"level {level!r} must be one of 0..{count - 1}, or a block such as S3B6.")
    block = int(match[2]) - 1 if match else depths[stage] - 1
    if not 0 <= block < depths[stage]:
        raise ValueError(f"level {level!r}: stage {stage + 1} has the blocks B1 to B{depths[stage]}.")
    return stage, block


def _normalization(backbone: str) -> dict[str, Any]:
    """Mean and standard deviation of the pixels in 0..1; empty for ImageNet's or unknown ones."""
    if backbone.startswith("tf_efficientnet_lite"):
        return dict(EFFICIENTNET_LITE)
    cfg = get_pretrained_cfg(backbone, allow_unregistered=True)
    return {"mean": cfg.mean, "std": cfg.std} if cfg is not None and cfg.mean else {}


def _is_efficientnet_pytorch(names: Iterable[str]) -> bool:
    return "_conv_stem.weight" in names


_BLOCK_LAYERS = {  # of efficientnet_pytorch; a block without expansion has one convolution less
    True: {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    | {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl"}
    | {"_bn2": "bn3"},
    False: {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_se_reduce": "se.conv_reduce"}
    | {"_se_expand": "se.conv_expand", "_project_conv": "conv_pw", "_bn2": "bn2"},
}
_OTHER_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


@register_checkpoint_format("efficientnet_pytorch", matches=_is_efficientnet_pytorch)
def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames EfficientNets of the package efficientnet_pytorch and its kin, such as the Lite ones.

    Args:
        state_dict: Tensors by the original names, whose blocks have one number.

    Returns:
        Tensors by timm's names: stages of blocks. A new stage begins where the channels change.
    """
    widths: dict[int, int] = {}
    for name, tensor in state_dict.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\._project_conv\.weight", name):
            widths[int(found[1])] = len(tensor)
    places: dict[int, tuple[int, int]] = {}
    for index in sorted(widths):
        stage, block = places.get(index - 1, (0, -1))
        same = index == 0 or widths[index] == widths[index - 1]
        places[index] = (stage, block + 1) if same else (stage + 1, 0)
    renamed = {}
    for name, tensor in state_dict.items():
        layer, _, rest = name.partition(".")
        if layer == "_blocks":
            number, layer, rest = rest.split(".", 2)
            expands = f"_blocks.{number}._expand_conv.weight" in state_dict
            stage, block = places[int(number)]
            renamed[f"blocks.{stage}.{block}.{_BLOCK_LAYERS[expands][layer]}.{rest}"] = tensor
        else:
            renamed[f"{_OTHER_LAYERS.get(layer, 'classifier')}.{rest}"] = tensor
    return renamed


RESNET50 = SiameseConfig("resnet50", levels=(2, 3, 4), output_stride=8)
SBT_BASE = SiameseConfig("sbt_base", levels=("S3B6", "S3B8", "S3B10"))
LITE0 = SiameseConfig(
    "tf_efficientnet_lite0",
    levels=(3,),
    lateral=2,
    neck="cross_attention",
    dim=128,
    depth=6,
    heads=4,
    mlp_ratio=3,
    keys="both",
)
TEST = SiameseConfig("test_efficientnet", (3,), lateral=2, neck="cross_attention", dim=16, heads=2, crop=3)


def _network(cfg: SiameseConfig, arguments: Mapping[str, Any]) -> SiameseNet:
    rest, cfg = take_fields(arguments, cfg)
    for name in arguments:
        if cfg.neck not in NECK_ARGUMENTS.get(name, (cfg.neck,)):
            necks = ", ".join(NECK_ARGUMENTS[name])
            raise TypeError(f"{name}={arguments[name]!r} is for the necks {necks}, not for {cfg.neck!r}.")
    rest, sizes = take_fields(rest, Sizes())
    in_chans = rest.pop("in_chans", 3)
    known = (field.name for kind in (SiameseConfig, Sizes) for field in fields(kind))
    refuse_arguments(rest, ["in_chans", "head", *known])
    return SiameseNet(cfg, in_chans, sizes)


def _tracker(cfg: SiameseConfig, arguments: Mapping[str, Any]) -> TrackModel:
    rest = {name: value for name, value in arguments.items() if name != "head"}
    return TrackModel.build(_network(cfg, rest), arguments.get("head", "tower"))


@register_model
def siam_resnet50_dw(**kwargs: Any) -> SiameseNet:
    """ResNet-50, dilated to stride 8, its last three stages correlated depth-wise and added (Table 7)."""
    return _network(RESNET50, kwargs)


@register_model
def siam_resnet50_dw_track(**kwargs: Any) -> TrackModel:
    """`siam_resnet50_dw` with the tower head."""
    return _tracker(RESNET50, kwargs)


@register_model
def siam_resnet50_ca(**kwargs: Any) -> SiameseNet:
    """The same with EoC blocks for every stage."""
    return _network(replace(RESNET50, neck="cross_attention"), kwargs)


@register_model
def siam_resnet50_ca_track(**kwargs: Any) -> TrackModel:
    """`siam_resnet50_ca` with the tower head."""
    return _tracker(replace(RESNET50, neck="cross_attention"), kwargs)


@register_model
def siam_resnet50_dcf(**kwargs: Any) -> SiameseNet:
    """The same with correlation filters, which the tracker updates online."""
    return _network(replace(RESNET50, neck="dcf"), kwargs)


@register_model
def siam_resnet50_dcf_track(**kwargs: Any) -> TrackModel:
    """`siam_resnet50_dcf` with the tower head."""
    return _tracker(replace(RESNET50, neck="dcf"), kwargs)


@register_model
def siam_sbt_base_dw(**kwargs: Any) -> SiameseNet:
    """SBT-base on single images, three of its blocks correlated depth-wise and added (Table 7)."""
    return _network(SBT_BASE, kwargs)


@register_model
def siam_sbt_base_dw_track(**kwargs: Any) -> TrackModel:
    """`siam_sbt_base_dw` with the tower head."""
    return _tracker(SBT_BASE, kwargs)


@register_model
def siam_sbt_base_ca(**kwargs: Any) -> SiameseNet:
    """The same with EoC blocks for every one of the three."""
    return _network(replace(SBT_BASE, neck="cross_attention"), kwargs)


@register_model
def siam_sbt_base_ca_track(**kwargs: Any) -> TrackModel:
    """`siam_sbt_base_ca` with the tower head."""
    return _tracker(replace(SBT_BASE, neck="cross_attention"), kwargs)


@register_model
def siam_sbt_base_dcf(**kwargs: Any) -> SiameseNet:
    """The same with correlation filters, which the tracker updates online."""
    return _network(replace(SBT_BASE, neck="dcf"), kwargs)


@register_model
def siam_sbt_base_dcf_track(**kwargs: Any) -> TrackModel:
    """`siam_sbt_base_dcf` with the tower head."""
    return _tracker(replace(SBT_BASE, neck="dcf"), kwargs)


@register_model
def siam_lite0_ca(**kwargs: Any) -> SiameseNet:
    """EfficientNet-Lite0, six EoC blocks at stride 16, features at stride 8."""
    return _network(LITE0, kwargs)


@register_model
def siam_lite0_ca_track(**kwargs: Any) -> TrackModel:
    """`siam_lite0_ca` with the tower head, a tracker for CPUs."""
    return _tracker(LITE0, kwargs)


@register_model
def siam_lite0_ca_half_track(**kwargs: Any) -> TrackModel:
    """`siam_lite0_ca_track` for images of half the size, at a quarter of the cost."""
    return _tracker(LITE0, {"template_size": 64, "search_size": 128, **kwargs})


@register_model
def siam_test(**kwargs: Any) -> SiameseNet:
    """A tiny network for tests."""
    return _network(TEST, {"template_size": 64, "search_size": 128, **kwargs})


@register_model
def siam_test_track(**kwargs: Any) -> TrackModel:
    """`siam_test` with the tower head."""
    return _tracker(TEST, {"template_size": 64, "search_size": 128, **kwargs})
