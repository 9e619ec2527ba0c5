"""Crops cut where the model runs: many from one frame, in one sampling, with the pixels of `Crop.cut`."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.tracking.crop import Crop

__all__ = ["cut_all", "send", "upload"]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; the copy to a GPU does not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def cut_all(frame: Tensor, crops: Sequence[Crop], size: int) -> Tensor:
    """Cuts crops from a frame on its device, without waiting for the device.

    Samples as `Crop.cut` does: bilinear between centres of pixels, the edge of the crop repeated, black
    outside the frame, whole grey levels; a level may differ by 1, as OpenCV computes in fixed point. On a
    CPU `Crop.cut` is two to four times as quick.

    Args:
        frame: (H, W, 3), uint8.
        crops: N crops in pixels of this frame.
        size: Side of the pictures.

    Returns:
        (N, 3, size, size), float32, whole numbers in 0..255.
    """
    height, width = frame.shape[:2]
    places = torch.tensor([(c.x, c.y, c.side) for c in crops], dtype=torch.float32)
    x, y, side = send(places, frame.device).T[..., None]  # N, 1 each
    along = (torch.arange(size, device=frame.device) + 0.5) * (side / size)  # N, size; pixel i spans i..i+1
    along = torch.minimum(along.clamp(min=0.5), side - 0.5)
    grid = torch.stack(
        torch.broadcast_tensors(
            ((x + along) * (2 / width) - 1)[:, None, :], ((y + along) * (2 / height) - 1)[:, :, None]
        ),
        dim=-1,
    )  # N, size, size, 2 in -1..1 of the frame
    pixels = frame.permute(2, 0, 1).float().expand(len(crops), -1, -1, -1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False).round_()


def upload(
    frame: NDArray[np.uint8], crops: Sequence[Crop], device: torch.device
) -> tuple[Tensor, list[Crop]]:
    """Brings the part of a frame that crops need to a device.

    Args:
        frame: (H, W, 3), uint8.
        crops: Crops in pixels of the frame; they may leave it.
        device: Where to; the copy to a GPU does not wait.

    Returns:
        The part, (H', W', 3) uint8, and the crops in pixels of it.
    """
    height, width = frame.shape[:2]
    left, right = _span([(c.x, c.x + c.side) for c in crops], width)
    top, bottom = _span([(c.y, c.y + c.side) for c in crops], height)
    part = torch.from_numpy(np.ascontiguousarray(frame[top:bottom, left:right]))
    moved = [Crop(c.x - left, c.y - top, c.side) for c in crops]
    return send(part, device), moved


def _span(spans: Sequence[tuple[int, int]], length: int) -> tuple[int, int]:
    """Where the spans lie in 0..length together, at least one pixel."""
    start = min(max(min(a for a, _ in spans), 0), length - 1)
    return start, max(min(max(b for _, b in spans), length), start + 1)
