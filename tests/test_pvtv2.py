"""timm's PVTv2 weights fit: classifiers give the same logits, two-input networks take what they share."""

import pytest
import timm
import torch

import correlation_aware as ca
from correlation_aware.weights import convert_state_dict, load_state_dict

# timm's variant, and ours configured alike
TWINS = {
    "pvt_v2_b0": ("sbt_light_pvtv2_cls", {"depths": (2, 2, 2, 2)}),
    "pvt_v2_b1": ("sbt_small_pvtv2_cls", {"depths": (2, 2, 2, 2)}),
    "pvt_v2_b2": ("sbt_small_pvtv2_cls", {"depths": (3, 4, 6, 3)}),
    "pvt_v2_b2_li": ("sbt_small_pvtv2_cls", {"depths": (3, 4, 6, 3), "attention": "pooled"}),
    "pvt_v2_b3": ("sbt_large_pvtv2_cls", {}),
    "pvt_v2_b4": ("sbt_huge_pvtv2_cls", {}),
}


def timm_model(name):
    """timm's model with weights that matter everywhere: its own initialisation leaves biases at zero."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@pytest.mark.parametrize("name", TWINS)
@torch.inference_mode()
def test_logits_equal_timm(name):
    twin, overrides = TWINS[name]
    theirs = timm_model(name)
    ours = ca.create_model(twin, **overrides).eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), source="pvt_v2"), strict=True)
    image = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-4)


def test_a_prefix_of_the_blocks_loads_with_a_report():
    state_dict = convert_state_dict(timm_model("pvt_v2_b0").state_dict(), source="pvt_v2")
    net = ca.create_model("sbt_light_pvtv2")
    before = net.stages[2].blocks[5].mlp.fc1.weight.clone()
    report = load_state_dict(net, state_dict, partial=True)
    torch.testing.assert_close(
        net.stages[2].blocks[1].attn.q.weight, state_dict["stages.2.blocks.1.attn.q.weight"]
    )
    torch.testing.assert_close(net.stages[2].blocks[5].mlp.fc1.weight, before)
    assert all(".blocks." in name and int(name.split(".")[3]) >= 2 for name in report.missing)
    assert {name.split(".")[1] for name in report.unexpected if name.startswith("stages.")} == {
        "0",
        "1",
        "3",
    }  # norms, stage 4
    assert len(report.loaded) + len(report.missing) == len(net.state_dict())
    assert "missing" in str(report) and "blocks 2-5" in str(report)


def test_a_strict_load_that_does_not_fit_changes_nothing():
    state_dict = convert_state_dict(timm_model("pvt_v2_b0").state_dict(), source="pvt_v2")
    net = ca.create_model("sbt_light_pvtv2")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="partial=True"):
        load_state_dict(net, state_dict)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_original_pvt_names_are_understood():
    names = ["patch_embed1.proj.weight", "block3.4.mlp.dwconv.dwconv.bias", "norm4.weight", "head.bias"]
    converted = convert_state_dict({name: torch.zeros(2) for name in names})
    assert list(converted) == [
        "stages.0.embed.proj.weight",
        "stages.2.blocks.4.mlp.dwconv.bias",
        "stages.3.norm.weight",
        "head.bias",
    ]


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="belong to no known format"):
        convert_state_dict({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="is not one of"):
        convert_state_dict({}, source="resnet")
