"""Acme's network: one CNN for both images; every location is compared with 25 locations of the template."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import correlation_aware as ca
from correlation_aware.models.contract import common_batch, make_state

ca.register_weights(Path(__file__).with_name("weights.json"))  # before the models that they belong to

SIDE = 5  # the template's central locations, SIDE x SIDE


def conv(in_chans: int, out_chans: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out_chans), nn.ReLU())


class AcmeNet(ca.TwoInputModel):
    """Search features that depend on the template, at stride 8."""

    def __init__(self, width: int = 16, in_chans: int = 3, **sizes: Any) -> None:
        levels = [{"num_chs": 2 * width, "reduction": 8, "module": "merge"}]
        super().__init__(levels, in_chans, ca.Sizes(**{"template_size": 64, "search_size": 128, **sizes}))
        self.cnn = nn.Sequential(conv(in_chans, width, 2), conv(width, width, 2), conv(width, width, 2))
        self.gate = nn.Linear(width, width)
        self.merge = conv(width + SIDE**2, 2 * width)

    def encode_template(self, template: Tensor) -> ca.TemplateState:
        """Two tensors: the template's features (B, C, Hz / 8, Wz / 8) and their mean (B, C)."""
        features = self.cnn(template)
        return make_state([features, features.mean(dim=(2, 3))])

    def forward_features(self, template: Tensor | ca.TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state_of(template)
        return self.correlate(state, state[0]), self(state, search)

    def forward(self, template: Tensor | ca.TemplateState, search: Tensor) -> Tensor:
        return self.correlate(self.state_of(template), self.cnn(search))

    def correlate(self, state: ca.TemplateState, features: Tensor) -> Tensor:
        """(B, C, H, W) of either image -> (B, 2 C, H, W)."""
        common_batch(state, features)  # raises where they do not fit; one of them may be 1 below
        template, mean = state
        top, left = (template.shape[2] - SIDE) // 2, (template.shape[3] - SIDE) // 2
        kernel = template[:, :, top : top + SIDE, left : left + SIDE].flatten(2)  # B, C, 25
        maps = torch.einsum("bck,bchw->bkhw", kernel, features) / kernel.shape[1] ** 0.5
        gated = features * self.gate(mean).sigmoid()[:, :, None, None]
        return self.merge(torch.cat([maps, gated], dim=1))


@ca.register_model
def acme_tiny(**kwargs: Any) -> AcmeNet:
    """Acme's features."""
    return AcmeNet(**kwargs)


@ca.register_model(reported=(0.02, 0.01))
def acme_tiny_track(head: str = "acme", **kwargs: Any) -> ca.TrackModel:
    """Acme's tracker."""
    return ca.TrackModel.build(AcmeNet(**kwargs), head)
