"""A linear layer of tokens."""

import platform
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from correlation_aware.ops.backend import get_backend

__all__ = ["linear", "packed_weights"]

X86 = platform.machine() in ("x86_64", "AMD64")
MIN_ONEDNN_NUMEL = 20480  # below this PyTorch does not give a 1x1 convolution to oneDNN


_packed = WeakIdKeyDictionary()  # weight -> (address, version), the weight in oneDNN's layout
_local = threading.local()  # `packing`: whether this thread is in `packed_weights`


class packed_weights:
    """Context manager for inference: `linear` keeps weights in oneDNN's own layout, and is faster.

    Where `linear` takes oneDNN, this saves it to reorder the weights in every call, and doubles their memory.
    A weight is packed at its first use, and again after a change that PyTorch counts, such as a step of an
    optimizer or `load_state_dict`. It does not count changes in place of `weight.data`.
    """

    def __enter__(self) -> None:
        self._previous = getattr(_local, "packing", False)
        _local.packing = True

    def __exit__(self, *_: object) -> None:
        _local.packing = self._previous


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
        if (packed := _pack(tokens, weight)) is not None:
            output: Tensor = torch.ops.mkldnn._linear_pointwise(
                tokens.contiguous(), packed, bias, "none", [], ""
            )
            return output
        image = tokens.reshape(1, 1, -1, weight.shape[1]).permute(0, 3, 1, 2)  # 1, C, 1, T, channels-last
        # dilation does nothing to a 1x1 kernel, but makes PyTorch take oneDNN with one thread, too
        output = F.conv2d(image, weight[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1)
        return output.reshape(*tokens.shape[:-1], weight.shape[0])
    return F.linear(tokens, weight, bias)


def _pack(tokens: Tensor, weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, in `packed_weights` and where nothing needs a gradient; else None."""
    if not getattr(_local, "packing", False) or torch.is_grad_enabled() or weight.is_inference():
        return None
    if type(weight) is not nn.Parameter or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return None
    state = weight.data_ptr(), weight._version
    before = _packed.get(weight)
    if before is None or before[0] != state:
        rows = tokens.numel() // tokens.shape[-1]  # a hint; the layout serves any number of them
        before = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        _packed[weight] = before
    return before[1]


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
