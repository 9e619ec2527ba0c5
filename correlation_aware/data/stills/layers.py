"""Pictures in layers: a ground, then cuts laid over it, each batch-wise and in place."""

from typing import NamedTuple

import torch
from torch import Tensor

from correlation_aware.data.draws import Draws
from correlation_aware.data.stills.geometry import Cut, bounds
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import Sampled, sample

__all__ = ["Edges", "covered", "lay", "window"]

TILE_STEP = 16


class Edges(NamedTuple):
    """How the edges of n pasted cuts look.

    Attributes:
        hard: (n,) value of the blurred mask at which an object becomes transparent.
        feather: (n,) width of a rectangle's soft rim, in x^4 + y^4.
    """

    hard: Tensor
    feather: Tensor

    @classmethod
    def draw(cls, draws: Draws, count: int) -> "Edges":
        """Each its own way, so that no kind of edge tells that something was pasted."""
        return cls(draws.uniform(0.15, 0.4, count), draws.uniform(-2.3, 0.3, count).exp())

    def repeat(self, count: int) -> "Edges":
        """The first one, `count` times."""
        return Edges(self.hard[:1].expand(count), self.feather[:1].expand(count))


def lay(
    pool: ImagePool,
    canvas: Tensor,
    which: Tensor,
    cut: Cut,
    placement: Tensor,
    edges: Edges,
    softness: Tensor | None = None,
    colours: Tensor | None = None,
    bend: Tensor | None = None,
) -> None:
    """Pastes k cuts into some of the pictures, in place.

    Args:
        pool: The photographs.
        canvas: (n, 3, H, W) in 0..255, on the pool's device.
        which: (k,) numbers of pictures, none twice.
        cut: k cuts.
        placement: (k, 3, 3), see `place`.
        edges: How their edges look.
        softness: (k,), see `sample`.
        colours: (k, 3, 3) to mix red, green and blue.
        bend: (k, 2), see `sample`.
    """
    if len(which) == 0:
        return
    device = canvas.device
    corner, size = _tile(placement, cut, (canvas.shape[2], canvas.shape[3]))
    shift = torch.eye(3).repeat(len(which), 1, 1)
    shift[:, :2, 2] = -corner
    layer = sample(pool, cut, shift @ placement, size, softness, bend=bend)
    rgb = layer.rgb
    if colours is not None:
        rgb = torch.bmm(colours.to(device), rgb.flatten(2)).clamp_(0, 255).view_as(rgb)
    alpha = _alpha(layer, cut.masked.to(device), edges.hard.to(device), edges.feather.to(device))
    flat = canvas.view(-1)
    index = _index(which, corner.long(), size, canvas.shape).to(device)
    index = torch.stack([index + c * canvas.shape[2] * canvas.shape[3] for c in range(3)], dim=1).flatten()
    under = flat.index_select(0, index).view_as(rgb)
    flat.index_copy_(0, index, torch.lerp(under, rgb, alpha[:, None]).flatten())


def window(picture: Tensor, centre: Tensor, side: Tensor) -> Cut:
    """Square parts of photographs, (n,), (n, 2), (n,); they have no outline."""
    n = len(picture)
    half = (side / 2)[:, None].expand(-1, 2)
    return Cut(picture, centre, half, torch.zeros(n, 0, 2), torch.zeros(n, dtype=torch.bool))


def covered(pool: ImagePool, cut: Cut, placement: Tensor, size: tuple[int, int]) -> Tensor:
    """(n,) the part of each picture that the cut's photograph covers, in 0..1."""
    rim = pool.sides(cut.picture)[:, None] * torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    boxes = bounds(placement, (rim - cut.centre[:, None]) / cut.half[:, None])
    picture = torch.tensor([float(size[1]), float(size[0])])
    low = (boxes[:, :2] - boxes[:, 2:] / 2).clamp(min=0)
    high = (boxes[:, :2] + boxes[:, 2:] / 2).minimum(picture)
    return ((high - low).clamp(min=0) / picture).prod(dim=1)


def _tile(placement: Tensor, cut: Cut, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """The smallest tile that holds each cut, with its soft edge: the corners (k, 2) x, y and one size."""
    boxes = bounds(placement, cut.outline * 1.2)
    picture = torch.tensor([float(size[1]), float(size[0])])
    low = (boxes[:, :2] - boxes[:, 2:] / 2 - 2).clamp(min=0).minimum(picture - 1).floor()
    high = (boxes[:, :2] + boxes[:, 2:] / 2 + 2).clamp(min=1).minimum(picture).ceil()
    needed = ((high - low).amax(dim=0) / TILE_STEP).ceil() * TILE_STEP
    tile = needed.clamp(min=TILE_STEP).minimum(picture)
    return low.minimum(picture - tile), (int(tile[1]), int(tile[0]))


def _index(which: Tensor, corner: Tensor, size: tuple[int, int], shape: torch.Size) -> Tensor:
    """Where a tile's pixels lie in the first channel of a flat canvas, (k, h, w)."""
    rows = corner[:, 1, None] + torch.arange(size[0])
    columns = corner[:, 0, None] + torch.arange(size[1])
    first = which * (shape[1] * shape[2] * shape[3])
    return first[:, None, None] + rows[:, :, None] * shape[3] + columns[:, None]


def _alpha(layer: Sampled, masked: Tensor, hard: Tensor, feather: Tensor) -> Tensor:
    hard, feather, masked = (v.view(-1, 1, 1) for v in (hard, feather, masked))
    drawn = layer.mask.sub(hard).div_(0.9 - hard).clamp_(0, 1)
    rounded = (1 - layer.x.square().square_()).sub_(layer.y.square().square_())
    rounded = rounded.div_(feather).add_(0.5).clamp_(0, 1)
    return torch.where(masked, drawn, rounded).mul_(layer.rim >= 0)
