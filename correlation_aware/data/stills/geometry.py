"""What is cut from a photograph, where it comes to lie in a picture, and the exact box it has there.

A cut is described in *units*: its box spans -1..1 in x and y, whatever its size in the photograph. A
placement is a homography from units to pixels of the picture. Pixel i covers [i, i + 1) everywhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["OUTLINE_POINTS", "Cut", "bounds", "clearance", "place", "rounded_outline"]

OUTLINE_POINTS = 64


class Cut(NamedTuple):
    """Parts of photographs, n of them.

    Attributes:
        picture: (n,) numbers of the photographs in the pool.
        centre: (n, 2) x, y in pixels of the photograph.
        half: (n, 2) half the width and half the height.
        outline: (n, points, 2) the hull in units; it touches -1 and 1 in x and in y.
        masked: (n,) an object with a mask; otherwise a rectangle with round corners.
    """

    picture: Tensor
    centre: Tensor
    half: Tensor
    outline: Tensor
    masked: Tensor

    def take(self, which: Tensor) -> "Cut":
        return Cut(*(field[which] for field in self))

    def where(self, condition: Tensor, other: "Cut") -> "Cut":
        """This one where the condition (n,) holds, the other one elsewhere."""
        pairs = ((a, b, condition.view(-1, *[1] * (a.ndim - 1))) for a, b in zip(self, other))
        return Cut(*(torch.where(c, a, b) for a, b, c in pairs))

    @property
    def size(self) -> Tensor:
        """(n,) the square root of the area in pixels of the photograph."""
        return 2 * self.half.prod(dim=1).sqrt()


def rounded_outline(count: int) -> Tensor:
    """(count, points, 2) the curve x^4 + y^4 = 1, a square with round corners."""
    angle = torch.arange(OUTLINE_POINTS) * (2 * torch.pi / OUTLINE_POINTS)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return (circle.sign() * circle.abs().sqrt()).expand(count, -1, -1)


def place(
    half: Tensor,
    at: Tensor,
    scale: Tensor,
    angle: Tensor | None = None,
    aspect: Tensor | None = None,
    tilt: Tensor | None = None,
    flip: Tensor | None = None,
) -> Tensor:
    """The homographies from units to pixels of the picture.

    Args:
        half: (n, 2) of the cut, pixels of the photograph.
        at: (n, 2) where its centre comes to lie, pixels of the picture.
        scale: (n,) pixels of the picture for one of the photograph.
        angle: (n,) radians.
        aspect: (n,) stretches x by its root and y by the inverse.
        tilt: (n, 2) perspective: how much smaller the cut is at the far end of x and of y.
        flip: (n,) bool, mirrors x.

    Returns:
        (n, 3, 3).
    """
    n = len(half)
    angle = torch.zeros(n) if angle is None else angle
    stretch = torch.ones(n) if aspect is None else aspect.sqrt()
    mirror = torch.ones(n) if flip is None else 1.0 - 2.0 * flip
    width, height = (half * scale[:, None]).unbind(1)
    width, height = width * stretch, height / stretch
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(n, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * width * mirror, -sin * height
    matrix[:, 1, 0], matrix[:, 1, 1] = sin * width * mirror, cos * height
    matrix[:, 2, 2] = 1
    if tilt is not None:
        matrix[:, 2, :2] = tilt
    shift = torch.eye(3).repeat(n, 1, 1)
    shift[:, :2, 2] = at
    return shift @ matrix


def bounds(placement: Tensor, outline: Tensor) -> Tensor:
    """The box around a placed outline: (n, 4), cxcywh in pixels of the picture."""
    points = outline @ placement[:, :, :2].mT + placement[:, None, :, 2]
    points = points[..., :2] / points[..., 2:]
    low, high = points.amin(dim=1), points.amax(dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def clearance(boxes: Tensor, half: Tensor, direction: Tensor) -> Tensor:
    """How far to go from a box's centre for another box to just touch it.

    Args:
        boxes: (n, 4) cxcywh.
        half: (n, 2) half width and half height of the other box.
        direction: (n, 2) of length 1.

    Returns:
        (n,) in the unit of the boxes.
    """
    reach = boxes[:, 2:] / 2 + half
    return (reach / direction.abs().clamp(min=1e-6)).amin(dim=1)
