"""Depth-wise convolution and GELU in plain PyTorch: the definition."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.ops.packed import Shape, pack, unpack

__all__ = ["dwconv_gelu"]


def dwconv_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, shapes: Sequence[Shape]) -> Tensor:
    maps = [
        F.conv2d(m.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 1)
        for m in unpack(tokens, shapes)
    ]
    mixed, _ = pack(maps)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(mixed)
    return torch.ops.aten.gelu_(
        mixed
    )  # in place: on a CPU, new memory for the output would cost more time than the GELU
