"""DiMP with correlation-aware features: the classifier and the box regressor of pytracking on our backbone.

Paper: `Learning Discriminative Model Prediction for Tracking` (Bhat et al., ICCV 2019) -
https://arxiv.org/abs/1904.07220. Its code, https://github.com/visionml/pytracking, is not copied here; it
must be importable (`ltr` and `pytracking`) when this module is imported. Written for commit 7eb9e74.

Importing this module changes two things in other modules so that pytracking can be imported: its submodule
for `PrRoIPool2D`, which needs CUDA and a compiler, is replaced by one in plain PyTorch, and torchvision gets
an empty `model_urls`, which it no longer has.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.models.resnet
from torch import Tensor, nn

from correlation_aware.adapters import prroi_pool
from correlation_aware.adapters.backbones import create_features, cut_templates, renamed
from correlation_aware.adapters.prroi_pool import PrRoIPool2D
from correlation_aware.models.contract import TemplateState

__all__ = [
    "DEFAULT_NAME",
    "DiMPBackbone",
    "DiMPCA",
    "DiMPnetCA",
    "PrRoIPool2D",
    "cut_templates",
    "dimpnet_sbt",
]

DEFAULT_NAME = "sbt_base_dimp"
CHANNELS = {"layer2": 512, "layer3": 1024}  # inputs of DiMP-50's classifier and box regressor
STRIDES = {"layer2": 8, "layer3": 16}
FROZEN_NAMES = ("conv1", "bn1", "layer1", "layer2", "layer3")


def _bridge() -> None:
    """Makes pytracking importable with a current torchvision; see the module's docstring."""
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


