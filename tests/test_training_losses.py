"""The tracking loss against values computed by hand, and against torchvision."""

import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou_loss

from correlation_aware.models.heads import TrackOutput
from correlation_aware.tracking.boxes import overlap
from correlation_aware.training.losses import (
    LossConfig,
    best_location_iou,
    positive_locations,
    track_loss,
)

YES, NO = torch.tensor([True]), torch.tensor([False])


def make_output(logits: torch.Tensor, box: tuple[float, float, float, float]) -> TrackOutput:
    boxes = torch.tensor(box)[None, :, None, None].expand(logits.shape[0], 4, *logits.shape[2:])
    return TrackOutput(logits, logits.softmax(1)[:, 0], boxes.clone())


@pytest.mark.parametrize(
    ("box", "locations"),
    [
        ((0.5, 0.5, 0.6, 0.6), [(1, 1), (1, 2), (2, 1), (2, 2)]),  # 0.2 .. 0.8; centers at 1/8, 3/8, 5/8, 7/8
        ((0.3, 0.9, 0.01, 0.01), [(3, 1)]),  # smaller than the spacing: the location nearest to its center
        ((0.3, 0.5, 0.01, 0.6), [(1, 1), (2, 1)]),  # thin: the column nearest to its center
        ((0.0, 0.0, 0.6, 0.3), [(0, 0)]),  # partly outside the image
    ],
)
def test_positive_locations(box, locations):
    mask = positive_locations(torch.tensor([box]), YES, (4, 4))
    assert [tuple(location) for location in mask[0].nonzero().tolist()] == locations
    assert not positive_locations(torch.tensor([box]), NO, (4, 4)).any()


def test_loss_equals_values_computed_by_hand():
    # a 2 x 2 score map; the target covers the upper left location, its box is predicted 0.1 too far right
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0] = math.log(3)  # p(target) = 3/4 there and 1/2 elsewhere
    output = make_output(logits, (0.35, 0.25, 0.5, 0.5))
    truth = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    config = LossConfig(background=0.5)
    loss = track_loss(output, truth, YES, config)
    score = (math.log(4 / 3) + 3 * 0.5 * math.log(2)) / (1 + 3 * 0.5)
    iou = 0.4 / 0.6  # intersection 0.4 x 0.5, union 0.6 x 0.5 = hull
    assert loss.score.item() == pytest.approx(score)
    assert loss.l1.item() == pytest.approx(0.1)
    assert loss.giou.item() == pytest.approx(1 - iou, abs=1e-5)
    assert loss.total.item() == pytest.approx(12 * score + 7 * 0.1 + 5 * (1 - iou), abs=1e-4)
    assert best_location_iou(output, truth, YES).item() == pytest.approx(iou, abs=1e-5)


