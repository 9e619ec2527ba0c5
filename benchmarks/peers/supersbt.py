"""The authors' own SuperSBT, with our weights, as a contender of `correlation-aware bench model`.

    PYTHONPATH=benchmarks:SuperSBT correlation-aware bench model supersbt_light_track \\
        --contender peers.supersbt:authors

where SuperSBT is a checkout of https://github.com/phiphiphi31/SuperSBT.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from peers import shims
from torch import Tensor, nn

from correlation_aware.models.supersbt import checkpoint_filter_fn
from correlation_aware.models.tracker import TrackModel


class AuthorsSuperSBT(nn.Module):
    """Their network with the signature of a contender.

    Args:
        network: Their `supersbt`.
        has_head: Whether predictions are returned; else features.
    """

    def __init__(self, network: Any, has_head: bool) -> None:
        super().__init__()
        self.network, self.has_head = network, has_head

    def forward(self, template: Tensor | list[Tensor], search: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Scores (B, H, W) and boxes (B, 4, H, W) as ours, or features (B, C, H, W)."""
        if not self.has_head:
            tokens, _ = self.network.backbone(template, search)
            return tokens.mT.unflatten(2, (search.shape[2] // 16, search.shape[3] // 16))
        output = self.network(template, search)
        height, width = output["score_map"].shape[2:]
        device = search.device
        column = torch.arange(width, device=device).expand(height, width)
        row = torch.arange(height, device=device)[:, None].expand(height, width)
        corner = torch.stack([column, row]) + output["offset_map"]  # B, 2, H, W
        center = corner / torch.tensor([width, height], device=device)[:, None, None]
        return output["score_map"][:, 0], torch.cat([center, output["size_map"]], dim=1)


def authors(model: nn.Module) -> AuthorsSuperSBT:
    """Their network with the weights of ours.

    Args:
        model: A `supersbt_*` network, with or without its head.
    """
    backbone: Any = getattr(model, "backbone", model)
    network = build(backbone.sizes.template_size, backbone.sizes.search_size, len(backbone.stages[2].blocks))
    load_ours(network, model)
    parameter = next(model.parameters())
    has_head = isinstance(model, TrackModel)
    return AuthorsSuperSBT(network, has_head).to(parameter.device, parameter.dtype).eval()


def build(template_size: int, search_size: int, depth: int) -> Any:
    """Their tracker for square images of these sizes, of 6, 10 or 20 joint blocks."""
    shims.stark()
    shims.stub_missing("scipy.signal", "scipy.stats")
    name = {6: "light", 10: "small", 20: "base"}[depth]
    config = SimpleNamespace(
        DATA=SimpleNamespace(
            TEMPLATE=SimpleNamespace(SIZE=template_size), SEARCH=SimpleNamespace(SIZE=search_size)
        ),
        MODEL=SimpleNamespace(
            PRETRAIN_FILE="",
            BACKBONE=SimpleNamespace(TYPE=f"hvit_{name}", STRIDE=16),
            HEAD=SimpleNamespace(TYPE="CENTER", NUM_CHANNELS=256),
        ),
    )
    network = importlib.import_module("lib.models.supersbt").build_supersbt(config, training=False)
    return network.eval()


@torch.no_grad()
def load_ours(network: nn.Module, model: nn.Module) -> None:
    """Copies our weights into their network; a head that ours lacks keeps its own."""
    ours = model.state_dict()
    prefix = "" if any(name.startswith("backbone.") for name in ours) else "backbone."
    for name, tensor in checkpoint_filter_fn(network.state_dict()).items():  # views of their parameters
        source = ours.get(name.removeprefix(prefix))
        if source is not None:
            tensor.copy_(source)
