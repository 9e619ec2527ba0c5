"""The weights that a run starts from: how many blocks or stages take them."""

import pytest
import torch

import correlation_aware as ca
from correlation_aware.training.config import ModelConfig
from correlation_aware.training.start import load_start


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved models by name."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: ca.save_pretrained(ca.create_model(name), folder / name)
        for name in ("sbt_test_track", "siam_test_track", "sbt_test_cls", "onestream_vit_test_track")
    }


def started(name, folder, **part):
    """Names of the tensors that are the saved ones, and of those that are random, after the start."""
    saved = ca.create_model(folder, pretrained=True).state_dict()
    torch.manual_seed(3)
    model = ca.create_model(name)
    fresh = {n: value.clone() for n, value in model.state_dict().items()}
    load_start(model, ModelConfig(name, pretrained=str(folder), **part))
    differ = {n for n in fresh if not torch.equal(fresh[n], saved[n])}
    after = model.state_dict()
    assert all(torch.equal(after[n], saved[n]) or torch.equal(after[n], fresh[n]) for n in after)
    loaded = {n for n in differ if torch.equal(after[n], saved[n])}
    return loaded, differ - loaded


@pytest.mark.parametrize(
    ("name", "part", "prefixes"),
    [
        ("sbt_test_track", {"pretrained_blocks": 1}, ["backbone.stages.0."]),
        (
            "sbt_test_track",
            {"pretrained_blocks": 3},
            [
                "backbone.stages.0.",
                "backbone.stages.1.",
                "backbone.stages.2.embed.",
                "backbone.stages.2.blocks.0.",
            ],
        ),
        ("sbt_test_track", {"pretrained_stages": 3}, ["backbone."]),
        ("sbt_test_track", {}, ["backbone.", "head."]),
        (
            "siam_test_track",
            {"pretrained_blocks": 2},
            ["backbone.extractor.conv_stem.", "backbone.extractor.blocks.0.", "backbone.extractor.blocks.1."],
        ),
        ("sbt_test_cls", {"pretrained_stages": 2}, ["stages.0.", "stages.1."]),
        (
            "onestream_vit_test_track",
            {"pretrained_blocks": 1},
            ["backbone.patch_embed.", "backbone.template_pos", "backbone.search_pos", "backbone.blocks.0."],
        ),
    ],
)
def test_the_first_blocks_or_stages_start_from_the_weights(folders, name, part, prefixes):
    loaded, fresh = started(name, folders[name], **part)
    assert {n for n in loaded | fresh if n.startswith(tuple(prefixes))} == loaded
    assert all(any(n.startswith(prefix) for n in loaded) for prefix in prefixes)
    assert part == {} or fresh


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"pretrained_blocks": 7}, r"has 6 blocks: 1 stages\.0\.blocks\.0; 2 stages\.1; .*Choose 1 to 6"),
        ({"pretrained_stages": 4}, r"model\.pretrained_stages=4: .* has 3 stages: .*3 stages\.2\."),
        ({"pretrained_blocks": 2, "pretrained_stages": 1}, "are set: remove one"),
        ({"pretrained_blocks": 0}, "model.pretrained_blocks=0 must be at least 1"),
        ({"pretrained_blocks": 1, "pretrained": None}, "no effect without weights"),
    ],
)
def test_errors_of_the_first_blocks(folders, part, message):
    model = ca.create_model("sbt_test_track")
    before = {n: value.clone() for n, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_start(
            model, ModelConfig("sbt_test_track", **{"pretrained": str(folders["sbt_test_track"]), **part})
        )
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
