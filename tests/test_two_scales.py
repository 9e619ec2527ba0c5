"""Two networks in one: features and scores are those of the parts; the full size is a tracker of its own."""

import pytest
import torch
import torch.nn.functional as F

import correlation_aware as ca
from correlation_aware.models.heads import TowerHead, TwoScaleHead
from correlation_aware.models.two_scales import TwoScaleNet
from correlation_aware.weights import convert_state_dict


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TwoScaleNet(*(ca.create_model("siam_test") for _ in range(2))).eval()


def pair(template=64, search=128):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, 3, side, side, generator=generator) for side in (template, search))


@torch.inference_mode()
def test_features_are_those_of_the_parts(net):
    z, x = pair()
    half = net.half_size(F.avg_pool2d(z, 2), F.avg_pool2d(x, 2))
    full, repeated = net(z, x).chunk(2, dim=1)
    torch.testing.assert_close(full, net.full(z, x), rtol=0, atol=0)
    for rows in range(2):
        for columns in range(2):
            torch.testing.assert_close(repeated[:, :, rows::2, columns::2], half, rtol=0, atol=0)
    state = net.join_templates([net.encode_template(image) for image in (z, z.flip(3))])
    both = net.full.join_templates([net.full.encode_template(image) for image in (z, z.flip(3))])
    torch.testing.assert_close(net(state, x).chunk(2, dim=1)[0], net.full(both, x), rtol=0, atol=0)
    assert len(net.attention_maps(z, x)) == len(net.full.attention_maps(z, x))


@torch.inference_mode()
def test_a_location_has_the_mean_of_two_logits_and_the_box_of_the_full_size():
    torch.manual_seed(0)
    head, half = TwoScaleHead(32), TowerHead(16)
    half.cls.load_state_dict(head.half_cls.state_dict())
    features = torch.randn(2, 32, 8, 8)
    output, full = head(features), head.full(features[:, :16])
    coarse = half(features[:, 16:, ::2, ::2]).logits
    mean = (full.logits + F.interpolate(coarse, (8, 8), mode="bilinear")) / 2
    torch.testing.assert_close(output.logits, mean)
    torch.testing.assert_close(output.boxes, full.boxes)

    head.calibrate(1.5, -0.25)
    odds, before = (logits[:, 0] - logits[:, 1] for logits in (head(features).logits, mean))
    torch.testing.assert_close(odds, 1.5 * before - 0.25)
    torch.testing.assert_close(head.full(features[:, :16]).logits, full.logits)  # the towers are as they were


def test_the_full_size_is_a_checkpoint_of_its_own(tmp_path):
    two = ca.create_model("siam_lite0_ca_two_scales_track", pretrained=True)
    full = ca.create_model("siam_lite0_ca_track", pretrained=True)
    assert full.weights_name == "siam_lite0_ca_track.video"
    parts = {**two.backbone.full.state_dict(prefix="backbone."), **two.head.full.state_dict(prefix="head.")}
    assert parts.keys() == full.state_dict().keys()
    assert all(torch.equal(parts[name], tensor) for name, tensor in full.state_dict().items())
    recognized = convert_state_dict(two.state_dict(), own_names=full.state_dict())
    assert recognized.keys() == parts.keys()
    unchanged = convert_state_dict(two.state_dict(), own_names=two.state_dict())
    assert unchanged.keys() == two.state_dict().keys()


def test_layers_of_both_networks_are_in_the_same_groups():
    model = ca.create_model("siam_lite0_ca_two_scales", device="meta")
    groups, own = model.group_matcher(), model.full.group_matcher()
    assert groups.keys() == own.keys()
    assert model.no_weight_decay() == {
        f"{part}.{name}" for part in ("full", "half_size") for name in model.full.no_weight_decay()
    }


def test_mistakes(net):
    z, x = pair()
    with pytest.raises(ValueError, match=r"search is 72 x 72 px; each side must be a multiple of 16"):
        net(z, x[:, :, :72, :72])
    with pytest.raises(ValueError, match=r"template is 48 x 48 px; each side must be at least 64"):
        net(z[:, :, :48, :48], x)
    state = net.encode_template(z)
    with pytest.raises(ValueError, match=f"has {len(state) - 1} tensors, which two networks cannot share"):
        net(state[:-1], x)
    with pytest.raises(ValueError, match=r"are \(3, 16, 8\) and \(3, 32, 8\), but must be equal"):
        TwoScaleNet(ca.create_model("siam_test"), ca.create_model("sbt_test"))
    for sizes in ({"search_size": 200}, {"template_size": 48}):
        with pytest.raises(ValueError, match=r"_size=\d+ must be at least 64 and a multiple of 16: "):
            ca.create_model("siam_lite0_ca_two_scales_track", **sizes)


def test_the_head_of_the_tracker_is_an_argument_as_of_the_others():
    model = ca.create_model("siam_lite0_ca_two_scales_track", head="center", device="meta")
    assert type(model.head).__name__ == "CenterHead"
    assert model.head.score[0][0].in_channels == model.backbone.num_features
    with pytest.raises(TypeError, match=r"^Unknown argument 'head'\. Near: heads\.$"):
        ca.create_model("siam_lite0_ca_two_scales", head="center")
