"""The call order of OSTrack's tester; frames are images already cut: {"template": ..., "search": ...}."""

import torch
from lib.models.ostrack import build_ostrack


class OSTrack:
    def __init__(self, cfg, network=None):
        self.network = (network or build_ostrack(cfg, training=False)).eval()

    def initialize(self, image, info):
        self.template = image["template"]

    @torch.no_grad()
    def track(self, image, info=None):
        return self.network(template=self.template, search=image["search"])["score_map"]
