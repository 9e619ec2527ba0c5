"""DiMP with correlation-aware features: the classifier and the box regressor of pytracking, our backbone.

Paper: `Learning Discriminative Model Prediction for Tracking` (Bhat et al., ICCV 2019) -
https://arxiv.org/abs/1904.07220. Its code, https://github.com/visionml/pytracking, is neither needed at rest
nor copied here; it must be importable (`ltr` and `pytracking`) when this module is imported.

Importing this module puts two things where pytracking looks for them: `PrRoIPool2D` in plain PyTorch for its
submodule, which needs CUDA and a compiler, and an empty `model_urls`, which torchvision dropped.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models.resnet
from torch import Tensor, nn

from correlation_aware.adapters import prroi_pool
from correlation_aware.adapters.prroi_pool import PrRoIPool2D
from correlation_aware.models.sbt import SBTFeatures, TemplateState
from correlation_aware.zoo import create_model

__all__ = ["DiMPCA", "DiMPnetCA", "PrRoIPool2D", "SBTBackbone", "cut_templates", "dimpnet_sbt"]

CHANNELS = {"layer2": 512, "layer3": 1024}  # what DiMP-50's classifier and box regressor take
STRIDES = {"layer2": 8, "layer3": 16}
FROZEN_NAMES = ("conv1", "bn1", "layer1", "layer2", "layer3")
# The paper's "modified SBT" as its parameter counts tell: fewer blocks in the last stage
MODIFIED = {"depths": (2, 2, 4), "cross_blocks": ((), (), (1, 3))}


def _bridge() -> None:
    """Makes pytracking importable beside a present-day torch; see the module's docstring."""
    if not hasattr(torchvision.models.resnet, "model_urls"):
        torchvision.models.resnet.model_urls = {}
    sys.modules["ltr.external.PreciseRoIPooling.pytorch.prroi_pool"] = prroi_pool
    for user in ("ltr.models.bbreg.atom_iou_net", "ltr.models.target_classifier.initializer"):
        if user in sys.modules:  # imported before, with another pooling
            sys.modules[user].PrRoIPool2D = PrRoIPool2D  # type: ignore[attr-defined]


try:
    from ltr import model_constructor

    _bridge()
    from ltr.models.backbone.base import Backbone
    from ltr.models.tracking.dimpnet import DiMPnet, dimpnet50
    from pytracking.features.preprocessing import sample_patch
    from pytracking.tracker.dimp.dimp import DiMP
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("ltr", "pytracking"):
        raise
    raise ModuleNotFoundError(
        f"correlation_aware.adapters.dimp needs pytracking, and there is no module {error.name!r}. Put a "
        "checkout of https://github.com/visionml/pytracking on PYTHONPATH: the folder that holds the folders "
        "ltr and pytracking.",
        name=error.name,
    ) from error


