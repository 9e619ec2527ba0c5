"""PrRoI pooling against a fine numerical integral of the bilinear surface, and its gradients."""

import numpy as np
import pytest
import torch

from correlation_aware.adapters.prroi_pool import PrRoIPool2D, prroi_pool2d

BOXES = {
    "inside": (6.3, 9.1, 41.7, 33.2),
    "a fraction of a location": (18.2, 17.1, 19.4, 20.9),
    "over the border": (-13.0, 21.5, 27.0, 75.0),
    "outside": (-60.0, -60.0, -20.0, -20.0),
    "on locations": (8.0, 16.0, 32.0, 48.0),
}


def surface(plane, y, x):
    """The bilinear surface through the locations of (H, W) and zeros around, at a grid of points."""
    padded = np.pad(plane, 2)
    y, x = (np.clip(v + 2, 0, n - 1.001) for v, n in zip((y, x), padded.shape))
    rows, columns = (np.floor(v).astype(int) for v in (y, x))
    fy, fx = (y - rows)[:, None], (x - columns)[None]
    corner = [[padded[np.ix_(rows + i, columns + j)] for j in (0, 1)] for i in (0, 1)]
    return (1 - fy) * ((1 - fx) * corner[0][0] + fx * corner[0][1]) + fy * (
        (1 - fx) * corner[1][0] + fx * corner[1][1]
    )


@pytest.mark.parametrize("name", BOXES)
def test_equals_a_fine_integral(name):
    x0, y0, x1, y1 = BOXES[name]
    plane = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = prroi_pool2d(plane[None, None], torch.tensor([[0, x0, y0, x1, y1]]).double(), 3, 2, 1 / 8)
    points = (np.arange(600) + 0.5) / 600
    values = surface(plane.numpy(), (y0 + (y1 - y0) * points) / 8, (x0 + (x1 - x0) * points) / 8)
    fine = values.reshape(3, 200, 2, 300).mean(axis=(1, 3))
    np.testing.assert_allclose(pooled[0, 0], fine, atol=2e-4)  # error of the 600-point midpoint rule


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_gradients_in_features_and_boxes():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = boxes([1, 3.3, 7.9, 21.1, 30.2], [0, -5.2, 4.4, 17.7, 12.8], [1, 9.1, 9.3, 50.5, 35.7])

    def pool(features, corners):
        return prroi_pool2d(features, torch.cat([rois[:, :1], corners], 1), 2, 3, 1 / 8)

    assert torch.autograd.gradcheck(pool, (features, rois[:, 1:].clone().requires_grad_(True)))


def test_boxes_may_come_in_any_order_and_number():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    rois = torch.rand(7, 5, generator=generator, dtype=torch.float64) * 30
    rois[:, 3:] += rois[:, 1:3]
    rois[:, 0] = torch.tensor([2, 0, 2, 2, 0, 2, 0])  # none in image 1
    together = prroi_pool2d(features, rois, 3, 3, 1 / 8)
    for roi, pooled in zip(rois, together):
        alone = prroi_pool2d(
            features[roi[0].long(), None], torch.cat([roi[:1] * 0, roi[1:]])[None], 3, 3, 1 / 8
        )
        torch.testing.assert_close(pooled[None], alone)
    assert prroi_pool2d(features, rois[:0], 3, 3, 1 / 8).shape == (0, 2, 3, 3)


def test_a_constant_map_and_a_box_without_area():
    features = torch.full((1, 1, 9, 9), 2.5, requires_grad=True)
    rois = torch.tensor([[0.0, 8, 8, 40, 56], [0, 20, 20, 20, 40], [0, 30, 30, 10, 40]], requires_grad=True)
    pooled = prroi_pool2d(features, rois, 2, 2, 1 / 8)
    assert torch.allclose(pooled[0], torch.tensor(2.5)) and not pooled[1:].any()
    pooled.sum().backward()
    assert torch.isfinite(features.grad).all() and torch.isfinite(rois.grad).all()


def test_half_precision_features_keep_exact_bins():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 4, 36, 36, generator=generator)
    rois = torch.tensor([[0.0, 250.3, 260.7, 259.9, 271.2]])
    pooled = prroi_pool2d(features.bfloat16(), rois, 5, 5, 1 / 8)
    exact = prroi_pool2d(features, rois, 5, 5, 1 / 8)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), exact, rtol=0, atol=0.03)  # 8 bits of values of 1 to 3


def test_the_layer_has_the_names_of_the_original():
    layer = PrRoIPool2D(3, 5, 1 / 16)
    assert (layer.pooled_height, layer.pooled_width, layer.spatial_scale) == (3, 5, 0.0625)
    assert not list(layer.parameters()) and not layer.state_dict()
    assert layer(torch.ones(1, 2, 8, 8), torch.tensor([[0.0, 16, 16, 64, 64]])).shape == (1, 2, 3, 5)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"rois have shape \(2, 4\); expected \(boxes, 5\)"):
        prroi_pool2d(torch.ones(1, 1, 4, 4), torch.ones(2, 4), 1, 1, 1.0)
    with pytest.raises(ValueError, match=r"features have shape \(1, 4, 4\)"):
        prroi_pool2d(torch.ones(1, 4, 4), torch.ones(2, 5), 1, 1, 1.0)
