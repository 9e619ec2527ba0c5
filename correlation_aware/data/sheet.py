"""Contact sheets: pairs to look at before one trains on them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware.data.pairs import PairBatch, denormalize

__all__ = ["pair_sheet"]

GAP = 4
GREEN, RED = (0, 255, 0), (255, 60, 60)


def pair_sheet(batch: PairBatch, columns: int = 8) -> NDArray[np.uint8]:
    """One picture of all pairs, uint8 RGB: each search picture with its box, its template on the left.

    The box is green, or red where the template is of another target; it runs just outside the target.
    """
    template, search = (
        denormalize(p).permute(0, 2, 3, 1).cpu().numpy() for p in (batch.template, batch.search)
    )
    height, width = search.shape[1:3]
    tall, wide = template.shape[1:3]
    cell_height, cell_width = max(height, tall) + GAP, wide + width + GAP
    rows = -(-len(search) // columns)
    sheet = np.zeros((rows * cell_height, columns * cell_width, 3), np.uint8)
    boxes, positive = batch.boxes.cpu().double().numpy(), batch.positive.cpu().numpy()
    for i, (z, x) in enumerate(zip(template, search)):
        cx, cy, w, h = boxes[i] * (width, height, width, height)
        low = round(cx - w / 2) - 1, round(cy - h / 2) - 1
        high = round(cx + w / 2), round(cy + h / 2)
        x = cv2.rectangle(np.ascontiguousarray(x), low, high, GREEN if positive[i] else RED)
        top, left = i // columns * cell_height, i % columns * cell_width
        sheet[top : top + tall, left : left + wide] = z
        sheet[top : top + height, left + wide : left + wide + width] = x
    return sheet
