"""STM on SBT features. Needs a checkout of seoungwugoh/STM first on PYTHONPATH.

With its own command nothing of this is needed but `model.STM = STM_CA` before eval_DAVIS.py imports STM.
"""

import functools

import model
import torch

from correlation_aware.adapters.stm import STM_CA, create_network

torch.manual_seed(0)
model.STM = STM_CA  # by default the network nearest to the paper's
net = model.STM(functools.partial(create_network, "sbt_light")).eval()

frames = torch.rand(3, 1, 3, 64, 96)  # RGB in 0..1
labels = torch.zeros(1, 64, 96, dtype=torch.long)
labels[:, 8:24, 8:40], labels[:, 32:56, 48:88] = 1, 2  # two objects
masks = torch.nn.functional.one_hot(labels, 11).permute(0, 3, 1, 2).float()
objects = torch.tensor([2])

with torch.inference_mode():
    keys, values = net(frames[0], masks, objects)  # an exactly one-hot mask: a new video, and its template
    for frame in frames[1:]:
        prediction = net(frame, keys, values, objects).softmax(dim=1)
        memory = net(frame, prediction, objects)
        keys, values = (torch.cat(pair, dim=3) for pair in zip((keys, values), memory))
        print("segmented", tuple(prediction.shape), "memory", tuple(keys.shape))
net.reset()
