"""Regions of photographs, the homographies that place them in an image, and their exact boxes there.

A region has its own coordinates: its box spans -1..1 in x and y, whatever its size in the photograph. A
placement is a homography (3, 3) from these coordinates to pixels of the output image. Pixel i covers
[i, i + 1) everywhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["OUTLINE_POINTS", "Region", "bounding_boxes", "clearance", "place", "rounded_outline"]

OUTLINE_POINTS = 64


class Region(NamedTuple):
    """A batch of n regions of photographs.

    Attributes:
        image: (n,) index of the photograph in the pool.
        center: (n, 2) x, y in pixels of the photograph.
        half_size: (n, 2) half the width and half the height in pixels of the photograph.
        outline: (n, points, 2) convex hull in region coordinates; it touches -1 and 1 in x and in y.
        masked: (n,) bool, True for an object with a mask, False for a rectangle with rounded corners.
    """

    image: Tensor
    center: Tensor
    half_size: Tensor
    outline: Tensor
    masked: Tensor

    def take(self, indices: Tensor) -> "Region":
        """The regions at `indices`, an index or boolean tensor."""
        return Region(*(field[indices] for field in self))

    def where(self, condition: Tensor, other: "Region") -> "Region":
        """These regions where the condition (n,) is True, those of `other` elsewhere."""
        pairs = ((a, b, condition.view(-1, *[1] * (a.ndim - 1))) for a, b in zip(self, other))
        return Region(*(torch.where(c, a, b) for a, b, c in pairs))

    @property
    def size(self) -> Tensor:
        """(n,) square root of the area of the box, in pixels of the photograph."""
        return 2 * self.half_size.prod(dim=1).sqrt()


def rounded_outline(count: int) -> Tensor:
    """(count, points, 2) outlines x^4 + y^4 = 1: squares with rounded corners."""
    angle = torch.arange(OUTLINE_POINTS) * (2 * torch.pi / OUTLINE_POINTS)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return (circle.sign() * circle.abs().sqrt()).expand(count, -1, -1)


def place(
    half_size: Tensor,
    center: Tensor,
    scale: Tensor,
    angle: Tensor | None = None,
    aspect: Tensor | None = None,
    tilt: Tensor | None = None,
    flip: Tensor | None = None,
) -> Tensor:
    """Homographies from region coordinates to pixels of the output image.

    Args:
        half_size: (n, 2) half width and half height of the regions, in pixels of their photographs.
        center: (n, 2) position of their centers in the output image, in pixels.
        scale: (n,) pixels of the output image per pixel of the photograph.
        angle: (n,) rotation in radians, none by default.
        aspect: (n,) change of the aspect ratio: sqrt(aspect) in x and 1 / sqrt(aspect) in y; 1 by default.
        tilt: (n, 2) perspective terms of the homography along x and y; 0 by default.
        flip: (n,) bool, whether to mirror x; False by default.

    Returns:
        (n, 3, 3).
    """
    n = len(half_size)
    angle = torch.zeros(n) if angle is None else angle
    stretch = torch.ones(n) if aspect is None else aspect.sqrt()
    mirror = torch.ones(n) if flip is None else 1.0 - 2.0 * flip
    width, height = (half_size * scale[:, None]).unbind(1)
    width, height = width * stretch, height / stretch
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(n, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * width * mirror, -sin * height
    matrix[:, 1, 0], matrix[:, 1, 1] = sin * width * mirror, cos * height
    matrix[:, 2, 2] = 1
    if tilt is not None:
        matrix[:, 2, :2] = tilt
    shift = torch.eye(3).repeat(n, 1, 1)
    shift[:, :2, 2] = center
    return shift @ matrix


def bounding_boxes(placement: Tensor, outline: Tensor) -> Tensor:
    """Boxes around placed outlines.

    Args:
        placement: (n, 3, 3) homographies, see `place`.
        outline: (n, points, 2) in region coordinates.

    Returns:
        (n, 4) cxcywh in pixels of the output image.
    """
    points = outline @ placement[:, :, :2].mT + placement[:, None, :, 2]
    points = points[..., :2] / points[..., 2:]
    low, high = points.amin(dim=1), points.amax(dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def clearance(boxes: Tensor, half_size: Tensor, direction: Tensor) -> Tensor:
    """Distance between the centers of two boxes that just touch, the second one in a given direction.

    Args:
        boxes: (n, 4) cxcywh.
        half_size: (n, 2) half width and half height of the second box.
        direction: (n, 2) unit vector from the center of the first box to that of the second.

    Returns:
        (n,) in the unit of the boxes.
    """
    reach = boxes[:, 2:] / 2 + half_size
    return (reach / direction.abs().clamp(min=1e-6)).amin(dim=1)
