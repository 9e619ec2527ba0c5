"""A rendered demo clip that needs no files: a ladybird walks over soil, past a look-alike and under a leaf.

The boxes are computed from the outline of the target, so they are exact.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware.tracking.video import Frame

__all__ = ["draw_clip"]

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]

SPRITE = 160  # side of a sprite in pixels
SPAN = 1.25  # side of a sprite in its unit of length, the length of the beetle or leaf
SUPERSAMPLING = 4  # sprites are drawn larger by this factor, then downscaled
OUTLINE = ((-0.09, 0.41, 0.37), (0.29, 0.15, 0.25), (0.41, 0.1, 0.14))  # ellipses: x, half length, half width
OCCLUSION_TIME = 0.66  # time in 0..1 of the clip at which the leaf covers the target


class _Pose(NamedTuple):
    x: float  # pixels of the frame
    y: float
    length: float
    angle: float  # radians, from +x towards +y


def draw_clip(
    length: int = 60, size: tuple[int, int] = (360, 480), seed: int = 0
) -> Iterator[tuple[Frame, Box]]:
    """Renders a clip with one target and its exact boxes.

    The camera pans over textured ground. The target crosses the image on a smooth path and grows; a
    look-alike of another color passes it, and a leaf covers it once. Blur and noise are mild. The same
    arguments give the same clip. All events happen in a clip of any length: shorter clips are faster.

    Args:
        length: Number of frames.
        size: Height and width of the frames in pixels, at least 64 each.
        seed: Seed of the random number generator.

    Returns:
        An iterator over (frame, box): uint8 RGB (H, W, 3), and x, y, w, h in pixels around the whole target,
        even where the leaf covers it.

    Raises:
        ValueError: A length below 1 or a size below 64.
    """
    if length < 1 or min(size) < 64:
        raise ValueError(
            f"a clip needs 1 frame of 64 x 64 pixels or more, not length={length}, size={size[0]} x {size[1]}"
        )
    return _frames(length, size, np.random.default_rng(seed))


def _frames(length: int, size: tuple[int, int], rng: np.random.Generator) -> Iterator[tuple[Frame, Box]]:
    height, width = size
    unit = min(size)
    phase = rng.uniform(-0.3, 0.3, 3)
    ground = _draw_ground(height + unit // 3, width + unit, rng)
    target = _draw_beetle((204, 34, 26), 7, rng)
    lookalike = _draw_beetle((224, 128, 22), 5, rng)
    leaf = _draw_leaf(rng)

    def camera(t: float) -> tuple[float, float]:
        return 0.8 * unit * t, unit * (0.16 + 0.08 * np.sin(4 * t + phase[2]))

    def walk(t: float) -> tuple[float, float]:
        x = width * (0.16 + 0.66 * t + 0.02 * np.sin(9 * t + phase[0]))
        return x, height * (0.5 + 0.22 * np.sin(5.2 * t + phase[1] - 0.4))

    def pose(t: float) -> _Pose:
        (x0, y0), (x1, y1) = (
            (a + c, b + d) for (a, b), (c, d) in ((walk(s), camera(s)) for s in (t, t + 0.01))
        )
        heading = np.arctan2(y1 - y0, x1 - x0) + 0.06 * np.sin(40 * t)  # it sways
        return _Pose(*walk(t), unit * (0.18 + 0.08 * t + 0.015 * np.sin(11 * t + phase[2])), float(heading))

    for i in range(length):
        t = i / max(1, length - 1)
        dx, dy = camera(t)
        pan = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)
        image = np.asarray(cv2.warpAffine(ground, pan, (width, height)), np.float32)
        lookalike_pose = _Pose(
            width * (0.95 - 0.75 * t), height * (0.8 - 0.55 * t), 0.21 * unit, 3.6 + 0.06 * np.sin(37 * t)
        )
        occluded = pose(OCCLUSION_TIME)
        leaf_x = occluded.x + (OCCLUSION_TIME - t) * 2.5 * unit
        leaf_pose = _Pose(leaf_x, occluded.y, 0.95 * unit, 1.35)
        sprites = ((lookalike, lookalike_pose, 0.02), (target, pose(t), 0.02), (leaf, leaf_pose, 0.07))
        for sprite, sprite_pose, height_above in sprites:
            image = _paste(image, sprite, sprite_pose, height_above * unit)
        noisy = cv2.GaussianBlur(image, (0, 0), 0.6) + rng.normal(0, 3, image.shape)
        yield np.clip(np.round(noisy), 0, 255).astype(np.uint8), _box(pose(t))


def _box(pose: _Pose) -> Box:
    """x, y, w, h in pixels around the ellipses of a beetle's outline."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    center = np.array([(x * cos, x * sin) for x, _, _ in OUTLINE])
    reach = np.array([(np.hypot(a * cos, b * sin), np.hypot(a * sin, b * cos)) for _, a, b in OUTLINE])
    low, high = (center - reach).min(0) * pose.length, (center + reach).max(0) * pose.length
    return float(pose.x + low[0]), float(pose.y + low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _paste(image: Array, sprite: Array, pose: _Pose, height_above: float) -> Array:
    """Pastes a sprite with a soft shadow onto an image.

    Args:
        image: (H, W, 3) in 0..255.
        sprite: (SPRITE, SPRITE, 4) RGB premultiplied by alpha, and alpha.
        pose: Position, length and angle.
        height_above: Height of the sprite above the ground in pixels, which offsets the shadow.
    """
    scale = pose.length * SPAN / SPRITE
    rotation = scale * np.array(
        [[np.cos(pose.angle), -np.sin(pose.angle)], [np.sin(pose.angle), np.cos(pose.angle)]]
    )
    # pixel i of the sprite and of the image spans i..i+1, so its center is at i + 0.5
    shift = np.array([pose.x, pose.y]) - 0.5 - rotation @ np.array([SPRITE / 2 - 0.5] * 2)
    matrix = np.column_stack([rotation, shift]).astype(np.float32)
    layer = cv2.warpAffine(sprite, matrix, image.shape[1::-1])
    shadow_matrix = matrix + np.array([[0, 0, 0.6], [0, 0, 1]]) * height_above
    shadow = cv2.warpAffine(sprite[..., 3], shadow_matrix, image.shape[1::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.3 * height_above + 0.8)
    image = image * (1 - 0.5 * shadow[..., None])
    return np.asarray(image * (1 - layer[..., 3:]) + layer[..., :3], np.float32)


def _draw_beetle(color: tuple[int, int, int], spots: int, rng: np.random.Generator) -> Array:
    """Sprite of a ladybird seen from above, facing +x, with 5 or 7 spots."""
    side = SPRITE * SUPERSAMPLING
    rgb, alpha = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.float32)

    def ellipse(x: float, y: float, a: float, b: float, rgb_value: tuple[int, ...], angle: float = 0) -> None:
        at = tuple(int(round((v / SPAN + 0.5) * side * 16 - 8)) for v in (x, y))
        axes = tuple(int(round(v / SPAN * side * 16)) for v in (a, b))
        cv2.ellipse(rgb, at, axes, angle, 0, 360, rgb_value, cv2.FILLED, cv2.LINE_8, 4)
        cv2.ellipse(alpha, at, axes, angle, 0, 360, 1.0, cv2.FILLED, cv2.LINE_8, 4)

    black = (26, 22, 24)
    (bx, ba, bb), (nx, na, nb), (hx, ha, hb) = OUTLINE
    ellipse(hx, 0, ha, hb, black)
    for y in (-0.07, 0.07):
        ellipse(hx + 0.03, y, 0.025, 0.03, (225, 215, 200))
    ellipse(nx, 0, na, nb, black)
    for y in (-0.15, 0.15):
        ellipse(nx + 0.02, y, 0.05, 0.06, (240, 235, 225))
    ellipse(bx, 0, ba, bb, color)
    ellipse(bx, 0, ba - 0.03, 0.008, black)
    pairs = ((-0.3, 0.12), (-0.08, 0.22), (0.1, 0.13))[-(spots // 2) :]
    ellipse(0.22, 0, 0.07, 0.06, black)
    for x, y in pairs:
        r = float(rng.uniform(0.06, 0.085))
        for mirror in (-1, 1):
            ellipse(x + float(rng.normal(0, 0.01)), mirror * y, r * 1.1, r, black)
    v, u = np.mgrid[:side, :side].astype(np.float32) / side * SPAN - SPAN / 2
    dome = np.clip(1.12 - 1.9 * ((u - bx) / ba * 0.45) ** 2 - 1.9 * (v / bb * 0.45) ** 2, 0.5, None)
    shine = 150 * np.exp(-(((u - 0.02) / 0.12) ** 2) - ((v + 0.15) / 0.06) ** 2)
    return _sprite(np.clip(rgb * dome[..., None] + shine[..., None], 0, 255), alpha)


def _draw_leaf(rng: np.random.Generator) -> Array:
    """Sprite of a pointed green leaf along x, about a third as wide as long."""
    side = SPRITE * SUPERSAMPLING
    v, u = np.mgrid[:side, :side].astype(np.float32) / side * SPAN - SPAN / 2
    half = 0.17 * np.clip(1 - (2 * u) ** 2, 0, None) ** 0.8 * (1 - 0.5 * u)
    alpha = (np.abs(v) < half).astype(np.float32)
    vein = np.exp(-((v / 0.006) ** 2))
    for x in np.arange(-0.42, 0.4, 0.09):
        slant = np.abs(u - x - 0.9 * np.abs(v)) / 0.006
        vein = np.maximum(vein, 0.6 * np.exp(-(slant**2)))
    tint = 1 + 0.25 * _noise(side, side, (6, 14, 40), rng) + np.where(v > 0, 0.07, -0.05)
    rgb = np.array([74, 122, 40], np.float32) * tint[..., None] + 45 * vein[..., None]
    return _sprite(np.clip(rgb, 0, 255), alpha)


def _sprite(rgb: Array, alpha: Array) -> Array:
    """Downscales to (SPRITE, SPRITE, 4): RGB premultiplied by alpha, and alpha, with smooth edges."""
    full = np.dstack([rgb * alpha[..., None], alpha]).astype(np.float32)
    return np.asarray(cv2.resize(full, (SPRITE, SPRITE), interpolation=cv2.INTER_AREA), np.float32)


def _draw_ground(height: int, width: int, rng: np.random.Generator) -> Array:
    """Soil with moss and pebbles, (H, W, 3) in 0..255."""
    unit = min(height, width)
    moss = 1 / (1 + np.exp(-4 * _noise(height, width, (4, 9, 22), rng)))[..., None]
    grain = 1 + 0.16 * _noise(height, width, (30, 80, 200), rng)[..., None]
    ground = ((1 - moss) * np.array([142, 118, 88]) + moss * np.array([98, 112, 62])) * grain
    ground = np.ascontiguousarray(ground, np.float32)
    for _ in range(260):
        at = int(rng.integers(width)), int(rng.integers(height))
        size = unit * float(rng.uniform(0.004, 0.012) if rng.random() < 0.85 else rng.uniform(0.015, 0.035))
        axes = max(1, int(size)), max(1, int(size * rng.uniform(0.6, 0.95)))
        angle, tone = float(rng.uniform(0, 180)), rng.uniform(95, 190)
        stone = tuple(float(c) for c in tone * np.array([1, 0.96, 0.88]))
        dark, light = tuple(0.5 * c for c in stone), tuple(min(255.0, 1.15 * c) for c in stone)
        for shift, part, tint in ((0.35, 1.0, dark), (0.0, 1.0, stone), (-0.25, 0.5, light)):
            center = int(at[0] + shift * size), int(at[1] + shift * size)
            radii = max(1, int(axes[0] * part)), max(1, int(axes[1] * part))
            cv2.ellipse(ground, center, radii, angle, 0, 360, tint, cv2.FILLED, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(ground, (0, 0), 0.7), np.float32)


def _noise(height: int, width: int, grid_sizes: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Smooth noise around 0 with about unit range: a sum of upscaled random grids, each half as strong."""
    total = np.zeros((height, width), np.float32)
    for i, n in enumerate(grid_sizes):
        grid = rng.normal(0, 0.5**i, (max(2, n * height // max(height, width)), n)).astype(np.float32)
        total += np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return total
