"""A feature network with a prediction head: template and search image to scores and boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from correlation_aware.models.attention_maps import AttentionMap
from correlation_aware.models.contract import (
    SIZES_ARE_FIXED,
    Sizes,
    TemplateState,
    TwoInputModel,
    prefix_groups,
)
from correlation_aware.models.heads import TrackOutput
from correlation_aware.models.registry import head_class

__all__ = ["TrackModel"]


class TrackModel(nn.Module):
    """Backbone and head: all of a tracker that has weights.

    Args:
        backbone: The two-input feature network.
        head: Prediction head: (B, C, H, W) search features to `TrackOutput`.
    """

    num_classes: int = 0
    pretrained_cfg: dict[str, Any]  # set by the zoo, as timm does
    model_args: dict[str, Any]
    weights_name: str = "unknown"
    training_data: Sequence[Mapping[str, Any]] = ()

    def __init__(self, backbone: TwoInputModel, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @classmethod
    def build(cls, backbone: TwoInputModel, head: str) -> "TrackModel":
        """Puts a registered head on a backbone.

        Args:
            backbone: The two-input feature network.
            head: Name of a head, such as `mixer` or `cell`.

        Raises:
            ValueError: There is no such head.
        """
        side = backbone.feature_side(backbone.sizes.search_size)
        return cls(backbone, head_class(head)(backbone.num_features, (side, side)))

    @property
    def sizes(self) -> Sizes:
        """Image sizes and crop factors of the backbone."""
        return self.backbone.sizes

    @sizes.setter
    def sizes(self, sizes: Sizes) -> None:
        raise AttributeError(SIZES_ARE_FIXED)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans

    @property
    def feature_info(self) -> Any:
        """timm's `FeatureInfo` of the backbone."""
        return self.backbone.feature_info

    @property
    def num_features(self) -> int:
        """Channels of the search features."""
        return self.backbone.num_features

    @property
    def default_data_cfg(self) -> Mapping[str, Any]:
        """How images are prepared for the backbone, in timm's terms; empty for ImageNet's normalization."""
        return self.backbone.default_data_cfg

    @property
    def image_backbone(self) -> nn.Module:
        """See `TwoInputModel.image_backbone`."""
        return self.backbone.image_backbone

    def feature_side(self, size: int) -> int:
        """See `TwoInputModel.feature_side`."""
        return self.backbone.feature_side(size)

    @property
    def templates(self) -> int:
        """See `TwoInputModel.templates`."""
        return self.backbone.templates

    @property
    def update_interval(self) -> int:
        """See `TwoInputModel.update_interval`."""
        return self.backbone.update_interval

    def update_template(self, state: TemplateState, new: TemplateState) -> TemplateState:
        """See `TwoInputModel.update_template`."""
        return self.backbone.update_template(state, new)

    def encode_template(self, template: Tensor) -> TemplateState:
        """See `TwoInputModel.encode_template`."""
        return self.backbone.encode_template(template)

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> TrackOutput:
        """Scores and boxes for every location of the search features.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, or its state.
            search: (B, 3, Hx, Wx) normalized RGB.

        Raises:
            ValueError: As in `TwoInputModel.forward`, or a size that the head does not take.
            TypeError: A head that returns something else than a `TrackOutput`.
        """
        output: TrackOutput = self.head(self.backbone(template, search))
        if not isinstance(output, TrackOutput) and not hasattr(output, "scores"):
            raise TypeError(
                f"The head {type(self.head).__name__} returned a {type(output).__name__}; a head returns "
                "TrackOutput(logits, scores, boxes) of correlation_aware."
            )
        return output

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`."""
        return self.backbone.attention_maps(template, search)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `TwoInputModel.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """See `TwoInputModel.no_weight_decay`."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `TwoInputModel.group_matcher`; the head is the last group."""
        return prefix_groups(self.backbone.group_matcher(coarse), "backbone.")

    def get_classifier(self) -> nn.Module:
        """A tracker has no classifier; timm's tools ask for it."""
        return nn.Identity()
