"""OSTrack's own unmodified networks and ours, with the same seeded weights, on more sizes than in data/."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
SIZES = [(128, 256), (112, 240), (192, 384), (64, 144), (224, 224)]  # template, search


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a process prints that has OSTrack's code on its path."""
    root = request.config.getoption("--peers")
    if root is None:
        pytest.skip("needs a checkout of OSTrack: pytest tests -m peers --peers DIR")
    path = [str(p) for p in (ROOT, ROOT / "benchmarks", Path(root).resolve() / "OSTrack")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_features_scores_and_boxes(result: dict[str, Any]) -> None:
    assert len(result["pairs"]) == 3 * len(SIZES)
    for case in result["pairs"]:
        assert case["difference"] < 2e-5 and case["kept_equal"], case


def test_corners(result: dict[str, Any]) -> None:
    assert result["corners"] < 1e-6


def test_position_tables_from_an_image_net(result: dict[str, Any]) -> None:
    assert result["tables"] == 0


# In the process with OSTrack's code


def largest(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


@torch.inference_mode()
def compare_pair(seed: int, sizes: tuple[int, int], name: str, **arguments: Any) -> dict[str, Any]:
    import golden_vit
    from peers import vit

    import correlation_aware as ca

    template_size, search_size = sizes
    model: Any = ca.create_model(name, template_size=template_size, search_size=search_size, **arguments)
    shapes = {n: list(t.shape) for n, t in vit.to_upstream(model.state_dict()).items()}
    tensors = golden_vit.state_dict(shapes, salt=str(seed))
    model.load_state_dict(ca.weights.convert_state_dict(tensors, "ostrack"))
    upstream = vit.ostrack(model.eval())
    pair = golden_vit.images((seed, seed + 100), template_size, search_size)
    scores, boxes = upstream(*pair)
    output = model(*pair)
    side = search_size // 16
    mask = None if upstream.mask is None else upstream.mask.flatten(1).expand(2, -1)
    tokens, more = upstream.network.backbone(*pair, ce_template_mask=mask)
    theirs = tokens[:, -(side**2) :].mT.unflatten(2, (side, side))
    kept = model.backbone.kept_locations(*pair)
    removed = more.get("removed_indexes_s", [])
    equal = len(kept) == len(removed)
    for i, positions in enumerate(kept):
        gone = torch.cat(removed[: i + 1], dim=1).long()
        both = torch.cat([positions, gone], dim=1).sort(dim=1).values
        equal = equal and torch.equal(both, torch.arange(side**2).expand(2, -1))
    differences = (
        largest(scores, output.scores),
        largest(boxes, output.boxes),
        largest(theirs, model.backbone(*pair)),
    )
    return {"name": name, "sizes": sizes, "difference": max(differences), "kept_equal": equal}


@torch.inference_mode()
def compare_corners() -> float:
    from lib.models.layers.head import Corner_Predictor

    from correlation_aware.models.heads import CornerHead
    from correlation_aware.weights import convert_state_dict

    theirs = Corner_Predictor(inplanes=48, channel=64, feat_sz=11, stride=16).eval()
    tensors = {f"box_head.{n}": 3 * t for n, t in theirs.state_dict().items() if t.is_floating_point()}
    theirs.load_state_dict({n[9:]: t for n, t in tensors.items()}, strict=False)
    ours = CornerHead(48, hidden=64).eval()
    converted = convert_state_dict(tensors, "ostrack")
    ours.load_state_dict({n[5:]: t for n, t in converted.items()}, strict=False)
    x = torch.randn(2, 48, 11, 11)
    (x1, y1, x2, y2), (cx, cy, w, h) = theirs(x).unbind(1), ours(x).boxes[..., 0, 0].unbind(1)
    pairs = ((cx, (x1 + x2) / 2), (cy, (y1 + y2) / 2))
    sizes = ((w, (x2 - x1).clamp(min=1e-4)), (h, (y2 - y1).clamp(min=1e-4)))
    return max(largest(a, b) for a, b in (*pairs, *sizes))


@torch.inference_mode()
def compare_tables() -> float:
    """The authors' `finetune_track` and our conversion of the same network of timm."""
    from peers import vit

    import correlation_aware as ca

    ours: Any = ca.create_model("onestream_vit_test", template_size=192, search_size=256)
    network = vit.build(ours.config, ours.sizes, head=False)
    image_net = {n: t for n, t in network.state_dict().items() if n[:10] != "pos_embed_"}
    ours.load_state_dict(ours.fit_checkpoint(ca.weights.convert_state_dict(image_net, "vit")))
    z, x = (t.flatten(2).mT for t in (ours.template_pos_embed, ours.search_pos_embed))
    return max(largest(z, network.pos_embed_z), largest(x, network.pos_embed_x))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _pairs = []
    for _seed, _sizes in enumerate(SIZES):
        _pairs.append(compare_pair(_seed, _sizes, "onestream_vit_test_track"))
        _pairs.append(compare_pair(_seed, _sizes, "onestream_vit_test_ce_track"))
        _pairs.append(compare_pair(_seed, _sizes, "onestream_vit_test_ce_track", elimination_query="all"))
    _result = {"pairs": _pairs, "corners": compare_corners(), "tables": compare_tables()}
    sys.stdout.write("\n" + json.dumps(_result) + "\n")
