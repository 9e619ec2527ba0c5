"""The call order of STARK-S's tester; frames are images already cut: {"template": ..., "search": ...}."""

import torch
from lib.utils.misc import NestedTensor


class STARK_S:
    def __init__(self, network):
        super(STARK_S, self).__init__()  # noqa: UP008 - STARK finds its base by its own name
        self.network = network.eval()

    @torch.no_grad()
    def run(self, image):
        mask = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.bool)
        return self.network.forward_backbone(NestedTensor(image, mask))

    @torch.no_grad()
    def decide(self, parts):
        sequence = {
            key: torch.cat([part[key] for part in parts], dim=1 if key == "mask" else 0)
            for key in ("feat", "mask", "pos")
        }
        return self.network.forward_transformer(sequence)[0]

    def initialize(self, image, info):
        self.first = self.run(image["template"])

    def track(self, image, info=None):
        return self.decide([self.first, self.run(image["search"])])


def get_tracker_class():
    return STARK_S
