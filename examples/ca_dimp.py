"""DiMP's network with correlation-aware features: a training step, then two targets on one network.

Needs pytracking on PYTHONPATH. docs/adapters_dimp.md lists the lines to change in its files, after which its
own commands train and track; this is what they call.
"""

import torch

from correlation_aware.adapters.dimp import dimpnet_sbt

torch.manual_seed(0)
net = dimpnet_sbt(backbone="sbt_light", backbone_pretrained=False, filter_size=4).train()
optimizer = torch.optim.Adam(
    [{"params": net.feature_extractor.parameters(), "lr": 2e-5}, {"params": net.bb_regressor.parameters()}],
    lr=2e-4,
)

# One train and one test image of two sequences, boxes x, y, w, h, and three proposals a test image.
train_images, test_images = torch.randn(2, 1, 2, 3, 288, 288)
boxes = torch.tensor([[[110.0, 120, 60, 50], [130, 100, 40, 70]]])
proposals = boxes[:, :, None] + torch.randn(1, 2, 3, 4)

scores, overlaps = net(train_images, test_images, boxes, proposals)
loss = overlaps.square().mean() + scores[-1].square().mean()
loss.backward()
optimizer.step()
print("scores", tuple(scores[-1].shape), "overlaps", tuple(overlaps.shape), f"loss {loss.item():.3f}")

# In tracking a target's template is encoded once; its state belongs to the tracker, not to the network.
net.eval()
frame = torch.randn(1, 3, 288, 288)
with torch.inference_mode():
    one, other = (net.encode_template(train_images[0, i : i + 1], boxes[0, i : i + 1]) for i in (0, 1))
    features = net.extract_backbone_features(frame, template=one)
    print({name: tuple(f.shape) for name, f in features.items()})
    different = net.extract_backbone_features(frame, template=other)["layer3"]
    again = net.extract_backbone_features(frame, template=one)["layer3"]
same = torch.equal(again, features["layer3"]) and not torch.equal(again, different)
print("two targets, one network", same)