class DiMPBackbone(Backbone):
    """A two-input backbone with the outputs of pytracking's ResNet-50.

    `layer2` are features of stride 8, `layer3` of stride 16, which depend on the template.

    Args:
        model: A feature network of the zoo with levels of stride 8 and 16, of its own or by `output_stride`;
            None for `sbt_base_dimp`.
        pretrained: As in `create_model`.
        frozen_layers: Layers that do not train: `all`, `none`, or names of `conv1` (the first convolution),
            `bn1` (the norm after it), `layer1` (the levels up to stride 4), `layer2` and `layer3` (those of
            stride 8 and 16), without the necks.
        overrides: Further arguments of `create_model`.

    Raises:
        ValueError: An unknown layer, or a network without one of the strides.
        TypeError: An override that the network does not have.
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
        self.trunk = create_features(
            "DiMP", model or DEFAULT_NAME, tuple(STRIDES.values()), pretrained, overrides
        )
        self.necks = nn.ModuleDict(
            {
                layer: nn.Conv2d(channels, CHANNELS[layer], 1)
                for layer, channels in zip(CHANNELS, self.trunk.feature_info.channels())
            }
        )
        if not isinstance(frozen_layers, str):
            for name in names:
                if not list(self._layer(name).parameters()):
                    raise ValueError(
                        f"frozen_layers has {name!r}, which {model or DEFAULT_NAME!r} does not have."
                    )

    @property
    def conv1(self) -> nn.Module:
        return self._layer("conv1")

    @property
    def bn1(self) -> nn.Module:
        return self._layer("bn1")

    @property
    def layer1(self) -> nn.Module:
        return self._layer("layer1")

    @property
    def layer2(self) -> nn.Module:
        return self._layer("layer2")

    @property
    def layer3(self) -> nn.Module:
        return self._layer("layer3")

    def _layer(self, name: str) -> nn.Module:
        """The modules that take the place of a layer of ResNet-50's; empty if there are none."""
        if name.startswith("layer"):
            low, high = {"layer1": (0, 4), "layer2": (4, 8), "layer3": (8, 16)}[name]
            last = self.trunk.out_indices[-1]
            levels = [x for x in self.trunk.feature_info.info[: last + 1] if low < x["reduction"] <= high]
            return nn.ModuleList(self.trunk.model.get_submodule(level["module"]) for level in levels)
        first: str | None = self.trunk.pretrained_cfg["first_conv"]
        if first is None:
            return nn.ModuleList()
        conv = self.trunk.get_submodule(first)
        if name == "conv1":
            return conv
        siblings = list(self.trunk.get_submodule(first.rpartition(".")[0]).children())
        after = siblings[siblings.index(conv) + 1 :][:1]
        return nn.ModuleList(m for m in after if "norm" in type(m).__name__.lower())

    def out_feature_strides(self, layer: str | None = None) -> Any:
        """Stride in pixels of a layer, or of all."""
        return STRIDES if layer is None else STRIDES[layer]

    def out_feature_channels(self, layer: str | None = None) -> Any:
        """Channels of a layer, or of all."""
        return CHANNELS if layer is None else CHANNELS[layer]

    def encode_template(self, template: Tensor) -> TemplateState:
        """(N, 3, Hz, Wz) -> its state; see `TwoInputModel.encode_template`."""
        return self.trunk.encode_template(template)

    def forward(
        self,
        x: Tensor,
        output_layers: Sequence[str] | None = None,
        template: Tensor | TemplateState | None = None,
    ) -> "OrderedDict[str, Tensor]":
        """Features of search images.

        Args:
            x: (B, 3, H, W) search images, normalized RGB.
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
                "A search image came without a template. Track with DiMPCA instead of DiMP, or call "
                "net.encode_template(images, boxes) first and pass template=... with the image."
            )
        features = dict(zip(CHANNELS, self.trunk(template, x)))
        return OrderedDict((layer, self.necks[layer](features[layer])) for layer in layers)


class DiMPnetCA(DiMPnet):
    """DiMP's network with a two-input backbone; the arguments are those of pytracking's `DiMPnet`."""

    def encode_template(self, images: Tensor, boxes: Tensor) -> TemplateState:
        """State of the templates that are cropped around the boxes.

        Args:
            images: (N, 3, H, W), normalized RGB.
            boxes: (N, 4) x, y, w, h in pixels of `images`.
        """
        sizes = self.feature_extractor.trunk.sizes
        templates = cut_templates(images, boxes, sizes.template_factor, sizes.template_size)
        return self.feature_extractor.encode_template(templates)

    def extract_backbone_features(
        self, im: Tensor, layers: Sequence[str] | None = None, template: TemplateState | None = None
    ) -> "OrderedDict[str, Tensor]":
        """Features of images (B, 3, H, W); see `DiMPBackbone.forward`."""
        return self.feature_extractor(im, self.output_layers if layers is None else layers, template)

    def forward(
        self, train_imgs: Tensor, test_imgs: Tensor, train_bb: Tensor, test_proposals: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The forward pass of training. A sequence's template is cropped from its first train image.

        Args:
            train_imgs: (train images, sequences, 3, H, W).
            test_imgs: (test images, sequences, 3, H, W).
            train_bb: (train images, sequences, 4) x, y, w, h in pixels of the train images.
            test_proposals: (test images, sequences, proposals, 4).

        Returns:
            Scores (test images, sequences, H', W') after every step of the filter's optimizer, and the
            overlaps (test images, sequences, proposals) predicted for the proposals.

        Raises:
            ValueError: Images of other shapes.
        """
        if train_imgs.ndim != 5 or test_imgs.ndim != 5:
            raise ValueError(
                f"Images have shapes {tuple(train_imgs.shape)} and {tuple(test_imgs.shape)}; expected "
                "(images, sequences, 3, height, width) for both."
            )
        state = self.encode_template(train_imgs[0], train_bb[0])
        features = [  # all sequences of the first image, then of the second: the state repeats
            self.extract_backbone_features(
                images.flatten(0, 1), template=TemplateState.cat([state] * len(images))
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
        """As of every module, with a separate error for a checkpoint of stock DiMP.

        Raises:
            RuntimeError: Names or shapes do not fit; the error for stock DiMP names the modules that would.
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
    """Replacement of pytracking's `dimpnet50`, with its arguments; pytracking can save and load the network.

    Args:
        backbone: A feature network of the zoo; None for `sbt_base_dimp`, the paper's "modified
            SBT-base".
        backbone_overrides: Further arguments of `create_model`, for example `{"drop_path_rate": 0.1}`.
        backbone_pretrained: As `pretrained` of `create_model`.
        frozen_backbone_layers: See `DiMPBackbone`.
        filter_size: This argument and those after it are passed to `dimpnet50`.

    Raises:
        ValueError, TypeError: As of `DiMPBackbone`.
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
    features = DiMPBackbone(backbone, backbone_pretrained, frozen_backbone_layers, backbone_overrides)
    return DiMPnetCA(features, stock.classifier, stock.bb_regressor, "layer3", ["layer2", "layer3"])


class _Bound:
    """A network that trackers share, with the template of one of them."""

    def __init__(self, net: Any, template: TemplateState) -> None:
        self._net = net
        self._template = template

    def extract_backbone(self, im: Tensor) -> "OrderedDict[str, Tensor]":
        """(B, 3, H, W), 0..255, to features."""
        return self._net.extract_backbone_features(self._net.preprocess_image(im), template=self._template)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet during copy and unpickling
            raise AttributeError(name)
        return getattr(self._net, name)


class DiMPCA(DiMP):
    """DiMP's tracker for a `DiMPnetCA`. The target's template is encoded once, in the first frame.

    The template's state belongs to the tracker, so trackers of several targets share one network. It is never
    updated, since the classifier's memory keeps features that were computed with it.

    Attributes:
        template: State of the template; None before `initialize`.
    """

    template: TemplateState | None = None

    def generate_init_samples(self, im: Tensor) -> Any:
        """Encodes the template, and computes the features of the augmented first frame.

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
        centers, scales = self.get_sample_location(coords)
        box = self.get_iounet_box(self.pos, self.target_sz, centers[0], scales[0])
        with torch.no_grad():
            self.template = net.encode_template(net.preprocess_image(patch), box[None])
        self.net = _Bound(net, self.template)
        return super().generate_init_samples(im)

    def extract_backbone_features(self, im: Tensor, pos: Tensor, scales: Any, sz: Tensor) -> Any:
        """Features around `pos`, one image for each scale; see pytracking's `DiMP`.

        Raises:
            RuntimeError: There is no template yet.
        """
        if self.template is None:
            raise RuntimeError("There is no template yet: call initialize(image, info) before track(image).")
        return super().extract_backbone_features(im, pos, scales, sz)


__getattr__ = renamed(globals(), {"SBTBackbone": "DiMPBackbone"})
