"""STM's adapter against a stand-in that states the tracker's interface."""

import copy
import functools
import importlib
import io
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import correlation_aware as ca
from correlation_aware.evaluation.segmenters import StmOptions, StmSegmenter, create_segmenter

NAME = "correlation_aware.adapters.stm"

STAND_IN = """
import torch
from torch import nn


class Encoder_M(nn.Module):
    def __init__(self):
        raise AssertionError("a ResNet was built")


class Encoder_Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.res2 = nn.Sequential(nn.Module())
        self.res2[0].conv1 = nn.Conv2d(64, 64, 1)


class STM(nn.Module):
    def __init__(self):
        super(STM, self).__init__()
        self.Encoder_M = Encoder_M()
        self.Encoder_Q = Encoder_Q()
        self.KV_M_r4 = nn.Conv2d(1024, 8, 1)
        self.KV_Q_r4 = nn.Conv2d(1024, 8, 1)
        self.Decoder = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (16, 512, 256))

    def memorize(self, frame, masks, num_objects):
        n, K = num_objects[0].item(), masks.shape[1]
        own = masks[0, 1 : n + 1]
        others = torch.stack([own.sum(0) - m for m in own])
        r4, *_ = self.Encoder_M(frame.expand(n, -1, -1, -1), own, others)
        kv = torch.zeros(1, K, 8, 1, *r4.shape[2:])
        kv[0, 1 : n + 1, :, 0] = self.KV_M_r4(r4)
        return kv, kv

    def segment(self, frame, keys, values, num_objects):
        n, K = num_objects[0].item(), keys.shape[1]
        r4, r3, r2, _, _ = self.Encoder_Q(frame)
        q = self.KV_Q_r4(r4).expand(n, -1, -1, -1)
        q.view(n, 8, -1)
        read = torch.cat([q, values[0, 1 : n + 1].mean(2)], 1)
        logit = sum(
            nn.functional.interpolate(conv(r.expand(n, -1, -1, -1)), frame.shape[2:])
            for conv, r in zip(self.Decoder, (read, r3, r2))
        )
        out = frame.new_zeros(1, K, *frame.shape[2:])
        out[0, 1 : n + 1] = logit[:, 0]
        return out

    def forward(self, *args):
        return self.segment(*args) if args[1].dim() > 4 else self.memorize(*args)
"""


