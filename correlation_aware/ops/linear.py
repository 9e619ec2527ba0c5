"""A linear layer of tokens."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.ops.backend import get_backend

__all__ = ["linear"]

X86 = platform.machine() in ("x86_64", "AMD64")
FEWEST = 20480  # numbers; PyTorch gives smaller pictures to its own slow convolution


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Applies a linear layer to each token.

    Eager float32 on an x86 CPU goes through oneDNN, which PyTorch opens to float32 only as a convolution. On
    an AMD EPYC it is more than twice as fast as MKL, which is behind `torch.nn.functional.linear`.

    Args:
        tokens: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).
    """
    if _through_onednn(tokens):
        pixels = tokens.reshape(1, 1, -1, weight.shape[1]).permute(0, 3, 1, 2)  # 1, C, 1, T, channels-last
        # a single point cannot dilate, but it is what makes PyTorch take oneDNN with one thread, too
        found = F.conv2d(pixels, weight[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1)
        return found.reshape(*tokens.shape[:-1], weight.shape[0])
    return F.linear(tokens, weight, bias)


def _through_onednn(tokens: Tensor) -> bool:
    return bool(
        not torch.compiler.is_compiling()
        and tokens.dtype == torch.float32
        and tokens.device.type == "cpu"
        and X86
        and tokens.numel() > FEWEST
        and get_backend() == "auto"
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )
