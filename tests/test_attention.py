"""Forms of attention that the study compares with SBT's."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock

import correlation_aware as ca
from correlation_aware.models.attention import (
    DepthwiseReduction,
    RelativeAttention,
    RelativeBias,
    WindowAttention,
)
from correlation_aware.ops import pack, unpack

DIM, HEADS = 12, 3


def swin_like(side, window, shifted):
    """timm's block with identities for norms and without an MLP, and ours with its weights."""
    theirs = SwinTransformerBlock(
        DIM, (side, side), HEADS, window_size=window, shift_size=window // 2 if shifted else 0
    )
    theirs.norm1, theirs.norm2, theirs.mlp = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    theirs = theirs.double().eval()
    ours = WindowAttention(DIM, HEADS, window, shifted, relative=True).double()
    weight, bias = theirs.attn.qkv.weight, theirs.attn.qkv.bias
    sizes = 2 * min(window, side) - 1
    center = slice(window - min(window, side), 2 * window - 1 - (window - min(window, side)))
    with torch.no_grad():
        torch.nn.init.normal_(bias)
        torch.nn.init.normal_(theirs.attn.relative_position_bias_table)
        ours.q.weight.copy_(weight[:DIM])
        ours.q.bias.copy_(bias[:DIM])
        ours.kv.weight.copy_(weight[DIM:])
        ours.kv.bias.copy_(bias[DIM:])
        ours.proj.load_state_dict(theirs.attn.proj.state_dict())
        table = theirs.attn.relative_position_bias_table
        ours.relative.table[center, center].copy_(table.view(sizes, sizes, HEADS))
    return theirs, ours


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("side", "window"), [(8, 4), (10, 4), (12, 7), (5, 7)])
@torch.no_grad()
def test_windows_are_those_of_swin(side, window, shifted):
    torch.manual_seed(0)
    theirs, ours = swin_like(side, window, shifted)
    maps = torch.randn(2, side, side, DIM, dtype=torch.float64)
    expected = theirs(maps)
    tokens, shapes = pack([maps])
    output = ours(tokens, shapes, tokens, shapes, cross=False)
    # what timm's block is without norms and MLP: x + attention, and that twice
    torch.testing.assert_close(2 * (tokens + output), expected.flatten(0, 2), rtol=0, atol=1e-12)


@torch.no_grad()
def test_windows_of_two_images_correspond():
    """A query depends on the window of the other image at its place, and on nothing else."""
    torch.manual_seed(0)
    layer = WindowAttention(DIM, HEADS, window=4, shifted=False, relative=False)
    template, search = torch.randn(2, 1, 8, 8, DIM).unbind()
    changed = template.clone()
    changed[:, 4:, :4] += 1  # the window at the lower left

    def attend(z):
        tokens, shapes = pack([z, search])
        return unpack(layer(tokens, shapes, tokens, shapes, cross=True), shapes)[1][0]

    moved = (attend(changed) - attend(template)).abs().amax(dim=-1) > 1e-6
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :4] = True
    assert torch.equal(moved, expected)
    # EoC-CA with queries of the search image alone, as in the last block, is the same
    z_tokens, z_shapes = pack([template])
    x_tokens, x_shapes = pack([search])
    alone = layer(x_tokens, x_shapes, z_tokens, z_shapes, cross=True)
    torch.testing.assert_close(alone.view(8, 8, DIM), attend(template))
    with pytest.raises(ValueError, match="one size, not 8 x 8 and 4 x 8"):
        layer(x_tokens, x_shapes, z_tokens[:32], [(1, 4, 8)], cross=True)


@torch.no_grad()
def test_relative_bias_by_loops():
    torch.manual_seed(0)
    bias = RelativeBias(2, side=3)  # distances -2..2, of keys
    terms = bias(6, 8, ratio=2)
    assert terms.shape == (2, 6 * 8, 3 * 4)
    for y, x, row, column in [(0, 0, 0, 0), (5, 7, 0, 0), (1, 6, 2, 3), (4, 0, 1, 3), (2, 2, 1, 1)]:
        dy, dx = y // 2 - row, max(-2, min(2, x // 2 - column))  # the map has a distance 3 the table has not
        expected = bias.table[dy + 2, dx + 2]
        assert torch.equal(terms[:, 8 * y + x, 4 * row + column], expected)


@torch.no_grad()
def test_relative_attention_is_attention_with_a_bias():
    torch.manual_seed(0)
    layer = RelativeAttention(DIM, HEADS, 2, "spatial_reduction", side=8)
    tokens, shapes = pack([torch.randn(1, 4, 4, DIM), torch.randn(2, 8, 6, DIM)])
    output = unpack(layer(tokens, shapes, tokens, shapes, cross=False), shapes)
    for m, expected in zip(unpack(tokens, shapes), output):
        flat, shape = pack([m])
        torch.testing.assert_close(
            layer(flat, shape, flat, shape, cross=False), expected.flatten(0, 2), rtol=0, atol=1e-6
        )
    layer.relative.table.zero_()  # then it is that of `EoCAttention`
    plain = super(RelativeAttention, layer).forward(tokens, shapes, tokens, shapes, cross=False)
    torch.testing.assert_close(layer(tokens, shapes, tokens, shapes, False), plain, rtol=0, atol=1e-6)


