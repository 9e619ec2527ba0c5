"""`attention_maps`: the weights of every block, compared with the attention of the forward pass."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import correlation_aware as ca
from correlation_aware.models.eoc import EoCAttention, EoCBlock

CASES = {
    "sbt_test": {},
    "sbt_test, all keys": {"attention": "global"},
    "sbt_test, pooled": {"attention": "pooled"},
    "sbt_test, depthwise": {"attention": "depthwise_reduction"},
    "sbt_test, relative": {"position": "relative"},
    "siam_test": {},
    "siam_test, both": {"keys": "both", "depth": 3},
    "siam_test, sbt": {"backbone": "sbt_test", "levels": (2,), "lateral": None, "neck": "dw_corr"},
    "siam_test, embedded": {"backbone": "sbt_test", "levels": (2,), "lateral": None, "embedded": True},
    "supersbt_test": {},
    "supersbt_test, two": {"templates": 2},
    "onestream_vit_test": {},
    "onestream_vit_test, self": {"template_attends": "self"},
    "onestream_vit_test_ce": {},
}


def build(case):
    torch.manual_seed(0)
    net = ca.create_model(case.partition(",")[0], **CASES[case]).double().eval()
    with torch.no_grad():  # larger than initial weights, so that attention is not uniform
        for parameter in net.parameters():
            parameter.mul_(2)
    side = 16 if case.startswith(("onestream", "supersbt")) else 1
    sizes = [(48, 64), (80, 64)] if side == 16 else [(40, 56), (72, 60)]  # spatial reduction drops the rest
    return net, *(torch.randn(2, 3, *size, dtype=torch.float64) for size in sizes)


@pytest.mark.parametrize("case", CASES)
def test_weights_reproduce_the_attention_of_every_block(case, monkeypatch):
    net, template, search = build(case)
    calls, attend = [], F.scaled_dot_product_attention

    def record(q, k, v, **options):
        calls.append((q.shape, v, attend(q, k, v, **options)))
        return calls[-1][2]

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(F, "scaled_dot_product_attention", record)
        expected = net.forward_features(template, search)
    with torch.no_grad():
        maps = net.attention_maps(template, search)
        again = net.forward_features(template, search)
    assert all(torch.equal(a, b) for a, b in zip(expected, again)) and calls

    rows = [m.weights for m in maps]
    rows += [
        torch.cat([a.weights, b.weights], 2)
        for a, b in pairwise(maps)
        if a.block == b.block and a.keys == b.keys
    ]
    kept = net.kept_locations(template, search) if case.endswith("_ce") else []
    for shape, v, output in calls:
        for positions in kept:  # tokens that are left are put back at their places
            if v.shape[2] - 12 == positions.shape[1]:
                v, output = (spread(t, positions) for t in (v, output))
        fits = [
            w for w in rows if w.shape[:2] == v.shape[:2] and w.shape[2:] == (output.shape[2], v.shape[2])
        ]
        errors = sorted(float((w @ v - output).abs().max()) for w in fits)
        assert errors[0] < 1e-12 and all(error > 1e-6 for error in errors[1:]), (shape, errors[:3])


def spread(tokens, positions):
    full = tokens.new_zeros(*tokens.shape[:2], 12 + 20, tokens.shape[3])
    full[:, :, :12] = tokens[:, :, :12]
    index = (12 + positions)[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3])
    return full.scatter(2, index, tokens[:, :, 12:])


@pytest.mark.parametrize("case", CASES)
def test_rows_sum_to_one_and_grids_fit(case):
    net, template, search = build(case)
    with torch.no_grad():
        maps = net.attention_maps(template, search)
    for m in maps:
        assert m.weights.shape[2:] == (len(m.queries), sum(map(len, m.keys)))
        sums = m.weights.sum(dim=3)
        eliminated = sums == 0
        assert not eliminated.any() or (case.endswith("_ce") and m.queries.image == "search")
        torch.testing.assert_close(sums[~eliminated], torch.ones_like(sums[~eliminated]))
        for grid in m.keys:
            assert m.onto(grid.image).shape[2:] == (*m.queries.size, *grid.size)
    for name, block in net.named_modules():
        if isinstance(block, EoCBlock) and any(m.block == name for m in maps):
            images = [m.queries.image for m in maps if m.block == name]
            assert images == ["template", "search"], (name, images)


def test_maps_say_what_attends_to_what():
    net, template, search = build("sbt_test")
    maps = {(m.block, m.queries.image): m for m in net.attention_maps(template, search)}
    assert len(maps) == 2 * sum(net.config.depths)
    first = maps["stages.0.blocks.0", "search"]
    assert first.kind == "self" and first.queries.size == (18, 15) and first.keys[0].size == (2, 1)
    assert first.keys[0].extent == (16 / 18, 8 / 15)
    cross = maps["stages.2.blocks.1", "template"]
    assert cross.kind == "cross" and cross.keys[0].image == "search" and cross.keys[0].size == (4, 4)
    with pytest.raises(ValueError, match="template attends to the search, not to 'template'"):
        cross.onto("template")
    joint = build("onestream_vit_test, self")[0].attention_maps(
        torch.zeros(1, 3, 64, 64).double(), torch.zeros(1, 3, 64, 64).double()
    )
    assert [m.kind for m in joint[:2]] == ["self", "joint"]


def test_a_state_gives_the_maps_of_the_rest():
    net, template, search = build("sbt_test")
    whole = net.attention_maps(template, search)
    rest = net.attention_maps(net.encode_template(template), search)
    missing = {(m.block, m.queries.image) for m in whole} - {(m.block, m.queries.image) for m in rest}
    assert missing == {
        ("stages.0.blocks.0", "template"),
        ("stages.1.blocks.0", "template"),
        ("stages.2.blocks.0", "template"),
    }
    tracker = ca.TrackModel.build(net, "cell")
    assert len(tracker.attention_maps(template[:1], search)) == len(whole)


def test_nothing_is_left_in_the_network(monkeypatch):
    net, template, search = build("siam_test")
    before = net(template, search)
    monkeypatch.setattr(net, "_weighted_sum", lambda outputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net.attention_maps(template, search)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="search has shape"):
        net.attention_maps(template, search[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.equal(net(template, search), before)


def test_a_network_without_attention_says_so():
    net = ca.create_model("siam_test", neck="dw_corr")
    with pytest.raises(
        NotImplementedError, match=r"SiameseNet has no attention maps.*neck='cross_attention'"
    ):
        net.attention_maps(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 128, 128))


class BiasedAttention(EoCAttention):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options) + 1


def test_another_form_of_attention_is_not_taken_for_the_usual_one():
    net, template, search = build("sbt_test")
    net.stages[2].blocks[1].attn.__class__ = BiasedAttention
    with pytest.raises(NotImplementedError, match="BiasedAttention has no attention maps"):
        net.attention_maps(template, search)


def test_windows_have_no_maps():
    net = ca.create_model("sbt_test", attention="local", cross_attention="global")
    with pytest.raises(NotImplementedError, match="WindowAttention has no attention maps"):
        net.attention_maps(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 128, 128))
