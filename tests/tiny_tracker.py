"""A tracker of a few layers, quick to export, in which everything depends on the template."""

import torch
from torch import nn

import correlation_aware as ca
from correlation_aware.models.contract import Sizes, TemplateState, TwoInputModel


class TinyNet(TwoInputModel):
    """Convolutions with ReLU6 as in a mobile backbone; the search features times those of the template."""

    def __init__(self) -> None:
        levels = [{"num_chs": 16, "reduction": 8, "module": "layers"}]
        super().__init__(levels, sizes=Sizes(template_size=32, search_size=64))
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 8, 8),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 1),
        )

    def encode_template(self, template: torch.Tensor) -> TemplateState:
        return TemplateState([self.layers(template).mean(dim=(2, 3), keepdim=True)])

    def forward(self, template: torch.Tensor | TemplateState, search: torch.Tensor) -> torch.Tensor:
        (features,) = self.state_of(template)
        return self.layers(search) * features * 20


def tiny_tracker() -> ca.TrackModel:
    """The tracker with fixed random weights."""
    torch.manual_seed(0)
    return ca.TrackModel.build(TinyNet(), "cell").eval()
