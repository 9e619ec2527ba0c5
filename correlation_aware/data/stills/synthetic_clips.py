"""Short synthetic videos with exact boxes, generated from still photographs, for tuning a tracker.

A clip is like a pair of `StillPairs` with smooth motion between the images.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware._deprecation import renamed_fields
from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.photometric import PhotometricConfig, photometric_augment, recolor
from correlation_aware.data.stills.geometry import Region, bounding_boxes, place
from correlation_aware.data.stills.layers import EdgeStyle, paste, square_region
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import REFLECT, sample

__all__ = ["Clip", "ClipConfig", "synthetic_clip"]

TRANSITION = 10.0  # frames in which a target leaves, or an object moves in front of it
COVER = 1.5  # side of that object, a square, over the larger one of the target


class Clip(NamedTuple):
    """T frames with one target.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        boxes: (T, 4) xywh in pixels, around the whole target, even where it is occluded.
        visible: (T,) visible fraction of the target, 0..1.
    """

    frames: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    visible: NDArray[np.float32]


@renamed_fields(grey="gray")
@dataclass(frozen=True)
class ClipConfig:
    """Content of synthetic clips.

    Attributes:
        length: Number of frames.
        size: Height and width in pixels.
        natural: Probability that the camera moves over the target's own photograph; otherwise the target
            is pasted onto another one.
        objects: Probability that the target is the photograph's object, if it has one.
        target: Smallest and largest size of the target: sqrt of its area over sqrt of the frame's area.
        speed: Speed of all motion; at 1 a path changes its direction about once in 40 frames.
        distractors: Number of moving distractors, below the target; the first, third, ... are look-alikes.
        occluder: Probability that an object passes in front of the target.
        absences: Number of times that the target is out of sight and returns elsewhere: in turn it leaves the
            frame and is covered by an object. Needs `natural` 0: a photograph keeps its own target.
        gray: Probability of a clip without color.
        noise: Probability of noise on every frame, and likewise of block artifacts of a codec.
    """

    length: int = 60
    size: tuple[int, int] = (240, 320)
    natural: float = 0.4
    objects: float = 0.8
    target: tuple[float, float] = (0.08, 0.3)
    speed: float = 1.0
    distractors: int = 2
    occluder: float = 0.5
    gray: float = 0.08
    noise: float = 0.3
    absences: int = 0

    def __post_init__(self) -> None:
        if self.absences and self.natural:
            raise ValueError(
                f"absences={self.absences} with natural={self.natural}: the target of a natural clip is part "
                "of its photograph and cannot leave it; use natural=0."
            )
        if self.absences < 0 or self.length < 12 * (2 * self.absences + 1) * bool(self.absences):
            raise ValueError(
                f"absences={self.absences} must be at least 0, with 12 frames or more before, in and after "
                f"each: length={self.length} is too short or the number negative."
            )


class _Cover(NamedTuple):
    """An object in front of the target: T regions, placements and edges."""

    region: Region
    placement: Tensor
    edges: EdgeStyle


@torch.no_grad()
def synthetic_clip(pool: ImagePool, number: int, seed: int = 0, config: ClipConfig | None = None) -> Clip:
    """Clip `number` of an endless list. The same arguments give the same clip.

    Args:
        pool: Photographs, preferably ones that are not in the training data.
        number: Index of the clip, from 0.
        seed: Seed of the list.
        config: Content of the clip.
    """
    config = config or ClipConfig()
    rng = KeyedRandom(seed, number, 1)
    frames, (height, width) = config.length, config.size
    natural = bool(rng.bernoulli(config.natural, 1))
    target = _repeat(_target(rng, pool, config, natural), frames)
    low, high = (torch.tensor(v).log() for v in config.target)
    size = (height * width) ** 0.5 * (low + (high - low) * rng.uniform(0, 1, 1)).exp()
    scale = size / target.size * _smooth_noise(rng, config, 0.25).exp()
    if natural:  # the photograph fills the frame
        cover = (torch.tensor([width, height]) / pool.sizes(target.image[:1])).max()
        scale = scale * (1.2 * cover / scale.min()).clamp(min=1)
    center = _smooth_path(rng, config, target.half_size * scale[:, None])
    if natural:
        center = _fill_frame(center, pool, target, scale, config.size)
    covers: list[_Cover] = []
    if config.absences:
        away = KeyedRandom(seed, number, 2)  # its own numbers, so that the rest of the clip stays
        center, covers = _absences(away, pool, config, center, target, scale)
    strength = 0.3 if natural else 1.0
    angle = _smooth_noise(rng, config, 0.25 * strength)
    aspect = _smooth_noise(rng, config, 0.2 * strength).exp()
    flip = rng.bernoulli(0.5, 1).expand(frames)
    placement = place(target.half_size, center, scale, angle, aspect, flip=flip)
    bend = torch.stack([_smooth_noise(rng, config, 0.1), _smooth_noise(rng, config, 0.1)], dim=1)
    bend = bend.clamp(-0.2, 0.2)
    boxes = bounding_boxes(placement, target.outline)

    background, background_placement = (target, placement) if natural else _scene(rng, pool, config)
    border, background_bend = torch.full((frames,), REFLECT), bend if natural else None
    canvas = sample(
        pool, background, background_placement, config.size, border=border, bend=background_bend
    ).rgb
    every = torch.arange(frames)
    for i in range(config.distractors):
        _paste_distractor(rng, pool, config, canvas, target, boxes, lookalike=i % 2 == 0)
    edges = EdgeStyle.sample(rng, 1).repeat(frames)
    if not natural or config.distractors:
        paste(pool, canvas, every, target, placement, edges, bend=bend)
    black = torch.zeros(frames, 3, 3)
    target_layer = torch.full_like(canvas, 255)  # white where the target is not
    paste(pool, target_layer, every, target, placement, edges, colors=black)
    occluder_layer = torch.full_like(canvas, 255)  # white where the occluder is not
    if rng.bernoulli(config.occluder, 1):
        occluder, occluder_placement, occluder_edges = _occluder(rng, pool, config, boxes)
        paste(pool, canvas, every, occluder, occluder_placement, occluder_edges)
        paste(pool, occluder_layer, every, occluder, occluder_placement, occluder_edges, colors=black)
    opacity = 1 - target_layer[:, 0] / 255
    for region, cover_placement, cover_edges in covers:
        paste(pool, canvas, every, region, cover_placement, cover_edges)
        paste(pool, occluder_layer, every, region, cover_placement, cover_edges, colors=black)
    visible = (opacity * occluder_layer[:, 0] / 255).sum(dim=(1, 2))
    visible = visible / opacity.sum(dim=(1, 2)).clamp(min=1e-6)
    if config.absences:
        visible = visible * _inside(boxes, config.size).to(visible.device)
    images = _augment(rng, config, canvas).round().byte()
    xywh = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return Clip(rearrange(images, "t c h w -> t h w c").cpu().numpy(), xywh.numpy(), visible.cpu().numpy())


def _target(rng: KeyedRandom, pool: ImagePool, config: ClipConfig, natural: bool) -> Region:
    """One target; in a natural clip a small one, because its photograph has to fill the frame."""
    candidates = pool.sample_regions(rng, pool.sample_images(rng, 16), config.objects)
    relative_size = candidates.size / pool.sizes(candidates.image).prod(dim=1).sqrt()
    return candidates.take(relative_size.argmin()[None] if natural else torch.tensor([0]))


def _repeat(region: Region, count: int) -> Region:
    """The first region, `count` times."""
    return region.take(torch.zeros(count, dtype=torch.long))


def _smooth_noise(rng: KeyedRandom, config: ClipConfig, spread: float) -> Tensor:
    """(T,) smooth random values around 0: a sum of three sines."""
    time = torch.arange(config.length)[:, None] / 40 * config.speed
    rate, phase = rng.uniform(0.3, 1.6, 3), rng.uniform(0, 2 * torch.pi, 3)
    amplitude = rng.normal(spread, 3) / (0.5 + rate)
    return (amplitude * (2 * torch.pi * rate * time + phase).sin()).sum(dim=1)


def _smooth_path(rng: KeyedRandom, config: ClipConfig, half_size: Tensor) -> Tensor:
    """(T, 2) smooth random positions on which an object of this half size (T, 2) stays inside the frame."""
    frame = torch.tensor([float(config.size[1]), float(config.size[0])])
    walk = torch.stack([_smooth_noise(rng, config, 0.35), _smooth_noise(rng, config, 0.35)], dim=1)
    walk = torch.tanh(walk + rng.uniform(-0.7, 0.7, 1, 2))  # -1..1
    space = (frame / 2 - 1.1 * half_size.amax(dim=0)).clamp(min=0)
    return frame / 2 + walk * space


def _fill_frame(
    center: Tensor, pool: ImagePool, region: Region, scale: Tensor, size: tuple[int, int]
) -> Tensor:
    """The positions (T, 2), moved so that the photograph fills the frame, if it is not rotated."""
    frame = torch.tensor([float(size[1]), float(size[0])])
    before, after = region.center, pool.sizes(region.image) - region.center
    reach = torch.minimum(before, after) * scale[:, None]  # the smaller one, as the photograph may be flipped
    return torch.maximum(
        torch.minimum(center, torch.maximum(reach, frame / 2)), torch.minimum(frame - reach, frame / 2)
    )


def _scene(rng: KeyedRandom, pool: ImagePool, config: ClipConfig) -> tuple[Region, Tensor]:
    """A photograph over which the camera moves: regions and placements of T frames."""
    frame = torch.tensor([float(config.size[1]), float(config.size[0])])
    image = pool.sample_images(rng, 1).expand(config.length)
    image_size = pool.sizes(image)
    zoom = (
        (frame / image_size).amax(dim=1) * rng.uniform(1.2, 2.0, 1) * _smooth_noise(rng, config, 0.06).exp()
    )
    region = square_region(image, image_size / 2, image_size.amin(dim=1))
    space = (image_size * zoom[:, None] - frame).clamp(min=0) / 2
    pan = torch.tanh(torch.stack([_smooth_noise(rng, config, 0.8), _smooth_noise(rng, config, 0.8)], dim=1))
    return region, place(region.half_size, frame / 2 + pan * space, zoom, _smooth_noise(rng, config, 0.03))


def _paste_distractor(
    rng: KeyedRandom,
    pool: ImagePool,
    config: ClipConfig,
    canvas: Tensor,
    target: Region,
    boxes: Tensor,
    lookalike: bool,
) -> None:
    """Pastes an object of similar size with its own path; a look-alike is a recolored copy of the target."""
    frames = config.length
    other = pool.sample_same_class(rng, target.image[:1])
    region = target if lookalike else _repeat(pool.sample_regions(rng, other, 1.0), frames)
    size = boxes[:, 2:].prod(dim=1).sqrt().mean() * rng.log_uniform(0.3, 1)
    scale = size / region.size * _smooth_noise(rng, config, 0.15).exp()
    center = _smooth_path(rng, config, region.half_size * scale[:, None])
    angle, flip = _smooth_noise(rng, config, 0.3), rng.bernoulli(0.5, 1).expand(frames)
    placement = place(region.half_size, center, scale, angle, flip=flip)
    colors = recolor(rng, 1).expand(frames, 3, 3) if lookalike else None
    edges = EdgeStyle.sample(rng, 1).repeat(frames)
    paste(pool, canvas, torch.arange(frames), region, placement, edges, colors=colors)


def _occluder(
    rng: KeyedRandom, pool: ImagePool, config: ClipConfig, boxes: Tensor
) -> tuple[Region, Tensor, EdgeStyle]:
    """An object of up to 1.3 times the target's size that passes in front of the target once."""
    region = _repeat(pool.sample_regions(rng, pool.sample_images(rng, 1), 1.0), config.length)
    size = boxes[:, 2:].prod(dim=1).sqrt().mean()
    scale = (size * rng.uniform(0.7, 1.3, 1) / region.size[:1]).expand(config.length)
    passing_time = rng.uniform(0.25, 0.75, 1) * config.length  # in frames
    angle = rng.uniform(0, 2 * torch.pi, 1)
    velocity = size * rng.uniform(0.08, 0.2, 1) * config.speed  # pixels per frame
    direction = torch.cat([angle.cos(), angle.sin()])
    motion = (torch.arange(config.length) - passing_time)[:, None] * velocity * direction
    offset = rng.normal(0.2, 1, 2) * size
    angle = _smooth_noise(rng, config, 0.2)
    placement = place(region.half_size, boxes[:, :2] + motion + offset, scale, angle)
    return region, placement, EdgeStyle.sample(rng, 1).repeat(config.length)


def _absences(
    rng: KeyedRandom, pool: ImagePool, config: ClipConfig, center: Tensor, target: Region, scale: Tensor
) -> "tuple[Tensor, list[_Cover]]":
    """Positions (T, 2) of a target that is out of sight `absences` times, and the objects that cover it.

    Between two absences the target is on a path of its own; it changes over while it is out of sight.
    """
    frame = torch.tensor([float(config.size[1]), float(config.size[0])])
    time, unit = torch.arange(config.length), config.length / (2 * config.absences + 1)
    half_size = target.half_size * scale[:, None]
    far = (frame + 3 * half_size.amax()).expand(config.length, 2)  # a distance that is outside the frame
    covers: list[_Cover] = []
    leaves_first = bool(rng.bernoulli(0.5, 1))
    for i in range(config.absences):
        start = unit * (2 * i + 1 + rng.uniform(-0.2, 0.2, 1))
        end = start + unit * rng.uniform(0.6, 1.1, 1)
        out = ((time - start) / TRANSITION + 1).minimum((end - time) / TRANSITION + 1).clamp(0, 1)
        out = out.square() * (3 - 2 * out)  # 0 in sight, 1 out of sight
        other = ((time - start) / (end - start)).clamp(0, 1)[:, None]
        center = torch.lerp(center, _smooth_path(rng, config, half_size), other)
        away, back = (_direction(rng) for _ in range(2))
        if (i % 2 == 0) == leaves_first:
            direction = torch.where(other < 0.5, away, back)
            center = center + direction * far * out[:, None]
            continue
        cover = _repeat(pool.sample_regions(rng, pool.sample_images(rng, 1), 0.0), config.length)
        square = cover.half_size[:, 1] / cover.half_size[:, 0]
        size = COVER * half_size.amax() / cover.half_size.prod(dim=1).sqrt()
        direction = torch.where(other < 0.5, away, back)
        position = center + direction * far * (1 - out[:, None])
        placement = place(cover.half_size, position, size, aspect=square)
        covers.append(_Cover(cover, placement, EdgeStyle.sample(rng, 1).repeat(config.length)))
    return center, covers


def _direction(rng: KeyedRandom) -> Tensor:
    """One of right, left, down, up as a unit vector (2,)."""
    directions = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    return directions[rng.integers(torch.tensor([4]))[0]]


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(T,) fraction of boxes (T, 4) cxcywh that is inside a frame of this height and width."""
    frame = torch.tensor([float(size[1]), float(size[0])])
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    return ((high.minimum(frame) - low.clamp(min=0)).clamp(min=0) / boxes[:, 2:]).prod(dim=1)


def _augment(rng: KeyedRandom, config: ClipConfig, canvas: Tensor) -> Tensor:
    """Frames under slowly changing illumination, from a camera whose properties are constant in a clip."""
    frames, device = config.length, canvas.device
    light = (_smooth_noise(rng, config, 0.15) + rng.normal(0.1, 1)).exp()
    canvas = canvas * light.view(-1, 1, 1, 1).to(device)
    noise, codec = (float(rng.bernoulli(config.noise, 1)) for _ in range(2))
    camera = PhotometricConfig(
        brightness=2.0,
        contrast=0.03,
        color=0.005,
        tone=0.0,
        gray=0.0,
        shade=0.0,
        blur=0.1,
        noise=noise,
        codec=codec,
    )
    generator = torch.Generator(device).manual_seed(rng.device_seed)
    gray = rng.bernoulli(config.gray, 1).expand(frames)
    return photometric_augment(canvas, rng, generator, camera, gray)