def cut_templates(images: Tensor, boxes: Tensor, factor: float, size: int) -> Tensor:
    """Cuts a square around every box and resizes it, bilinearly; outside, the border repeats.

    Args:
        images: (N, C, H, W).
        boxes: (N, 4) x, y, w, h in pixels of `images`.
        factor: Side of the square over sqrt(w * h).
        size: Side of the result in pixels.

    Returns:
        (N, C, size, size).

    Raises:
        ValueError: Other shapes.
    """
    if images.ndim != 4 or boxes.shape != (images.shape[0], 4):
        raise ValueError(
            f"images {tuple(images.shape)} and boxes {tuple(boxes.shape)} must have the shapes "
            "(N, channels, height, width) and (N, 4): one box (x, y, w, h) for each picture."
        )
    boxes = boxes.to(images)
    sides = factor * boxes[:, 2:].clamp(min=1).prod(dim=1).sqrt()
    picture = boxes.new_tensor([images.shape[3], images.shape[2]])
    centres = (2 * boxes[:, :2] + boxes[:, 2:]) / picture - 1  # -1..1 over the picture
    scales = torch.diag_embed(sides[:, None] / picture)
    grid = F.affine_grid(
        torch.cat([scales, centres[..., None]], dim=2), [len(boxes), 1, size, size], align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class SBTBackbone(Backbone):
    """A two-input backbone with the outputs of pytracking's ResNet-50.

    `layer2` is the second stage at stride 8, `layer3` the third at stride 16, which knows the template.

    Args:
        model: A feature network of the zoo; None for the paper's "modified SBT".
        pretrained: As in `create_model`.
        frozen_layers: What does not train: names of `conv1`, `bn1` (the first patch embedding), `layer1`,
            `layer2`, `layer3` (the stages, without the necks), or `all`, `none`.
        overrides: Further fields of `SBTConfig`.

    Raises:
        ValueError: An unknown layer or override, a network without three stages.
    """

    def __init__(
        self,
        model: str | None = None,
        pretrained: bool | str | Path = False,
        frozen_layers: str | Sequence[str] = (),
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        names = [frozen_layers] if isinstance(frozen_layers, str) else list(frozen_layers)
        allowed = ("all", "none") if isinstance(frozen_layers, str) else FROZEN_NAMES
        for name in names:
            if name not in allowed:
                raise ValueError(
                    f"frozen_layers has {name!r}, which is not one of {', '.join(allowed)}. It is 'all', "
                    f"'none' or a list of {', '.join(FROZEN_NAMES)}."
                )
        super().__init__(frozen_layers=frozen_layers)
        options = {"strides": (4, 2, 2), **(MODIFIED if model is None else {}), **(overrides or {})}
        trunk = create_model(
            model or "sbt_small_pvtv2", pretrained, features_only=True, out_indices=(1, 2), **options
        )
        assert isinstance(trunk, SBTFeatures)
        if tuple(trunk.feature_info.reduction()) != tuple(STRIDES.values()):
            raise ValueError(
                f"strides={options['strides']} give features at strides {trunk.feature_info.reduction()}; "
                "DiMP needs 8 and 16, for example strides=(4, 2, 2)."
            )
        self.trunk = trunk
        self.necks = nn.ModuleDict(
            {
                layer: nn.Conv2d(channels, CHANNELS[layer], 1)
                for layer, channels in zip(CHANNELS, trunk.feature_info.channels())
            }
        )

    @property
    def conv1(self) -> nn.Module:
        return self.layer1.get_submodule("embed.proj")

    @property
    def bn1(self) -> nn.Module:
        return self.layer1.get_submodule("embed.norm")

    @property
    def layer1(self) -> nn.Module:
        return self.trunk.model.stages[0]

    @property
    def layer2(self) -> nn.Module:
        return self.trunk.model.stages[1]

    @property
    def layer3(self) -> nn.Module:
        return self.trunk.model.stages[2]

    def out_feature_strides(self, layer: str | None = None) -> Any:
        """Stride in pixels of a layer, or of all."""
        return STRIDES if layer is None else STRIDES[layer]

    def out_feature_channels(self, layer: str | None = None) -> Any:
        """Channels of a layer, or of all."""
        return CHANNELS if layer is None else CHANNELS[layer]

    def encode_template(self, template: Tensor) -> TemplateState:
        """(N, 3, Hz, Wz) -> what the search features need of it; see `SBT.encode_template`."""
        return self.trunk.encode_template(template)

    def forward(
        self,
        x: Tensor,
        output_layers: Sequence[str] | None = None,
        template: Tensor | TemplateState | None = None,
    ) -> "OrderedDict[str, Tensor]":
        """Features of the search pictures.

        Args:
            x: (B, 3, H, W) search pictures, RGB in ImageNet normalisation.
            output_layers: Some of `layer2`, `layer3`; both by default.
            template: (N, 3, Hz, Wz) or its state; N is B, or one of them 1.

        Returns:
            (B, 512, H / 8, W / 8) and (B, 1024, H / 16, W / 16), contiguous.

        Raises:
            ValueError: No template, an unknown layer, sizes that do not fit.
        """
        layers = tuple(CHANNELS) if output_layers is None else tuple(output_layers)
        for layer in layers:
            if layer not in CHANNELS:
                raise ValueError(f"There is no output layer {layer!r}; there are {', '.join(CHANNELS)}.")
        if template is None:
            raise ValueError(
                "A search picture came without a template. Track with DiMPCA instead of DiMP, or call "
                "net.encode_template(images, boxes) first and pass template=... with the picture."
            )
        features = dict(zip(CHANNELS, self.trunk(template, x)))
        return OrderedDict((layer, self.necks[layer](features[layer])) for layer in layers)


class DiMPnetCA(DiMPnet):
    """DiMP's network with a two-input backbone; the arguments are those of pytracking's `DiMPnet`."""

    def encode_template(self, images: Tensor, boxes: Tensor) -> TemplateState:
        """What search features need of targets: a template is cut around each box.

        Args:
            images: (N, 3, H, W), RGB in ImageNet normalisation.
            boxes: (N, 4) x, y, w, h in pixels of `images`.
        """
        config = self.feature_extractor.trunk.model.config
        templates = cut_templates(images, boxes, config.template_factor, config.template_size)
        return self.feature_extractor.encode_template(templates)

    def extract_backbone_features(
        self, im: Tensor, layers: Sequence[str] | None = None, template: TemplateState | None = None
    ) -> "OrderedDict[str, Tensor]":
        """Features of pictures (B, 3, H, W); see `SBTBackbone.forward`."""
        return self.feature_extractor(im, self.output_layers if layers is None else layers, template)

    def forward(
        self, train_imgs: Tensor, test_imgs: Tensor, train_bb: Tensor, test_proposals: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The pass of training. A sequence's template is cut from its first train image, at that box.

        Args:
            train_imgs: (train images, sequences, 3, H, W).
            test_imgs: (test images, sequences, 3, H, W).
            train_bb: (train images, sequences, 4) x, y, w, h in pixels of the train images.
            test_proposals: (test images, sequences, proposals, 4).

        Returns:
            Scores (test images, sequences, H', W') after every step of the filter's optimiser, and the
            overlaps (test images, sequences, proposals) predicted for the proposals.
        """
        if train_imgs.ndim != 5 or test_imgs.ndim != 5:
            raise ValueError(
                f"Images have shapes {tuple(train_imgs.shape)} and {tuple(test_imgs.shape)}; expected "
                "(images, sequences, 3, height, width) for both."
            )
        state = self.encode_template(train_imgs[0], train_bb[0]).features
        features = [  # pictures come image by image, so the states of all sequences repeat
            self.extract_backbone_features(
                images.flatten(0, 1), template=TemplateState(state.repeat(len(images), 1, 1, 1))
            )
            for images in (train_imgs, test_imgs)
        ]
        train, test = (self.get_backbone_clf_feat(f) for f in features)
        scores = self.classifier(train, test, train_bb)
        train, test = (self.get_backbone_bbreg_feat(f) for f in features)
        return scores, self.bb_regressor(train, test, train_bb, test_proposals)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of every module, but a checkpoint of stock DiMP is named as such.

        Raises:
            RuntimeError: Names or shapes do not fit; for stock DiMP's it says which would.
        """
        if strict and "feature_extractor.conv1.weight" in state_dict:
            own = self.state_dict()
            kept = [k for k, v in state_dict.items() if k in own and own[k].shape == v.shape]
            parts = ", ".join(dict.fromkeys(".".join(k.split(".")[:2]) for k in kept))
            raise RuntimeError(
                f"This is a checkpoint of stock DiMP: {len(kept)} of its {len(state_dict)} tensors fit this "
                f"network ({parts}), its ResNet does not. To start from those: "
                "correlation_aware.weights.load_state_dict(net, checkpoint['net'], partial=True)."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


@model_constructor
def dimpnet_sbt(
    *,
    backbone: str | None = None,
    backbone_overrides: Mapping[str, Any] | None = None,
    backbone_pretrained: bool | str | Path = True,
    frozen_backbone_layers: str | Sequence[str] = (),
    filter_size: int = 1,
    optim_iter: int = 5,
    optim_init_step: float = 1.0,
    optim_init_reg: float = 0.01,
    clf_feat_blocks: int = 0,
    clf_feat_norm: bool = True,
    init_filter_norm: bool = False,
    final_conv: bool = True,
    out_feature_dim: int = 512,
    init_gauss_sigma: float = 1.0,
    num_dist_bins: int = 5,
    bin_displacement: float = 1.0,
    mask_init_factor: float = 4.0,
    iou_input_dim: tuple[int, int] = (256, 256),
    iou_inter_dim: tuple[int, int] = (256, 256),
    score_act: str = "relu",
    act_param: float | None = None,
    target_mask_act: str = "sigmoid",
    detach_length: float = float("inf"),
) -> DiMPnetCA:
    """In place of pytracking's `dimpnet50`, with its arguments; pytracking saves and loads the result.

    Args:
        backbone: A feature network of the zoo; None for the paper's "modified SBT".
        backbone_overrides: Further fields of `SBTConfig`, for example `{"drop_path_rate": 0.1}`.
        backbone_pretrained: As `pretrained` of `create_model`.
        frozen_backbone_layers: See `SBTBackbone`.
        filter_size: This and what follows go to `dimpnet50` as they are.
    """
    stock = dimpnet50(
        backbone_pretrained=False,
        filter_size=filter_size,
        optim_iter=optim_iter,
        optim_init_step=optim_init_step,
        optim_init_reg=optim_init_reg,
        clf_feat_blocks=clf_feat_blocks,
        clf_feat_norm=clf_feat_norm,
        init_filter_norm=init_filter_norm,
        final_conv=final_conv,
        out_feature_dim=out_feature_dim,
        init_gauss_sigma=init_gauss_sigma,
        num_dist_bins=num_dist_bins,
        bin_displacement=bin_displacement,
        mask_init_factor=mask_init_factor,
        iou_input_dim=iou_input_dim,
        iou_inter_dim=iou_inter_dim,
        score_act=score_act,
        act_param=act_param,
        target_mask_act=target_mask_act,
        detach_length=detach_length,
    )
    features = SBTBackbone(backbone, backbone_pretrained, frozen_backbone_layers, backbone_overrides)
    return DiMPnetCA(features, stock.classifier, stock.bb_regressor, "layer3", ["layer2", "layer3"])


class _Bound:
    """A tracker's view of the network that all trackers share: features know this tracker's template."""

    def __init__(self, net: Any, template: TemplateState) -> None:
        self._net = net
        self._template = template

    def extract_backbone(self, im: Tensor) -> "OrderedDict[str, Tensor]":
        """(B, 3, H, W), 0..255, to features."""
        return self._net.extract_backbone_features(self._net.preprocess_image(im), template=self._template)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not yet set, while being copied
            raise AttributeError(name)
        return getattr(self._net, name)


class DiMPCA(DiMP):
    """DiMP's tracker for a `DiMPnetCA`. The target's template is encoded once, in the first frame.

    The template is the tracker's own: many trackers, and so many targets, share one network. It stays as it
    is, since the classifier's memory keeps features that were made with it.
    """

    template: TemplateState | None = None

    def generate_init_samples(self, im: Tensor) -> Any:
        """Features of the augmented first frame; encodes the template before.

        Args:
            im: (1, 3, H, W), 0..255.

        Raises:
            ValueError: The parameters hold another network than a `DiMPnetCA`.
        """
        net = self.params.net
        if not isinstance(getattr(net, "net", net), DiMPnetCA):
            raise ValueError(
                f"params.net holds a {type(getattr(net, 'net', net)).__name__}, but DiMPCA tracks with a "
                "DiMPnetCA: give it a checkpoint of a network made by dimpnet_sbt, or track with DiMP."
            )
        size = self.img_sample_sz
        patch, coords = sample_patch(im, self.pos, self.target_scale * size, size)
        centres, scales = self.get_sample_location(coords)
        box = self.get_iounet_box(self.pos, self.target_sz, centres[0], scales[0])
        with torch.no_grad():
            self.template = net.encode_template(net.preprocess_image(patch), box[None])
        self.net = _Bound(net, self.template)
        return super().generate_init_samples(im)

    def extract_backbone_features(self, im: Tensor, pos: Tensor, scales: Any, sz: Tensor) -> Any:
        """Features around `pos`, one picture a scale; see pytracking's `DiMP`.

        Raises:
            RuntimeError: There is no template yet.
        """
        if self.template is None:
            raise RuntimeError("There is no template yet: call initialize(image, info) before track(image).")
        return super().extract_backbone_features(im, pos, scales, sz)
