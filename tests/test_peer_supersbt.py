"""The authors' own unmodified code of SuperSBT gives the numbers of ours, with our weights in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
# name, template and search size, tables of positions for them, number of templates
CASES = [
    ("supersbt_light_track", 128, 256, 1),
    ("supersbt_light_track", 128, 256, 2),
    ("supersbt_light_track", 96, 208, 1),
    ("supersbt_light_track", 112, 240, 2),
    ("supersbt_small_track", 64, 64, 1),
    ("supersbt_small_track", 16, 336, 2),
    ("supersbt_base_track", 128, 256, 2),
]
SEEDS = range(5)


@pytest.mark.parametrize(("name", "template_size", "search_size", "templates"), CASES)
def test_the_outputs_equal_theirs(peer, name, template_size, search_size, templates):
    differences = run(peer("SuperSBT"), "compare", name, template_size, search_size, templates)
    assert len(differences) == len(SEEDS)
    for difference in differences:
        assert difference["features"] < 2e-5 and difference["scores"] < 2e-5 and difference["boxes"] < 2e-5
        assert difference["spread"] > 0.1  # of the scores: not all alike


def test_a_pretrained_network_starts_theirs_and_ours_alike(peer, tmp_path):
    (difference,) = run(peer("SuperSBT"), "start", str(tmp_path / "mae_hivit_base.pth"))
    assert difference["features"] < 2e-5 and difference["positions"] == 0


def run(checkout: Path, job: str, *arguments: object) -> list[dict[str, float]]:
    """The result of a job in a process of its own: the packages of several trackers are called `lib`."""
    path = [ROOT, ROOT / "benchmarks", checkout, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, job, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


@torch.inference_mode()
def compare(name: str, template_size: int, search_size: int, templates: int) -> list[dict[str, float]]:
    """The largest differences for every seed, of weights and of two pairs of images."""
    from peers import supersbt

    import correlation_aware as ca

    differences = []
    for seed in SEEDS:
        model = ca.create_model(
            name,
            template_size=template_size,
            search_size=search_size,
            template_grid=template_size // 16,
            search_grid=search_size // 16,
        ).eval()
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in model.state_dict().items():
            spread(key, tensor, generator)
        theirs = supersbt.authors(model)
        images = [
            torch.randn(2, 3, template_size, template_size, generator=generator) for _ in range(templates)
        ]
        search = torch.randn(2, 3, search_size, search_size, generator=generator)
        state = model.backbone.join_templates([model.encode_template(image) for image in images])
        features, output = model.backbone(state, search), model(state, search)
        tokens, _ = theirs.network.backbone(images, search)
        scores, boxes = theirs(images, search)
        pairs = {
            "features": (features.flatten(2).mT, tokens),
            "scores": (output.scores, scores),
            "boxes": (output.boxes, boxes),
        }
        difference = {key: (a - b).abs().max().item() for key, (a, b) in pairs.items()}
        differences.append(difference | {"spread": (scores.max() - scores.min()).item()})
    return differences


@torch.inference_mode()
def start(file: str) -> list[dict[str, float]]:
    """Differences after a start from a file of a masked autoencoder for 224 px, with random weights."""
    from peers import supersbt

    import correlation_aware as ca

    theirs = supersbt.build(128, 256, depth=20).backbone
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, tensor in theirs.state_dict().items():
        size = {"absolute_pos_embed": (1, 14 * 14, 512), "norm.weight": (3584,), "norm.bias": (3584,)}
        tensors[key] = torch.empty(size.get(key, tensor.shape))
        spread(key, tensors[key], generator)
    torch.save({**tensors, "mask_token": torch.zeros(1, 1, 512)}, file)
    sys.modules["lib.models.supersbt.hvit"].load_pretrained(theirs, file)
    ours = ca.create_model("supersbt_base", pretrained=file).eval()
    template = torch.randn(1, 3, 128, 128, generator=generator)
    search = torch.randn(1, 3, 256, 256, generator=generator)
    features, (tokens, _) = ours(template, search), theirs(template, search)
    return [
        {
            "features": (features.flatten(2).mT - tokens).abs().max().item(),
            "positions": (ours.pos_embed - theirs.absolute_pos_embed).abs().max().item(),
        }
    ]


def spread(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    """Fills a parameter or buffer such that features and scores differ from location to location."""
    if not tensor.is_floating_point():
        return
    noise = torch.randn(tensor.shape, generator=generator)
    if "pos_embed" in name:
        tensor.copy_(0.5 * noise)
    elif name.endswith("running_var"):
        tensor.copy_((0.2 * noise).exp())
    elif tensor.ndim == 1:
        tensor.copy_(name.endswith("weight") + 0.1 * noise)
    else:
        tensor.copy_(
            noise * (2 / tensor[0].numel() if name.startswith("head.") else 1 / tensor[0].numel()) ** 0.5
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = {"compare": compare, "start": start}[sys.argv[1]]
    sys.stdout.write("\n" + json.dumps(job(*json.loads(sys.argv[2]))) + "\n")
