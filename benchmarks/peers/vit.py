"""OSTrack's own networks with our weights, to be timed beside ours and to be compared with.

`PYTHONPATH=benchmarks:OSTRACK correlation-aware bench model onestream_vit_base_256_track --contender
peers.vit:ostrack`, where OSTRACK is a checkout of github.com/botaoye/OSTrack. Its code is imported and run,
eagerly, as it is; `shims.py` makes it importable.
"""

import importlib
import math
import re
from types import SimpleNamespace
from typing import Any

import torch
from peers import shims
from torch import Tensor, nn

__all__ = ["Upstream", "build", "ostrack", "to_upstream"]


class Upstream(nn.Module):
    """Template (B, 3, Hz, Wz) and search image (B, 3, Hx, Wx) to the outputs of our models.

    Args:
        network: The authors' `OSTrack`, or their backbone alone.
        mask_row: Row and column of the template token that decides on eliminations; None for all tokens.
    """

    def __init__(self, network: Any, grid: int, mask_row: int | None) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.mask = None
        if mask_row is not None:
            self.mask = torch.zeros(1, grid, grid, dtype=torch.bool)
            self.mask[:, mask_row, mask_row] = True

    def forward(self, template: Tensor, search: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mask = None if self.mask is None else self.mask.flatten(1).expand(len(template), -1)
        side = search.shape[-1] // 16
        if not hasattr(self.network, "box_head"):
            tokens, _ = self.network(template, search, ce_template_mask=mask)
            return tokens[:, -(side**2) :].mT.unflatten(2, (side, side)).contiguous()
        output = self.network(template, search, ce_template_mask=mask)
        scores, size, offset = (output[f"{name}_map"] for name in ("score", "size", "offset"))
        column = torch.arange(side, device=scores.device)
        center = torch.stack([(column + offset[:, 0]) / side, (column[:, None] + offset[:, 1]) / side], dim=1)
        return scores[:, 0], torch.cat([center, size], dim=1)


def build(config: Any, sizes: Any, head: bool = True) -> Any:
    """The authors' network of one of our configurations.

    Args:
        config: `ViTConfig` of this package.
        sizes: `Sizes`.
        head: Add their center head.
    """
    shims.stark()
    arguments: dict[str, Any] = {
        "patch_size": 16,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
    }
    if config.elimination_blocks:
        cls = importlib.import_module("lib.models.ostrack.vit_ce").VisionTransformerCE
        arguments["ce_loc"] = list(config.elimination_blocks)
        arguments["ce_keep_ratio"] = [config.keep_ratio] * len(config.elimination_blocks)
    else:
        cls = importlib.import_module("lib.models.ostrack.vit").VisionTransformer
    backbone = cls(**arguments)
    data = SimpleNamespace(
        SEARCH=SimpleNamespace(SIZE=sizes.search_size), TEMPLATE=SimpleNamespace(SIZE=sizes.template_size)
    )
    options = SimpleNamespace(STRIDE=16, CAT_MODE="direct", SEP_SEG=False)
    model = SimpleNamespace(BACKBONE=options, RETURN_INTER=False, RETURN_STAGES=[])
    backbone.finetune_track(SimpleNamespace(DATA=data, MODEL=model), patch_start_index=1)
    if not head:
        return backbone
    heads = importlib.import_module("lib.models.layers.head")
    center = heads.CenterPredictor(
        inplanes=config.dim, channel=256, feat_sz=sizes.search_size // 16, stride=16
    )
    return importlib.import_module("lib.models.ostrack.ostrack").OSTrack(backbone, center, head_type="CENTER")


def to_upstream(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tracker's tensors by the authors' names; their unused `pos_embed` and `cls_token` are not there."""
    branches = {"score": "ctr", "top_left": "tl", "bottom_right": "br"}
    converted = {}
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r"backbone\.(template|search)_pos_embed", name):
            name, tensor = f"backbone.pos_embed_{'zx'[match[1] == 'search']}", tensor.flatten(2).mT
        elif match := re.fullmatch(r"head\.(\w+)\.(\d)\.(.+)", name):
            name = f"box_head.conv{int(match[2]) + 1}_{branches.get(match[1], match[1])}.{match[3]}"
        converted[name] = tensor.clone()
    return converted


def ostrack(model: Any) -> Upstream:
    """The authors' network with the weights of a `onestream_vit_*` model, with or without `_track`.

    Raises:
        ValueError: A variant that the authors' code does not have.
    """
    tracker = hasattr(model, "backbone")
    network = model.backbone if tracker else model
    config = network.config
    if config.template_attends != "both" or config.pre_norm:
        raise ValueError("OSTrack's code has neither template_attends='self' nor pre_norm.")
    upstream = build(config, network.sizes, head=tracker)
    prefix = "" if tracker else "backbone."
    tensors = to_upstream({prefix + name: tensor for name, tensor in model.state_dict().items()})
    missing, unexpected = upstream.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, strict=False
    )
    assert not unexpected and {name.rpartition(".")[2] for name in missing} == {"pos_embed", "cls_token"}
    parameter = next(model.parameters())
    side = math.isqrt(network.template_pos_embed.shape[2] * network.template_pos_embed.shape[3])
    row = (side - 1) // 2 if config.elimination_query == "center" else None
    return Upstream(upstream.to(parameter.device, parameter.dtype).eval(), side, row).to(parameter.device)
