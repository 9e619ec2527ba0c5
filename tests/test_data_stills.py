"""Pairs from stills: boxes to the pixel, the mix in its proportions, batches by their number alone."""

import math

import cv2
import numpy as np
import pytest
import torch

from correlation_aware.data.draws import Draws
from correlation_aware.data.geometry import Cut, bounds, place, rounded_outline
from correlation_aware.data.layers import Edges, covered, lay, window
from correlation_aware.data.objects import clean_mask, plain_ground_mask, salient_rectangles, tight_outline
from correlation_aware.data.pairs import PairBatch, denormalize, normalize
from correlation_aware.data.photometric import PhotometricConfig
from correlation_aware.data.pool import LEVELS, ImagePool
from correlation_aware.data.sampling import BLACK, MEAN, REFLECT, sample
from correlation_aware.data.sheet import pair_sheet
from correlation_aware.data.still_files import Still
from correlation_aware.data.stills import StillConfig, StillPairs

QUIET = PhotometricConfig(0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bright_still(number, masked=True):
    """A bright ellipse on a dark photograph, and its mask."""
    rng = np.random.default_rng(number)
    height, width = int(rng.integers(120, 200)), int(rng.integers(120, 200))
    image = np.full((height, width, 3), 20, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    at = int(width * rng.uniform(0.4, 0.6)), int(height * rng.uniform(0.4, 0.6))
    axes = int(rng.integers(14, 30)), int(rng.integers(14, 30))
    cv2.ellipse(mask, at, axes, 0, 0, 360, 255, cv2.FILLED)
    image[mask > 0] = (220, 200, 240)
    return Still(image, mask if masked else None, f"class{number % 3}")


@pytest.fixture(scope="module")
def bright_pool():
    dark = Still(np.full((150, 150, 3), 20, np.uint8))
    return ImagePool([*(bright_still(i) for i in range(12)), dark], weights=[1] * 12 + [0])


@pytest.fixture(scope="module")
def noise_pool():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(20)]
    return ImagePool(Still(cv2.resize(c, (160, 120), interpolation=cv2.INTER_CUBIC)) for c in coarse)


def extent(picture, threshold=128):
    """cxcywh in pixels of what is brighter than the threshold, of a (3, H, W) picture."""
    bright = picture.float().mean(dim=0) > threshold
    rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
    x1, x2, y1, y2 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def plain_config(**overrides):
    """One target, nothing beside or before it, no change of light."""
    nothing = {"negative": 0.0, "distractors": (), "occluder": 0.0, "coarse": 0.0, "photometric": QUIET}
    black = {"black": 1.0, "mean": 0.0, "reflect": 0.0}
    return StillConfig(**{"objects": 1.0, **nothing, **black, **overrides})


def dark_scenes(pool):
    """Puts the last photograph, a dark one, behind every target."""

    def scenes(draws, n):
        last = torch.full((n,), len(pool) - 1)
        return [window(last, pool.sides(last) / 2, pool.sides(last).amin(dim=1))] * 2

    return scenes


@pytest.mark.parametrize("natural, own_template", [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_boxes_lie_around_the_target_to_the_pixel(bright_pool, natural, own_template):
    config = plain_config(natural=natural, own_template=own_template)
    source = StillPairs(bright_pool, 24, 64, 128, seed=3, config=config)
    source._scenes = dark_scenes(bright_pool)
    off = []
    for number in range(3):
        batch = source.batch(number)
        for picture, box in zip(denormalize(batch.search), batch.boxes * 128):
            low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
            if low.min() > 1 and high.max() < 127:  # not cut off by the picture's edge
                off.append(extent(picture, 110) - box)
        for picture in denormalize(batch.template):
            assert extent(picture)[:2].sub(32).abs().max() < 5
    off = torch.stack(off).abs()
    assert len(off) > 30
    assert off[:, :2].max() < 1.0 and off[:, :2].mean() < 0.35
    # the soft edge of a paste takes a little of the rounded tips
    assert off[:, 2:].max() < 3.0 and off[:, 2:].mean() < (1.0 if natural else 1.4)


def test_a_batch_depends_on_seed_and_number_alone(noise_pool):
    first, second = (StillPairs(noise_pool, 8, 32, 64, seed=5) for _ in range(2))
    batches = [batch for _, batch in zip(range(3), first)]
    assert first.state == 3
    second.state = 2
    for resumed, straight in zip(next(iter(second)), batches[2]):
        assert torch.equal(resumed, straight)
    assert not torch.equal(batches[0].search, batches[1].search)
    assert not torch.equal(StillPairs(noise_pool, 8, 32, 64, seed=6).batch(0).search, batches[0].search)


@pytest.mark.parametrize(
    "template, search, count", [(32, 64, 5), (48, 80, 1), (36, 52, 3)]
)  # any size, blocks of 8 or not
def test_shapes_and_types(noise_pool, template, search, count):
    batch = StillPairs(noise_pool, count, template, search).batch(0)
    assert isinstance(batch, PairBatch)
    assert batch.template.shape == (count, 3, template, template) and batch.template.dtype == torch.float32
    assert batch.search.shape == (count, 3, search, search)
    assert batch.boxes.shape == (count, 4) and batch.positive.dtype == torch.bool
    assert torch.isfinite(batch.template).all() and torch.isfinite(batch.search).all()
    assert (
        (batch.boxes[:, :2] > 0).all() and (batch.boxes[:, :2] < 1).all() and (batch.boxes[:, 2:] > 0).all()
    )
    assert batch.to("meta").search.device.type == "meta"


def test_the_mix_has_its_proportions(noise_pool, monkeypatch):
    pasted = []
    monkeypatch.setattr(
        "correlation_aware.data.stills.lay", lambda pool, canvas, which, *a, **k: pasted.append(len(which))
    )
    source = StillPairs(
        noise_pool, 40, 16, 32, config=StillConfig(natural=0.6, distractors=(0.5,), occluder=0.1)
    )
    negatives = sum(int((~source.batch(i).positive).sum()) for i in range(10))
    template, distractors, search, occluders = np.array(pasted).reshape(10, 4).mean(axis=0)
    assert search == 16 and distractors == 20 and occluders == 4
    assert 16 * 0.4 < template < 16 * 0.8  # 60 % of the templates of pasted targets, on average
    assert 40 <= negatives <= 50  # one in eight; none where both samples are of one photograph


def test_a_negative_has_the_template_of_another_sample(bright_pool):
    config = plain_config(negative=0.0)
    all_positive = StillPairs(bright_pool, 8, 32, 64, config=config).batch(0)
    mixed = StillPairs(bright_pool, 8, 32, 64, config=plain_config(negative=0.5)).batch(0)
    assert all_positive.positive.all() and 2 <= (~mixed.positive).sum() <= 4
    for i, positive in enumerate(mixed.positive):
        assert torch.equal(mixed.template[i], all_positive.template[i if positive else (i + 7) % 8])
    assert torch.equal(mixed.search, all_positive.search)
    lonely = ImagePool([bright_still(0)])
    assert StillPairs(lonely, 4, 32, 64, config=plain_config(negative=1.0)).batch(0).positive.all()


def test_the_offset_is_partly_near_the_middle_and_partly_anywhere(noise_pool):
    far = (
        torch.cat([StillPairs(noise_pool, 64, 16, 32).batch(i).boxes[:, :2] for i in range(4)])
        .sub(0.5)
        .abs()
        .amax(1)
    )
    assert 0.35 < (far < 0.12).float().mean() < 0.8
    assert (far > 0.25).float().mean() > 0.15


def test_sampling_at_scale_one_returns_the_photograph():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    pool = ImagePool([Still(image)])
    cut = Cut(
        torch.tensor([0]),
        torch.tensor([[28.0, 20]]),
        torch.tensor([[10.0, 8]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(cut.half, torch.tensor([[28.0, 20]]), torch.ones(1))
    picture = sample(pool, cut, placement, (40, 56))
    assert torch.equal(picture.rgb[0].byte().permute(1, 2, 0), torch.from_numpy(image))
    assert (picture.mask == 1).all() and (picture.rim > 0).all()
    moved = place(cut.half, torch.tensor([[28.5, 20]]), torch.ones(1))  # half a pixel to the right
    blended = sample(pool, cut, moved, (40, 56)).rgb[0, :, :, 1:]
    full = torch.from_numpy(image).permute(2, 0, 1).float()
    assert (blended - (full[..., 1:] + full[..., :-1]) / 2).abs().max() <= 1


@pytest.mark.parametrize("border", [BLACK, MEAN, REFLECT])
def test_beyond_the_rim(border):
    image = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    image[:, :4] = 10
    pool = ImagePool([Still(image)])
    cut = Cut(
        torch.tensor([0]),
        torch.tensor([[16.0, 16]]),
        torch.tensor([[8.0, 8]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(cut.half, torch.tensor([[32.0, 16]]), torch.ones(1))  # the photograph begins at x = 16
    picture = sample(pool, cut, placement, (32, 64), border=torch.tensor([border]))
    expected = {
        BLACK: [0, 0, 0],
        MEAN: image.reshape(-1, 3).mean(0).round().tolist(),
        REFLECT: [200, 100, 50],
    }[border]
    assert picture.rgb[0, :, 10, 8].tolist() == expected
    assert picture.rgb[0, :, 10, 14].tolist() == ([10, 10, 10] if border == REFLECT else expected)
    assert picture.rgb[0, :, 10, 40].tolist() == [200, 100, 50]


def test_minifying_averages():
    checks = np.indices((128, 128)).sum(0) % 2 * 255
    pool = ImagePool([Still(np.repeat(checks[..., None], 3, 2).astype(np.uint8))])
    cut = Cut(
        torch.tensor([0]),
        torch.tensor([[64.0, 64]]),
        torch.tensor([[64.0, 64]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    small = sample(pool, cut, place(cut.half, torch.tensor([[16.0, 16]]), torch.tensor([0.25])), (32, 32))
    assert small.rgb.sub(127.5).abs().max() < 3
    assert pool.width.tolist() == [[128, 64, 32, 16, 8]] and pool.width.shape[1] == LEVELS


def test_bounds_of_turned_and_tilted_cuts():
    half = torch.tensor([[30.0, 10.0]])
    corners = torch.tensor([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]])
    turned = place(half, torch.tensor([[50.0, 40.0]]), torch.tensor([2.0]), torch.tensor([math.pi / 2]))
    assert torch.allclose(bounds(turned, corners), torch.tensor([[50.0, 40, 40, 120]]), atol=1e-4)
    tilted = place(half, torch.tensor([[50.0, 40.0]]), torch.ones(1), tilt=torch.tensor([[0.25, 0.0]]))
    left, right = 50 - 30 / 0.75, 50 + 30 / 1.25
    expected = torch.tensor([[(left + right) / 2, 40, right - left, 20 / 0.75]])
    assert torch.allclose(bounds(tilted, corners), expected, atol=1e-4)


def test_a_pasted_cut_covers_its_place_and_nothing_else():
    pool = ImagePool([Still(np.full((64, 64, 3), 255, np.uint8))])
    cut = Cut(
        torch.zeros(2, dtype=torch.long),
        torch.full((2, 2), 32.0),
        torch.full((2, 2), 8.0),
        rounded_outline(2),
        torch.zeros(2, dtype=torch.bool),
    )
    canvas = torch.zeros(3, 3, 40, 56)
    at = torch.tensor([[20.0, 12.0], [50.0, 38.0]])  # the second one reaches over the corner
    edges = Edges(torch.full((2,), 0.3), torch.full((2,), 0.1))
    lay(pool, canvas, torch.tensor([2, 0]), cut, place(cut.half, at, torch.ones(2)), edges)
    assert (canvas[1] == 0).all()
    assert (canvas[2, :, 6:18, 14:26] == 255).all() and (extent(canvas[2])[:2] == at[0]).all()
    assert canvas[2].mean() == pytest.approx(255 * 3.7081 * 64 / (40 * 56), rel=0.02)  # area of x^4 + y^4 < 1
    assert (canvas[0, :, 34:, 46:54] == 255).all() and canvas[0, :, :28].max() == 0


def test_covered_is_the_part_that_the_photograph_fills(noise_pool):
    cut = Cut(
        torch.tensor([0]),
        torch.tensor([[0.0, 60]]),
        torch.tensor([[20.0, 20]]),
        rounded_outline(1),
        torch.tensor([False]),
    )
    placement = place(cut.half, torch.tensor([[50.0, 50]]), torch.ones(1))  # the left rim in the middle
    assert covered(noise_pool, cut, placement, (100, 100)).item() == pytest.approx(0.5)


def test_masks_and_their_outlines():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:60] = 255
    mask[40:44, 5:9] = 255  # crumbs do not count
    cleaned = clean_mask(mask)
    box, outline = tight_outline(cleaned)
    assert box.tolist() == [20, 10, 40, 20]
    assert outline.min() == -1 and outline.max() == 1
    assert clean_mask(np.zeros((60, 80), np.uint8)) is None
    assert clean_mask(np.full((60, 80), 255, np.uint8)) is None


def test_objects_before_a_plain_ground_are_found():
    image = np.full((80, 100, 3), 250, np.uint8)
    cv2.circle(image, (50, 40), 20, (30, 90, 160), cv2.FILLED)
    cv2.circle(image, (50, 40), 6, (250, 250, 250), cv2.FILLED)  # a hole is part of the object
    mask = plain_ground_mask(image)
    assert mask is not None and mask[40, 50] == 255 and mask[5, 5] == 0
    assert (mask > 0).sum() == pytest.approx(math.pi * 400, rel=0.1)
    assert plain_ground_mask(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)) is None
    assert ImagePool([Still(image)]).masked.all()
    assert not ImagePool([Still(image)], plain_ground=False).masked.any()


def test_salient_rectangles_find_what_stands_out():
    image = np.full((120, 160, 3), 90, np.uint8)
    image[40:80, 60:100] = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    x, y, w, h = salient_rectangles(image, 8, np.random.default_rng(1))[0]
    overlap = max(0, min(x + w, 100) - max(x, 60)) * max(0, min(y + h, 80) - max(y, 40))
    assert overlap / (w * h + 1600 - overlap) > 0.3


def test_classes_are_known_to_the_pool(bright_pool):
    pictures = torch.arange(12)
    draws = [bright_pool.same_class(Draws(i), pictures) for i in range(8)]
    assert sum((alike % 3 == pictures % 3).float().mean() for alike in draws) / 8 > 0.75  # 3 of 4 are others
    with pytest.raises(ValueError, match="one photograph"):
        ImagePool([])
    with pytest.raises(ValueError, match="weights"):
        ImagePool([bright_still(0)], weights=[0.0])


def test_normalize_and_back():
    pictures = torch.randint(0, 256, (2, 3, 8, 8)).float()
    assert torch.equal(denormalize(normalize(pictures)), pictures.byte())
    assert normalize(torch.full((1, 3, 1, 1), 255.0))[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)


def test_a_sheet_shows_pairs_and_boxes(bright_pool):
    batch = StillPairs(bright_pool, 5, 32, 64).batch(0)
    sheet = pair_sheet(batch, columns=2)
    assert sheet.shape == (3 * 68, 2 * 100, 3) and sheet.dtype == np.uint8
    assert (sheet == (0, 255, 0)).all(axis=2).sum() > 100
    assert np.array_equal(sheet[:32, :32], denormalize(batch.template)[0].permute(1, 2, 0).numpy())