def test_bce_is_eq_10_and_11_of_the_paper():
    """Sums over the locations of a pair, one by one, in float64; mean over the pairs."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 4, 5, 6, generator=generator, dtype=torch.float64) * 0.4 + 0.3
    truth = torch.tensor([[0.5, 0.5, 0.53, 0.43], [0.3, 0.6, 0.23, 0.63]], dtype=torch.float64)
    score = l1 = giou = 0.0
    for logit, predicted, box in zip(logits, boxes, truth):
        for row in range(5):
            for column in range(6):
                p = 1 / (1 + math.exp(logit[1, row, column] - logit[0, row, column]))
                x, y = (column + 0.5) / 6, (row + 0.5) / 5
                is_target = abs(x - box[0]) <= box[2] / 2 and abs(y - box[1]) <= box[3] / 2
                score -= math.log(p if is_target else 1 - p)
                if is_target:
                    pair = [box_convert(b[None], "cxcywh", "xyxy") for b in (predicted[:, row, column], box)]
                    l1 += (predicted[:, row, column] - box).abs().sum().item()
                    giou += generalized_box_iou_loss(*pair).sum().item()
    output = TrackOutput(logits, logits.softmax(1)[:, 0], boxes)
    loss = track_loss(output, truth, torch.tensor([True, True]), LossConfig(kind="bce"))
    expected = [12 * score + 7 * l1 + 5 * giou, score, l1, giou]
    assert [value.item() for value in loss] == pytest.approx([value / 2 for value in expected], rel=1e-5)
    assert loss.score != pytest.approx(track_loss(output, truth, YES, LossConfig()).score)


def test_an_iou_aware_score_is_trained_to_be_the_iou_of_its_box():
    logits = torch.zeros(1, 2, 2, 2)
    output = make_output(logits, (0.35, 0.25, 0.5, 0.5))  # 0.1 too far right: IoU 2/3, as above
    truth = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    config = LossConfig(background=0.5, iou_aware=True)

    def gradient(score: float, config: LossConfig) -> torch.Tensor:
        logits = torch.zeros(1, 2, 2, 2)
        logits[0, 0, 0, 0] = math.log(score / (1 - score))
        logits.requires_grad_()
        loss = track_loss(TrackOutput(logits, logits[:, 0], output.boxes), truth, YES, config)
        return torch.autograd.grad(loss.score, logits)[0][0, 0]

    target = gradient(2 / 3, config)
    assert target[0, 0].item() == pytest.approx(0, abs=1e-6)  # the minimum
    assert gradient(0.9, config)[0, 0] > 0 > gradient(0.5, config)[0, 0]
    plain = gradient(2 / 3, LossConfig(background=0.5))
    assert plain[0, 0] < 0
    torch.testing.assert_close(target[1], plain[1])  # the background is not affected
    boxes = output.boxes.clone().requires_grad_()
    score = track_loss(TrackOutput(logits.requires_grad_(), logits[:, 0], boxes), truth, YES, config).score
    assert torch.autograd.grad(score, boxes, allow_unused=True)[0] is None  # boxes do not follow scores


def test_a_negative_pair_has_no_box_loss_and_ignores_its_box():
    output = make_output(torch.zeros(1, 2, 2, 2, requires_grad=True), (0.5, 0.5, 0.5, 0.5))
    loss = track_loss(output, torch.full((1, 4), math.nan), NO, LossConfig())
    assert loss.score.item() == pytest.approx(math.log(2))
    assert loss.l1.item() == loss.giou.item() == 0
    loss.total.backward()


def test_boxes_are_weighted_per_pair_or_per_location():
    # pair 0 covers four locations and is off by 0.1, pair 1 covers one and is off by 0.2, pair 2 is negative
    truth = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    predicted = truth + torch.tensor([0.1, 0.2, 0.9])[:, None] * torch.tensor([1.0, 0, 0, 0])
    logits = torch.zeros(3, 2, 2, 2)
    output = TrackOutput(logits, logits[:, 0], predicted[:, :, None, None].expand(3, 4, 2, 2))
    positive = torch.tensor([True, True, False])
    assert track_loss(output, truth, positive, LossConfig()).l1.item() == pytest.approx((4 * 0.1 + 0.2) / 5)
    config = LossConfig(per_pair=True)
    assert track_loss(output, truth, positive, config).l1.item() == pytest.approx((0.1 + 0.2) / 2)


def test_overlap_equals_torchvision():
    a, b = torch.rand(2, 500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    a.requires_grad_()
    ours = 1 - overlap(a, b)[1]
    theirs = generalized_box_iou_loss(*(box_convert(box, "cxcywh", "xyxy") for box in (a, b)))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), a)[0] for loss in (ours, theirs)))
    assert overlap(b, b)[0].min() > 0.99


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    output = make_output(logits, (0.5, 0.5, 0.25, 0.25))
    half = TrackOutput(*(t.bfloat16() for t in output))
    truth, positive = torch.full((2, 4), 0.5), torch.tensor([True, True])
    full, low = (track_loss(o, truth, positive, LossConfig()).total for o in (output, half))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=1e-2, atol=0)
