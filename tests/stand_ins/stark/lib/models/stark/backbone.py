"""The interface of STARK's backbones: NestedTensor in, a dict of them out, joined with positions."""

import torch
from lib.utils.misc import NestedTensor
from torch import nn


class StockBackbone(nn.Module):
    num_channels = 24

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, self.num_channels, 16, stride=16)

    def forward(self, tensor_list):
        return {"0": NestedTensor(self.body(tensor_list.tensors), tensor_list.mask[:, ::16, ::16])}


class Positions(nn.Module):
    """Channels of constants, of the features' size."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, tensor_list):
        batch, _, height, width = tensor_list.tensors.shape
        return torch.linspace(0, 1, self.dim)[None, :, None, None].expand(batch, -1, height, width)


class Joiner(nn.Sequential):
    def __init__(self, backbone, positions):
        super().__init__(backbone, positions)

    def forward(self, tensor_list, mode=None):
        maps = list(self[0](tensor_list).values())
        return maps, [self[1](m).to(m.tensors.dtype) for m in maps]


def build_position_encoding(cfg):
    return Positions(cfg.MODEL.HIDDEN_DIM)


def build_backbone(cfg):
    backbone = StockBackbone()
    joined = Joiner(backbone, build_position_encoding(cfg))
    joined.num_channels = backbone.num_channels
    return joined
