"""Sampling, boxes, pasting, masks and salient rectangles."""

import math

import cv2
import numpy as np
import pytest
import torch

from correlation_aware.data.stills.files import Still
from correlation_aware.data.stills.geometry import Region, bounding_boxes, place, rounded_outline
from correlation_aware.data.stills.layers import EdgeStyle, covered_fraction, paste
from correlation_aware.data.stills.objects import (
    clean_mask,
    plain_background_mask,
    salient_rectangles,
    tight_outline,
)
from correlation_aware.data.stills.pool import LEVELS, ImagePool
from correlation_aware.data.stills.sampling import BLACK, MEAN, REFLECT, sample


def extent(image, threshold=128):
    """Box, cxcywh in pixels, of the pixels above the threshold in a (3, H, W) image."""
    bright = image.float().mean(dim=0) > threshold
    rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
    x1, x2, y1, y2 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def test_sampling_at_scale_one_returns_the_photograph():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    pool = ImagePool([Still(image)])
    region = Region(
        torch.tensor([0]),
        torch.tensor([[28.0, 20]]),
        torch.tensor([[10.0, 8]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(region.half_size, torch.tensor([[28.0, 20]]), torch.ones(1))
    sampled = sample(pool, region, placement, (40, 56))
    assert torch.equal(sampled.rgb[0].byte().permute(1, 2, 0), torch.from_numpy(image))
    assert (sampled.mask == 1).all() and (sampled.edge_distance > 0).all()
    moved = place(region.half_size, torch.tensor([[28.5, 20]]), torch.ones(1))  # half a pixel to the right
    blended = sample(pool, region, moved, (40, 56)).rgb[0, :, :, 1:]
    full = torch.from_numpy(image).permute(2, 0, 1).float()
    assert (blended - (full[..., 1:] + full[..., :-1]) / 2).abs().max() <= 1


@pytest.mark.parametrize("border", [BLACK, MEAN, REFLECT])
def test_border_modes(border):
    image = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    image[:, :4] = 10
    pool = ImagePool([Still(image)])
    region = Region(
        torch.tensor([0]),
        torch.tensor([[16.0, 16]]),
        torch.tensor([[8.0, 8]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(
        region.half_size, torch.tensor([[32.0, 16]]), torch.ones(1)
    )  # the photograph begins at x = 16
    sampled = sample(pool, region, placement, (32, 64), border=torch.tensor([border]))
    expected = {
        BLACK: [0, 0, 0],
        MEAN: image.reshape(-1, 3).mean(0).round().tolist(),
        REFLECT: [200, 100, 50],
    }[border]
    assert sampled.rgb[0, :, 10, 8].tolist() == expected
    assert sampled.rgb[0, :, 10, 14].tolist() == ([10, 10, 10] if border == REFLECT else expected)
    assert sampled.rgb[0, :, 10, 40].tolist() == [200, 100, 50]


def test_downscaling_averages():
    checks = np.indices((128, 128)).sum(0) % 2 * 255
    pool = ImagePool([Still(np.repeat(checks[..., None], 3, 2).astype(np.uint8))])
    region = Region(
        torch.tensor([0]),
        torch.tensor([[64.0, 64]]),
        torch.tensor([[64.0, 64]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    small = sample(
        pool, region, place(region.half_size, torch.tensor([[16.0, 16]]), torch.tensor([0.25])), (32, 32)
    )
    assert small.rgb.sub(127.5).abs().max() < 3
    assert pool.width.tolist() == [[128, 64, 32, 16, 8]] and pool.width.shape[1] == LEVELS


def test_bounding_boxes_of_rotated_and_tilted_regions():
    half = torch.tensor([[30.0, 10.0]])
    corners = torch.tensor([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]])
    turned = place(half, torch.tensor([[50.0, 40.0]]), torch.tensor([2.0]), torch.tensor([math.pi / 2]))
    assert torch.allclose(bounding_boxes(turned, corners), torch.tensor([[50.0, 40, 40, 120]]), atol=1e-4)
    tilted = place(half, torch.tensor([[50.0, 40.0]]), torch.ones(1), tilt=torch.tensor([[0.25, 0.0]]))
    left, right = 50 - 30 / 0.75, 50 + 30 / 1.25
    expected = torch.tensor([[(left + right) / 2, 40, right - left, 20 / 0.75]])
    assert torch.allclose(bounding_boxes(tilted, corners), expected, atol=1e-4)


def test_a_pasted_region_covers_its_place_and_nothing_else():
    pool = ImagePool([Still(np.full((64, 64, 3), 255, np.uint8))])
    region = Region(
        torch.zeros(2, dtype=torch.long),
        torch.full((2, 2), 32.0),
        torch.full((2, 2), 8.0),
        rounded_outline(2),
        torch.zeros(2, dtype=torch.bool),
    )
    canvas = torch.zeros(3, 3, 40, 56)
    at = torch.tensor([[20.0, 12.0], [50.0, 38.0]])  # the second one extends beyond the corner
    edges = EdgeStyle(torch.full((2,), 0.3), torch.full((2,), 0.1))
    paste(pool, canvas, torch.tensor([2, 0]), region, place(region.half_size, at, torch.ones(2)), edges)
    assert (canvas[1] == 0).all()
    assert (canvas[2, :, 6:18, 14:26] == 255).all() and (extent(canvas[2])[:2] == at[0]).all()
    assert canvas[2].mean() == pytest.approx(255 * 3.7081 * 64 / (40 * 56), rel=0.02)  # area of x^4 + y^4 < 1
    assert (canvas[0, :, 34:, 46:54] == 255).all() and canvas[0, :, :28].max() == 0


def test_the_covered_fraction_is_the_part_that_the_photograph_fills():
    region = Region(
        torch.tensor([0]),
        torch.tensor([[0.0, 60]]),
        torch.tensor([[20.0, 20]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(
        region.half_size, torch.tensor([[50.0, 50]]), torch.ones(1)
    )  # the left edge in the middle
    pool = ImagePool([Still(np.zeros((120, 160, 3), np.uint8))])
    assert covered_fraction(pool, region, placement, (100, 100)).item() == pytest.approx(0.5)


def test_masks_and_their_outlines():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:60] = 255
    mask[40:44, 5:9] = 255  # crumbs do not count
    mask[2:6, 2:8] = 255
    cleaned = clean_mask(mask)
    box, outline = tight_outline(cleaned)
    assert box.tolist() == [20, 10, 40, 20]
    assert outline.min() == -1 and outline.max() == 1
    assert clean_mask(np.zeros((60, 80), np.uint8)) is None
    assert clean_mask(np.full((60, 80), 255, np.uint8)) is None


def test_objects_on_a_plain_background_are_found():
    image = np.full((80, 100, 3), 250, np.uint8)
    cv2.circle(image, (50, 40), 20, (30, 90, 160), cv2.FILLED)
    cv2.circle(image, (50, 40), 6, (250, 250, 250), cv2.FILLED)  # a hole is part of the object
    mask = plain_background_mask(image)
    assert mask is not None and mask[40, 50] == 255 and mask[5, 5] == 0
    assert (mask > 0).sum() == pytest.approx(math.pi * 400, rel=0.1)
    assert (
        plain_background_mask(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)) is None
    )
    assert ImagePool([Still(image)]).masked.all()
    assert not ImagePool([Still(image)], plain_background=False).masked.any()


def test_salient_rectangles_find_what_stands_out():
    image = np.full((120, 160, 3), 90, np.uint8)
    image[40:80, 60:100] = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    x, y, w, h = salient_rectangles(image, 8, np.random.default_rng(1))[0]
    overlap = max(0, min(x + w, 100) - max(x, 60)) * max(0, min(y + h, 80) - max(y, 40))
    assert overlap / (w * h + 1600 - overlap) > 0.3
