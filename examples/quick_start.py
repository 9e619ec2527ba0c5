"""Two pictures in, features of the second out, which already know the first."""

import torch

import correlation_aware as ca

print(ca.list_models("sbt_light*"))

net = ca.create_model("sbt_light").eval()
template = torch.randn(1, 3, 128, 128)  # the target, in ImageNet normalisation
search = torch.randn(4, 3, 256, 256)  # four frames to look for it in

with torch.inference_mode():
    features = net(template, search)
    print("search features", tuple(features.shape))  # (4, 160, 32, 32): stride 8

    # What depends on the template alone is computed once per target.
    state = net.encode_template(template)
    print("same numbers", torch.equal(net(state, search), features))

# With a prediction head: a score and a box for every cell.
tracker_network = ca.create_model("sbt_light_track").eval()
with torch.inference_mode():
    output = tracker_network(template, search)
print("scores", tuple(output.scores.shape), "boxes", tuple(output.boxes.shape))
