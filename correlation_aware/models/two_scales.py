"""Two networks in one: the same pair of images at full and at half size.

A network for full-size images has tight boxes; one for half the size does not see details, and mistakes other
objects for the target than the first. `TwoScaleNet` runs both, and `TwoScaleHead` (`heads.py`) takes the mean
of their scores: a location needs both, at a fifth more operations than the full size alone. They may be
trained apart, as two trackers, or together.

Registered: `siam_lite0_ca_two_scales`, of `siam_lite0_ca` and another one at half size; see `siamese.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.models.attention_maps import AttentionMap
from correlation_aware.models.contract import TemplateState, TwoInputModel, check_image, prefix_groups
from correlation_aware.models.registry import register_checkpoint_format, register_model
from correlation_aware.models.siamese import siam_lite0_ca
from correlation_aware.models.tracker import TrackModel

__all__ = ["TwoScaleNet"]

SMALLEST, MULTIPLE = 64, 16  # sides of an image: those of its half are at least 32, and multiples of 8


class TwoScaleNet(TwoInputModel):
    """Search features of a network, and behind them in the channels those of another at half the size.

    Features of the half size are repeated 2 x 2 times; `TwoScaleHead` takes every second one.

    Args:
        full: Network for the images as they are.
        half: Network of the same kind for the images at half the size.

    Raises:
        ValueError: Networks that differ in stride, channels of the images, or features; sizes that the half
            size cannot have.
    """

    full: TwoInputModel
    half_size: TwoInputModel

    def __init__(self, full: TwoInputModel, half: TwoInputModel) -> None:
        facts = [(n.in_chans, n.num_features, n.feature_info.reduction()[-1]) for n in (full, half)]
        if facts[0] != facts[1]:
            raise ValueError(
                f"Channels of the images, features and stride of the two networks are {facts[0]} and "
                f"{facts[1]}, but must be equal."
            )
        for name in ("template_size", "search_size"):
            size = getattr(full.sizes, name)
            if size < SMALLEST or size % MULTIPLE:
                raise ValueError(
                    f"{name}={size} must be at least {SMALLEST} and a multiple of {MULTIPLE}: the network "
                    f"for half the size takes multiples of {MULTIPLE // 2}."
                )
        level = {"num_chs": 2 * full.num_features, "reduction": facts[0][2], "module": "full"}
        super().__init__([level], full.in_chans, full.sizes)
        self.full, self.half_size = full, half
        self.default_data_cfg = full.default_data_cfg

    @property
    def image_backbone(self) -> nn.Module:
        """See `TwoInputModel.image_backbone`; that of the full size."""
        return self.full.image_backbone

    def encode_template(self, template: Tensor) -> TemplateState:
        """The state of the full size, then that of the half size.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, sides of at least 64 px, multiples of 16.
        """
        check_image(template, "template", self.in_chans, SMALLEST, MULTIPLE)
        return TemplateState(
            (*self.full.encode_template(template), *self.half_size.encode_template(_halved(template)))
        )

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """See `TwoInputModel.forward`; sides are at least 64 px and multiples of 16."""
        check_image(search, "search", self.in_chans, SMALLEST, MULTIPLE)
        full, half = self._parts(self.state_of(template))
        return self._joined(self.full(full, search), self.half_size(half, _halved(search)))

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """See `TwoInputModel.forward_features`."""
        check_image(search, "search", self.in_chans, SMALLEST, MULTIPLE)
        full, half = self._parts(self.state_of(template))
        (z, x), (half_z, half_x) = (
            self.full.forward_features(full, search),
            self.half_size.forward_features(half, _halved(search)),
        )
        return self._joined(z, half_z), self._joined(x, half_x)

    def join_templates(self, states: Sequence[TemplateState]) -> TemplateState:
        """See `TwoInputModel.join_templates`."""
        full, half = zip(*map(self._parts, states), strict=True)
        return TemplateState((*self.full.join_templates(full), *self.half_size.join_templates(half)))

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """See `TwoInputModel.attention_maps`; of the full size."""
        if isinstance(template, Tensor):
            return self.full.attention_maps(template, search)
        return self.full.attention_maps(self._parts(self.state_of(template))[0], search)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `TwoInputModel.set_grad_checkpointing`."""
        self.full.set_grad_checkpointing(enable)
        self.half_size.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """See `TwoInputModel.no_weight_decay`."""
        return {f"{part}.{name}" for part, net in self._named() for name in net.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `TwoInputModel.group_matcher`; layers of the two networks are in the same groups."""
        full, half = (prefix_groups(net.group_matcher(coarse), f"{part}.") for part, net in self._named())
        return {
            key: f"{group}|{half[key]}" if isinstance(group, str) else [*group, *half[key]]
            for key, group in full.items()
        }

    def _named(self) -> list[tuple[str, TwoInputModel]]:
        return [("full", self.full), ("half_size", self.half_size)]

    def _parts(self, state: TemplateState) -> tuple[TemplateState, TemplateState]:
        """States of the two networks, which have as many tensors each."""
        count, odd = divmod(len(state), 2)
        if odd:
            raise ValueError(
                f"The template state has {len(state)} tensors, which two networks cannot share: it comes "
                "from another network. Call encode_template of this one."
            )
        return TemplateState(state[:count]), TemplateState(state[count:])

    def _joined(self, full: Tensor, half: Tensor) -> Tensor:
        return torch.cat([full, F.interpolate(half, scale_factor=2.0, mode="nearest")], dim=1)


@register_checkpoint_format("two_scales_full", matches=lambda names: "head.full.cls.2.weight" in names)
def full_size_of(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tracker for full-size images in a checkpoint of two scales, as one of its own."""
    parts = {"backbone.full.": "backbone.", "head.full.": "head."}
    return {
        new + name.removeprefix(old): tensor
        for name, tensor in state_dict.items()
        for old, new in parts.items()
        if name.startswith(old)
    }


def _halved(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / 2, W / 2), means of four pixels."""
    return F.avg_pool2d(image, 2)


@register_model
def siam_lite0_ca_two_scales(**kwargs: Any) -> TwoScaleNet:
    """`siam_lite0_ca` twice, at full and at half size."""
    full = siam_lite0_ca(**kwargs)
    halves = {name: getattr(full.sizes, name) // 2 for name in ("template_size", "search_size")}
    return TwoScaleNet(full, siam_lite0_ca(**{**kwargs, **halves}))


@register_model
def siam_lite0_ca_two_scales_track(head: str = "tower_two_scales", **kwargs: Any) -> TrackModel:
    """`siam_lite0_ca_two_scales` with the tower head for two scales, the default tracker for CPUs."""
    return TrackModel.build(siam_lite0_ca_two_scales(**kwargs), head)
