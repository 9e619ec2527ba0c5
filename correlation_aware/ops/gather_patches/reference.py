"""Patches of tokens in plain PyTorch: the definition."""

from collections.abc import Sequence

from torch import Tensor

from correlation_aware.ops.packed import Shape, pack, unpack

__all__ = ["gather_patches"]


def gather_patches(tokens: Tensor, shapes: Sequence[Shape], ratio: int) -> tuple[Tensor, list[Shape]]:
    patches = []
    for m in unpack(tokens, shapes):
        b, h, w, c = m.shape
        rows, columns = h // ratio, w // ratio
        m = m[:, : rows * ratio, : columns * ratio].view(b, rows, ratio, columns, ratio, c)
        patches.append(m.transpose(2, 3).reshape(b, rows, columns, ratio * ratio * c))
    return pack(patches)
