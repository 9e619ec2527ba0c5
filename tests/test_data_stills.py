"""Pairs from stills: exact boxes, the proportions of the mix, batches that depend only on their number."""

import cv2
import golden_pairs
import numpy as np
import pytest
import torch

from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.pairs import PairBatch, denormalize, normalize
from correlation_aware.data.photometric import PhotometricConfig
from correlation_aware.data.sheet import pair_sheet
from correlation_aware.data.stills.files import Still
from correlation_aware.data.stills.layers import square_region
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.still_pairs import StillConfig, StillPairs
from correlation_aware.models.contract import Sizes

QUIET = PhotometricConfig(0, 0, 0, 0, 0, 0, 0, 0, 0)


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


def extent(image, threshold=128):
    """Box, cxcywh in pixels, of the pixels above the threshold in a (3, H, W) image."""
    bright = image.float().mean(dim=0) > threshold
    rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
    x1, x2, y1, y2 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def plain_config(**overrides):
    """One target without distractors, occluders and photometric augmentation."""
    nothing = {"negative": 0.0, "distractors": (), "occluder": 0.0, "coarse": 0.0, "photometric": QUIET}
    black = {"black": 1.0, "mean": 0.0, "reflect": 0.0}
    return StillConfig(**{"objects": 1.0, **nothing, **black, **overrides})


def dark_scenes(pool):
    """Scenes that are all the last photograph, a dark one."""

    def scenes(rng, n):
        last = torch.full((n,), len(pool) - 1)
        return [square_region(last, pool.sizes(last) / 2, pool.sizes(last).amin(dim=1))] * 2

    return scenes


@pytest.mark.parametrize("natural, own_template", [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_boxes_are_exact_to_a_pixel(bright_pool, natural, own_template):
    config = plain_config(natural=natural, own_template=own_template)
    source = StillPairs(bright_pool, 24, Sizes(64, 128), seed=3, config=config)
    source._scenes = dark_scenes(bright_pool)
    off = []
    for number in range(3):
        batch = source.batch(number)
        for image, box in zip(denormalize(batch.search), batch.boxes * 128):
            low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
            if low.min() > 1 and high.max() < 127:  # wholly inside the image
                off.append(extent(image, 110) - box)
        for image in denormalize(batch.template):
            assert extent(image)[:2].sub(32).abs().max() < 5
    off = torch.stack(off).abs()
    assert len(off) > 30
    assert off[:, :2].max() < 1.0 and off[:, :2].mean() < 0.35
    # the soft edge of a paste takes a little of the rounded tips
    assert off[:, 2:].max() < 3.0 and off[:, 2:].mean() < (1.0 if natural else 1.4)


def test_a_batch_depends_only_on_seed_and_number(noise_pool):
    first, second = (StillPairs(noise_pool, 8, Sizes(32, 64), seed=5) for _ in range(2))
    batches = [first.batch(number) for number in range(3)]
    for resumed, straight in zip(second.batch(2), batches[2]):
        assert torch.equal(resumed, straight)
    assert not torch.equal(batches[0].search, batches[1].search)
    assert not torch.equal(
        StillPairs(noise_pool, 8, Sizes(32, 64), seed=6).batch(0).search, batches[0].search
    )


@pytest.mark.parametrize(
    "template, search, count", [(32, 64, 5), (48, 80, 1), (36, 52, 3)]
)  # any size, blocks of 8 or not
def test_shapes_and_types(noise_pool, template, search, count):
    batch = StillPairs(noise_pool, count, Sizes(template, search)).batch(0)
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
        "correlation_aware.data.stills.still_pairs.paste",
        lambda pool, canvas, indices, *a, **k: pasted.append(len(indices)),
    )
    source = StillPairs(
        noise_pool, 40, Sizes(16, 32), config=StillConfig(natural=0.6, distractors=(0.5,), occluder=0.1)
    )
    negatives = sum(int((~source.batch(i).positive).sum()) for i in range(10))
    template, distractors, search, occluders = np.array(pasted).reshape(10, 4).mean(axis=0)
    assert search == 16 and distractors == 20 and occluders == 4
    assert 16 * 0.4 < template < 16 * 0.8  # 60 % of the templates of pasted targets, on average
    assert 40 <= negatives <= 50  # one in eight; none where both samples are of one photograph


def test_a_negative_has_the_template_of_another_sample(bright_pool):
    config = plain_config(negative=0.0)
    all_positive = StillPairs(bright_pool, 8, Sizes(32, 64), config=config).batch(0)
    mixed = StillPairs(bright_pool, 8, Sizes(32, 64), config=plain_config(negative=0.5)).batch(0)
    assert all_positive.positive.all() and 2 <= (~mixed.positive).sum() <= 4
    for i, positive in enumerate(mixed.positive):
        assert torch.equal(mixed.template[i], all_positive.template[i if positive else (i + 7) % 8])
    assert torch.equal(mixed.search, all_positive.search)
    lonely = ImagePool([bright_still(0)])
    assert StillPairs(lonely, 4, Sizes(32, 64), config=plain_config(negative=1.0)).batch(0).positive.all()


def test_the_offset_is_partly_near_the_center_and_partly_anywhere(noise_pool):
    far = (
        torch.cat([StillPairs(noise_pool, 64, Sizes(16, 32)).batch(i).boxes[:, :2] for i in range(4)])
        .sub(0.5)
        .abs()
        .amax(1)
    )
    assert 0.35 < (far < 0.12).float().mean() < 0.8
    assert (far > 0.25).float().mean() > 0.15


def test_classes_are_known_to_the_pool(bright_pool):
    images = torch.arange(12)
    samples = [bright_pool.sample_same_class(KeyedRandom(i), images) for i in range(8)]
    assert sum((alike % 3 == images % 3).float().mean() for alike in samples) / 8 > 0.75  # 3 of 4 are others
    with pytest.raises(ValueError, match="no photographs"):
        ImagePool([])
    with pytest.raises(ValueError, match="weights"):
        ImagePool([bright_still(0)], weights=[0.0])


def test_normalize_and_back():
    images = torch.randint(0, 256, (2, 3, 8, 8)).float()
    assert torch.equal(denormalize(normalize(images)), images.byte())
    assert normalize(torch.full((1, 3, 1, 1), 255.0))[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)


def test_a_sheet_shows_pairs_and_boxes(bright_pool):
    batch = StillPairs(bright_pool, 5, Sizes(32, 64)).batch(0)
    sheet = pair_sheet(batch, columns=2)
    assert sheet.shape == (3 * 68, 2 * 100, 3) and sheet.dtype == np.uint8
    assert (sheet == (0, 255, 0)).all(axis=2).sum() > 100
    assert np.array_equal(sheet[:32, :32], denormalize(batch.template)[0].permute(1, 2, 0).numpy())


def test_a_seed_gives_the_pairs_that_it_gave_before():
    golden_pairs.check("stills", golden_pairs.still_pairs())
