"""SiamFC++ on SBT features. Needs a checkout of megvii-research/video_analyst on PYTHONPATH.

With its own commands nothing of this is needed: import the adapter on the first line of main/train.py and
main/test.py, and set `backbone: {name: SiamFCppBackbone}`, `task_model: {name: SiamTrackCA}` in the YAML.
"""

import torch
from videoanalyst.model.task_head.taskhead_impl.track_head import DenseboxHead

from correlation_aware.adapters import siamfcpp

torch.manual_seed(0)
backbone = siamfcpp.SiamFCppBackbone()
backbone.set_hps({"model": "sbt_light"})  # by default the network nearest to the paper's
backbone.update_params()
head = DenseboxHead()
head.update_params()
model = siamfcpp.SiamTrackCA(backbone, head)
model.update_params()

pair = {"im_z": torch.rand(2, 3, 127, 127) * 255, "im_x": torch.rand(2, 3, 303, 303) * 255}  # BGR in 0..255
loss = model.train()(pair)["box_pred"].square().mean()
loss.backward()
print(f"a training step, loss {loss.item():.3f}")

model.eval()
with torch.inference_mode():
    first = model(pair["im_z"][:1], phase="feature")  # once per target, kept by its tracker
    second = model(pair["im_z"][1:], phase="feature")
    for target in (first, second):  # one model serves both
        scores, boxes, *_ = model(pair["im_x"][:1], *target, phase="track")
        print("scores", tuple(scores.shape), "boxes", tuple(boxes.shape))