@torch.no_grad()
def test_keys_of_the_depthwise_reduction():
    torch.manual_seed(0)
    layer = DepthwiseReduction(DIM, HEADS, 2)
    m = torch.randn(2, 6, 8, DIM)
    keys, shapes = layer.reduce_kv(*pack([m]))
    conv = layer.reduction
    assert conv.weight.shape == (DIM, 1, 3, 3) and shapes == [(2, 3, 4)]
    by_hand = F.conv2d(m.permute(0, 3, 1, 2), conv.weight, conv.bias, stride=2, padding=1, groups=DIM)
    torch.testing.assert_close(keys, layer.norm(by_hand.permute(0, 2, 3, 1)).flatten(0, 2))


FORMS = {  # all that the study adds, in as few networks as have every pair that can be together
    "windows and reduction": {"attention": "local", "cross_attention": "spatial_reduction"},
    "windows in both": {"attention": "shifted_window", "position": "relative", "template_size": 128},
    "ResT": {"attention": "depthwise_reduction", "position": "sinusoidal"},
    "relative": {"position": "relative", "patch_embed": "overlap_unpadded"},
    "relative and global": {"attention": "global", "position": "relative", "cross_attention": "pooled"},
}


@pytest.mark.parametrize("overrides", FORMS.values(), ids=FORMS)
def test_networks_of_the_study_train_and_cache(overrides):
    torch.manual_seed(0)
    model = ca.create_model("sbt_test_track", **overrides)
    sizes = model.sizes
    template, search = (torch.randn(2, 3, s, s) for s in (sizes.template_size, sizes.search_size))
    output = model(template, search)
    (output.logits.square().mean() + output.boxes.square().mean()).backward()
    assert all(p.grad is not None for p in model.parameters())
    tables = {name for name, _ in model.named_parameters() if name.endswith("relative.table")}
    assert bool(tables) == (overrides.get("position") == "relative")
    assert tables <= model.no_weight_decay()
    model.eval()
    with torch.inference_mode():
        state = model.encode_template(template)
        assert torch.equal(model(state, search).boxes, model(template, search).boxes)
        net, image = model.backbone, search[:1]
        alone = net.forward_template(image)
        torch.testing.assert_close(alone, net(image, image), rtol=0, atol=1e-5)


def test_nothing_pads_without_padding():
    net = ca.create_model("sbt_test", patch_embed="overlap_unpadded", position="none")
    assert {conv.padding for conv in net.modules() if isinstance(conv, torch.nn.Conv2d)} == {(0, 0)}
    assert net(torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)).shape[2:] == (13, 13)
    assert net.feature_side(128) == 13 and net.feature_side(256) == 29
    assert net.pretrained_cfg["pool_size"] == (13, 13)
    unpadded = {"patch_embed": "overlap_unpadded", "position": "none", "cross_blocks": ((), (0,), (1,))}
    tracker = ca.create_model("sbt_test_track", head="cell", **unpadded)
    level = ca.create_model("sbt_test", features_only=True, out_indices=(1,), **unpadded)
    for model, side in ((tracker, 13), (level, 15)):
        assert model.pretrained_cfg["pool_size"] == (side, side)
    assert level(torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128))[0].shape[2:] == (15, 15)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"attention": "local"}, "template and search images of one size"),
        ({"cross_attention": "shifted_window"}, "template_size=64 and search_size=128"),
        ({"attention": "pooled", "position": "relative"}, "no fixed distance"),
        ({"attention": "depthwise_reduction", "position": "relative"}, "Take spatial_reduction"),
        ({"position": "sinusoidal", "dims": (16, 30, 32)}, "4 divides"),
        ({"window_size": 8}, "no effect"),
        ({"attention": "local", "window_size": 1}, "at least 2"),
        ({"attention": "windows"}, "spatial_reduction, depthwise_reduction, global, pooled, local"),
        ({"position": "relativ"}, "conv, absolute, sinusoidal, relative, none"),
        ({"patch_embed": "conv"}, "overlap, overlap_unpadded, patchify"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(overrides, reason):
    with pytest.raises(ValueError, match=reason):
        ca.create_model("sbt_test", device="meta", **overrides)


def test_a_classifier_has_no_cross_attention():
    with pytest.raises(ValueError, match="no effect in a classifier"):
        ca.create_model("sbt_test_cls", cross_attention="global")
    net = ca.create_model("sbt_test_cls", attention="shifted_window", position="relative", num_classes=2)
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 2)
