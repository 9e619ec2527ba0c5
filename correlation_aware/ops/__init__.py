"""Operations of the SBT blocks, each in plain PyTorch and as a Triton kernel.

Each operation is a folder: `reference.py` is its definition and runs on every device, `triton.py` computes
the same on a CUDA GPU with one launch for both streams and is imported on first use. Nothing is compiled at
installation or at import. `linear.py` selects the library of matrix products on a CPU, and `layers.py` runs
these operations on plain layers of PyTorch.
"""

from correlation_aware.ops.add_layer_norm import add_layer_norm
from correlation_aware.ops.backend import BACKENDS, Backend, get_backend, set_backend
from correlation_aware.ops.dwconv_gelu import dwconv_gelu
from correlation_aware.ops.eoc_attention import eoc_attention
from correlation_aware.ops.gather_patches import gather_patches
from correlation_aware.ops.layers import add_norm, apply_linear, can_bypass
from correlation_aware.ops.linear import linear, packed_weights
from correlation_aware.ops.packed import Shape, pack, unpack

__all__ = [
    "BACKENDS",
    "Backend",
    "Shape",
    "add_layer_norm",
    "add_norm",
    "apply_linear",
    "can_bypass",
    "dwconv_gelu",
    "eoc_attention",
    "gather_patches",
    "get_backend",
    "linear",
    "pack",
    "packed_weights",
    "set_backend",
    "unpack",
]
