"""A linear layer of tokens."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.ops.backend import get_backend

__all__ = ["linear"]

X86 = platform.machine() in ("x86_64", "AMD64")
MIN_ONEDNN_NUMEL = 20480  # below this PyTorch does not give a 1x1 convolution to oneDNN


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Applies a linear layer to each token.

    Plain tensors in eager float32 on an x86 CPU go through oneDNN, which PyTorch opens to float32 only as a
    convolution. On an AMD EPYC it is more than twice as fast as MKL, which `F.linear` calls. Everything else
    is `F.linear`: traced, exported and compiled programs, and weights of other tensor types (quantized,
    distributed).

    Args:
        tokens: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).
    """
    if _through_onednn(tokens, weight):
        image = tokens.reshape(1, 1, -1, weight.shape[1]).permute(0, 3, 1, 2)  # 1, C, 1, T, channels-last
        # dilation does nothing to a 1x1 kernel, but makes PyTorch take oneDNN with one thread, too
        output = F.conv2d(image, weight[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1)
        return output.reshape(*tokens.shape[:-1], weight.shape[0])
    return F.linear(tokens, weight, bias)


def _through_onednn(tokens: Tensor, weight: Tensor) -> bool:
    return bool(
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(tokens) is Tensor
        and type(weight) in (nn.Parameter, Tensor)
        and tokens.dtype == torch.float32
        and tokens.device.type == "cpu"
        and X86
        and tokens.numel() > MIN_ONEDNN_NUMEL
        and get_backend() == "auto"
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )
