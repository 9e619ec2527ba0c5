"""Short synthetic videos with exact boxes, made of still photographs: to choose a tracker's settings on.

A clip is a pair of `stills` drawn out in time: a path instead of a jump.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from correlation_aware.data.draws import Draws
from correlation_aware.data.stills.geometry import Cut, bounds, place
from correlation_aware.data.stills.layers import Edges, lay, window
from correlation_aware.data.stills.photometric import PhotometricConfig, alter, recolour
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.sampling import REFLECT, sample

__all__ = ["Clip", "ClipConfig", "synthetic_clip"]


class Clip(NamedTuple):
    """T frames of one target.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        boxes: (T, 4) xywh in pixels, around the whole target even where something covers it.
        visible: (T,) the part of the target that can be seen, 0..1.
    """

    frames: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    visible: NDArray[np.float32]


@dataclass(frozen=True)
class ClipConfig:
    """What happens in a clip.

    Attributes:
        length: Number of frames.
        size: Height and width in pixels.
        natural: Probability that the camera moves over the target's own photograph; otherwise the target
            moves over another one.
        objects: Probability that the target is the photograph's object, if it has one.
        target: Smallest and largest size of the target, root of its area, as a part of the frame's.
        speed: How fast everything moves; at 1 a path turns about once in 40 frames.
        distractors: Things that move about, below the target; every other one looks like it.
        occluder: Probability that something passes before the target.
        grey: Probability of a clip without colour.
        noise: Probability of noise on every frame; also of a codec's blocks.
    """

    length: int = 60
    size: tuple[int, int] = (240, 320)
    natural: float = 0.4
    objects: float = 0.8
    target: tuple[float, float] = (0.08, 0.3)
    speed: float = 1.0
    distractors: int = 2
    occluder: float = 0.5
    grey: float = 0.08
    noise: float = 0.3


@torch.no_grad()
def synthetic_clip(pool: ImagePool, number: int, seed: int = 0, config: ClipConfig | None = None) -> Clip:
    """Clip `number` of an endless list; the same numbers give the same clip.

    Args:
        pool: Photographs, best ones that are not trained on.
        number: From 0.
        seed: Another list.
        config: What happens.
    """
    config = config or ClipConfig()
    draws = Draws(seed, number, 1)
    frames, (height, width) = config.length, config.size
    natural = bool(draws.chance(config.natural, 1))
    target = _repeat(_target(draws, pool, config, natural), frames)
    low, high = (torch.tensor(v).log() for v in config.target)
    size = (height * width) ** 0.5 * (low + (high - low) * draws.uniform(0, 1, 1)).exp()
    scale = size / target.size * _path(draws, config, 0.25).exp()
    if natural:  # the photograph fills the frame
        cover = (torch.tensor([width, height]) / pool.sides(target.picture[:1])).max()
        scale = scale * (1.2 * cover / scale.min()).clamp(min=1)
    at = _roam(draws, config, target.half * scale[:, None])
    if natural:
        at = _covering(at, pool, target, scale, config.size)
    calm = 0.3 if natural else 1.0
    angle, aspect = _path(draws, config, 0.25 * calm), _path(draws, config, 0.2 * calm).exp()
    flip = draws.chance(0.5, 1).expand(frames)
    placement = place(target.half, at, scale, angle, aspect, flip=flip)
    bend = torch.stack([_path(draws, config, 0.1), _path(draws, config, 0.1)], dim=1).clamp(-0.2, 0.2)
    boxes = bounds(placement, target.outline)

    ground, view = (target, placement) if natural else _scene(draws, pool, config)
    border = torch.full((frames,), REFLECT)
    canvas = sample(pool, ground, view, config.size, border=border, bend=bend if natural else None).rgb
    every = torch.arange(frames)
    for i in range(config.distractors):
        _distract(draws, pool, config, canvas, target, boxes, lookalike=i % 2 == 0)
    edges = Edges.draw(draws, 1).repeat(frames)
    if not natural or config.distractors:
        lay(pool, canvas, every, target, placement, edges, bend=bend)
    shown = torch.full_like(canvas, 255)
    lay(pool, shown, every, target, placement, edges, colours=torch.zeros(frames, 3, 3))
    free = torch.full_like(canvas, 255)
    if draws.chance(config.occluder, 1):
        occluder, where, rim = _occluder(draws, pool, config, boxes)
        lay(pool, canvas, every, occluder, where, rim)
        lay(pool, free, every, occluder, where, rim, colours=torch.zeros(frames, 3, 3))
    solid = 1 - shown[:, 0] / 255
    visible = (solid * free[:, 0] / 255).sum(dim=(1, 2)) / solid.sum(dim=(1, 2)).clamp(min=1e-6)
    pictures = _film(draws, config, canvas).round().byte().permute(0, 2, 3, 1)
    xywh = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return Clip(pictures.cpu().numpy(), xywh.numpy(), visible.cpu().numpy())


def _target(draws: Draws, pool: ImagePool, config: ClipConfig, natural: bool) -> Cut:
    """One target; in a natural clip a small part of its photograph, for this has to fill the frame."""
    several = pool.cuts(draws, pool.draw(draws, 16), config.objects)
    part = several.size / pool.sides(several.picture).prod(dim=1).sqrt()
    return several.take(part.argmin()[None] if natural else torch.tensor([0]))


def _repeat(cut: Cut, count: int) -> Cut:
    return cut.take(torch.zeros(count, dtype=torch.long))


def _path(draws: Draws, config: ClipConfig, spread: float) -> Tensor:
    """(T,) a smooth walk around 0."""
    time = torch.arange(config.length)[:, None] / 40 * config.speed
    rate, phase = draws.uniform(0.3, 1.6, 3), draws.uniform(0, 2 * torch.pi, 3)
    height = draws.normal(spread, 3) / (0.5 + rate)
    return (height * (2 * torch.pi * rate * time + phase).sin()).sum(dim=1)


def _roam(draws: Draws, config: ClipConfig, half: Tensor) -> Tensor:
    """(T, 2) a smooth walk over the frame, on which something of this size (T, 2) stays inside."""
    sides = torch.tensor([float(config.size[1]), float(config.size[0])])
    walk = torch.stack([_path(draws, config, 0.35), _path(draws, config, 0.35)], dim=1)
    walk = torch.tanh(walk + draws.uniform(-0.7, 0.7, 1, 2))  # -1..1
    room = (sides / 2 - 1.1 * half.amax(dim=0)).clamp(min=0)
    return sides / 2 + walk * room


def _covering(at: Tensor, pool: ImagePool, cut: Cut, scale: Tensor, size: tuple[int, int]) -> Tensor:
    """The positions (T, 2), moved so that the photograph fills the frame, but for turning."""
    frame = torch.tensor([float(size[1]), float(size[0])])
    before, after = cut.centre, pool.sides(cut.picture) - cut.centre
    sides = torch.minimum(before, after) * scale[:, None]  # a flipped photograph has them the other way round
    return torch.maximum(
        torch.minimum(at, torch.maximum(sides, frame / 2)), torch.minimum(frame - sides, frame / 2)
    )


def _scene(draws: Draws, pool: ImagePool, config: ClipConfig) -> tuple[Cut, Tensor]:
    """A photograph over which the camera moves."""
    frame = torch.tensor([float(config.size[1]), float(config.size[0])])
    picture = pool.draw(draws, 1).expand(config.length)
    sides = pool.sides(picture)
    zoom = (frame / sides).amax(dim=1) * draws.uniform(1.2, 2.0, 1) * _path(draws, config, 0.06).exp()
    cut = window(picture, sides / 2, sides.amin(dim=1))
    room = (sides * zoom[:, None] - frame).clamp(min=0) / 2
    pan = torch.tanh(torch.stack([_path(draws, config, 0.8), _path(draws, config, 0.8)], dim=1))
    return cut, place(cut.half, frame / 2 + pan * room, zoom, _path(draws, config, 0.03))


def _distract(
    draws: Draws,
    pool: ImagePool,
    config: ClipConfig,
    canvas: Tensor,
    target: Cut,
    boxes: Tensor,
    lookalike: bool,
) -> None:
    """Something of about the target's size that goes its own way below it; a look-alike has other colours."""
    frames = config.length
    other = pool.same_class(draws, target.picture[:1])
    cut = target if lookalike else _repeat(pool.cuts(draws, other, 1.0), frames)
    size = boxes[:, 2:].prod(dim=1).sqrt().mean() * draws.scale(0.3, 1)
    scale = size / cut.size * _path(draws, config, 0.15).exp()
    at = _roam(draws, config, cut.half * scale[:, None])
    where = place(cut.half, at, scale, _path(draws, config, 0.3), flip=draws.chance(0.5, 1).expand(frames))
    colours = recolour(draws, 1).expand(frames, 3, 3) if lookalike else None
    lay(pool, canvas, torch.arange(frames), cut, where, Edges.draw(draws, 1).repeat(frames), colours=colours)


def _occluder(draws: Draws, pool: ImagePool, config: ClipConfig, boxes: Tensor) -> tuple[Cut, Tensor, Edges]:
    """Something that passes before the target once, at most a little larger than it."""
    cut = _repeat(pool.cuts(draws, pool.draw(draws, 1), 1.0), config.length)
    size = boxes[:, 2:].prod(dim=1).sqrt().mean()
    scale = (size * draws.uniform(0.7, 1.3, 1) / cut.size[:1]).expand(config.length)
    moment = draws.uniform(0.25, 0.75, 1) * config.length
    angle = draws.uniform(0, 2 * torch.pi, 1)
    step = size * draws.uniform(0.08, 0.2, 1) * config.speed  # pixels a frame
    way = (torch.arange(config.length) - moment)[:, None] * step * torch.cat([angle.cos(), angle.sin()])
    aside = draws.normal(0.2, 1, 2) * size
    where = place(cut.half, boxes[:, :2] + way + aside, scale, _path(draws, config, 0.2))
    return cut, where, Edges.draw(draws, 1).repeat(config.length)


def _film(draws: Draws, config: ClipConfig, canvas: Tensor) -> Tensor:
    """The light, which changes slowly, and the camera, which is the same throughout."""
    frames, device = config.length, canvas.device
    light = (_path(draws, config, 0.15) + draws.normal(0.1, 1)).exp()
    canvas = canvas * light.view(-1, 1, 1, 1).to(device)
    noise, codec = (float(draws.chance(config.noise, 1)) for _ in range(2))
    camera = PhotometricConfig(2.0, 0.03, 0.005, 0.0, 0.0, 0.0, blur=0.1, noise=noise, codec=codec)
    generator = torch.Generator(device).manual_seed(draws.device_seed)
    return alter(canvas, draws, generator, camera, draws.chance(config.grey, 1).expand(frames))
