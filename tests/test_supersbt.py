"""SuperSBT: the authors' numbers, conversion of their files, positions, two templates, every runtime."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import training_runs
from golden import DATA, image, parameter
from safetensors.torch import load_file
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli.weights import app
from correlation_aware.runtime.export import export
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.training.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from correlation_aware.training.track import PairData, TrackTraining, make_track_trainer
from correlation_aware.weights import convert_state_dict

GOLDEN = json.loads((DATA / "golden_supersbt.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
SIZES = ("light", "small", "base")
NAMES = [f"supersbt_{size}{kind}" for size in (*SIZES, "base_2temp", "test") for kind in ("", "_track")]
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # seen: 1.6e-5 before the last norm, 6e-6 elsewhere


def pair(batch=1, template=64, search=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 3, side, side, generator=generator) for side in (template, search))


def randomized(model, seed=0):
    """The model with weights that spread its features and scores, as fresh ones do not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "pos_embed" in name:
                tensor.copy_(0.5 * noise)
            elif tensor.ndim > 1:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            else:
                tensor.copy_(name.endswith("weight") + 0.1 * noise)
    return model


def their_weights(case):
    """Parameters and buffers of the authors' network; the smaller ones lack the last blocks of base."""
    shapes = {
        name: shape
        for name, shape in (GOLDEN["parameters"] | GOLDEN["buffers"]).items()
        if not (name.startswith("backbone.blocks.") and int(name.split(".")[2]) >= 10 + case["depth"])
    }
    counts = {name: torch.tensor(0) for name in shapes if name.endswith("num_batches_tracked")}
    return {name: parameter(name, shape) for name, shape in shapes.items() if name not in counts} | counts


def authors_model(name):
    model = ca.create_model(f"{name}_track").eval()
    model.load_state_dict(convert_state_dict(their_weights(CASES[name]), source="supersbt"), strict=True)
    return model


def images_of(run):
    """Templates, one or two, and the search image of a run."""
    templates = [run[key] for key in ("template_seed", "second_template_seed") if key in run]
    return [image(seed, [128, 128]) for seed in templates], image(run["search_seed"], [256, 256])


def check_outputs(model, name, expected, sample=slice(None), channel=1):
    """Compares the outputs of all runs; `expected` has samples `sample` and every `channel`-th channel."""
    net, actual = model.backbone, {}
    for i, run in enumerate(CASES[name]["runs"]):
        templates, search = images_of(run)
        state = net.join_templates([net.encode_template(template[sample]) for template in templates])
        features = net(state, search[sample])
        output = model.head(features)
        height, width = output.scores.shape[1:]
        grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"))
        window = torch.outer(*2 * [torch.hann_window(width + 2, periodic=False)[1:-1]])
        prefix = f"{name}.run{i}."
        actual |= {
            f"{prefix}search_tokens": features.flatten(2).mT[:, :: run["steps"]["search_tokens"], ::channel],
            f"{prefix}score_map": output.scores[:, None],
            f"{prefix}size_map": output.boxes[:, 2:],
            f"{prefix}offset_map": output.boxes[:, :2] * width - grid,
            f"{prefix}pred_boxes": best_boxes(output.scores, output.boxes)[:, None],
            f"{prefix}hann_boxes": best_boxes(output.scores * window, output.boxes),
        }
    keys = {key for key in expected if key.startswith(f"{name}.run") and ".stage" not in key}
    assert len(keys) == 9 and keys <= set(actual)  # of run 1 no maps
    for key in keys:
        torch.testing.assert_close(actual[key], expected[key], **TOLERANCE, msg=f"{key} differs")


def best_boxes(scores, boxes):
    best = scores.flatten(1).argmax(dim=1)[:, None, None]
    return boxes.flatten(2).gather(2, best.expand(-1, 4, 1))[..., 0]


