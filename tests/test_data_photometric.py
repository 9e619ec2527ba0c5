"""Light, cameras and codecs: what each changes and what it leaves alone."""

from dataclasses import fields, replace

import pytest
import torch

from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.photometric import PhotometricConfig, photometric_augment, recolor

QUIET = PhotometricConfig(**{field.name: 0.0 for field in fields(PhotometricConfig)})


def images(count=4, height=36, width=52):
    """Smooth colors, some of them strong, none at 0 or 255."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    wave = torch.stack([torch.sin(5 * x + 3 * y), torch.cos(4 * x * y), torch.sin(6 * y - 2 * x)])
    return (128 + 60 * wave).expand(count, -1, -1, -1).contiguous()


def change(config, gray=False, seed=0, count=4):
    before = images(count)
    noise = torch.Generator().manual_seed(seed)
    return before, photometric_augment(
        before.clone(), KeyedRandom(seed), noise, config, torch.full((count,), gray)
    )


def test_zero_strength_changes_nothing():
    before, after = change(QUIET)
    assert torch.allclose(after, before, atol=1e-3)


def test_gray_images_have_no_color():
    _, after = change(replace(QUIET, color=0.2, contrast=0.3, brightness=10), gray=True)
    assert torch.allclose(after[:, 0], after[:, 1], atol=1e-3) and torch.allclose(
        after[:, 0], after[:, 2], atol=1e-3
    )


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "color", "tone", "shade", "blur", "noise", "codec"]
)
def test_each_augmentation_changes_images_and_differs_between_images(name):
    strength = {"brightness": 20.0, "contrast": 0.4, "color": 0.1, "tone": 0.5}.get(name, 1.0)
    before, after = change(replace(QUIET, **{name: strength}))
    off = (after - before).abs().mean(dim=(1, 2, 3))
    assert (off > 0.01).all() and (off < 60).all()
    assert off.unique().numel() == len(off)
    assert after.min() >= 0 and after.max() <= 255


def test_a_codec_keeps_flat_blocks_and_averages():
    flat = torch.full((2, 3, 20, 28), 120.0)
    after = photometric_augment(
        flat.clone(),
        KeyedRandom(1),
        torch.Generator(),
        replace(QUIET, codec=1.0),
        torch.zeros(2, dtype=torch.bool),
    )
    assert (after - flat).abs().max() < 8 and after.std() < 1


def test_blur_keeps_the_mean_and_lowers_the_variation():
    before, after = change(replace(QUIET, blur=1.0))
    assert torch.allclose(before.mean(dim=(2, 3)), after.mean(dim=(2, 3)), atol=1.5)
    steps = [(p[..., 1:] - p[..., :-1]).abs().mean() for p in (before, after)]
    assert steps[1] <= steps[0]


def test_a_lookalike_has_clearly_other_colors():
    red = torch.tensor([200.0, 40.0, 40.0])
    shifts = (recolor(KeyedRandom(0), 50) @ red - red).abs().amax(dim=1)
    assert shifts.min() > 25
