"""Layers with the operations of this package: `nn.Linear` and `nn.LayerNorm` stay what they are.

Tools that look for these types (profilers, quantizers, LoRA) see every layer. In eager mode a faster
operation works on the layer's weights in place of the call, but only where `can_bypass` says that nobody
would notice.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from correlation_aware.ops.add_layer_norm import add_layer_norm
from correlation_aware.ops.backend import get_backend
from correlation_aware.ops.linear import linear

__all__ = ["add_norm", "apply_linear", "can_bypass"]

_GLOBAL_HOOKS = (  # what nn.Module itself looks at before it calls `forward` directly
    nn_module._global_forward_pre_hooks,
    nn_module._global_forward_hooks,
    nn_module._global_backward_pre_hooks,
    nn_module._global_backward_hooks,
)


def can_bypass(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether an operation on the weights of `module` may replace its call, because nobody would notice.

    That is not so for a module of another type (quantized, wrapped or parametrized), with weights of another
    tensor type, with hooks, or with a `forward` of its own. Compiled, exported and traced programs keep the
    call as well, so that their graphs name the layer; only the Triton kernels replace it there, too.

    Args:
        module: A layer with a `weight`.
        kind: The type whose `forward` the operation computes.
    """
    compiling = torch.compiler.is_compiling()
    if get_backend() != "triton" and (compiling or torch.jit.is_tracing()):
        return False
    return (
        type(module) is kind
        and (compiling or type(module.weight) in (nn.Parameter, Tensor))  # torch.export has a type of its own
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and "forward" not in module.__dict__  # as accelerate replaces it
        and not any(_GLOBAL_HOOKS)
    )


def apply_linear(module: nn.Module, tokens: Tensor) -> Tensor:
    """Calls a linear layer, or `ops.linear` with its weights: (..., C) -> (..., D)."""
    if can_bypass(module, nn.Linear):
        assert isinstance(module, nn.Linear)
        return linear(tokens, module.weight, module.bias)
    output: Tensor = module(tokens)
    return output


def add_norm(norm: nn.Module, tokens: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens with a residual added, and their norm: (T, C), (T, C) -> (T, C), (T, C)."""
    if residual is not None and can_bypass(norm, nn.LayerNorm):
        assert isinstance(norm, nn.LayerNorm)
        return add_layer_norm(tokens, residual, norm.weight, norm.bias, norm.eps)
    if residual is not None:
        tokens = tokens + residual
    return tokens, norm(tokens)