def check_stages(net, name, expected, channel=1):
    """Compares the tokens in the network, which are those of the first sample of the first run."""
    run = CASES[name]["runs"][0]
    templates, search = images_of(run)
    maps = [net._tokens(each[:1], "image") for each in (*templates, search)]
    state = net.join_templates([net.encode_template(template[:1]) for template in templates])
    joined = net._join(state, maps[-1][-1])
    actual = {"stage3_in": joined, "stage3": net.stages[2](joined)}
    for level, side in ((0, 4), (1, 2)):
        windows = [F.unfold(m[level], side, stride=side).unflatten(1, (-1, side, side)) for m in maps]
        actual[f"stage{level + 1}"] = torch.cat(windows, dim=4).permute(0, 4, 2, 3, 1)  # 1, n, side, side, C
    keys = {key.rpartition(".")[2]: key for key in expected if key.startswith(f"{name}.run0.stage")}
    assert set(keys) == (set(actual) if len(templates) == 1 else {"stage3_in"})
    for stage, key in keys.items():
        compared = actual[stage][:, :: run["steps"][stage], ..., ::channel]
        torch.testing.assert_close(compared, expected[key], **TOLERANCE, msg=f"{key} differs")


@torch.inference_mode()
def test_every_stage_and_the_head_equal_the_authors():
    expected = load_file(DATA / "golden_supersbt.safetensors")
    model = authors_model("supersbt_light")
    check_outputs(model, "supersbt_light", expected, slice(1, None), channel=5)
    check_stages(model.backbone, "supersbt_light", expected, channel=5)


