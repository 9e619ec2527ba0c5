"""The golden cases of OSTrack's code: the rule that fills weights and images, and what wrote the outputs.

`PYTHONPATH=benchmarks:OSTRACK python tests/golden_vit.py` writes `data/golden_vit.*` anew, where OSTRACK is a
checkout of github.com/botaoye/OSTrack. Nothing else of this file needs one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from golden import image, parameter
from safetensors.torch import load_file, save_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
STEP = 5  # every fifth token is kept of the features
SIZES = {"template_size": 128, "search_size": 192}
# our name, arguments of it, seeds of the two images
CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("onestream_vit_test_track", {}, (11, 21)),
    ("onestream_vit_test_ce_track", {}, (12, 22)),
    ("onestream_vit_test_ce_track", {"elimination_query": "all"}, (13, 23)),
]


def state_dict(shapes: dict[str, list[int]], salt: str = "") -> dict[str, Tensor]:
    """All parameters and buffers of a case under the authors' names."""
    return {name: parameter(name, shape, salt) for name, shape in shapes.items()}


def images(seeds: tuple[int, int], template_size: int, search_size: int) -> tuple[Tensor, Tensor]:
    """Two templates and two search images."""
    return image(seeds[0], [template_size] * 2), image(seeds[1], [search_size] * 2)


def golden() -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Names and shapes of the authors' parameters, and their outputs."""
    shapes = json.loads((DATA / "golden_vit.json").read_text())["parameters"]
    return shapes, load_file(DATA / "golden_vit.safetensors")


@torch.inference_mode()
def write() -> None:
    """Runs OSTrack's code on the cases, and its corner head on the features of the first."""
    from peers import vit

    import correlation_aware as ca

    outputs: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for i, (name, arguments, seeds) in enumerate(CASES):
        ours: Any = ca.create_model(name, device="meta", **SIZES, **arguments).backbone
        network = vit.build(ours.config, ours.sizes).eval()
        own = {n: list(t.shape) for n, t in network.state_dict().items()}
        network.load_state_dict(state_dict(own))
        shapes |= own
        mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        mask[:, 3, 3] = True
        used = None if arguments or not ours.config.elimination_blocks else mask.flatten(1)
        out = network(*images(seeds, **SIZES), ce_template_mask=used)
        tokens = out["backbone_feat"][1]
        outputs[f"{i}.template"], outputs[f"{i}.search"] = tokens[:64:STEP], tokens[64::STEP]
        for key in ("score_map", "size_map", "offset_map"):
            outputs[f"{i}.{key}"] = out[key][1]
        left = set(range(len(tokens) - 64))
        for j, removed in enumerate(out.get("removed_indexes_s", [])):
            left -= {int(position) for position in removed[1]}
            outputs[f"{i}.kept_{j}"] = torch.tensor(sorted(left), dtype=torch.int32)
        if i == 0:
            heads = sys.modules["lib.models.layers.head"]
            corner = heads.Corner_Predictor(inplanes=48, channel=256, feat_sz=12, stride=16).eval()
            own = {f"box_head.{n}": list(t.shape) for n, t in corner.state_dict().items()}
            corner.load_state_dict({n[9:]: t for n, t in state_dict(own).items()})
            shapes |= own
            outputs["corners"] = corner(out["backbone_feat"][:, 64:].mT.unflatten(2, (12, 12)))
    text = {"upstream": "github.com/botaoye/OSTrack at 33b5e12", "parameters": shapes}
    (DATA / "golden_vit.json").write_text(json.dumps(text, indent=0) + "\n")
    save_file({name: t.contiguous() for name, t in outputs.items()}, DATA / "golden_vit.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
