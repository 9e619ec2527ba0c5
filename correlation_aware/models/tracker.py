"""A feature network with a prediction head: template and search pictures to scores and boxes."""

from typing import Any

from torch import Tensor, nn

from correlation_aware.models.heads import CellHead, MixerHead, TrackOutput
from correlation_aware.models.sbt import SBT, TemplateState

__all__ = ["TrackModel"]


class TrackModel(nn.Module):
    """Backbone and head, as the authors' tracker.

    Args:
        backbone: The two-input feature network.
        head: The prediction head; a `MixerHead` fixes the size of the search picture.
    """

    pretrained_cfg: dict[str, Any]  # set by the zoo, as timm does
    model_args: dict[str, Any]

    def __init__(self, backbone: SBT, head: MixerHead | CellHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def encode_template(self, template: Tensor) -> TemplateState:
        """See `SBT.encode_template`."""
        return self.backbone.encode_template(template)

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> TrackOutput:
        """(B, 3, Hz, Wz) or its state, (B, 3, Hx, Wx) -> `TrackOutput`; errors as in `SBT.forward`."""
        return self.head(self.backbone(template, search))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `SBT.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """See `SBT.no_weight_decay`."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