@pytest.mark.slow  # 40 and 70 million parameters
@pytest.mark.parametrize("names", [("supersbt_small",), ("supersbt_base", "supersbt_base_2temp")])
@torch.inference_mode()
def test_larger_networks_and_two_templates_equal_the_authors(names):
    expected = load_file(DATA / "golden_supersbt.safetensors")
    model = authors_model(names[0])
    for name in names:
        check_outputs(model, name, expected, slice(1, None), channel=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_complete_outputs_of_the_authors(name, golden_folder):
    expected = {f"{name}.{k}": v for k, v in load_file(golden_folder / f"{name}.safetensors").items()}
    model = authors_model(name)
    check_outputs(model, name, expected)
    check_stages(model.backbone, name, expected)


@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_a_checkpoint_of_the_authors_is_converted(suffix, tmp_path):
    """`{"net": ...}` by the command line, and as it is by `pretrained=`."""
    model = randomized(ca.create_model("supersbt_test_track"))
    theirs = as_authors(model.state_dict())
    source = tmp_path / "SuperSBT_ep0300.pth"
    torch.save({"net": theirs, "epoch": 300}, source)
    if not suffix:
        target = tmp_path / "converted.safetensors"
        result = CliRunner().invoke(app, ["convert", str(source), str(target), "--format", "supersbt"])
        assert result.exit_code == 0, result.output
        source = target
    again = ca.create_model("supersbt_test_track", pretrained=source)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def as_authors(state_dict, prefix="backbone."):
    """Our names of `supersbt_test_track` to the authors': blocks and merges are one list."""
    offsets = {"stages.0.": 0, "stages.1.": 2, "stages.2.": 5}  # 1 block, merge, 2 blocks, merge, 2 blocks
    named = {}
    for name, tensor in state_dict.items():
        part, _, rest = name.partition(".")
        if part == "head":
            branch, index, rest = rest.split(".", 2)
            branch = "ctr" if branch == "score" else branch
            named[f"box_head.conv{int(index) + 1}_{branch}.{rest}"] = tensor
            continue
        rest = rest.replace("pos_embed", "absolute_pos_embed")
        for stage, offset in offsets.items():
            if rest.startswith(f"{stage}blocks."):
                index, inner = rest.removeprefix(f"{stage}blocks.").split(".", 1)
                inner = inner if stage == "stages.2." else inner.replace("norm.", "norm2.")
                rest = f"blocks.{offset + int(index)}.{inner}"
        rest = rest.replace("merges.0.", "blocks.1.").replace("merges.1.", "blocks.4.")
        named[prefix + rest] = tensor
    return named


def test_a_masked_autoencoder_starts_a_network(tmp_path):
    model = randomized(ca.create_model("supersbt_test_track", template_grid=8, search_grid=16))
    file = {
        k: v.clone() for k, v in as_authors(model.state_dict(), "").items() if not k.startswith("box_head")
    }
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(1, 14 * 14, 32, generator=generator)  # 224 px
    file["absolute_pos_embed"] = table
    for name in ("norm.weight", "norm.bias"):  # features of all stages
        file[name] = torch.cat([file[name], torch.randn(6 * 32, generator=generator)])
    decoder = {"decoder_embed.weight": (16, 224), "decoder_pos_embed": (1, 196, 16), "mask_token": (1, 1, 16)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": (48, 16), "decoder_norm.bias": (16,)}
    torch.save(
        {"model": file | {name: torch.randn(shape) for name, shape in decoder.items()}},
        tmp_path / "mae_hivit.pth",
    )
    net = ca.create_model(
        "supersbt_test", pretrained=tmp_path / "mae_hivit.pth", template_grid=8, search_grid=16
    )
    for name, tensor in model.backbone.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(net.state_dict()[name], tensor), name
    square = table.mT.unflatten(2, (14, 14))
    expected = [
        F.interpolate(square, (n, n), mode="bicubic", align_corners=True).flatten(2).mT for n in (8, 16)
    ]
    assert torch.equal(net.pos_embed, torch.cat(expected, dim=1))
    # corners stay corners
    assert torch.allclose(net.pos_embed[0, [0, 7, 63, 64, 319]], table[0, [0, 13, 195, 0, 195]], atol=1e-6)
    # fewer joint blocks than the file has: the first ones, in part
    fewer = ca.create_model("supersbt_test", depths=(1, 2, 1), template_grid=8, search_grid=16)
    with pytest.raises(ValueError, match=r"stages\.2: blocks 1-1"):
        ca.load_pretrained(fewer, tmp_path / "mae_hivit.pth")
    report = ca.load_pretrained(fewer, tmp_path / "mae_hivit.pth", partial=True)
    assert not report.missing and all(name.startswith("stages.2.blocks.1.") for name in report.unexpected)
    file["absolute_pos_embed"] = table[:, 1:]
    with pytest.raises(ValueError, match="has 195 positions, which is no square"):
        convert_state_dict(file, source="supersbt")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_authors(name):
    counted = sum(p.numel() for p in ca.create_model(name, device="meta").parameters())
    heads = 4_704_645 if name.endswith("_track") else 0
    backbones = {"light": 21_719_424, "small": 34_328_960, "base": 65_852_800}
    size = name.split("_")[1]  # a second template has no parameters
    assert size == "test" or counted == backbones[size] + heads


def test_positions_at_the_sizes_of_the_tables_are_the_tables():
    net = ca.create_model("supersbt_base", device="meta")
    assert net.positions(1, (8, 8), (16, 16)) is net.pos_embed
    assert net.sizes == ca.Sizes(128, 256, 2.0, 4.0)


@torch.no_grad()
def test_positions_of_two_templates_are_stretched_as_one_axis():
    """Token i of n reads row (i + 0.5) * 80 / n - 0.5, so the second template reads into the search rows."""
    net = randomized(ca.create_model("supersbt_test"))
    table = net.pos_embed.double()[0]
    for templates in (2, 3):
        count = templates * 16 + 64
        row = ((torch.arange(count).double() + 0.5) * 80 / count - 0.5).clamp(0, 79)
        low = row.floor().long()
        high, weight = (low + 1).clamp(max=79), (row - low)[:, None]
        expected = table[low] * (1 - weight) + table[high] * weight
        torch.testing.assert_close(
            net.positions(templates, (4, 4), (8, 8))[0],
            expected.float(),
            rtol=0,
            atol=5e-5,  # float32 positions of rows
        )


@torch.no_grad()
def test_positions_of_other_sizes_are_resized_each_for_itself():
    net = randomized(ca.create_model("supersbt_test"))
    template, search = net.pos_embed[:, :16], net.pos_embed[:, 16:]
    resized = net.positions(1, (4, 4), (6, 10))
    assert torch.equal(resized[:, :16], template)
    square = search.mT.unflatten(2, (8, 8))
    expected = F.interpolate(square, (6, 10), mode="bicubic", align_corners=True).flatten(2).mT
    assert torch.equal(resized[:, 16:], expected)
    corners = resized[0, [16, 25, 66, 75]]
    torch.testing.assert_close(corners, search[0, [0, 7, 56, 63]], rtol=0, atol=1e-6)
    net(*pair(template=96, search=160))  # and the network takes such images


@torch.inference_mode()
def test_two_templates():
    net = randomized(ca.create_model("supersbt_test")).eval()
    template, search = pair(batch=2)
    other = pair(batch=2, seed=1)[0]
    states = [net.encode_template(image) for image in (template, other)]
    joined = net.join_templates(states)
    assert len(joined) == 2 and torch.equal(net.join_templates(states[:1])[0], states[0][0])
    x = net(joined, search)
    # written out: tokens of both templates and of the search image, positions, every block, the last norm
    tokens = [net._tokens(image, "image")[-1].flatten(2).mT for image in (template, other, search)]
    tokens = torch.cat(tokens, dim=1) + net.positions(2, (4, 4), (8, 8))
    expected = net.norm(net.stages[2](tokens))[:, -64:].mT.unflatten(2, (8, 8))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    z, again = net.forward_features(joined, search)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
    assert z.shape == (2, 32, 8, 4)  # one above the other
    assert not torch.allclose(x, net(net.join_templates(states[::-1]), search), atol=1e-2)
    assert not torch.allclose(x, net(states[0], search), atol=1e-2)
    # one target, two images; two targets, one image
    for i in range(2):
        torch.testing.assert_close(net(joined.index([i]), search)[i], x[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(net(joined, search[i, None])[i], x[i], rtol=0, atol=1e-5)
    third = net.join_templates([joined, states[0]])
    assert len(third) == 3 and net(third, search).shape == x.shape
    with pytest.raises(ValueError, match="Templates that are joined need one size"):
        net.join_templates([states[0], net.encode_template(pair(batch=2, template=96)[0])])
    with pytest.raises(ValueError, match="need one batch"):
        net.join_templates([states[0], states[1].index([0])])


@torch.inference_mode()
def test_a_recent_template_replaces_the_second_one_and_the_first_stays():
    net = randomized(ca.create_model("supersbt_test", templates=2)).eval()
    plain = randomized(ca.create_model("supersbt_test")).eval()
    first, second, third = (pair(batch=2, seed=seed)[0] for seed in range(3))
    search = pair(batch=2)[1]
    single = [plain.encode_template(template) for template in (first, second, third)]
    start = net.encode_template(first)
    assert len(start) == net.templates == 2 and torch.equal(start[0], start[1])
    assert torch.equal(net(start, search), plain(plain.join_templates([single[0]] * 2), search))
    assert torch.equal(net(first, search), net(start, search))
    state = start
    for recent, expected in ((second, single[1]), (third, single[2])):
        state = net.update_template(state, net.encode_template(recent))
        assert type(state) is ca.TemplateState and len(state) == 2
        assert torch.equal(state[0], single[0][0]) and torch.equal(state[1], expected[0])
    joined = net.join_templates([start, net.encode_template(second)])
    assert len(joined) == 2 and torch.equal(joined[1], single[1][0])
    queue = ca.create_model("supersbt_test", templates=3).eval()
    state = queue.encode_template(first)
    for recent in (second, third):
        state = queue.update_template(state, queue.encode_template(recent))
    for actual, template in zip(state, (first, second, third), strict=True):
        assert torch.equal(actual, queue.encode_template(template)[0])
    with pytest.raises(NotImplementedError, match=r"SuperSBT has one template, .*with templates=2"):
        plain.update_template(single[0], single[1])
    with pytest.raises(ValueError, match="templates=0 must be at least 1"):
        ca.create_model("supersbt_test", templates=0)


def two_template_tracker(**settings):
    model = randomized(ca.create_model("supersbt_test_track", templates=2))
    return ca.create_tracker(model, device="cpu", config=ca.TrackerConfig(lost_threshold=0, **settings))


BOXES = np.array([(30.0, 30, 20, 20), (80, 50, 25, 30)])


def templates_of(frame, boxes):
    """The state of fresh templates of these boxes."""
    other = two_template_tracker()
    other.init(frame, boxes)
    return other.session._state


def test_the_tracker_takes_a_second_template():
    frames = np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    tracker = two_template_tracker()
    with pytest.raises(RuntimeError, match="no target yet"):
        tracker.update_template(frames[0])
    tracker.init(frames[0], BOXES)
    first = tracker.session._state
    tracker.update(frames[1])
    assert tracker.session._state is first  # none by default
    plain = tracker.update(frames[1])
    tracker.init(frames[0], BOXES)
    tracker.update(frames[1])
    tracker.update_template(frames[1])
    recent = templates_of(frames[1], tracker._boxes)
    assert torch.equal(tracker.session._state[0], first[0])
    assert torch.equal(tracker.session._state[1], recent[0])
    assert tracker.update(frames[1]) != plain  # it is used
    tracker.update_template(frames[2], BOXES + 5)
    assert torch.equal(tracker.session._state[0], first[0])
    assert torch.equal(tracker.session._state[1], templates_of(frames[2], BOXES + 5)[0])
    with pytest.raises(ValueError, match="box has 1 boxes for 2 targets"):
        tracker.update_template(frames[2], (10, 10, 20, 20))
    with pytest.raises(ValueError, match="A box is"):
        tracker.update_template(frames[2], "left")
    tracker.init(frames[1], BOXES)  # a new target has no template of the one before
    assert torch.equal(tracker.session._state[1], templates_of(frames[1], BOXES)[0])


def test_confident_targets_update_their_second_template():
    frames = np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), dtype=np.uint8)
    probe = two_template_tracker()
    probe.init(frames[0], BOXES)
    scores = [[result.score for result in probe.update(frame)] for frame in frames[1:3]]
    between = sum(scores[1]) / 2  # one of the two targets is above
    confident = int(np.argmax(scores[1]))
    settings = {"template_update": "confident", "update_interval": 2}
    tracker = two_template_tracker(**settings, update_threshold=between)
    tracker.init(frames[0], BOXES)
    first = tracker.session._state
    tracker.update(frames[1])
    assert tracker.session._state is first  # every second frame
    tracker.update(frames[2])
    state, recent = tracker.session._state, templates_of(frames[2], tracker._boxes)
    assert torch.equal(state[0], first[0])
    assert torch.equal(state[1][confident], recent[0][confident])
    assert torch.equal(state[1][1 - confident], first[0][1 - confident])
    lost = two_template_tracker(**settings, update_threshold=0)
    lost.config = replace(lost.config, lost_threshold=1, redetect=False)
    lost.init(frames[0], BOXES)
    first = lost.session._state
    lost.update(frames[1]), lost.update(frames[2])
    assert lost.session._state is first


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("supersbt_test_track", {}), ("sbt_test_track", {}), ("siam_test_track", {"neck": "dcf"})],
)
def test_a_network_with_one_template_refuses_a_second_one(name, arguments):
    model = ca.create_model(name, **arguments)
    config = ca.TrackerConfig(template_update="confident")
    with pytest.raises(ValueError, match="template_update='confident' needs a network with two templates"):
        ca.create_tracker(model, device="cpu", config=config)
    tracker = ca.create_tracker(model, device="cpu")
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    tracker.init(frame, BOXES[0])
    if arguments:  # a filter is updated as it always is
        tracker.update_template(frame, BOXES[1])
        return
    with pytest.raises(NotImplementedError, match=r"has one template, which never changes\. Networks"):
        tracker.update_template(frame)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_update": "always"}, "'always' is not one of none, confident"),
        ({"update_interval": 0}, "update_interval=0 must be at least 1 frame"),
        ({"update_threshold": 2}, r"update_threshold=2 must be in 0\.\.1"),
    ],
)
def test_wrong_settings_of_the_update(settings, message):
    with pytest.raises(ValueError, match=message):
        ca.TrackerConfig(**settings)


