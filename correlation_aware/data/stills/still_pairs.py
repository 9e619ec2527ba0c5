"""Training pairs made of still photographs, in batches of tensor operations on any device.

A target is an object with a mask or a rectangle that stands out. In a *natural* pair both pictures are cut
from the target's own photograph, around it; in a *pasted* pair the target is laid over other scenes. The mix
follows what was found by trying: a network that has seen pasted targets alone learns to find the edges of the
paste, and is of no use on real video.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from correlation_aware.data.draws import Draws
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.stills.geometry import Cut, bounds, clearance, place
from correlation_aware.data.stills.layers import Edges, covered, lay, window
from correlation_aware.data.stills.photometric import PhotometricConfig, alter, recolour
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import BLACK, REFLECT, sample

__all__ = ["StillConfig", "StillPairs"]

SCENE = REFLECT + 1  # beyond the rim of a photograph another one is seen


@dataclass(frozen=True)
class StillConfig:
    """The mix of pairs from stills. All but the spreads are probabilities.

    Attributes:
        natural: Both pictures from one photograph; the rest are pasted.
        negative: The template of another sample.
        objects: The target is the photograph's object, if it has one, and not a rectangle.
        own_template: The template of a pasted target shows it in its own photograph.
        same_scene: Template and search picture of a pasted target show parts of one scene.
        near: The target lies near the middle of the search picture, as in a slow video.
        scale_jitter: The search picture shows the target e^-jitter .. e^jitter times as large.
        distractors: First and second thing pasted beside the target.
        lookalike: A distractor is a recoloured copy of the target.
        same_class: A distractor is of the target's class, where classes are known.
        occluder: Something covers a part of the target.
        black, mean, reflect: What is seen beyond a photograph's rim: nothing, its mean colour, its mirror
            image (each only where enough of it is seen); otherwise another scene.
        bend: Largest movement inside the target, as a part of half its size.
        coarse: A picture of low resolution.
        photometric: Light, cameras and codecs.
    """

    natural: float = 0.6
    negative: float = 0.125
    objects: float = 0.7
    own_template: float = 0.4
    same_scene: float = 0.6
    near: float = 0.5
    scale_jitter: float = 0.4
    distractors: tuple[float, ...] = (0.5, 0.2)
    lookalike: float = 0.25
    same_class: float = 0.35
    occluder: float = 0.15
    black: float = 0.35
    mean: float = 0.15
    reflect: float = 0.2
    bend: float = 0.2
    coarse: float = 0.15
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)


class StillPairs:
    """An endless source of pairs from stills; batch n depends on the seed and n alone.

    Args:
        pool: The photographs; batches are made on their device.
        batch_size: Pairs a batch.
        template_size: Side of the template in pixels.
        search_size: Side of the search picture in pixels.
        template_factor: Side of the template in sizes of the target (root of its area).
        search_factor: The same of the search picture, before jitter.
        seed: Of everything random.
        config: The mix.

    Example:
        >>> pool = read_pool({"shards/objects-000000.tar": 1.0, "photos/": 1.0}, device="cuda")
        >>> batch = StillPairs(pool, 32).batch(0)
    """

    def __init__(
        self,
        pool: ImagePool,
        batch_size: int,
        template_size: int = 128,
        search_size: int = 256,
        template_factor: float = 2.0,
        search_factor: float = 4.0,
        seed: int = 0,
        config: StillConfig | None = None,
    ) -> None:
        self.pool, self.batch_size, self.seed = pool, batch_size, seed
        self.template_size, self.search_size = template_size, search_size
        self.template_factor, self.search_factor = template_factor, search_factor
        self.config = config or StillConfig()

    @torch.no_grad()
    def batch(self, number: int) -> PairBatch:
        """Batch `number`, from 0."""
        draws = Draws(self.seed, number)
        noise = torch.Generator(self.pool.device).manual_seed(draws.device_seed)
        config, n, device = self.config, self.batch_size, self.pool.device
        target = self.pool.cuts(draws, self.pool.draw(draws, n), config.objects)
        natural = self._natural(draws, target)
        flip = draws.chance(0.5, n)
        in_template = self._template_placement(draws, target, flip)
        in_search = self._search_placement(draws, target, flip, natural)
        boxes = bounds(in_search, target.outline)
        behind_template, behind_search = self._scenes(draws, n)
        own = natural | draws.chance(config.own_template, n)
        template = self._picture(draws, target, in_template, behind_template, own, self.template_size)
        search = self._picture(draws, target, in_search, behind_search, natural, self.search_size, boxes)
        grey = draws.chance(config.photometric.grey, n)
        template = alter(template, draws, noise, config.photometric, grey)
        search = alter(search, draws, noise, config.photometric, grey)
        partner = torch.arange(n).roll(1)
        negative = (draws.strata(n) < config.negative) & (target.picture != target.picture[partner])
        chosen = torch.where(negative, partner, torch.arange(n)).to(device)
        return PairBatch(
            normalize(template.index_select(0, chosen)),
            normalize(search),
            (boxes / self.search_size).to(device),
            (~negative).to(device),
        )

    def _natural(self, draws: Draws, target: Cut) -> Tensor:
        """Which pairs are natural: rather those whose photograph shows much around the target."""
        n = len(target.picture)
        size = target.size.log() - self.pool.sides(target.picture).prod(dim=1).sqrt().log()
        rank = (size + draws.normal(0.8, n)).argsort().argsort()
        return rank + draws.uniform(0, 1, 1) < self.config.natural * n

    def _template_placement(self, draws: Draws, target: Cut, flip: Tensor) -> Tensor:
        """Close to the middle, for no annotator is exact."""
        n, size = len(flip), self.template_size
        scale = size / (self.template_factor * target.size) * draws.scale(0.08, n)
        return place(target.half, size * (0.5 + draws.normal(0.012, n, 2)), scale, flip=flip)

    def _search_placement(self, draws: Draws, target: Cut, flip: Tensor, natural: Tensor) -> Tensor:
        """Anywhere in the picture or near its middle, turned, stretched and tilted."""
        n, size = len(flip), self.search_size
        scale = size / (self.search_factor * target.size) * draws.scale(self.config.scale_jitter, n)
        margin = (target.half * scale[:, None] / size * draws.uniform(0.6, 1.0, n, 1)).clamp(max=0.5)
        anywhere = draws.uniform(0, 1, n, 2) * (1 - 2 * margin) + margin
        near = draws.chance(self.config.near, n)[:, None]
        at = torch.where(near, 0.5 + draws.normal(0.07, n, 2), anywhere)
        at = torch.maximum(torch.minimum(at, 1 - margin), margin)
        freedom = torch.where(natural, 0.4, 1.0)
        angle = draws.normal(0.2, n) * freedom
        aspect = (draws.normal(0.2, n) * freedom).exp()
        tilt = draws.normal(0.06, n, 2).clamp(-0.15, 0.15) * freedom[:, None] ** 2
        return place(target.half, at * size, scale, angle, aspect, tilt, flip)

    def _scenes(self, draws: Draws, n: int) -> tuple[Cut, Cut]:
        """Windows of photographs to fill the template and the search picture."""
        pool, ratio = self.pool, self.template_factor / self.search_factor
        picture = pool.draw(draws, n)
        side = pool.sides(picture).amin(dim=1) * draws.uniform(0.45, 1.0, n)
        centre = draws.uniform(0, 1, n, 2) * pool.sides(picture)
        search = window(picture, _inside(pool, picture, centre, side), side)
        picture = torch.where(draws.chance(self.config.same_scene, n), picture, pool.draw(draws, n))
        side = (side * ratio).minimum(pool.sides(picture).amin(dim=1))
        centre = centre + draws.uniform(-0.5, 0.5, n, 2) * side[:, None]
        return window(picture, _inside(pool, picture, centre, side), side), search

    def _picture(
        self,
        draws: Draws,
        target: Cut,
        placement: Tensor,
        scene: Cut,
        own: Tensor,
        size: int,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """(B, 3, size, size) in 0..255: ground, distractors, target, occluder.

        `own` tells where the ground is the target's own photograph; only with boxes anything comes beside it.
        """
        n, config = len(own), self.config
        softness = draws.normal(0.35, n) + draws.chance(config.coarse, n) * draws.uniform(0.7, 1.6, n)
        bend = draws.uniform(-1, 1, n, 2) * config.bend * draws.chance(0.5, n, 1)
        canvas = self._ground(draws, target, placement, scene, own, size, softness, bend)
        if boxes is not None:
            for probability in config.distractors:
                which = (draws.strata(n) < probability).nonzero()[:, 0]
                self._distract(draws, canvas, which, target.take(which), boxes[which], softness[which])
        which = (~own).nonzero()[:, 0]
        edges = Edges.draw(draws, len(which))
        lay(
            self.pool,
            canvas,
            which,
            target.take(which),
            placement[which],
            edges,
            softness[which],
            bend=bend[which],
        )
        if boxes is not None:
            which = (draws.strata(n) < config.occluder).nonzero()[:, 0]
            self._occlude(draws, canvas, which, boxes[which], softness[which])
        return canvas

    def _ground(
        self,
        draws: Draws,
        target: Cut,
        placement: Tensor,
        scene: Cut,
        own: Tensor,
        size: int,
        softness: Tensor,
        bend: Tensor,
    ) -> Tensor:
        """(B, 3, size, size) in 0..255: the target's photograph where it is its own ground, or the scene."""
        config, frame = self.config, (size, size)
        filling = place(scene.half, torch.full((len(own), 2), size / 2), size / scene.size)
        cut = target._replace(outline=scene.outline).where(own, scene)
        view = torch.where(own[:, None, None], placement, filling)
        part = covered(self.pool, cut, view, frame)
        limits = torch.tensor([config.black, config.mean, config.reflect]).cumsum(0)
        kind = torch.bucketize(draws.uniform(0, 1, len(own)), limits)  # BLACK, MEAN, REFLECT or SCENE
        kind = torch.where(part < torch.tensor([0.5, 0.5, 0.7, 0.0])[kind], SCENE, kind)
        border = torch.where(kind == SCENE, BLACK, kind)
        picture = sample(self.pool, cut, view, frame, softness, border, bend * own[:, None])
        filled = own & (part < 1) & (kind == SCENE)
        if not filled.any():
            return picture.rgb
        which = filled.nonzero()[:, 0]
        behind = sample(self.pool, scene.take(which), filling[which], frame, softness[which]).rgb
        at, blend = which.to(self.pool.device), draws.uniform(-4.0, -1.2, len(which), 1, 1).exp()
        alpha = (picture.rim.index_select(0, at) / blend.to(self.pool.device)).clamp_(0, 1)[:, None]
        return picture.rgb.index_copy_(0, at, torch.lerp(behind, picture.rgb.index_select(0, at), alpha))

    def _distract(
        self, draws: Draws, canvas: Tensor, which: Tensor, target: Cut, boxes: Tensor, softness: Tensor
    ) -> None:
        """Pastes something of about the target's size beside it, on the side where there is more room."""
        n, size, config = len(which), canvas.shape[-1], self.config
        kind = draws.uniform(0, 1, n)
        copy = kind < config.lookalike
        alike = ~copy & (kind < config.lookalike + config.same_class)
        pictures = torch.where(alike, self.pool.same_class(draws, target.picture), self.pool.draw(draws, n))
        cut = target.where(copy, self.pool.cuts(draws, pictures, 1.0))
        scale = boxes[:, 2:].prod(dim=1).sqrt() * draws.scale(0.35, n) / cut.size
        inwards = (size / 2 - boxes[:, :2]) + draws.normal(0.25 * size, n, 2)
        at = _beside(boxes, cut.half * scale[:, None], inwards, draws.uniform(0.95, 1.5, n))
        angle, aspect = draws.normal(0.25, n), draws.normal(0.15, n).exp()
        placement = place(cut.half, at, scale, angle, aspect, flip=draws.chance(0.5, n))
        colours = torch.where(copy.view(-1, 1, 1), recolour(draws, n), torch.eye(3))
        lay(self.pool, canvas, which, cut, placement, Edges.draw(draws, n), softness, colours)

    def _occlude(self, draws: Draws, canvas: Tensor, which: Tensor, boxes: Tensor, softness: Tensor) -> None:
        """Pastes something over a part of the target, less than half of it."""
        n = len(which)
        cut = self.pool.cuts(draws, self.pool.draw(draws, n), 1.0)
        scale = boxes[:, 2:].prod(dim=1).sqrt() * draws.uniform(0.4, 0.9, n) / cut.size
        at = _beside(boxes, cut.half * scale[:, None], draws.normal(1, n, 2), draws.uniform(0.6, 0.9, n))
        placement = place(cut.half, at, scale, draws.normal(0.5, n))
        lay(self.pool, canvas, which, cut, placement, Edges.draw(draws, n), softness)


def _inside(pool: ImagePool, picture: Tensor, centre: Tensor, side: Tensor) -> Tensor:
    """The centres (n, 2), moved so that squares of this side stay on their photographs."""
    half = side[:, None] / 2
    return torch.maximum(torch.minimum(centre, pool.sides(picture) - half), half)


def _beside(boxes: Tensor, half: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    """Where (n, 2) the centre of something lies that is next to a box, at distance 1 if they just touch."""
    direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-3)
    return boxes[:, :2] + direction * (clearance(boxes, half, direction) * distance)[:, None]
