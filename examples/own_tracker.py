"""A custom tracker: a small Siamese network, and its correlation-aware version."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import correlation_aware as ca


class Siamese(nn.Module):  # before: a backbone with one input, run twice, then a correlation
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 7, 4, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        z, x = self.backbone(template), self.backbone(search)
        maps = F.conv2d(x.flatten(0, 1), z.flatten(0, 1)[:, None], padding=4, groups=len(z) * 32)
        return maps[:, 1:, 1:].unflatten(0, x.shape[:2]).sum(1)


class CorrelationAware(nn.Module):  # after: a backbone with two inputs, and no correlation
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ca.create_model("sbt_light")
        self.head = nn.Conv2d(self.backbone.num_features, 1, 1)

    def forward(self, template: Tensor | ca.TemplateState, search: Tensor) -> Tensor:
        return self.head(self.backbone(template, search))[:, 0]


torch.manual_seed(0)
template, search, target = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128), torch.zeros(2, 16, 16)
target[:, 6:10, 6:10] = 1
for net in (Siamese(), CorrelationAware()):  # both are trained in the same way
    F.binary_cross_entropy_with_logits(net(template, search), target).backward()
    torch.optim.AdamW(net.parameters(), 1e-3).step()
    print(type(net).__name__, tuple(net(template, search).shape), "after a training step")

net.eval()  # two targets: each is encoded once, one forward pass per frame finds both
with torch.inference_mode():
    state = net.backbone.encode_template(template)  # batch of 2
    for frame in torch.randn(2, 1, 3, 128, 128):  # batch of 1
        print("best locations", net(state, frame).flatten(1).argmax(1).tolist())