@torch.inference_mode()
def test_levels():
    net = randomized(ca.create_model("supersbt_test", features_only=True)).eval()
    assert net.feature_info.reduction() == [4, 8, 16] and net.feature_info.channels() == [8, 16, 32]
    template, search = pair()
    features = net(template, search)
    assert [f.shape[1:] for f in features] == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    assert all(f.is_contiguous() for f in features)
    assert torch.equal(net(net.encode_template(template), search)[2], features[2])
    last = ca.create_model("supersbt_test", features_only=True, out_indices=(-1,))
    assert [f.shape[1:] for f in last(template, search)] == [(32, 8, 8)]
    # a location of the first level depends on its own 4 x 4 pixels, one of the second on 8 x 8
    changed = search.clone()
    changed[..., :4, :4] += 1
    for level, difference in zip(features[:2], net(template, changed)):
        assert (level != difference).any(dim=1).nonzero().tolist() == [[0, 0, 0]]
    with pytest.raises(ValueError, match=r"out_indices=\(0, 1\): only features of level 2"):
        ca.create_model("supersbt_test", features_only=True, out_indices=(0, 1))


@torch.inference_mode()
def test_the_last_block_computes_search_tokens_alone():
    net = ca.create_model("supersbt_test").eval()
    lengths = []
    net.stages[2].blocks[1].mlp.fc1.register_forward_hook(lambda m, i, output: lengths.append(len(output)))
    template, search = pair()
    net(template, search), net.forward_features(template, search)
    assert lengths == [64, 80]


