"""The OSTrack adapter against a stand-in that states OSTrack's interface (tests/stand_ins/ostrack)."""

import copy
import gc
import importlib
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace as Namespace

import pytest
import torch

import correlation_aware as ca
from correlation_aware.adapters import ostrack

ROOT = Path(__file__).resolve().parent.parent
T, S = 64, 128  # pixels of template and search image


@pytest.fixture
def stand_in(monkeypatch):
    """`lib` is the stand-in, for one test."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_ins" / "ostrack"))
    yield
    for name in [n for n in sys.modules if n == "lib" or n.startswith("lib.")]:
        del sys.modules[name]


def config(type="sbt_test", stride=16, template=T, search=S, file="", ce_loc=(), drop_path=0.0):
    return Namespace(
        MODEL=Namespace(
            PRETRAIN_FILE=file,
            BACKBONE=Namespace(TYPE=type, STRIDE=stride, CE_LOC=list(ce_loc)),
            HEAD=Namespace(TYPE="CENTER"),
        ),
        TRAIN=Namespace(DROP_PATH_RATE=drop_path),
        DATA=Namespace(TEMPLATE=Namespace(SIZE=template), SEARCH=Namespace(SIZE=search)),
        TEST=Namespace(TEMPLATE_SIZE=template, SEARCH_SIZE=search),
    )


def image(side, seed=0, batch=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(training=True, **options):
    """A network as OSTrack's own code builds it, after `install`."""
    ostrack.install()
    torch.manual_seed(0)
    return importlib.import_module("lib.models.ostrack").build_ostrack(config(**options), training=training)