@pytest.fixture
def stm(monkeypatch):
    """The adapter, imported while a stand-in takes the place of the tracker's `model`."""
    module = ModuleType("model")
    exec(STAND_IN, vars(module))
    module.STM.__module__ = "model"
    monkeypatch.setitem(sys.modules, "model", module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setattr(importlib.import_module("correlation_aware.adapters"), "stm", None, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def build(stm, model="sbt_test", **arguments):
    torch.manual_seed(0)
    return stm.STM_CA(functools.partial(stm.create_network, model, **arguments))


def video(n=2, size=(64, 96), seed=0):
    """Frames (3, 1, 3, H, W), an exactly one-hot mask (1, 4, H, W) of n objects, and n as the tracker's."""
    torch.manual_seed(seed)
    h, w = size
    labels = torch.zeros(1, h, w, dtype=torch.long)
    for i in range(1, n + 1):
        labels[:, 10:40, 20 * i + seed : 20 * i + 16 + seed] = i
    return torch.rand(3, 1, 3, h, w), F.one_hot(labels, 4).permute(0, 3, 1, 2).float(), torch.tensor([n])


def soft(masks):
    return (masks * 4).softmax(dim=1)


@pytest.mark.parametrize("where", [None, ModuleType("model")], ids=["nowhere", "another_model"])
def test_without_the_tracker_the_error_names_the_checkout(monkeypatch, where):
    monkeypatch.setitem(sys.modules, "model", where)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    importlib.import_module("correlation_aware.adapters")
    with pytest.raises(
        ModuleNotFoundError, match=r"checkout of seoungwugoh/STM, which holds model\.py, first on"
    ):
        importlib.import_module(NAME)


def test_swapping_the_class_is_the_only_change(stm):
    tracker = sys.modules["model"]
    stock = tracker.STM, tracker.Encoder_M, tracker.Encoder_Q
    tracker.STM = functools.partial(stm.STM_CA, functools.partial(stm.create_network, "sbt_test"))
    net = nn.DataParallel(tracker.STM()).eval()  # needs no GPU
    assert isinstance(net.module, stock[0]) and (tracker.Encoder_M, tracker.Encoder_Q) == stock[1:]
    tracker.STM = stm.STM_CA  # the stock constructor finds itself by this name
    build(stm)
    frames, masks, n = video()
    with torch.no_grad():
        keys, values = net(frames[0], masks, n)
        logit = net(frames[1], keys, values, n)
    assert keys.shape == (1, 4, 8, 1, 4, 6) and logit.shape == (1, 4, 64, 96)


@torch.inference_mode()
def test_shapes_channels_and_strides_of_the_encoders(stm):
    torch.manual_seed(0)
    target = stm.Target()
    memory = stm.Encoder_M(stm.create_network("sbt_test"), target).eval()
    query = stm.Encoder_Q(stm.create_network("sbt_test"), target).eval()
    frames, masks, _ = video()
    own = masks[0, 1:3]
    target.state = memory.encode_template(frames[0].expand(2, -1, -1, -1), own, own.flip(0))
    for outputs, batch in (
        (memory(frames[1].expand(2, -1, -1, -1), own, own.flip(0)), 2),
        (query(frames[1]), 1),
    ):
        r4, r3, r2, c1, frame = outputs
        assert r4.shape == (2, 1024, 4, 6) and c1 is None
        assert r3.shape == (batch, 512, 8, 12) and r2.shape == (batch, 256, 16, 24)
        assert all(r.is_contiguous() for r in (r4, r3, r2))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(frame[0], (frames[1][0] - mean[:, None, None]) / std[:, None, None])
    assert build(stm).Encoder_M(frames[1], own[:1], own[1:])[1:4] == (None, None, None)


@torch.inference_mode()
def test_masks_join_the_patch_embedding(stm):
    encoder = build(stm).eval().Encoder_M
    conv = encoder.net.model.stages[0].embed.proj
    frame, mask, others = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    weight = torch.cat([conv.weight, conv.mask.weight, conv.others.weight], dim=1)
    expected = F.conv2d(torch.cat([frame, mask, others], 1), weight, conv.bias, stride=4, padding=3)
    torch.testing.assert_close(conv(torch.cat([frame, mask, others], 1)), expected, rtol=0, atol=1e-5)
    assert conv.mask.bias is None and conv.others.bias is None


@torch.inference_mode()
def test_a_template_is_encoded_once_a_video(stm):
    net = build(stm).eval()
    frames, masks, n = video()
    calls = Counter()
    net.Encoder_M.net.model.stages[2].blocks[0].register_forward_pre_hook(lambda *_: calls.update(["M"]))
    net.Encoder_Q.net.model.stages[2].blocks[0].register_forward_pre_hook(lambda *_: calls.update(["Q"]))
    keys, values = net(frames[0], masks, n)
    state = net.target.state
    assert state[0].shape == (2, 4, 6, 32) and calls == {"M": 2}  # the template, and the memory
    for frame in frames[1:]:
        prediction = net(frame, keys, values, n).softmax(dim=1)
        net(frame, prediction, n)
    assert net.target.state is state and calls == {"M": 4, "Q": 2}


@pytest.mark.parametrize("model", ["sbt_test", "supersbt_test", "acme", "acme_rigid"])
@torch.inference_mode()
def test_every_object_has_a_template_of_its_own(stm, acme, model):
    net = build(stm, model).eval()
    frames, masks, n = video()
    net(frames[0], masks, n)
    both = net.Encoder_Q(frames[1])[0]
    assert not torch.allclose(both[0], both[1])
    swapped = masks[:, [0, 2, 1, 3]]
    net.set_template(frames[0], swapped, 2)
    torch.testing.assert_close(net.Encoder_Q(frames[1])[0], both.flip(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_a_new_video_resets_by_itself(stm, dtype):
    net = build(stm).eval()
    frames, masks, n = video()
    masks = masks.to(dtype)
    keys, values = net(frames[0], masks, n)
    first = net.target.state
    net(frames[1], soft(masks), n)
    assert net.target.state is first
    logit = net(frames[1], keys, values, n)
    rounded = F.one_hot(logit.argmax(dim=1), 4).permute(0, 3, 1, 2).to(dtype)
    net(frames[1], rounded, n)  # a sure prediction, which half precision makes exactly one-hot
    assert net.target.state is first
    other_frames, other_masks, other_n = video(1, (80, 64), seed=3)
    net(other_frames[0], other_masks.to(dtype), other_n)
    assert net.target.state is not first and net.target.state[0].shape[:3] == (1, 5, 4)
    fresh = build(stm).eval()
    fresh.memorize(other_frames[0], other_masks.to(dtype), other_n)
    assert torch.equal(net.target.state[0], fresh.target.state[0])  # nothing of the first is left


@torch.inference_mode()
def test_explicit_templates_and_reset(stm):
    net = build(stm).eval()
    frames, masks, n = video()
    net.set_template(frames[0], masks, n)
    state = net.target.state
    net(frames[1], masks, n)  # one-hot, but the template was set by hand
    assert net.target.state is state
    net.reset()
    assert net.target.state is None
    net(frames[1], soft(masks), n)  # the first frame after a reset, whatever its mask
    assert net.target.state is not None and not net.target.pinned


@torch.inference_mode()
def test_sizes_that_stride_16_does_not_divide_are_padded_around(stm):
    net = build(stm).eval()
    frames, masks, n = video()
    net.set_template(F.pad(frames[0], (3, 3, 2, 2)), F.pad(masks, (3, 3, 2, 2)), n)
    assert net.target.state[0].shape[1:3] == (5, 7)
    larger = net.target.state[0]
    net.set_template(F.pad(frames[0], (8, 8, 8, 8)), F.pad(masks, (8, 8, 8, 8)), n)
    torch.testing.assert_close(larger, net.target.state[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["sbt_test", "acme"])
def test_a_gradient_in_every_parameter(stm, acme, model):
    net = build(stm, model).train()
    frames, masks, n = video()
    keys, values = net(frames[0], masks, n)
    prediction = net(frames[1], keys, values, n)
    more = net(frames[1], prediction.softmax(dim=1), n)
    logit = net(frames[2], *(torch.cat(pair, dim=3) for pair in zip((keys, values), more)), n)
    F.cross_entropy(logit, masks.argmax(dim=1)).backward()
    missing = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    only_templates = {
        f"Encoder_Q.net.model.key.{name}" for name in ("weight", "bias")
    }  # Encoder_M's are used
    assert missing == (only_templates if model == "acme" else set())
    assert copy.deepcopy(net).target.state is None  # a state is part of the graph, and not a weight


@torch.inference_mode()
def test_save_and_load(stm):
    net, other = build(stm).eval(), build(stm, drop_path_rate=0.1).eval()
    for p in net.parameters():
        p.add_(0.01)
    file = io.BytesIO()
    torch.save(nn.DataParallel(net).state_dict(), file)
    file.seek(0)
    nn.DataParallel(other).load_state_dict(torch.load(file))
    frames, masks, n = video()
    one, two = (m(frames[1], *m(frames[0], masks, n), n) for m in (net, other))
    assert torch.equal(one, two)
    twin = copy.deepcopy(net)
    assert twin.Encoder_M.target is twin.Encoder_Q.target is twin.target is not net.target


def test_a_stock_checkpoint_fills_the_rest_and_says_so(stm):
    net = build(stm)
    stock = {f"module.{key}": value + 1 for key, value in net.state_dict().items() if "Encoder" not in key}
    stock["module.Encoder_Q.res2.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(ValueError, match=r"checkpoint of the stock STM.*load_stock"):
        nn.DataParallel(net).load_state_dict(stock)
    before = net.KV_Q_r4.weight.clone()
    report = net.load_stock(stock)
    assert {name.split(".")[0] for name in report.loaded} == {"KV_M_r4", "KV_Q_r4", "Decoder"}
    assert report.unexpected == ("Encoder_Q.res2.0.conv1.weight",)
    assert all(name.startswith("Encoder_") for name in report.missing)
    assert torch.equal(net.KV_Q_r4.weight, before + 1)


def test_networks(stm, tmp_path):
    net = ca.create_model("sbt_test", depths=(1, 1, 5), mlp_ratios=(8, 8, 4))
    ca.save_pretrained(net, tmp_path)
    network = stm.create_network("sbt_test", pretrained=str(tmp_path), depths=(1, 1, 5), mlp_ratios=(8, 8, 4))
    assert network.feature_info.reduction() == [4, 8, 16]
    assert torch.equal(network.model.stages[0].embed.proj.weight, net.stages[0].embed.proj.weight)
    encoder = stm.Encoder_M(network)
    assert torch.equal(encoder.net.model.stages[0].embed.proj.weight, net.stages[0].embed.proj.weight)
    with torch.device("meta"):
        query = stm.Encoder_Q()
    assert query.net.pretrained_cfg["architecture"] == stm.DEFAULT_NAME
    # with 15.9 M of STM's own layers 25.0 M; the paper's Table 6 has 25.1 M on the query path
    assert sum(p.numel() for p in query.parameters()) == 9_052_224
    other = ca.create_model("sbt_test", features_only=True)
    with pytest.raises(ValueError, match=r"strides are \[4, 8, 8\], STM needs \[4, 8, 16\]"):
        stm.Encoder_Q(other)
    with pytest.raises(ValueError, match="Near: sbt_test"):
        stm.create_network("sbt_tset")
    with pytest.raises(ValueError, match="does not fit SBT"):
        stm.create_network("sbt_test", pretrained=str(tmp_path))
    with pytest.raises(TypeError, match=r"Unknown argument 'depth'\. Near: depths"):
        stm.create_network("sbt_test", depth=(1, 1, 2))
    with (
        pytest.warns(DeprecationWarning, match="'stm_ca' is called 'sbt_small_stm' now"),
        torch.device("meta"),
    ):
        assert stm.create_network("stm_ca").pretrained_cfg["architecture"] == stm.DEFAULT_NAME
    with pytest.warns(DeprecationWarning, match="'FITTED' is called 'DEFAULT_NAME'"):
        assert stm.FITTED == stm.DEFAULT_NAME


def test_masks_need_a_first_convolution(stm, acme):
    network = stm.create_network("acme")
    network.model.stem.conv = nn.Conv2d(3, 8, 7, 4, 3, groups=1)  # another one is found under the same name
    assert type(stm.Encoder_M(network).net.model.stem.conv).__name__ == "MaskedConv"
    for change in ({"first_conv": None}, {"first_conv": "model.stem.norm"}):
        network = stm.create_network("acme")
        network.pretrained_cfg |= change
        with pytest.raises(ValueError, match=r"masks need a network that begins with a Conv2d.*AcmeNet"):
            stm.Encoder_M(network)


@torch.inference_mode()
def test_mistakes_say_how_to_mend_them(stm):
    net = build(stm).eval()
    frames, masks, n = video()
    with pytest.raises(RuntimeError, match="before any template: memorize the first frame"):
        net(frames[1], *[torch.zeros(1, 4, 8, 1, 4, 6)] * 2, n)
    with pytest.raises(ValueError, match="and 4 objects do not fit"):
        net.set_template(frames[0], masks, 4)
    with pytest.raises(ValueError, match=r"frame is \(64, 96\) and its masks are \(64, 90\) px"):
        net.set_template(frames[0], masks[..., :90], n)
    net(frames[0], masks, n)
    with pytest.raises(ValueError, match=r"num_objects=3, but the template has 2: call reset\(\)"):
        net(frames[1], soft(masks), torch.tensor([3]))
    assert torch.isfinite(
        net(frames[1], soft(masks), n)[0]
    ).all()  # a refused frame leaves the video in place


def test_example(stm, capsys):
    path = Path(__file__).resolve().parent.parent / "examples" / "ca_stm.py"
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("segmented (1, 11, 64, 96)") == 2 and "memory (1, 11, 8, 3, 4, 6)" in printed


@torch.no_grad()
def test_the_template_may_be_a_crop_around_the_object(stm):
    """6.1 of the paper: "the target is cropped as template". Squares of 32 px give crops of 64 px."""
    torch.manual_seed(0)
    create = functools.partial(stm.create_network, "sbt_test")
    net = stm.STM_CA(create, template="crop").eval()
    seen = []
    encoder = net.Encoder_M
    encode = encoder.encode_template
    encoder.encode_template = lambda *images: seen.append(images) or encode(*images)
    frames = torch.rand(2, 1, 3, 96, 128)
    labels = torch.zeros(1, 96, 128, dtype=torch.long)
    labels[:, 24:56, 40:72] = 1
    labels[:, 60:92, 90:122] = 2  # its crop reaches beyond the frame
    masks = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()  # object 3 has no mask
    kv = net(frames[0], masks, torch.tensor([3]))
    ((frame, own, others),) = seen
    assert frame.shape == (3, 3, 64, 64) and own.shape == others.shape == (3, 64, 64)
    rows, columns = slice(8, 72), slice(24, 88)
    for actual, whole in ((frame[0], frames[0][0]), (own[0], masks[0, 1]), (others[0], masks[0, 2])):
        torch.testing.assert_close(actual, whole[..., rows, columns], rtol=0, atol=1e-4)
    assert own[1].sum() == pytest.approx(32 * 32, rel=1e-3) and own[1, 48:].sum() == 0
    torch.testing.assert_close(
        frame[1][:, :52, 60], frame[1][:, :52, 53], rtol=0, atol=1e-4
    )  # border repeats
    assert own[2].sum() == 0
    assert net(frames[1], *kv, torch.tensor([3])).shape == (1, 4, 96, 128)
    with pytest.raises(ValueError, match="template='box' is not one of frame, crop"):
        stm.STM_CA(create, template="box")


@torch.no_grad()
def test_the_segmenter_of_the_evaluation_runs_it_as_eval_davis_does(stm):
    net = build(stm).eval()
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[10:40, 20:36], mask[30:60, 50:70] = 3, 7  # labels that are not 1 and 2
    lengths, segment = [], net.segment
    net.segment = lambda frame, keys, *rest: lengths.append(keys.shape[3]) or segment(frame, keys, *rest)
    segmenter = StmSegmenter(net, memory_every=2)
    segmenter.init(frames[0], mask)
    actual = [segmenter.update(frame) for frame in frames[1:]]
    assert lengths == [1, 2, 2, 3]  # frames 0; 0, 1; 0, 2; 0, 2, 3
    segmenter.init(frames[0], mask)  # another video, which starts anew
    assert all(np.array_equal(a, segmenter.update(f)) for a, f in zip(actual, frames[1:]))

    net.reset()
    labels = torch.from_numpy(np.select([mask == 3, mask == 7], [1, 2])).long()
    masks = F.one_hot(labels, 3).permute(2, 0, 1)[None].float()
    tensors = torch.from_numpy(frames).permute(0, 3, 1, 2)[:, None] / 255
    count, memory = torch.tensor([2]), ()
    for i, labels_of in enumerate(actual):
        new = net(tensors[i], masks, count)
        memory_now = tuple(torch.cat(pair, dim=3) for pair in zip(memory, new)) if memory else new
        masks = net(tensors[i + 1], *memory_now, count).softmax(dim=1)
        expected = np.array([0, 3, 7])[masks[0].argmax(dim=0).numpy()]
        assert labels_of.dtype == np.uint8 and np.array_equal(labels_of, expected)
        memory = memory_now if i % 2 == 0 else memory
    assert set(np.unique(actual)) <= {0, 3, 7}
    with pytest.raises(ValueError, match="memory_every=0: expected at least 1"):
        StmSegmenter(net, memory_every=0)


def test_the_segmenter_by_name_with_weights_or_random_ones(stm, tmp_path):
    named = create_segmenter("stm-ca", StmOptions(network="sbt_test", template="crop"))
    assert (named.name, named.weights) == ("stm-ca", "random") and not named.segmenter.net.training
    assert named.segmenter.net.template == named.settings["template"] == "crop"
    again = create_segmenter("stm-ca", StmOptions(network="sbt_test", weights="random"))
    assert named.sha256 == again.sha256
    file = tmp_path / "stm.pth"
    net = build(stm)
    with torch.no_grad():
        net.KV_Q_r4.bias += 1
    torch.save(nn.DataParallel(net).state_dict(), file)  # as STM's own code saves it
    loaded = create_segmenter("stm-ca", StmOptions(network="sbt_test", weights=str(file)))
    assert torch.equal(loaded.segmenter.net.KV_Q_r4.bias.cpu(), net.KV_Q_r4.bias)
    assert loaded.weights == str(file) and loaded.sha256 != named.sha256
    with pytest.raises(RuntimeError, match="Missing key"):
        create_segmenter("stm-ca", StmOptions(network="supersbt_test", weights=str(file)))