@torch.inference_mode()
def test_hooks_see_what_a_layer_returns():
    """The GELU is in place only where nobody has the layer's output."""
    net = randomized(ca.create_model("supersbt_test")).eval()
    template, search = pair()
    expected, outputs = net(template, search), []
    net.stages[0].blocks[0].mlp.fc1.register_forward_hook(lambda m, i, output: outputs.append(output))
    x = net(template, search)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert outputs[0].min() < -1  # a GELU's minimum is -0.17


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@torch.inference_mode()
def test_half_precision(dtype, tolerance):
    net = randomized(ca.create_model("supersbt_test")).eval()
    template, search = pair()
    for size in (128, 96):  # positions as they are, and resized
        images = template, search[..., :size, :size].contiguous()
        expected = net(*images)
        half = randomized(ca.create_model("supersbt_test")).eval().to(dtype)
        x = half(*(t.to(dtype) for t in images))
        assert x.dtype == dtype and (x.float() - expected).abs().max() < tolerance
    states = [half.encode_template(template.to(dtype))] * 2
    assert half(half.join_templates(states), search.to(dtype)).dtype == dtype


@pytest.mark.parametrize("templates", [1, 2])
@torch.inference_mode()
def test_torch_export_trace_and_compile(templates):
    model = randomized(ca.create_model("supersbt_test_track", depths=(1, 1, 2))).eval()
    net = model.backbone
    template, search = pair(batch=2)
    state = net.join_templates([net.encode_template(template + i) for i in range(templates)])
    expected = model(state, search)
    batch = torch.export.Dim("batch", min=1, max=8)
    shapes = ([{0: batch}] * templates, {0: batch})
    program = torch.export.export(model, (state, search), dynamic_shapes=shapes, strict=False).module()
    one = (state.index([0]), search[:1])
    for inputs, wanted in (((state, search), expected), (one, model(*one))):
        torch.testing.assert_close(tuple(program(*inputs)), tuple(wanted), rtol=0, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(tuple(compiled(state, search)), tuple(expected), rtol=0, atol=1e-5)
    if templates == 1:
        traced = torch.jit.trace(model, (template, search), check_trace=False)
        torch.testing.assert_close(tuple(traced(template, search)), tuple(expected), rtol=0, atol=1e-5)


def needs(format):
    for name in {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "openvino")}.get(
        format, ()
    ):
        pytest.importorskip(name)


