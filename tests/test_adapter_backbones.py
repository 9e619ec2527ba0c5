"""Which networks of the zoo each adapter takes, by their strides, and what it says of the others."""

import functools
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import correlation_aware as ca
from correlation_aware.adapters import backbones

NETWORKS = [
    "sbt_test",
    "siam_test",
    "siam_resnet50_dw",
    "siam_sbt_base_dw",
    "supersbt_test",
    "onestream_vit_test",
]
TRACKERS = {"SiamFC++": (8,), "DiMP": (8, 16), "STARK": (16,), "STM": (4, 8, 16), "OSTrack": (16,)}
PAGE = (Path(__file__).resolve().parent.parent / "docs" / "adapters.md").read_text(encoding="utf-8")


@pytest.fixture
def create(monkeypatch):
    """`create_backbone` or `create_features` for strides, without memory for weights."""
    on_meta = functools.partial(ca.create_model, device="meta")
    monkeypatch.setattr(
        backbones, "create_model", lambda *args, device=None, **kwargs: on_meta(*args, **kwargs)
    )

    def make(tracker, name, strides):
        if len(strides) > 1:
            return backbones.create_features(tracker, name, strides)
        return backbones.create_backbone(tracker, name, *strides)

    return make


@pytest.mark.parametrize("strides", backbones.FITTING)
def test_networks_have_the_strides_of_a_tracker_or_are_refused(create, strides):
    for name in NETWORKS:
        if any(fnmatch(name, pattern) for pattern in backbones.FITTING[strides]):
            reductions = create("Acme", name, strides).feature_info.reduction()
            assert reductions[-len(strides) :] == list(strides), name
            continue
        needed = re.escape(", ".join(map(str, strides)))
        message = (
            rf"Acme needs features of stride {needed}; those of '{name}' have .* Networks that fit: sbt_\*"
        )
        with pytest.raises(ValueError, match=message):
            create("Acme", name, strides)


def test_the_page_says_which_networks_fit():
    for tracker, strides in TRACKERS.items():
        (row,) = re.findall(rf"^\| {re.escape(tracker)} \|.*$", PAGE, re.MULTILINE)
        for pattern in backbones.FITTING[strides]:
            assert f"`{pattern}`" in row, (tracker, pattern)
