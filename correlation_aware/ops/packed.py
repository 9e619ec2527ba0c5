"""Template and search tokens in one tensor, so that layers with shared weights run once for both streams.

Packed tokens are (T, C): first all template tokens, then all search tokens, each stream in (batch, height,
width) order. `shapes` lists (batch, height, width) of each stream. A stream is a contiguous slice of the
tokens, so it can be viewed as a channels-last map without a copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Shape", "flat_shapes", "pack", "streams", "unpack"]

Shape = tuple[int, int, int]  # batch, height, width of one stream


def pack(maps: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
    """Packs channels-last maps (B, H, W, C) into tokens (T, C), and returns the shapes too."""
    shapes = [(m.shape[0], m.shape[1], m.shape[2]) for m in maps]
    flat = [m.reshape(-1, m.shape[-1]) for m in maps]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)), shapes


def unpack(tokens: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Views packed tokens (T, C) as channels-last maps (B, H, W, C), without a copy."""
    parts = [tokens] if len(shapes) == 1 else tokens.split([b * h * w for b, h, w in shapes])
    return [part.view(b, h, w, -1) for part, (b, h, w) in zip(parts, shapes)]


def flat_shapes(shapes: Sequence[Shape]) -> list[int]:
    """[b, h, w, b, h, w, ...]: the shapes as a list of integers, for the schema of a custom operation."""
    return [size for shape in shapes for size in shape]


def streams(flat: Sequence[int]) -> tuple[Shape, Shape]:
    """The shapes of `flat_shapes` as two streams; a missing second one has batch 0."""
    first = (flat[0], flat[1], flat[2])
    return first, ((flat[3], flat[4], flat[5]) if len(flat) > 3 else (0, flat[1], flat[2]))
