"""Contact sheets of training pairs, to inspect data before training."""

import cv2
import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from correlation_aware.data.pairs import PairBatch, denormalize

__all__ = ["pair_sheet"]

GAP = 4  # pixels between the pairs
GREEN, RED = (0, 255, 0), (255, 60, 60)


def pair_sheet(batch: PairBatch, columns: int = 8) -> NDArray[np.uint8]:
    """One image with all pairs of a batch: each template, and on its right the search image with the box.

    The box is green, or red where the template shows another target; its line is just outside the target.

    Args:
        batch: Pairs to show.
        columns: Number of pairs in a row.

    Returns:
        uint8 RGB (H, W, 3).
    """
    template, search = (
        rearrange(denormalize(images), "b c h w -> b h w c").cpu().numpy()
        for images in (batch.template, batch.search)
    )
    search_height, search_width = search.shape[1:3]
    template_height, template_width = template.shape[1:3]
    tile_height = max(search_height, template_height) + GAP
    tile_width = template_width + search_width + GAP
    rows = -(-len(search) // columns)
    sheet = np.zeros((rows * tile_height, columns * tile_width, 3), np.uint8)
    boxes, positive = batch.boxes.cpu().double().numpy(), batch.positive.cpu().numpy()
    for i, (z, x) in enumerate(zip(template, search)):
        cx, cy, w, h = boxes[i] * (search_width, search_height, search_width, search_height)
        low = round(cx - w / 2) - 1, round(cy - h / 2) - 1
        high = round(cx + w / 2), round(cy + h / 2)
        x = cv2.rectangle(np.ascontiguousarray(x), low, high, GREEN if positive[i] else RED)
        top, left = i // columns * tile_height, i % columns * tile_width
        sheet[top : top + template_height, left : left + template_width] = z
        left += template_width
        sheet[top : top + search_height, left : left + search_width] = x
    return sheet
