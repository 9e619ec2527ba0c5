"""Search features that are already correlated with the template, a cached template, and a prediction head."""

import torch

import correlation_aware as ca

print(ca.list_models("sbt_light*"))

net = ca.create_model("sbt_light").eval()
template = torch.randn(1, 3, 128, 128)  # crop of the target, with ImageNet normalization
search = torch.randn(4, 3, 256, 256)  # search regions of four frames

with torch.inference_mode():
    features = net(template, search)
    print("search features", tuple(features.shape))  # (4, 160, 32, 32): stride 8

    # The part that depends only on the template is computed once per target.
    state = net.encode_template(template)
    print("same features", torch.equal(net(state, search), features))

# With a prediction head: a score and a box for every location.
track_model = ca.create_model("sbt_light_track").eval()
with torch.inference_mode():
    output = track_model(template, search)
print("scores", tuple(output.scores.shape), "boxes", tuple(output.boxes.shape))
