"""The STARK adapter against a stand-in that states STARK's interface (tests/stand_ins/stark)."""

import copy
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace as Namespace

import pytest
import torch

import correlation_aware as ca
from correlation_aware.adapters import stark

ROOT = Path(__file__).resolve().parent.parent
T, S = 64, 128  # pixels of template and search image


@pytest.fixture
def stand_in(monkeypatch):
    """`lib` is the stand-in, for one test."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_ins" / "stark"))
    yield
    for name in [n for n in sys.modules if n == "lib" or n.startswith("lib.")]:
        del sys.modules[name]


def config(
    type="sbt_test", template=T, search=S, number=1, dilation=False, multiplier=0.1, predict_mask=False
):
    return Namespace(
        MODEL=Namespace(
            BACKBONE=Namespace(TYPE=type, DILATION=dilation), HIDDEN_DIM=16, PREDICT_MASK=predict_mask
        ),
        TRAIN=Namespace(BACKBONE_MULTIPLIER=multiplier),
        DATA=Namespace(TEMPLATE=Namespace(SIZE=template, NUMBER=number), SEARCH=Namespace(SIZE=search)),
        TEST=Namespace(TEMPLATE_SIZE=template, SEARCH_SIZE=search),
    )


def image(side, seed=0, batch=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def nested(image, mask=None):
    from lib.utils.misc import NestedTensor

    mask = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.bool) if mask is None else mask
    return NestedTensor(image, mask)


def backbone(**options):
    torch.manual_seed(0)
    return stark.build_backbone(config(**options))[0]


def network(module="stark_s", **options):
    """A network as STARK's own code builds it, after `install`."""
    stark.install()
    torch.manual_seed(0)
    from lib.models.stark import stark_s, stark_st

    return {"stark_s": stark_s.build_starks, "stark_st": stark_st.build_starkst}[module](config(**options))


def features(module, image):
    return module(nested(image))["0"].tensors


def frames(count, seed=0):
    return [{"template": image(T, seed + 2 * i), "search": image(S, seed + 2 * i + 1)} for i in range(count)]