def encodings(backbone):
    """A list that grows by the side of each image that the first layer sees."""
    sides = []
    backbone.net.stages[0].embed.proj.register_forward_hook(lambda m, i, o: sides.append(i[0].shape[-1]))
    return sides


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        *(
            (name, channels, stride)
            for name, channels in (("sbt_test", 32), ("acme", 16))
            for stride in (16, 8)
        ),
        ("supersbt_test", 32, 16),
        ("onestream_vit_test_ce", 48, 16),
        ("siam_test", 16, 8),
    ],
)
@torch.no_grad()
def test_search_tokens_are_those_of_the_two_input_network(stand_in, acme, name, channels, stride):
    backbone = network(type=name, stride=stride).backbone.eval()
    z, x = image(T, 1, batch=2), image(S, 2, batch=2)
    tokens, extra = backbone(z, x, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False)
    assert tokens.shape == (2, (S // stride) ** 2, channels) and backbone.embed_dim == channels
    assert extra == {"attn": None}
    assert torch.equal(tokens, backbone.net(z, x).flatten(2).transpose(1, 2))


def test_a_training_step_reaches_every_parameter(stand_in):
    net = network(drop_path=0.1)
    assert net.backbone.net.config.drop_path_rate == 0.1
    net = network().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        out = net(template=image(T, batch=2), search=image(S, 1, batch=2))
        loss = (out["score_map"] - 0.3).abs().mean() + (out["maps"] - 0.2).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not missing
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    slow = [n for n, _ in net.named_parameters() if "backbone" in n]  # OSTrack's learning-rate group
    assert slow == [f"backbone.net.{n}" for n, _ in net.backbone.net.named_parameters()]


def test_a_template_is_encoded_once_and_belongs_to_its_tracker(stand_in):
    net = network(training=False)
    trackers = [importlib.import_module("lib.test.tracker.ostrack").OSTrack(None, net) for _ in range(2)]
    seen = encodings(net.backbone)
    for seed, tracker in enumerate(trackers):
        tracker.initialize({"template": image(T, seed)}, {})
    for seed in range(3):
        maps = [tracker.track({"search": image(S, seed)}) for tracker in trackers]
        assert not torch.equal(*maps)
        with torch.no_grad():
            fresh = [net(template=image(T, i), search=image(S, seed))["score_map"] for i in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(maps, fresh))
        if seed == 0:
            assert seen == [T, S] * 4
            seen.clear()
    assert seen == [S, S, T, S, T, S] * 2  # the trackers' templates no more
    del tracker, trackers
    gc.collect()
    assert len(net.backbone._states) == 0


def test_a_state_does_not_outlive_what_it_was_made_of(stand_in):
    net = network(training=False).eval()
    seen, z, x = encodings(net.backbone), image(T), image(S, 1)
    for change in (
        lambda: None,
        lambda: z.add_(1),
        lambda: net.load_state_dict(net.state_dict()),
        lambda: net.train().eval(),
        lambda: net.double().float(),
    ):
        change()
        with torch.no_grad():
            net(template=z, search=x), net(template=z, search=x)
    assert seen == [T, S, S] * 5
    seen.clear()
    net(template=z, search=x)  # with gradients
    assert seen == [T, S]
    seen.clear()
    with torch.inference_mode():
        z = image(T)
        net(template=z, search=x), net(template=z, search=x)
    assert seen == [T, S, S]


@torch.no_grad()
def test_networks_are_saved_and_copied_without_templates(stand_in, tmp_path):
    net, again = network().eval(), network().eval()
    pair = {"template": image(T), "search": image(S, 1)}
    expected = net(**pair)["score_map"]
    for p in again.parameters():
        torch.nn.init.zeros_(p)
    again.load_state_dict(net.state_dict(), strict=True)
    for other in (again, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(**pair)["score_map"], expected)


def test_stock_types_are_built_as_before(stand_in):
    importlib.import_module("lib.test.tracker.ostrack")  # has bound the name already
    module = importlib.import_module("lib.models.ostrack.ostrack")
    for _ in range(2):
        assert isinstance(network(type="vit_base_patch16_224").backbone, module.ViT)
    tracker = importlib.import_module("lib.test.tracker.ostrack").OSTrack(config())
    assert isinstance(tracker.network.backbone, ostrack.OSTrackBackbone)
    with torch.device("meta"):
        assert network(type="SBT", search=256).backbone.net.config.depths == (3, 4, 10)


def test_pretrain_file_names_weights_of_the_zoo(stand_in, tmp_path):
    source = network()
    folder = ca.save_pretrained(source.backbone.net, tmp_path / "weights")
    for p in source.parameters():
        torch.nn.init.zeros_(p)
    trained = network(file=str(folder))
    assert any(p.abs().max() > 0 for p in trained.backbone.parameters())
    network(training=False, file="mae_pretrain_vit_base.pth")  # of no interest to a tester
    with pytest.raises(ValueError, match=r"PRETRAIN_FILE='mae_pretrain_vit_base\.pth' is not for sbt_test"):
        network(file="mae_pretrain_vit_base.pth")


def test_the_former_name_of_the_backbone():
    with pytest.warns(DeprecationWarning, match="'SBTBackbone' is called 'OSTrackBackbone' now"):
        assert ostrack.SBTBackbone is ostrack.OSTrackBackbone


def test_mistakes_are_named(stand_in, acme):
    net = network()
    with pytest.raises(ValueError, match="template is 96 x 96 px; expected 64"):
        net(template=image(96), search=image(S))
    with pytest.raises(ValueError, match="search image is 64 x 64 px; expected 128"):
        net(template=image(T), search=image(T))
    with pytest.raises(ValueError, match=r"z is a list, not one template"):
        net(template=[image(T)], search=image(S))
    with pytest.raises(ValueError, match=r"Near: .*sbt_small"):
        network(type="sbt_smal")
    with pytest.raises(ValueError, match="STRIDE=4 is not one of 16, 8"):
        network(stride=4)
    with pytest.raises(
        ValueError, match=r"stride 8; those of 'acme_rigid' have \[4, 8, 16\], and output_stride=8"
    ):
        network(type="acme_rigid", stride=8)
    with pytest.raises(TypeError, match=r"TRAIN\.DROP_PATH_RATE=0\.1: 'supersbt_test' has no .* set it to 0"):
        network(type="supersbt_test", drop_path=0.1)
    with pytest.raises(TypeError, match="drop_path_rate"):
        network(type="acme_rigid", drop_path=0.1)
    with pytest.raises(ValueError, match=r"CE_LOC=\[3, 6\] drops tokens"):
        network(ce_loc=(3, 6))


def test_a_checkpoint_of_stock_ostrack_says_what_can_be_kept(stand_in):
    stock, ours = network(type="vit_base_patch16_224"), network()
    with pytest.raises(RuntimeError, match=r"2 tensors under backbone\. are a ViT's.*load_stock loads"):
        ours.load_state_dict(stock.state_dict(), strict=True)
    report = ostrack.load_stock(ours, {"net": stock.state_dict(), "epoch": 300})
    assert report.loaded == ("box_head.conv1.bias", "box_head.conv2.weight", "box_head.conv2.bias")
    left = {"backbone.patch_embed.weight", "backbone.patch_embed.bias", "box_head.conv1.weight"}
    assert set(report.unexpected) == left


def test_without_ostrack_the_error_says_what_to_get():
    for use in (ostrack.install, lambda: ostrack.build_ostrack(config())):
        with pytest.raises(ModuleNotFoundError, match=r"github\.com/botaoye/OSTrack .*PYTHONPATH"):
            use()


def test_example(stand_in, capsys):
    runpy.run_path(str(ROOT / "examples" / "ca_ostrack.py"), run_name="__main__")
    assert "score map (1, 1, 8, 8)" in capsys.readouterr().out
