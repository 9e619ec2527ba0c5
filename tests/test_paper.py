"""What the paper says of the network, as tests: its mathematics and its cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import correlation_aware as ca
from correlation_aware.models.eoc import EoCAttention
from correlation_aware.models.profile import profile
from correlation_aware.ops import pack, unpack


@torch.inference_mode()
def test_eoc_ca_is_two_dynamic_convolutions_around_a_softmax():
    """Eq. 8: the template's keys are filters of a 1x1 convolution of the search, its values of a second."""
    torch.manual_seed(0)
    dim, heads = 24, 3
    attn = EoCAttention(dim, heads, sr_ratio=2, kind="spatial_reduction")
    template, search = torch.randn(1, 4, 6, dim), torch.randn(1, 8, 10, dim)
    tokens, shapes = pack([template, search])
    _, found = unpack(attn(tokens, shapes, tokens, shapes, cross=True), shapes)

    reduced, _ = attn.reduce_kv(template.flatten(0, 2), [(1, 4, 6)])
    keys, values = attn.kv(reduced).chunk(2, dim=1)  # (6, dim) each: 2 x 3 keys
    image = attn.q(search).permute(0, 3, 1, 2)  # 1, dim, 8, 10
    out = []
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        correlation = F.conv2d(image[:, part], keys[:, part, None, None]) / (dim // heads) ** 0.5
        out.append(F.conv2d(correlation.softmax(dim=1), values[:, part].T[:, :, None, None]))
    expected = attn.proj(torch.cat(out, dim=1).permute(0, 2, 3, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "shift"),
    [
        # nothing pads: the network commutes with shifts by its stride of 8 px
        ({"patch_embed": "patchify", "position": "none", "attention": "global"}, (8, -24)),
        # the real network with padding that wraps around; keys gather 8 x 8 tokens at stride 4, hence 32 px
        ({}, (32, -64)),
    ],
)
@torch.inference_mode()
def test_features_translate_with_the_image(overrides, shift):
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", sr_ratios=(8, 4, 2), **overrides).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    features = net(template, search)
    moved = net(template, search.roll(shift, dims=(2, 3)))
    steps = tuple(s // 8 for s in shift)
    torch.testing.assert_close(moved, features.roll(steps, dims=(2, 3)), rtol=0, atol=1e-5)
    assert (moved - features).abs().max() > 0.1


def macs_by_hand(cfg, z_side, x_side):
    """Multiply-accumulates of search features, block by block, from the definition of the network."""
    total, last_cross, chans = 0, (2, max(cfg.cross_blocks[2])), 3
    for i, dim in enumerate(cfg.dims):
        z_side, x_side = z_side // cfg.strides[i], x_side // cfg.strides[i]
        kernel, hidden, r = (7 if i == 0 else 3), int(dim * cfg.mlp_ratios[i]), cfg.sr_ratios[i]
        for j in range(-1, cfg.depths[i]):
            for n, m in ((z_side**2, x_side**2), (x_side**2, z_side**2)):
                is_template = n == z_side**2
                if j == -1:
                    total += n * kernel**2 * chans * dim
                    continue
                cross, last = j in cfg.cross_blocks[i], (i, j) == last_cross
                keys = (m if cross else n) // r**2
                own_keys = n // r**2
                if not (
                    last and not is_template
                ):  # of the last EoC-CA block only the template's keys are needed
                    total += own_keys * (r**2 * dim * dim + 2 * dim * dim)
                if not (last and is_template):
                    total += n * (2 * dim * dim + 2 * keys * dim + 2 * dim * hidden + 9 * hidden)
        chans = dim
    return total


# Without the prediction head, and without the two norms that the authors' code holds but never uses
PARAMS = {"sbt_light": 3_023_520, "sbt_small": 11_953_472, "sbt_base": 19_825_472, "sbt_large": 33_076_032}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_and_macs(name):
    net = ca.create_model(name, device="meta")
    costs = profile(net)
    assert costs.params == PARAMS[name]
    assert costs.macs == macs_by_hand(net.config, 128, 256)
    assert 0.85 * costs.macs < costs.cached_macs < costs.macs


def test_profile_leaves_the_model_as_it_was():
    model = ca.create_model("sbt_test_cls", device="meta")
    costs = profile(model, search_size=64)
    assert model.training and costs.cached_macs == costs.macs > 0