@pytest.mark.parametrize(
    ("name", "channels", "sides", "dilation", "stride"),
    [("sbt_light", 160, (128, 320), False, 16), ("sbt_test", 32, (T, S), True, 8)],
)
@torch.no_grad()
def test_a_nested_tensor_goes_in_and_a_dict_of_one_comes_out(
    stand_in, name, channels, sides, dilation, stride
):
    module = backbone(type=name, template=sides[0], search=sides[1], dilation=dilation).eval()
    assert module.num_channels == channels
    for side in sides:
        mask = torch.zeros(1, side, side, dtype=torch.bool)
        mask[:, : side // 2] = True  # the upper half is padding
        out = module(nested(image(side), mask))
        assert list(out) == ["0"] and type(out["0"]) is type(nested(image(side)))
        locations = side // stride
        assert (
            out["0"].tensors.shape == (1, channels, locations, locations) and out["0"].tensors.is_contiguous()
        )
        assert out["0"].mask.dtype == torch.bool and out["0"].mask.shape == (1, locations, locations)
        assert out["0"].mask[:, : locations // 2].all() and not out["0"].mask[:, locations // 2 :].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["sbt_test", "supersbt_test", "onestream_vit_test", "acme", "acme_rigid"])
def test_search_features_are_those_of_the_two_input_network(stand_in, acme, name):
    module = backbone(type=name).eval()
    template, search = image(T, 1, batch=2), image(S, 2, batch=2)
    # one stream in a pack against two alike: sums of other lengths
    torch.testing.assert_close(features(module, template), module.net(template, template), rtol=0, atol=1e-6)
    assert torch.equal(features(module, search), module.net(template, search))


@torch.no_grad()
def test_the_template_is_encoded_once(stand_in):
    module = backbone().eval()
    calls = []
    module.net.stages[0].embed.proj.register_forward_hook(lambda m, i, o: calls.append(i[0].shape[-1]))
    features(module, image(T))
    for seed in range(3):
        features(module, image(S, seed))
    assert calls == [T, S, S, S]


@torch.no_grad()
@pytest.mark.parametrize("name", ["sbt_test", "supersbt_test", "acme"])
def test_first_and_dynamic_template_are_seen_together(stand_in, acme, name):
    module = backbone(type=name, number=2).eval()
    first, dynamic, search = image(T, 1), image(T, 2), image(S, 3)
    features(module, first), features(module, dynamic)
    both = features(module, search)
    states = [module.net.encode_template(t) for t in (first, dynamic)]
    assert torch.equal(both, module.net(module.net.join_templates(states), search))
    assert not torch.equal(both, module.net(first, search))
    assert not torch.equal(both, module.net(dynamic, search))
    features(module, dynamic)  # after a search image the next sample begins
    assert torch.equal(features(module, search), module.net(dynamic, search))


@torch.no_grad()
def test_a_later_template_replaces_the_one_of_stark_s(stand_in):
    module = backbone().eval()
    for seed in (1, 2):
        features(module, image(T, seed))
    assert torch.equal(features(module, image(S)), module.net(image(T, 2), image(S)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_order_decides_where_one_size_serves_both(stand_in, training, number):
    module = backbone(template=T, search=T, number=number).train(training)
    for _ in range(2):  # samples
        for seed in range(number):
            features(module, image(T, seed))
        states = [module.net.encode_template(image(T, seed)) for seed in range(number)]
        expected = module.net(module.net.join_templates(states), image(T, 9))
        assert torch.equal(features(module, image(T, 9)), expected)


@pytest.mark.parametrize("module", ["stark_s", "stark_st"])
@pytest.mark.parametrize("name", ["sbt_test", "acme"])
def test_a_training_step_reaches_every_parameter(stand_in, acme, module, name):
    number = 2 if module == "stark_st" else 1
    net = network(module, type=name, number=number).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        parts = [net(img=nested(image(T, seed, batch=2)), mode="backbone") for seed in range(number)]
        parts.append(net(img=nested(image(S, 7, batch=2)), mode="backbone"))
        assert net.backbone[0].templates == ()  # no graph is held
        sequence = {k: torch.cat([p[k] for p in parts], dim=1 if k == "mask" else 0) for k in parts[0]}
        box, logit = net(seq_dict=sequence, mode="transformer")
        loss = (box - 0.3).abs().mean() + torch.nn.functional.softplus(-logit).mean()
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not missing
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    copy.deepcopy(net)


def test_sizes_are_those_of_training_and_testing(stand_in):
    cfg = config()
    cfg.TEST.TEMPLATE_SIZE = 96
    sizes = stark.build_backbone(cfg)[0].sizes
    assert sizes == {"template": (T, 96), "search": (S,)}
    del cfg.TEST  # as STARK-ST's first stage
    assert stark.build_backbone(cfg)[0].sizes == {"template": (T,), "search": (S,)}


def test_learning_rate_groups_are_stark_s(stand_in):
    net = network()
    slow = [n for n, p in net.named_parameters() if "backbone" in n and p.requires_grad]
    assert slow == [f"backbone.0.net.{n}" for n, _ in net.backbone[0].net.named_parameters()]
    assert not [n for n in slow if "cls" in n]  # STARK-ST's second stage trains what is named so
    frozen = network(multiplier=0)
    assert not any(p.requires_grad for p in frozen.backbone.parameters())


def test_the_former_name_of_the_backbone():
    with pytest.warns(DeprecationWarning, match="'CABackbone' is called 'STARKBackbone' now"):
        assert stark.CABackbone is stark.STARKBackbone


def test_types_are_names_of_the_zoo_or_stark_s_own(stand_in, acme, tmp_path):
    assert type(network(type="acme").backbone[0].net).__name__ == "AcmeNet"
    assert network(type="resnet50").backbone[0].num_channels == 24
    source = ca.create_model("sbt_test")
    folder = ca.save_pretrained(source, tmp_path)
    loaded = network(type=str(folder)).backbone[0].net.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.state_dict().items())
    with pytest.raises(ValueError, match=r"There is no model 'acm'\. Near: acme"):
        network(type="acm")


def test_weights_survive_saving_and_loading_strictly(stand_in):
    net = network()
    again = network()
    for p in again.parameters():
        torch.nn.init.zeros_(p)
    again.load_state_dict(net.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))


def test_testers_get_our_trackers_and_stock_types_stay(stand_in):
    stark.install()
    net = network(type="resnet50")
    from lib.models.stark import backbone as module
    from lib.test.tracker import stark_s, stark_st

    assert isinstance(net.backbone[0], module.StockBackbone)
    assert stark_s.get_tracker_class() is stark.STARK_S_CA
    assert stark_st.get_tracker_class() is stark.STARK_ST_CA
    assert issubclass(stark.STARK_ST_CA, stark_st.STARK_ST)
    assert pickle.loads(pickle.dumps(stark.STARK_ST_CA)) is stark.STARK_ST_CA  # STARK's --threads spawns
    tracker = stark.STARK_ST_CA(net)
    first, second = frames(2)
    tracker.initialize(first, {})
    assert tracker.track(second).shape == (1, 4)


@pytest.mark.parametrize("size", [S, T])  # of the search image; with T the size does not tell the role
def test_stark_st_keeps_the_first_and_the_latest_template(stand_in, size):
    net = network("stark_st", search=size, number=2)
    tracker, module = stark.STARK_ST_CA(net), net.backbone[0]
    clip = [{**frame, "search": frame["search"][..., :size, :size]} for frame in frames(5)]
    encoded = [module.net.encode_template(f["template"])[0] for f in clip]

    def kept(*numbers):
        return all(torch.equal(s[0], encoded[n]) for s, n in zip(tracker.templates, numbers, strict=True))

    tracker.initialize(clip[0], {})
    assert kept(0, 0)  # as STARK does until the first update
    tracker.track(clip[1])
    assert kept(0, 0)
    tracker.track(clip[2])
    assert kept(0, 2)
    tracker.track(clip[3])
    tracker.track(clip[4])
    assert kept(0, 4)
    tracker.initialize(clip[1], {})  # a new target
    assert kept(1, 1)


def test_trackers_may_share_a_network(stand_in):
    for tracker_class in (stark.STARK_S_CA, stark.STARK_ST_CA):
        net = network("stark_st", number=2)
        clips = [frames(5, seed) for seed in (0, 100)]
        alone = []
        for clip in clips:
            tracker = tracker_class(net)
            tracker.initialize(clip[0], {})
            alone.append([tracker.track(frame) for frame in clip[1:]])
        together = [tracker_class(net) for _ in clips]
        for tracker, clip in zip(together, clips):
            tracker.initialize(clip[0], {})
        for i in range(1, 5):
            for tracker, clip, boxes in zip(together, clips, alone):
                assert torch.equal(tracker.track(clip[i]), boxes[i - 1])
        assert not torch.equal(alone[0][0], alone[1][0])


def test_the_paper_s_network_has_the_paper_s_parameters(stand_in):
    with torch.device("meta"):
        module = backbone(type="SBT", template=128, search=320)
    # STARK-CA 23.6 M as thop counts it = STARK-S50 23.36 M - ResNet 8.54 M - bottleneck 0.18 M + ours
    assert sum(p.numel() for p in module.parameters()) == 8_985_408
    assert module.net.pretrained_cfg["architecture"] == stark.DEFAULT_NAME


def test_mistakes_are_named(stand_in, acme):
    module = backbone()
    with pytest.raises(RuntimeError, match="before its template"):
        features(module, image(S))
    with pytest.raises(ValueError, match="is 96 x 96 px; expected a template of 64 px or a search of 128 px"):
        features(module, image(96))
    with pytest.raises(ValueError, match="is 64 x 128 px"):
        features(module, torch.zeros(1, 3, 64, 128))
    with pytest.raises(ValueError, match=r"expected a template of 64 px"), module.serving((), "template"):
        features(module, image(S))
    with pytest.raises(ValueError, match="has no mask"):
        bare = nested(image(T))
        bare.mask = None
        module(bare)
    with pytest.raises(ValueError, match=r"Near: .*sbt_small"):
        backbone(type="sbt_smal")
    with pytest.raises(ValueError, match="PREDICT_MASK"):
        backbone(predict_mask=True)
    with pytest.raises(
        ValueError, match="STARK needs a feature network, and 'sbt_test_track' is a TrackModel"
    ):
        backbone(type="sbt_test_track")
    with pytest.raises(
        ValueError, match=r"stride 8; those of 'acme_rigid' have \[4, 8, 16\], and output_stride=8"
    ):
        backbone(type="acme_rigid", dilation=True)
    with pytest.raises(ValueError, match=r"RigidNet takes one template.*Track with STARK-S"):
        backbone(type="acme_rigid", number=2)


def test_a_checkpoint_of_stock_stark_says_what_can_be_kept(stand_in):
    stock, ours = network(type="resnet50"), network()
    with pytest.raises(RuntimeError, match=r"2 tensors under backbone\.0\.body.*load_stock loads"):
        ours.load_state_dict(stock.state_dict(), strict=True)
    report = stark.load_stock(ours, {"net": stock.state_dict(), "epoch": 500})
    assert "box_head.weight" in report.loaded and torch.equal(ours.box_head.weight, stock.box_head.weight)
    assert set(report.unexpected) == {"backbone.0.body.weight", "backbone.0.body.bias", "bottleneck.weight"}
    assert all(k.startswith(("backbone.0.net.", "bottleneck.weight")) for k in report.missing)


def test_without_stark_the_error_says_what_to_get():
    for use in (stark.install, lambda: stark.STARK_ST_CA, lambda: stark.build_backbone(config())):
        with pytest.raises(ModuleNotFoundError, match=r"github\.com/researchmm/Stark .*PYTHONPATH"):
            use()
    with pytest.raises(AttributeError, match="has no attribute 'STARK_CA'"):
        stark.STARK_CA  # noqa: B018


def test_example(stand_in, capsys):
    runpy.run_path(str(ROOT / "examples" / "ca_stark.py"), run_name="__main__")
    assert "search features (1, 32, 8, 8)" in capsys.readouterr().out
