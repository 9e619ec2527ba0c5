"""The one-stream ViT: OSTrack's numbers, candidate elimination, cached templates, and timm's ViTs."""

import json
import math
import os
from pathlib import Path

import golden_vit
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_patch_embed
from torch.nn import functional as F
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli.weights import app
from correlation_aware.models.vit import Attention
from correlation_aware.runtime.export import export
from correlation_aware.training.losses import LossConfig, best_location_iou, track_loss
from correlation_aware.weights import convert_state_dict

# Where the outputs for OSTrack's own sizes are: they take gigabytes of memory and a minute, so the repository
# does not have them.
FULL = Path(os.environ.get("OSTRACK_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
KINDS = {
    "joint": ("onestream_vit_test", {}),
    "elimination": ("onestream_vit_test_ce", {}),
    "self": ("onestream_vit_test", {"template_attends": "self"}),
}


def make(kind="joint", **arguments):
    """A network with weights that are large enough for an attention that is not uniform."""
    torch.manual_seed(0)
    name, own = KINDS[kind]
    net = ca.create_model(name, **own, **arguments).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return net


def images(templates=1, searches=1, template=64, search=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(templates, 3, template, template, generator=generator),
        torch.randn(searches, 3, search, search, generator=generator),
    )


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# OSTrack's code


@pytest.mark.parametrize("case", range(3))
@torch.inference_mode()
def test_features_boxes_and_kept_tokens_are_those_of_ostrack(case):
    shapes, expected = golden_vit.golden()
    name, arguments, seeds = golden_vit.CASES[case]
    model = ca.create_model(name, **golden_vit.SIZES, **arguments).eval()
    shapes = {n: s for n, s in shapes.items() if "_tl." not in n and "_br." not in n}
    model.load_state_dict(convert_state_dict(golden_vit.state_dict(shapes)), strict=True)
    pair = golden_vit.images(seeds, **golden_vit.SIZES)
    z, x = model.backbone.forward_features(*pair)
    close(z[1].flatten(1).mT[:: golden_vit.STEP], expected[f"{case}.template"], 2e-5)
    close(x[1].flatten(1).mT[:: golden_vit.STEP], expected[f"{case}.search"], 2e-5)
    output = model(*pair)
    close(output.scores[1:], expected[f"{case}.score_map"], 2e-5)
    close(output.boxes[1, 2:], expected[f"{case}.size_map"], 2e-5)
    location = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy"))
    close(output.boxes[1, :2] * 12 - location, expected[f"{case}.offset_map"], 2e-5)
    kept = model.backbone.kept_locations(*pair)
    assert len(kept) == (2 if "_ce_" in name else 0)
    for j, positions in enumerate(kept):
        assert positions[1].sort().values.tolist() == expected[f"{case}.kept_{j}"].tolist()
    if case == 0:
        head = ca.create_model(name, head="corner", **golden_vit.SIZES).head.eval()
        tensors = golden_vit.state_dict(
            {n: s for n, s in golden_vit.golden()[0].items() if "_tl." in n or "_br." in n}
        )
        corners = convert_state_dict(tensors, "ostrack")
        report = head.load_state_dict({n[5:]: t for n, t in corners.items()}, strict=False)
        assert not report.unexpected_keys and all(n.startswith("score.") for n in report.missing_keys)
        cx, cy, w, h = head(x).boxes[:, :, 0, 0].unbind(1)
        x1, y1, x2, y2 = expected["corners"].unbind(1)
        close(torch.stack([cx, cy]), torch.stack([x1 + x2, y1 + y2]) / 2)
        close(torch.stack([w, h]), torch.stack([x2 - x1, y2 - y1]).clamp(min=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ostrack_vitb_256", "ostrack_vitb_256_ce", "ostrack_vitb_384_ce"])
@torch.inference_mode()
def test_ostrack_at_its_own_sizes(name):
    if not (FULL / "upstream_ostrack.json").is_file():
        pytest.skip(
            f"needs OSTrack's outputs in {FULL} or $OSTRACK_GOLDEN, which the repository does not have"
        )
    cases = json.loads((FULL / "upstream_ostrack.json").read_text())["cases"]
    (case,) = [case for case in cases if case["name"] == name]
    expected = load_file(FULL / f"{name}.safetensors")
    tensors = golden_vit.state_dict(case["parameters"] | case["buffers"])
    model = ca.create_model(name.replace("ostrack_vitb", "onestream_vit_base") + "_track", device="meta")
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(convert_state_dict(tensors, "ostrack"), strict=True)
    for i, run in enumerate(case["runs"]):
        for block in model.backbone.blocks:
            block.attn.elimination_query = "all" if "ALL" in json.dumps(run) else "center"
        pair = golden_vit.images(
            (run["template_seed"], run["search_seed"]), run["template_hw"][0], run["search_hw"][0]
        )
        z, x = model.backbone.forward_features(*pair)
        kept = model.backbone.kept_locations(*pair)
        assert len(kept) == (3 if name.endswith("_ce") else 0)
        for j, positions in enumerate(kept):  # neighbours in the order may change places
            of_theirs = expected[f"run{i}.kept_{j}"].long().sort(dim=1).values
            assert torch.equal(positions[: len(of_theirs)].sort(dim=1).values, of_theirs)
        tokens = x.flatten(2).mT
        if kept:
            chosen = kept[-1].sort(dim=1).values[:, :: run["steps"]["kept_tokens"]]
            actual = tokens.gather(1, chosen[:, :, None].expand(-1, -1, 768))
            close(actual, expected[f"run{i}.kept_tokens"], 2e-5)
            removed = torch.ones(tokens.shape[:2], dtype=torch.bool).scatter(1, kept[-1], False)
            assert not tokens[removed].any()
        else:
            close(tokens[:, :: run["steps"]["search_tokens"]], expected[f"run{i}.search_tokens"], 2e-5)
        assert x.mean().item() == pytest.approx(run["mean"], abs=1e-6)
        output = model.head(x)
        best = output.scores.flatten(1).argmax(dim=1)
        assert best.tolist() == run["argmax"]
        boxes = output.boxes.flatten(2).gather(2, best[:, None, None].expand(-1, 4, 1))
        close(boxes[..., 0], expected[f"run{i}.pred_boxes"][:, 0], 2e-5)
        if i == 0:
            theirs = expected["run0.template_tokens"]
            close(z.flatten(2).mT[: len(theirs), :: run["steps"]["template_tokens"]], theirs, 2e-5)
            close(output.scores[:, None], expected["run0.score_map"], 2e-5)
            close(output.boxes[:, 2:], expected["run0.size_map"], 2e-5)


def test_ostracks_checkpoints_are_converted(tmp_path):
    shapes = {n: s for n, s in golden_vit.golden()[0].items() if "_tl." not in n and "_br." not in n}
    tensors = golden_vit.state_dict(shapes)
    torch.save({"net": tensors, "epoch": 300}, tmp_path / "OSTrack_ep0300.pth.tar")
    out = tmp_path / "ours.safetensors"
    arguments = [str(tmp_path / "OSTrack_ep0300.pth.tar"), str(out), "--format", "ostrack"]
    done = CliRunner().invoke(app, ["convert", *arguments])
    assert done.exit_code == 0, done.output
    model = ca.create_model("onestream_vit_test_ce_track", pretrained=out, **golden_vit.SIZES)
    for stream, letter in (("template", "z"), ("search", "x")):
        table = getattr(model.backbone, f"{stream}_pos_embed")
        assert torch.equal(table.flatten(2).mT, tensors[f"backbone.pos_embed_{letter}"])
    segment = torch.randn(1, 1, 48)
    changed = convert_state_dict(tensors | {"backbone.search_segment_pos_embed": segment})
    close(changed["backbone.search_pos_embed"], model.backbone.search_pos_embed.data + segment.mT[..., None])
    with pytest.raises(ValueError, match=r"backbone\.norm2\.weight: a class token .* not supported"):
        convert_state_dict(tensors | {"backbone.norm2.weight": torch.ones(48)}, "ostrack")


# candidate elimination


@torch.no_grad()
def test_what_the_template_attends_to():
    layer = Attention(8, 2, "center")
    q, k = torch.randn(2, 1, 2, 2 * 4 + 5, 4)  # a template of 2 x 4 tokens, five search tokens
    expected = {"center": [], "all": []}
    for i in range(8):
        weights = [torch.softmax(q[0, h, i] @ k[0, h].T / math.sqrt(4), dim=0)[8:] for h in range(2)]
        expected["all"].append(sum(weights) / 2)
    expected["center"] = expected["all"][1]  # row 0 of 2, column 1 of 4
    close(layer.search_attention(q, k, (2, 4))[0], expected["center"])
    layer.elimination_query = "all"
    close(layer.search_attention(q, k, (2, 4))[0], sum(expected["all"]) / 8)


@torch.inference_mode()
def test_eliminated_locations_are_zero_and_the_others_the_rest():
    net = make("elimination", template_size=128, search_size=256)
    pair = images(2, 2, 128, 256)
    kept = net.kept_locations(*pair)
    assert [k.shape for k in kept] == [(2, 180), (2, 126)]
    x = net(*pair).flatten(2).mT
    removed = torch.ones(2, 256, dtype=torch.bool).scatter(1, kept[-1], False)
    assert not x[removed].any() and x[~removed].any(dim=1).all()
    for first, second in zip(*kept):
        assert set(second.tolist()) <= set(first.tolist()) and len(set(first.tolist())) == 180
    assert not torch.equal(kept[-1][0].sort().values, kept[-1][1].sort().values)  # each pair has its own
    shallow = make(
        "elimination", template_size=128, search_size=384, dim=12, depth=10, elimination_blocks=(3, 6, 9)
    )
    assert [k.shape[1] for k in shallow.kept_locations(*images(1, 1, 128, 384))] == [404, 283, 199]
    net.keep_ratio = 1
    assert net.kept_locations(*pair) == []
    plain = make("joint", template_size=128, search_size=256)
    assert torch.equal(net(*pair), plain(*pair))
    net.keep_ratio = 0.9
    assert [k.shape[1] for k in net.kept_locations(*pair)] == [231, 208]


@torch.inference_mode()
def test_elimination_in_the_last_block():
    net = make("elimination", elimination_blocks=(3,))
    pair = images()
    (kept,) = net.kept_locations(*pair)
    x, plain = net(*pair).flatten(2), make("joint")(*pair).flatten(2)
    close(x[..., kept[0]], plain[..., kept[0]])
    assert x.any(dim=1).sum() == len(kept[0]) == 45
    close(net.forward_features(*pair)[1].flatten(2), x)


# templates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("templates", "searches"), [(1, 3), (3, 1), (3, 3)])
@torch.inference_mode()
def test_batches_and_cached_templates(kind, templates, searches):
    net = make(kind)
    template, search = images(templates, searches)
    pairs = [(template[i % templates, None], search[i % searches, None]) for i in range(3)]
    expected = torch.cat([net(z, x) for z, x in pairs])
    state = net.encode_template(template)
    assert torch.equal(net(state, search), net(template, search))
    close(net(state, search), expected)
    z, x = net.forward_features(state, search)
    close(x, expected)
    assert z.shape == (3, 48, 4, 4) and z.is_contiguous() and x.is_contiguous()
    picked = ca.TemplateState.cat([state.index([0]), state]).index([1])  # as the tracker does
    close(net(picked, search[:1]), expected[:1])


@torch.inference_mode()
def test_a_template_that_attends_to_itself_is_cached_whole():
    net = make("self")
    template, search = images(2, 2)
    keys_values, features = net.encode_template(template)
    assert keys_values.shape == (2, 4, 2, 3, 16, 16) and features.shape == (2, 4, 4, 48)
    z, x = net.forward_features(template, search)
    assert torch.equal(z, features.permute(0, 3, 1, 2))  # whatever the search image is
    assert (x - net(template.flip(0), search)).abs().max() > 0.01  # which depends on the template
    joint = make("joint")
    assert (joint.forward_features(template, search)[0] - z).abs().max() > 0.01


def test_only_the_search_tokens_are_computed_in_the_last_block():
    lengths = []
    for kind, expected in (("joint", [80, 80, 80, 64]), ("self", [64] * 4)):
        net = make(kind)
        state = net.encode_template(images()[0])
        handles = [
            b.mlp.register_forward_hook(lambda m, i, o: lengths.append(o.shape[1])) for b in net.blocks
        ]
        net(state, images()[1])
        assert lengths == expected, [handle.remove() for handle in handles]
        lengths.clear()


# sizes and levels


@torch.inference_mode()
def test_images_of_other_sizes():
    net = make()
    template, search = images(1, 1, 80, 160)
    assert net(template, search[..., :96]).shape == (1, 48, 10, 6)
    table = net.search_pos_embed
    other = make(search_size=160, template_size=80)
    missing = other.load_state_dict(
        {n: t for n, t in net.state_dict().items() if "pos" not in n}, strict=False
    )
    assert len(missing.missing_keys) == 2
    other.search_pos_embed.copy_(F.interpolate(table, (10, 10), mode="bicubic"))
    other.template_pos_embed.copy_(F.interpolate(net.template_pos_embed, (5, 5), mode="bicubic"))
    assert torch.equal(net(template, search), other(template, search))


def test_a_checkpoint_of_other_sizes_is_resized(tmp_path):
    track = ca.create_model("onestream_vit_test_track")
    ca.save_pretrained(track, tmp_path)
    larger = ca.create_model("onestream_vit_test_track", tmp_path / "model.safetensors", search_size=160)
    expected = F.interpolate(track.backbone.search_pos_embed, (10, 10), mode="bicubic")
    assert torch.equal(larger.backbone.search_pos_embed, expected)
    features = ca.create_model(
        "onestream_vit_test", tmp_path, features_only=True, out_indices=(1,), search_size=160
    )
    assert torch.equal(features.model.search_pos_embed, expected)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_inner_blocks(kind):
    net, pair = make(kind), images()
    levels = net.forward_intermediates(*pair)
    assert len(levels) == 4 and all(
        level.shape == (1, 48, 8, 8) and level.is_contiguous() for level in levels
    )
    close(levels[-1], net(*pair))
    assert torch.equal(net.forward_intermediates(*pair, (-1, 1))[1], levels[1])
    wrapper = ca.create_model(KINDS[kind][0], **KINDS[kind][1], features_only=True, out_indices=(1, 2)).eval()
    wrapper.model.load_state_dict(
        {n: t for n, t in net.state_dict().items() if "blocks.3" not in n and n[:5] != "norm."}
    )
    for actual, expected in zip(wrapper(*pair), levels[1:3]):
        close(actual, expected)
    with pytest.raises(ValueError, match=r"indices=\(4,\) must be levels in -4\.\.3"):
        net.forward_intermediates(*pair, (4,))


# what the runtime offers


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_compiles_and_exports(kind):
    net, pair = make(kind, depth=3), images(2, 2)
    expected = net(*pair)
    close(torch.compile(net, fullgraph=True, backend="eager")(*pair), expected)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(net, pair, dynamic_shapes=({0: batch}, {0: batch}), strict=False).module()
    close(program(*pair), expected)
    close(program(*images(3, 3, seed=1)), net(*images(3, 3, seed=1)))


@pytest.fixture(scope="module")
def differences():
    """Difference of each exported network from the model, by its facts; equal networks are exported once."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ca.list_models(module="vit") if n.endswith("_track")])
def test_every_name_exports(name, tmp_path, differences):
    """With two thin blocks, since the names differ in numbers alone; at the sizes of the name."""
    elimination = {"elimination_blocks": (1,)} if "_ce" in name else {}
    torch.manual_seed(0)
    model = ca.create_model(name, dim=48, heads=3, depth=2, **elimination)
    facts = str(model), model.sizes, model.backbone.config
    if facts not in differences:
        (graph,) = export(model, tmp_path, "torch", ["search"])
        differences[facts] = graph.difference
    assert differences[facts] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format", "arguments"),
    [
        ("onestream_vit_test_ce_track", "onnx", {"elimination_blocks": (0,)}),
        ("onestream_vit_test_track", "openvino", {"head": "corner", "template_attends": "self"}),
    ],
)
def test_files_give_the_same_numbers(name, format, arguments, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    torch.manual_seed(0)
    model = ca.create_model(name, depth=2, **arguments)
    (search,) = export(model, tmp_path, format, ["search"])
    assert search.difference < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_bfloat16(kind):
    net = make(kind)
    pair = images()
    net.keep_ratio = 1  # which locations are kept may hang on rounding
    expected = net(*pair)
    actual = net.bfloat16()(*(image.bfloat16() for image in pair))
    assert actual.dtype == torch.bfloat16
    error = (actual.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.1
    net.keep_ratio = 0.7
    half = net(*(image.bfloat16() for image in pair))
    assert half.isfinite().all()


# training


@pytest.mark.parametrize(("kind", "head"), [("elimination", "center"), ("self", "corner")])
def test_four_pairs_are_overfitted(kind, head):
    torch.manual_seed(0)
    name, arguments = KINDS[kind]
    model = ca.create_model(f"{name}_track", head=head, **arguments).train()
    generator = torch.Generator().manual_seed(0)
    template = torch.randn(4, 3, 64, 64, generator=generator)
    search = 0.3 * torch.randn(4, 3, 128, 128, generator=generator)
    boxes = torch.tensor(
        [[0.3, 0.3, 0.3, 0.4], [0.7, 0.4, 0.4, 0.3], [0.4, 0.7, 0.5, 0.5], [0.6, 0.6, 0.3, 0.3]]
    )
    for image, (cx, cy, w, h) in zip(search, (boxes * 128).int().tolist()):
        image[:, cy - h // 2 : cy + h // 2, cx - w // 2 : cx + w // 2] += 2
    positive = torch.ones(4, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        output = model(template, search)
        loss = track_loss(output, boxes, positive, LossConfig()).total
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.step()
        losses.append(loss.item())
    assert not missing
    assert losses[-1] < losses[0] / 4
    assert best_location_iou(output, boxes, positive) > 0.6


def test_gradient_checkpointing_and_drop_path():
    grads = []
    for enable in (False, True):
        net = make("elimination")
        net.set_grad_checkpointing(enable)
        net.train()(*images()).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    net = ca.create_model("onestream_vit_test", drop_path_rate=0.3)
    assert [getattr(b.drop_path, "drop_prob", 0) for b in net.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("head", ["center", "corner"])
def test_it_tracks(head):
    tracker = ca.create_tracker(ca.create_model("onestream_vit_test_ce_track", head=head).eval())
    frame = torch.randint(0, 256, (120, 160, 3), dtype=torch.uint8).numpy()
    tracker.init(frame, (60, 40, 30, 30))
    result = tracker.update(frame)
    assert 0 <= result.score <= 1 and all(math.isfinite(side) for side in result.box)


# timm's ViTs


def vit(**arguments):
    """A ViT of timm's, of the size of `onestream_vit_test`, with random numbers everywhere."""
    torch.manual_seed(1)
    own = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 5}
    model = timm.models.VisionTransformer(**own | arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1 and parameter[0] == 1))
    return model


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ({}, {}),
        ({"init_values": 1e-5}, {}),  # layer scale, as DINOv2
        ({"pre_norm": True}, {"pre_norm": True}),  # as CLIP, whose patch embedding has no bias
        ({"qkv_bias": False, "fc_norm": True}, {}),
        ({"img_size": 96}, {}),  # 6 x 6 positions
        ({"img_size": 224, "reg_tokens": 4, "no_embed_class": True}, {}),
    ],
)
@torch.inference_mode()
def test_blocks_and_positions_are_those_of_timm(arguments, ours, tmp_path):
    """Of a template that attends to itself: an image in timm's network without its class token."""
    theirs = vit(**arguments)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    net = ca.create_model("onestream_vit_test", tmp_path / "vit.safetensors", template_attends="self", **ours)
    side = arguments.get("img_size", 64) // 16
    table = theirs.pos_embed[:, -side * side :].mT.unflatten(2, (side, side))
    for stream, size in (("template", 4), ("search", 8)):
        resized = F.interpolate(table, (size, size), mode="bicubic", align_corners=False)
        assert torch.equal(getattr(net, f"{stream}_pos_embed"), resized if size != side else table)
    template = images()[0]
    tokens = theirs.patch_embed.proj(template).flatten(2).mT + net.template_pos_embed.flatten(2).mT
    for block in (theirs.norm_pre, *theirs.blocks):
        tokens = block(tokens)
    expected = (theirs.fc_norm if arguments.get("fc_norm") else theirs.norm)(tokens)
    _, features = net.eval().encode_template(template)
    close(features.flatten(1, 2), expected, 2e-5)


def test_patches_of_another_size_are_resampled():
    theirs = vit(patch_size=14, img_size=56).state_dict()
    converted = convert_state_dict(theirs)
    kernel = converted["patch_embed.proj.weight"]
    assert kernel.shape == (48, 3, 16, 16)
    assert torch.equal(kernel, resample_patch_embed(theirs["patch_embed.proj.weight"], [16, 16]))
    flat = torch.nn.functional.conv2d(torch.ones(1, 3, 16, 16), kernel).flatten()
    same = torch.nn.functional.conv2d(torch.ones(1, 3, 14, 14), theirs["patch_embed.proj.weight"]).flatten()
    close(flat, same, 1e-3)  # what it does to a patch of one color


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qk_norm": True}, r"it normalizes queries and keys \(blocks\.0\.attn\."),
        ({"mlp_layer": timm.layers.SwiGLUPacked}, r"its MLP is gated \(blocks\.0\.mlp\.fc1\.weight\)"),
        ({"mlp_layer": timm.layers.SwiGLU}, "its MLP is gated, or has a norm"),
        ({"pos_embed": "none"}, "it has no position table"),
        ({"scale_attn_norm": True}, r"its attention has other layers \(blocks\.0\.attn\.norm"),
        (
            {"class_token": False, "global_pool": "avg", "img_size": (64, 80)},
            "pos_embed has 20 positions, which are no square",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message, tmp_path):
    save_file(vit(**arguments).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=message):
        ca.create_model("onestream_vit_test", tmp_path / "vit.safetensors")


def test_a_norm_before_the_blocks_must_be_asked_for(tmp_path):
    for pre_norm in (True, False):
        save_file(vit(pre_norm=pre_norm).state_dict(), tmp_path / "vit.safetensors")
        with pytest.raises(ValueError, match=f"create the network with pre_norm={pre_norm}"):
            ca.create_model("onestream_vit_test", tmp_path / "vit.safetensors", pre_norm=not pre_norm)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:vit_bse_patch16_224", "timm has no model 'vit_bse_patch16_224'. Near: .*vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.moe", r"no weights 'timm:vit_base_patch16_224\.moe'. Its tags: .*mae"),
        ("timm:test_vit4", "timm has no"),
    ],
)
def test_unknown_names_of_timm(source, message):
    with pytest.raises(ValueError, match=message):
        ca.create_model("onestream_vit_base_256", source, device="meta")


# mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"search_size": 250}, ValueError, "search_size=250 must be a multiple of 16"),
        ({"heads": 5}, ValueError, "dim=48 must be divisible by heads=5"),
        ({"template_attends": "none"}, ValueError, "is not one of both, self"),
        ({"elimination_query": "box"}, ValueError, "is not one of center, all"),
        ({"elimination_blocks": (4,)}, ValueError, r"must be in 0\.\.3"),
        ({"keep_ratio": 0.0}, ValueError, "keep_ratio=0.0 must be above 0"),
        (
            {"template_attends": "self", "elimination_blocks": (1,)},
            ValueError,
            "has no candidate elimination",
        ),
        ({"depths": 3}, TypeError, "Unknown argument 'depths'. Near: depth"),
        ({"head": "center"}, TypeError, "Unknown argument 'head'"),
        ({"num_classes": 3}, TypeError, "num_classes=3 is for the classifiers"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ca.create_model("onestream_vit_test", **arguments)


def test_bad_input():
    net = make()
    template, search = images()
    with pytest.raises(ValueError, match="search is 100 x 128 px; each side must be a multiple of 16"):
        net(template, search[:, :, :100])
    with pytest.raises(ValueError, match=r"template has shape \(3, 64, 64\)"):
        net(template[0], search)
    with pytest.raises(ValueError, match="must be equal, or one of them 1"):
        net(template.expand(2, -1, -1, -1), search.expand(3, -1, -1, -1))
    for kind in ("joint", "self"):
        other = make("joint" if kind == "self" else "self").encode_template(template)
        with pytest.raises(ValueError, match="comes from another network"):
            make(kind)(other, search)