@pytest.mark.parametrize(
    ("format", "name", "graphs", "arguments"),
    [
        ("onnx", "supersbt_test", ["pair"], {"search_size": 96}),  # with positions that are resized
        ("openvino", "supersbt_test_track", ["template", "search"], {"templates": 2}),
    ],
)
def test_exports_equal_the_model(format, name, graphs, arguments, tmp_path):
    needs(format)
    torch.manual_seed(0)
    made = export(ca.create_model(name, depths=(1, 1, 1), **arguments), tmp_path, format, graphs)
    assert all(file.difference < 1e-5 for file in made)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"supersbt_{size}_track" for size in SIZES])
def test_every_name_exports(name, tmp_path):
    """Thin; with all blocks of the name with the fewest, since the names differ in their number alone."""
    torch.manual_seed(0)
    fewer = {} if name == "supersbt_light_track" else {"depths": (1, 1, 2)}
    model = ca.create_model(name, dim=64, heads=2, template_size=32, search_size=64, **fewer)
    (made,) = export(model, tmp_path, "torch", ["pair"])
    assert made.difference < 1e-5


@torch.inference_mode()
def test_a_session_runs_a_batch_of_targets():
    model = randomized(ca.create_model("supersbt_test_track")).eval()
    template, search = pair(batch=5)
    session = InferenceSession(model)  # five targets are three micro-batches on a CPU
    session.set_template(template)
    scores, boxes = session(search[:1])
    for i in range(5):
        expected = model(template[i, None], search[:1])
        torch.testing.assert_close(scores[i], expected.scores[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[i], expected.boxes[0], rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        model = randomized(ca.create_model("supersbt_test_track"))
        model.set_grad_checkpointing(enable)
        calls = []
        for stage in model.backbone.stages:
            stage.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()(*pair(batch=2)).boxes.sum().backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
        assert len(calls) == (10 if enable else 5)  # both local stages run for template and search image
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_layer_groups_reach_every_parameter():
    from timm.models import group_parameters

    net = ca.create_model("supersbt_test", device="meta")
    assert net.no_weight_decay() == {"pos_embed"}
    blocks = group_parameters(net, net.group_matcher())
    groups = {group: {name.partition(".blocks.")[0] for name in names} for group, names in blocks.items()}
    assert sorted(groups) == [0, 1, 2, 3, 4, 5]
    assert "pos_embed" in blocks[0] and "patch_embed.proj.weight" in blocks[0]
    assert {"merges.0.norm.weight", "merges.0.reduction.weight"} <= set(blocks[1])
    assert "merges.1.reduction.weight" in blocks[3] and "norm.weight" in blocks[5]
    coarse = group_parameters(net, net.group_matcher(coarse=True))
    assert sorted(coarse) == [0, 1, 2, 3] and "norm.bias" in coarse[3] and "merges.1.norm.bias" in coarse[2]


def test_four_pairs_are_overfitted(tmp_path):
    config = TrackTraining(
        model=ModelConfig("supersbt_test_track"),
        data=PairData(batch_size=2),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr=1e-3, ema=0.9),
        schedule=ScheduleConfig(steps=90, warmup=2),
        run=RunConfig(log_every=20),
    )
    records = []
    trainer = make_track_trainer(config, tmp_path, "cpu", training_runs.SyntheticPairs())
    outcome = trainer.fit(on_record=records.append)
    assert records[-1]["iou"] > 0.8
    model = ca.create_model(outcome.checkpoint / "weights", pretrained=True).eval()  # averaged weights
    with torch.no_grad():
        for number in range(2):
            batch = training_runs.SyntheticPairs().batch(number)
            output = model(batch.template, batch.search)
            assert training_runs.best_location_iou(output, batch.boxes, batch.positive) > 0.8


def test_bad_input_says_what_is_wrong():
    net = ca.create_model("supersbt_test")
    template, search = pair()
    with pytest.raises(
        ValueError, match=r"search is 120 x 128 px; each side must be a multiple of 16\. Resize"
    ):
        net(template, search[:, :, :120])
    with pytest.raises(ValueError, match=r"template has shape \(3, 64, 64\); expected \(batch, 3, height"):
        net(template[0], search)
    with pytest.raises(ValueError, match="must be equal, or one of them 1"):
        net(template.expand(2, -1, -1, -1), search.expand(3, -1, -1, -1))
    other = ca.create_model("sbt_test").encode_template(template)
    assert other[0].shape[-1] == net.num_features  # by chance, so take one that tells
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8, 16\); this network needs \(B, H, W, 32\)"):
        net(ca.TemplateState([other[0][..., :16]]), search)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depths": (4, 4)}, ValueError, r"depths=\(4, 4\) must have 3 entries"),
        ({"depths": (4, 0, 6)}, ValueError, "of at least 1"),
        ({"dim": 500}, ValueError, "dim=500 must be divisible by 4 and by heads=8"),
        ({"search_grid": 0}, ValueError, "search_grid=0 and templates=1 must be at least 1"),
        ({"search_size": 250}, ValueError, "search_size=250 must be a multiple of 16 px"),
        ({"depth": 6}, TypeError, "Unknown argument 'depth'. Near: depths"),
        ({"num_classes": 10}, TypeError, "Unknown argument 'num_classes'"),
        ({"head": "cell"}, TypeError, "Unknown argument 'head'"),
    ],
)
def test_bad_arguments_name_the_near_ones(arguments, error, message):
    with pytest.raises(error, match=message):
        ca.create_model("supersbt_light", **arguments, device="meta")


def test_arguments_of_a_name_can_be_replaced():
    net = ca.create_model("supersbt_light", depths=[1, 1, 1], search_size=320, search_factor=5, device="meta")
    assert [len(stage.blocks) for stage in net.stages] == [1, 1, 1]
    assert net.sizes == ca.Sizes(128, 320, 2.0, 5)
    model = ca.create_model("supersbt_test_track", head="cell")
    assert type(model.head).__name__ == "CellHead"
