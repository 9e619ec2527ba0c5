"""Training pairs from still photographs, in batches of tensor operations on any device.

A target is an object with a mask or a salient rectangle. In a *natural* pair both images are crops of the
target's own photograph, around the target; in a *pasted* pair the target is pasted onto other scenes. The
default mix comes from experiments: a network trained on pasted targets alone learns to find the edges of the
paste and fails on real video.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.photometric import PhotometricConfig, photometric_augment, recolor
from correlation_aware.data.stills.geometry import Region, bounding_boxes, clearance, place
from correlation_aware.data.stills.layers import EdgeStyle, covered_fraction, paste, square_region
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import BLACK, REFLECT, sample
from correlation_aware.models.contract import Sizes

__all__ = ["StillConfig", "StillPairs"]

SCENE = REFLECT + 1  # border mode: another photograph fills the area outside


@dataclass(frozen=True)
class StillConfig:
    """The mix of pairs from stills. All values are probabilities unless noted otherwise.

    Attributes:
        natural: Both images come from one photograph; all other pairs are pasted.
        negative: The template comes from another pair of the batch.
        objects: The target is the photograph's object, if it has one, and not a rectangle.
        own_template: The template of a pasted target shows it in its own photograph.
        same_scene: Template and search image of a pasted target show parts of the same scene.
        near: The target is near the center of the search image, as in a slow video.
        scale_jitter: Largest |log| of the factor of the target's size in the search image (no probability).
        distractors: A first and a second distractor is pasted next to the target.
        lookalike: A distractor is a recolored copy of the target.
        same_class: A distractor is of the target's class, where classes are known.
        occluder: An occluder covers a part of the target.
        black: The area outside the target's photograph is black, where enough of the photograph is visible.
            Another scene fills the area in the cases that `black`, `mean` and `reflect` leave.
        mean: The area has the photograph's mean color, where enough of the photograph is visible.
        reflect: The area is the photograph's mirror image, where enough of the photograph is visible.
        bend: Largest displacement inside the target, as a fraction of half its size (no probability).
        coarse: The image has a low resolution.
        photometric: Photometric augmentation.
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
    """An endless source of pairs from stills. Batch n depends only on the seed and on n.

    Args:
        pool: Photographs; batches are generated on their device.
        batch_size: Number of pairs in a batch.
        sizes: Image sizes and crop factors; the search factor applies before the scale jitter.
        seed: Seed of the random number generator.
        config: Mix of pairs.

    Examples:
        >>> pool = read_pool({"shards/objects-000000.tar": 1.0, "photos/": 1.0}, device="cuda")
        >>> batch = StillPairs(pool, 32).batch(0)
    """

    def __init__(
        self,
        pool: ImagePool,
        batch_size: int,
        sizes: Sizes | None = None,
        seed: int = 0,
        config: StillConfig | None = None,
    ) -> None:
        self.pool, self.batch_size, self.seed = pool, batch_size, seed
        self.sizes = sizes or Sizes()
        self.config = config or StillConfig()

    @torch.no_grad()
    def batch(self, number: int) -> PairBatch:
        """Batch `number`, counted from 0."""
        # the order of the random numbers defines the data set: a change gives other pairs for the same seed
        rng = KeyedRandom(self.seed, number)
        noise = torch.Generator(self.pool.device).manual_seed(rng.device_seed)
        config, n, device = self.config, self.batch_size, self.pool.device
        target = self.pool.sample_regions(rng, self.pool.sample_images(rng, n), config.objects)
        natural = self._choose_natural(rng, target)
        flip = rng.bernoulli(0.5, n)
        in_template = self._template_placement(rng, target, flip)
        in_search = self._search_placement(rng, target, flip, natural)
        boxes = bounding_boxes(in_search, target.outline)
        template_scene, search_scene = self._scenes(rng, n)
        own = natural | rng.bernoulli(config.own_template, n)
        template_size, search_size = self.sizes.template_size, self.sizes.search_size
        template = self._render(rng, target, in_template, template_scene, own, template_size)
        search = self._render(rng, target, in_search, search_scene, natural, search_size, boxes)
        gray = rng.bernoulli(config.photometric.gray, n)
        template = photometric_augment(template, rng, noise, config.photometric, gray)
        search = photometric_augment(search, rng, noise, config.photometric, gray)
        partner = torch.arange(n).roll(1)
        negative = (rng.stratified(n) < config.negative) & (target.image != target.image[partner])
        template_index = torch.where(negative, partner, torch.arange(n)).to(device)
        return PairBatch(
            normalize(template.index_select(0, template_index)),
            normalize(search),
            (boxes / search_size).to(device),
            (~negative).to(device),
        )

    def _choose_natural(self, rng: KeyedRandom, target: Region) -> Tensor:
        """(B,) which pairs are natural; more often those whose target is small in its photograph."""
        n = len(target.image)
        size = target.size.log() - self.pool.sizes(target.image).prod(dim=1).sqrt().log()
        rank = (size + rng.normal(0.8, n)).argsort().argsort()
        return rank + rng.uniform(0, 1, 1) < self.config.natural * n

    def _template_placement(self, rng: KeyedRandom, target: Region, flip: Tensor) -> Tensor:
        """Homographies (B, 3, 3) near the center, with the error of an annotator."""
        n, size = len(flip), self.sizes.template_size
        scale = size / (self.sizes.template_factor * target.size) * rng.log_uniform(0.08, n)
        return place(target.half_size, size * (0.5 + rng.normal(0.012, n, 2)), scale, flip=flip)

    def _search_placement(self, rng: KeyedRandom, target: Region, flip: Tensor, natural: Tensor) -> Tensor:
        """Homographies (B, 3, 3) anywhere in the image or near its center: rotated, stretched and tilted."""
        n, size = len(flip), self.sizes.search_size
        scale = size / (self.sizes.search_factor * target.size) * rng.log_uniform(self.config.scale_jitter, n)
        margin = target.half_size * scale[:, None] / size * rng.uniform(0.6, 1.0, n, 1)
        margin = margin.clamp(max=0.5)
        anywhere = rng.uniform(0, 1, n, 2) * (1 - 2 * margin) + margin
        near = rng.bernoulli(self.config.near, n)[:, None]
        center = torch.where(near, 0.5 + rng.normal(0.07, n, 2), anywhere)
        center = torch.maximum(torch.minimum(center, 1 - margin), margin)
        strength = torch.where(natural, 0.4, 1.0)
        angle = rng.normal(0.2, n) * strength
        aspect = (rng.normal(0.2, n) * strength).exp()
        tilt = rng.normal(0.06, n, 2).clamp(-0.15, 0.15) * strength[:, None] ** 2
        return place(target.half_size, center * size, scale, angle, aspect, tilt, flip)

    def _scenes(self, rng: KeyedRandom, n: int) -> tuple[Region, Region]:
        """Square regions of photographs, the backgrounds of n templates and n search images."""
        pool, ratio = self.pool, self.sizes.template_factor / self.sizes.search_factor
        image = pool.sample_images(rng, n)
        side = pool.sizes(image).amin(dim=1) * rng.uniform(0.45, 1.0, n)
        center = rng.uniform(0, 1, n, 2) * pool.sizes(image)
        search = square_region(image, _move_inside(pool, image, center, side), side)
        image = torch.where(rng.bernoulli(self.config.same_scene, n), image, pool.sample_images(rng, n))
        side = (side * ratio).minimum(pool.sizes(image).amin(dim=1))
        center = center + rng.uniform(-0.5, 0.5, n, 2) * side[:, None]
        return square_region(image, _move_inside(pool, image, center, side), side), search

    def _render(
        self,
        rng: KeyedRandom,
        target: Region,
        placement: Tensor,
        scene: Region,
        own: Tensor,
        size: int,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """Renders images from layers: background, distractors, target, occluder.

        Args:
            rng: Random number generator.
            target: B targets.
            placement: (B, 3, 3) homographies of the targets.
            scene: B backgrounds.
            own: (B,) bool, whether the background is the target's own photograph.
            size: Side of the images in pixels.
            boxes: (B, 4) cxcywh boxes of the targets in pixels. Without boxes there are no distractors and no
                occluders.

        Returns:
            (B, 3, size, size) in 0..255.
        """
        n, config = len(own), self.config
        mip_bias = rng.normal(0.35, n) + rng.bernoulli(config.coarse, n) * rng.uniform(0.7, 1.6, n)
        bend = rng.uniform(-1, 1, n, 2) * config.bend * rng.bernoulli(0.5, n, 1)
        canvas = self._render_background(rng, target, placement, scene, own, size, mip_bias, bend)
        if boxes is not None:
            for probability in config.distractors:
                i = (rng.stratified(n) < probability).nonzero()[:, 0]
                self._paste_distractors(rng, canvas, i, target.take(i), boxes[i], mip_bias[i])
        i = (~own).nonzero()[:, 0]
        edges = EdgeStyle.sample(rng, len(i))
        paste(self.pool, canvas, i, target.take(i), placement[i], edges, mip_bias[i], bend=bend[i])
        if boxes is not None:
            i = (rng.stratified(n) < config.occluder).nonzero()[:, 0]
            self._paste_occluders(rng, canvas, i, boxes[i], mip_bias[i])
        return canvas

    def _render_background(
        self,
        rng: KeyedRandom,
        target: Region,
        placement: Tensor,
        scene: Region,
        own: Tensor,
        size: int,
        mip_bias: Tensor,
        bend: Tensor,
    ) -> Tensor:
        """(B, 3, size, size) in 0..255: the target's photograph where `own` is True, the scene elsewhere."""
        config, image_size = self.config, (size, size)
        scene_placement = place(scene.half_size, torch.full((len(own), 2), size / 2), size / scene.size)
        region = target._replace(outline=scene.outline).where(own, scene)
        region_placement = torch.where(own[:, None, None], placement, scene_placement)
        covered = covered_fraction(self.pool, region, region_placement, image_size)
        limits = torch.tensor([config.black, config.mean, config.reflect]).cumsum(0)
        mode = torch.bucketize(rng.uniform(0, 1, len(own)), limits)  # BLACK, MEAN, REFLECT or SCENE
        mode = torch.where(covered < torch.tensor([0.5, 0.5, 0.7, 0.0])[mode], SCENE, mode)
        border = torch.where(mode == SCENE, BLACK, mode)
        own_bend = bend * own[:, None]
        images = sample(self.pool, region, region_placement, image_size, mip_bias, border, own_bend)
        blended = own & (covered < 1) & (mode == SCENE)
        if not blended.any():
            return images.rgb
        i = blended.nonzero()[:, 0]
        around = sample(self.pool, scene.take(i), scene_placement[i], image_size, mip_bias[i]).rgb
        at, width = i.to(self.pool.device), rng.uniform(-4.0, -1.2, len(i), 1, 1).exp()
        alpha = (images.edge_distance.index_select(0, at) / width.to(self.pool.device)).clamp_(0, 1)
        rgb = torch.lerp(around, images.rgb.index_select(0, at), alpha[:, None])
        return images.rgb.index_copy_(0, at, rgb)

    def _paste_distractors(
        self,
        rng: KeyedRandom,
        canvas: Tensor,
        indices: Tensor,
        target: Region,
        boxes: Tensor,
        mip_bias: Tensor,
    ) -> None:
        """Pastes a distractor of similar size next to each target, rather on the side with more space."""
        n, size, config = len(indices), canvas.shape[-1], self.config
        kind = rng.uniform(0, 1, n)
        copy = kind < config.lookalike
        same_class = ~copy & (kind < config.lookalike + config.same_class)
        of_class = self.pool.sample_same_class(rng, target.image)
        images = torch.where(same_class, of_class, self.pool.sample_images(rng, n))
        region = target.where(copy, self.pool.sample_regions(rng, images, 1.0))
        scale = boxes[:, 2:].prod(dim=1).sqrt() * rng.log_uniform(0.35, n) / region.size
        inwards = (size / 2 - boxes[:, :2]) + rng.normal(0.25 * size, n, 2)
        center = _beside(boxes, region.half_size * scale[:, None], inwards, rng.uniform(0.95, 1.5, n))
        angle, aspect = rng.normal(0.25, n), rng.normal(0.15, n).exp()
        placement = place(region.half_size, center, scale, angle, aspect, flip=rng.bernoulli(0.5, n))
        colors = torch.where(copy.view(-1, 1, 1), recolor(rng, n), torch.eye(3))
        paste(self.pool, canvas, indices, region, placement, EdgeStyle.sample(rng, n), mip_bias, colors)

    def _paste_occluders(
        self, rng: KeyedRandom, canvas: Tensor, indices: Tensor, boxes: Tensor, mip_bias: Tensor
    ) -> None:
        """Pastes an occluder over a part of each target, less than half of it."""
        n = len(indices)
        region = self.pool.sample_regions(rng, self.pool.sample_images(rng, n), 1.0)
        scale = boxes[:, 2:].prod(dim=1).sqrt() * rng.uniform(0.4, 0.9, n) / region.size
        half_size = region.half_size * scale[:, None]
        center = _beside(boxes, half_size, rng.normal(1, n, 2), rng.uniform(0.6, 0.9, n))
        placement = place(region.half_size, center, scale, rng.normal(0.5, n))
        paste(self.pool, canvas, indices, region, placement, EdgeStyle.sample(rng, n), mip_bias)


def _move_inside(pool: ImagePool, image: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """The centers (n, 2), moved so that squares of this side are inside their photographs."""
    half = side[:, None] / 2
    return torch.maximum(torch.minimum(center, pool.sizes(image) - half), half)


def _beside(boxes: Tensor, half_size: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    """Centers (n, 2) of boxes next to other ones; at distance 1 the two boxes touch."""
    direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-3)
    return boxes[:, :2] + direction * (clearance(boxes, half_size, direction) * distance)[:, None]
