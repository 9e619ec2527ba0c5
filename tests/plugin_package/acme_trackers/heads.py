"""Acme's prediction head."""

import torch
from torch import Tensor, nn

import correlation_aware as ca


@ca.register_head("acme")
class AcmeHead(nn.Module):
    """A linear layer for each location: two logits, the center of the box from there, and its size."""

    def __init__(self, dim: int, feature_size: tuple[int, int]) -> None:
        super().__init__()
        self.predict = nn.Conv2d(dim, 6, kernel_size=1)

    def forward(self, features: Tensor) -> ca.TrackOutput:
        logits, shift, size = self.predict(features).split(2, dim=1)  # B, 2, H, W each
        height, width = features.shape[2:]
        rows = (torch.arange(height, device=features.device) + 0.5) / height
        columns = (torch.arange(width, device=features.device) + 0.5) / width
        places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
        boxes = torch.cat([places + 0.2 * shift.float().tanh(), size.float().sigmoid()], dim=1)  # cxcywh
        return ca.TrackOutput(logits, scores=logits.float().softmax(dim=1)[:, 0], boxes=boxes)
