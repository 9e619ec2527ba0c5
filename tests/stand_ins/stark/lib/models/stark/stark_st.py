"""As `stark_s`, under the name that STARK-ST's code binds for itself."""

from lib.models.stark.stark_s import STARKS

from .backbone import build_backbone


def build_starkst(cfg):
    return STARKS(build_backbone(cfg), cfg.MODEL.HIDDEN_DIM)
