"""A custom head on features of several strides, and one training step of backbone and head."""

import torch
from torch import nn

import correlation_aware as ca


class CenterHead(nn.Module):
    """A heat map of the target's center from features of strides 4 and 8."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.fine, self.coarse = (nn.Conv2d(c, 64, 1) for c in channels)
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(64, 1, 3, padding=1))

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.interpolate(self.coarse(coarse), size=fine.shape[2:])
        return self.out(self.fine(fine) + coarse)[:, 0]


torch.manual_seed(0)
backbone = ca.create_model("sbt_light", features_only=True, out_indices=(0, 2), drop_path_rate=0.1)
print("channels", backbone.feature_info.channels(), "strides", backbone.feature_info.reduction())
head = CenterHead(backbone.feature_info.channels())
optimizer = torch.optim.AdamW(
    [{"params": backbone.parameters(), "lr": 1e-5}, {"params": head.parameters(), "lr": 1e-4}]
)

template, search = torch.randn(2, 3, 128, 128), torch.randn(2, 3, 256, 256)
target = torch.zeros(2, 64, 64)
target[:, 30:34, 30:34] = 1

heat = head(*backbone(template, search))
loss = nn.functional.binary_cross_entropy_with_logits(heat, target)
loss.backward()
optimizer.step()
print("heat map", tuple(heat.shape), f"loss {loss.item():.3f}")
