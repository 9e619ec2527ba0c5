"""Convolutions with their batch norm and activation as one operation of oneDNN, for inference on an x86 CPU.

A copy of the model shares all modules and weights but the fused ones. Fused weights are computed at their
first use, in oneDNN's own layout, and again after `refresh`.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import get_same_padding
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from correlation_aware.ops.linear import X86

__all__ = ["FusedConvolution", "fuse_convolutions", "refresh"]

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the largest value
MAX_LAYOUTS = 4  # of a convolution's weights: for template and search images, and two more sizes
_NO_ACTIVATION: tuple[str, list[float]] = ("none", [])
# activations that oneDNN applies to the result of a convolution, and their arguments
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: _NO_ACTIVATION,
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class FusedConvolution(nn.Module):
    """A convolution and the batch norm after it, in inference mode.

    Args:
        conv: The convolution, with zero padding.
        norm: The batch norm, one of timm's with an activation included.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        activation = getattr(norm, "act", None)
        known = _ACTIVATIONS.get(type(activation)) if activation is not None else _NO_ACTIVATION
        self.fused_activation = known or _NO_ACTIVATION
        self.activation = None if known else activation
        self.pad_same = type(conv) is not nn.Conv2d
        self._fused: dict[torch.Size, tuple[Tensor, Tensor, tuple[int, int]]] = {}  # by size of the input

    def refresh(self) -> None:
        """Forgets the fused weights, in case that those of the layers have changed."""
        self._fused.clear()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        conv = self.conv
        if _has_hooks(conv) or _has_hooks(self.norm) or self.norm.training or torch.is_grad_enabled():
            output: Tensor = self.norm(conv(x))
            return output
        weight, bias, padding = self._fuse(x.shape)
        kind, arguments = self.fused_activation
        output = torch.ops.mkldnn._convolution_pointwise(
            x.contiguous(memory_format=torch.channels_last),  # oneDNN is much slower with others
            weight,
            bias,
            padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            kind,
            arguments,
            "",
        )
        return output if self.activation is None else self.activation(output)

    def _fuse(self, shape: torch.Size) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Weight, in the layout that is fast for inputs of a shape, bias and padding."""
        if shape[2:] in self._fused:
            return self._fused[shape[2:]]
        conv, norm = self.conv, self.norm
        padding, zeros = cast(tuple[int, int], conv.padding), (0, 0)
        if self.pad_same:  # as TensorFlow does
            padding, zeros = _same_padding(shape, conv)
        assert norm.running_mean is not None and norm.running_var is not None
        tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var)
        weight, bias, mean, var = (None if t is None else t.float() for t in tensors)
        gain, shift = norm.weight.float(), norm.bias.float()
        assert weight is not None and mean is not None and var is not None
        fused = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gain, shift)
        weight, bias = (cast(Tensor, t).detach().to(conv.weight.dtype) for t in fused)
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            F.pad(weight, (zeros[1], 0, zeros[0], 0)),
            padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            list(shape),
        )
        if len(self._fused) == MAX_LAYOUTS:
            self._fused.clear()
        self._fused[shape[2:]] = weight, bias, padding
        return weight, bias, padding


def _same_padding(shape: torch.Size, conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding of both sides, height and width, and zeros before the weights, that pad as TensorFlow does.

    It pads by one more after the image than before it, if the padding is odd. With the same padding before
    and after, and a kernel that is larger by a zero at its start, the outputs are the same, without a copy of
    the image.
    """
    padding, zeros = [], []
    for axis in (0, 1):
        size, kernel, stride = shape[2 + axis], conv.kernel_size[axis], conv.stride[axis]
        total = get_same_padding(size, kernel, stride, conv.dilation[axis])
        zeros.append(total % 2)
        padding.append(total // 2 + total % 2)
    return (padding[0], padding[1]), (zeros[0], zeros[1])


def fuse_convolutions(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> nn.Module:
    """A copy of a model in evaluation mode, with convolutions and their batch norms fused.

    Args:
        model: The model; it is not changed, and shares its weights with the copy.
        run: Runs the model once on the same input, to see which batch norm follows which convolution, and
            that the outputs are the same.

    Returns:
        The copy; or the model itself if there is nothing to fuse, if oneDNN cannot do it, or if the outputs
        differ, as they do where something else reads a convolution's output, too.
    """
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if not (has_norm and _can_fuse(next(model.parameters()))):
        return model
    pairs, expected = _find_pairs(model, run)
    replaced: dict[nn.Module, nn.Module] = {}
    for conv, norm in pairs.items():
        replaced |= {conv: FusedConvolution(conv, norm), norm: nn.Identity()}
    if not replaced:
        return model
    copied = _replace(model, replaced)
    with torch.no_grad():
        difference = (run(copied) - expected).abs().max()
    return copied if difference <= TOLERANCES[expected.dtype] * expected.abs().max() else model


def refresh(model: nn.Module) -> None:
    """Has all fused weights of a model computed anew, in case that the weights have changed."""
    for module in model.modules():
        if isinstance(module, FusedConvolution):
            module.refresh()


def _find_pairs(
    model: nn.Module, run: Callable[[nn.Module], Tensor]
) -> tuple[dict[nn.Conv2d, nn.BatchNorm2d], Tensor]:
    """Convolutions whose output is the very tensor that one batch norm takes; and the model's output."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    followers: dict[nn.Conv2d, set[nn.BatchNorm2d]] = {}

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[id(output)] = (cast(nn.Conv2d, module), output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            conv = outputs[id(inputs[0])][0]
            followers.setdefault(conv, set()).add(cast(nn.BatchNorm2d, module))

    handles = []
    for module in model.modules():
        if _is_plain_conv(module):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            output = run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {conv: next(iter(norms)) for conv, norms in followers.items() if len(norms) == 1}, output


def _can_fuse(parameter: Tensor) -> bool:
    if not (X86 and parameter.device.type == "cpu" and torch.backends.mkldnn.is_available()):
        return False
    operations = torch.ops.mkldnn
    if not all(
        hasattr(operations, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")
    ):
        return False
    if parameter.dtype == torch.bfloat16:
        return bool(operations._is_mkldnn_bf16_supported())
    return parameter.dtype == torch.float32


def _is_plain_conv(module: nn.Module) -> bool:
    if type(module).__name__ == "Conv2dSame":  # timm's; its other subclasses change the weights
        conv = cast(nn.Conv2d, module)
        return conv.dilation == (1, 1)
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and type(module.padding) is tuple


def _replace(module: nn.Module, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with others in place of some below it; modules that hold none of these are shared."""
    if module in replaced:
        return replaced[module]
    children = {name: child and _replace(child, replaced) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    copied = copy.copy(module)
    copied._modules = cast(Any, children)
    return copied


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
