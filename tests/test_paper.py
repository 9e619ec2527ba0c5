"""What the paper says of the network, as tests: its mathematics and its cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import correlation_aware as ca
from correlation_aware.models.heads import MixerHead, PaperMixerHead
from correlation_aware.models.profile import profile
from correlation_aware.models.siamese import depthwise_correlation, pixel_correlation
from correlation_aware.ops import pack, unpack


def features_by_hand(net, z, x):
    """Eq. 1 to 5, term by term, from the text: (1, 3, H, W) of both images to their features (1, C, h, w)."""
    maps = [z, x]
    for stage in net.stages:
        conv = stage.embed.proj
        maps = [F.conv2d(m, conv.weight, conv.bias, conv.stride, conv.padding) for m in maps]
        maps = [stage.embed.norm(m.permute(0, 2, 3, 1)) for m in maps]  # Eq. 1: LN(phi(image))
        for block in stage.blocks:
            attn, mlp = block.attn, block.mlp
            normed = [block.norm1(m) for m in maps]
            queries = [attn.q(m).flatten(1, 2) for m in normed]  # Eq. 2
            pairs = []
            for m in normed:  # chi_k, chi_v: a convolution with a stride, in SRG
                r = attn.sr_ratio
                if r > 1:
                    kernel = attn.sr.weight.unflatten(1, (r, r, -1)).permute(0, 3, 1, 2)
                    m = F.conv2d(m.permute(0, 3, 1, 2), kernel, attn.sr.bias, r).permute(0, 2, 3, 1)
                    m = attn.norm(m)
                pairs.append(attn.kv(m).flatten(1, 2).chunk(2, dim=-1))
            sources = pairs[::-1] if block.cross else pairs
            updated = []
            for m, q, (k, v) in zip(maps, queries, sources):
                parts = zip(*(t.chunk(attn.heads, dim=-1) for t in (q, k, v)))
                # Eq. 3: Softmax(q k^T / sqrt(d_h)) v
                mixed = [torch.softmax(a @ b.mT / a.shape[-1] ** 0.5, dim=-1) @ c for a, b, c in parts]
                updated.append(m + attn.proj(torch.cat(mixed, dim=-1)).view(m.shape))  # Eq. 4 and 5
            maps = []
            for m in updated:
                hidden = mlp.fc1(block.norm2(m)).permute(0, 3, 1, 2)
                dw = mlp.dwconv
                hidden = F.conv2d(hidden, dw.weight, dw.bias, padding=1, groups=len(hidden[0]))
                maps.append(m + mlp.fc2(F.gelu(hidden.permute(0, 2, 3, 1))))
        if stage.norm is not None:
            maps = [stage.norm(m) for m in maps]
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    return maps


@torch.inference_mode()
def test_features_equal_the_equations():
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", depths=(2, 2, 3), cross_blocks=((1,), (), (0, 2))).double().eval()
    for parameter in net.parameters():
        parameter += 0.1 * torch.randn_like(parameter)  # the initial biases are 0
    images = torch.randn(1, 3, 64, 64).double(), torch.randn(1, 3, 128, 96).double()
    expected = features_by_hand(net, *images)
    assert [stage.blocks[0].attn.sr_ratio for stage in net.stages] == [8, 4, 2]
    for actual, by_hand in zip(net.forward_features(*images), expected):
        torch.testing.assert_close(actual, by_hand, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        net(net.encode_template(images[0]), images[1]), expected[1], rtol=0, atol=1e-11
    )


def dynamic_convolutions(attn, template, search):
    """Eq. 8 without its residual: the template's keys filter the search, its values what the softmax gives.

    Args:
        attn: `EoCAttention`.
        template: (1, Hz, Wz, C) that enters it.
        search: (1, Hx, Wx, C) that enters it.
    """
    dim, heads = attn.q.in_features, attn.heads
    reduced, _ = attn.reduce_kv(template.flatten(0, 2), [tuple(template.shape[:3])])
    keys, values = attn.kv(reduced).chunk(2, dim=1)  # (6, dim) each: 2 x 3 keys
    image = attn.q(search).permute(0, 3, 1, 2)  # 1, dim, 8, 10
    out = []
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        correlation = F.conv2d(image[:, part], keys[:, part, None, None]) / (dim // heads) ** 0.5
        out.append(F.conv2d(correlation.softmax(dim=1), values[:, part].T[:, :, None, None]))
    return attn.proj(torch.cat(out, dim=1).permute(0, 2, 3, 1))


@torch.inference_mode()
def test_eoc_ca_is_two_dynamic_convolutions_around_a_softmax():
    """Eq. 8: filters made from the template, and a bias b2(x), which is the search itself (the residual)."""
    torch.manual_seed(0)
    block = ca.create_model("sbt_test").eval().stages[2].blocks[1]  # 2 heads, keys of 2 x 2 tokens
    assert block.cross and block.attn.heads == 2
    for parameter in block.mlp.fc2.parameters():  # what follows the attention adds nothing
        nn.init.zeros_(parameter)
    template, search = torch.randn(1, 4, 6, 32), torch.randn(1, 8, 10, 32)
    tokens, shapes = pack([template, search])
    tokens, residual, _ = block(tokens, None, shapes)
    _, actual = unpack(tokens + residual, shapes)
    bias = search
    expected = dynamic_convolutions(block.attn, block.norm1(template), block.norm1(search)) + bias
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_correlation_is_one_dynamic_convolution():
    """Sec. 5.1: DW-Corr and Pix-Corr are linear in the search, with filters from the template; CA is not."""
    torch.manual_seed(0)
    template, search, other = (torch.randn(1, 32, side, side) for side in (3, 9, 9))
    filters = template.transpose(0, 1)  # (32, 1, 3, 3): one for each channel
    expected = F.conv2d(search, filters, padding=1, groups=32)
    torch.testing.assert_close(depthwise_correlation(search, template), expected, rtol=0, atol=1e-5)
    filters = template.flatten(2).mT  # (1, 9, 32): one 1 x 1 filter for each location
    expected = F.conv2d(search, filters[0, :, :, None, None])
    scale = (pixel_correlation(search, filters) / expected).mean()  # of the number of channels
    torch.testing.assert_close(pixel_correlation(search, filters), scale * expected, rtol=0, atol=1e-5)

    attn = ca.create_model("sbt_test").eval().stages[2].blocks[1].attn
    for bias in (attn.q.bias, attn.proj.bias):
        nn.init.zeros_(bias)
    z = template.permute(0, 2, 3, 1)
    maps = [m.permute(0, 2, 3, 1) for m in (search, other, search + other)]
    for correlate, is_linear in (
        (lambda x: depthwise_correlation(x.permute(0, 3, 1, 2), template), True),
        (lambda x: pixel_correlation(x.permute(0, 3, 1, 2), filters), True),
        (lambda x: dynamic_convolutions(attn, z, x), False),
    ):
        first, second, total = map(correlate, maps)
        assert torch.allclose(first + second, total, atol=1e-4) == is_linear


def test_hierarchical_correlation_is_serial():
    """Eq. 9: x2, z2 = ca2(ca1(ca0(x0, z0))); the sum of parallel correlations has no such chain."""
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", depths=(2, 2, 2), cross_blocks=((1,), (1,), (1,))).eval()
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        expected = net.forward_features(template, search)
        z, x = template, search
        for stage in net.stages:  # the embedding and the EoC-SA block before, then EoC-CA
            tokens, shapes = stage.embed_images([z, x])
            residual = None
            for block in stage.blocks:
                tokens, residual, shapes = block(tokens, residual, shapes)
            z, x = (m.permute(0, 3, 1, 2) for m in unpack(tokens + residual, shapes))
        z, x = (net.stages[-1].norm(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for m in (z, x))
    torch.testing.assert_close((z, x), expected, rtol=0, atol=1e-5)

    # the last level follows the first correlation, of which Siamese levels know nothing
    siamese = ca.create_model(
        "siam_test", backbone="sbt_test", levels=("S3B2", "S3B4"), neck="dw_corr", lateral=None
    ).eval()
    weight = siamese.necks[0].template_conv[0].weight
    levels = []
    for neck in siamese.necks:
        neck.register_forward_hook(lambda m, args, output: levels.append(output[-1]))
    siamese(template, search)
    first, last = (torch.autograd.grad(m.sum(), weight, allow_unused=True)[0] for m in levels)
    assert first.abs().max() > 0 and last is None
    weight = net.stages[0].blocks[1].attn.q.weight
    assert torch.autograd.grad(net(template, search).square().sum(), weight)[0].abs().max() > 0


@torch.inference_mode()
def test_search_features_do_not_depend_on_the_order_of_the_templates_tokens():
    """Sec. 5.1: without positions and reduction, tokens are a set. Patches of 8 px are shuffled."""
    torch.manual_seed(0)
    free = {"patch_embed": "patchify", "position": "none", "attention": "global"}
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    patches = F.unfold(template, 8, stride=8)  # 1, 192, 64
    shuffled = F.fold(patches[:, :, torch.randperm(64)], 64, 8, stride=8)
    for overrides, depends in ((free, False), ({**free, "position": "conv"}, True)):
        net = ca.create_model("sbt_test", **overrides).eval()
        difference = (net(shuffled, search) - net(template, search)).abs().max()
        assert difference > 5e-5 if depends else difference < 5e-6  # the weights are small: std 0.02


@pytest.mark.parametrize(
    ("patch_embed", "position", "attention", "holds"),
    [
        ("patchify", "none", "global", True),
        ("overlap_unpadded", "none", "global", True),
        ("overlap", "none", "global", False),
        ("patchify", "conv", "global", False),
    ],
)
@torch.inference_mode()
def test_without_padding_features_move_with_the_target(patch_embed, position, attention, holds):
    """Sec. 5.1: padding removed from the network itself. A target moves over a plain, bright background.

    All tokens of the background are the same, so that only zeros around the image could tell where it is.
    """
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", patch_embed=patch_embed, position=position, attention=attention).eval()
    template, target = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 24, 24)
    features = []
    for row, column in ((40, 32), (56, 64)):
        search = torch.full((1, 3, 128, 128), 2.0)
        search[:, :, row : row + 24, column : column + 24] = target
        features.append(net(template, search))
    moved = features[0].roll((2, 4), dims=(2, 3))  # by 16 and 32 px
    difference = (moved - features[1]).abs().max()
    assert (difference < 1e-5) == holds and (holds or difference > 0.01)
    assert (features[0] - features[1]).abs().max() > 0.1


@torch.inference_mode()
def test_the_papers_mixer_head_is_eq_7():
    """f_i = sp(cn(f_{i-1})): linear layers over channels, then positions, a ReLU after each; in float64."""
    torch.manual_seed(0)
    head = PaperMixerHead(6, (4, 5)).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    out = head(features)
    for branch, actual in ((head.cls, out.logits), (head.box, out.boxes)):
        f = features.flatten(2)
        for cn, sp in zip(branch.channel, branch.spatial):
            f = (torch.einsum("oc,bcp->bop", cn.weight, f) + cn.bias[:, None]).clamp(min=0)
            f = (torch.einsum("qp,bcp->bcq", sp.weight, f) + sp.bias).clamp(min=0)
        torch.testing.assert_close(actual.flatten(2).double(), f, rtol=0, atol=1e-6)
    assert out.boxes.shape == (2, 4, 4, 5) and (out.boxes > 0).float().mean() > 0.8
    torch.testing.assert_close(out.scores.double(), out.logits.softmax(1)[:, 0], rtol=0, atol=1e-6)
    count = [sum(p.numel() for p in m.parameters()) for m in (head, MixerHead(6, (4, 5)))]
    assert count[0] == count[1]
    with pytest.raises(ValueError, match="this head needs 4 x 5"):
        head(features.mT)


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
