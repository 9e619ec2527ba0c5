"""A model split into graphs with tensor inputs and outputs, for export and for inference sessions."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware._timm import derive_pretrained_cfg
from correlation_aware.models.contract import FeatureNet, TwoInputModel, refuse_wrapper
from correlation_aware.models.tracker import TrackModel

__all__ = ["Graph", "SessionModel", "cast_input", "description", "split_graphs"]

SessionModel = TrackModel | TwoInputModel | FeatureNet
OWN_DATA = ("mean", "std", "license")  # what a wrapper has from the description of its network


def cast_input(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An input of a graph on a device, and in a dtype if it is floating-point: not indices and masks."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def description(model: nn.Module) -> dict[str, Any]:
    """The `pretrained_cfg` of a model: that of `create_model`, or for others one with default values.

    A tracker or feature network around a model of `create_model` has mean, std and license of that model.
    """
    own: dict[str, Any] | None = getattr(model, "pretrained_cfg", None)
    if own is not None:
        return own
    network: nn.Module = model
    if isinstance(model, TrackModel):
        network = model.backbone
    elif isinstance(model, FeatureNet):
        network = model.model
    known = getattr(network, "pretrained_cfg", {})
    described = {key: known[key] for key in OWN_DATA if key in known}
    return derive_pretrained_cfg(type(model).__name__, network, model, described)


@dataclass(frozen=True)
class Graph:
    """A part of a model with tensors as inputs and outputs.

    Attributes:
        name: Name of the graph: `template`, `search`, `pair` or `image`.
        module: Module from tensors, by position, to a tuple of tensors; the first dimension of all is the
            batch.
        inputs: Names of the inputs: `template`, `state` (one tensor or several), `search` or `image`.
        outputs: Names of the outputs; empty for `template`, whose outputs depend on the network.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    def example(self, seed: int, batch: int) -> tuple[Tensor, ...]:
        """Example inputs: images of smooth noise, and template states of such images.

        Args:
            seed: Seed of the random number generator.
            batch: Batch size.
        """
        model: Any = self.module.model
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)

        def image(side: int) -> Tensor:
            coarse = torch.randn(batch, model.in_chans, 6, 6, generator=generator)
            smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
            return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(device)

        inputs: list[Tensor] = []
        for name in self.inputs:
            if name == "image":
                inputs.append(image(description(model)["input_size"][-1]))
            elif name == "search":
                inputs.append(image(model.sizes.search_size))
            else:
                template = image(model.sizes.template_size)
                inputs.extend([template] if name == "template" else model.encode_template(template))
        return tuple(inputs)

    def input_names(self, count: int) -> list[str]:
        """Names of `count` input tensors; the tensors of a state are `state`, or `state_0`, `state_1`, ..."""
        names = []
        for name in self.inputs:
            names += state_names(count - len(self.inputs) + 1) if name == "state" else [name]
        return names

    def output_names(self, count: int) -> list[str]:
        """Names of `count` output tensors."""
        return list(self.outputs) or state_names(count)


def state_names(count: int) -> list[str]:
    """Names of the tensors of a template state in exported files."""
    return ["state"] if count == 1 else [f"state_{i}" for i in range(count)]


class TemplateGraph(nn.Module):
    """Template (B, 3, Hz, Wz) -> tensors of the template state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_template(template))  # type: ignore[operator]


class SearchGraph(nn.Module):
    """Tensors of the template state and search image (B, 3, Hx, Wx) -> predictions or features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _outputs(self.model, self.model(tensors[:-1], tensors[-1]))


class PairGraph(nn.Module):
    """Template (B, 3, Hz, Wz) and search image (B, 3, Hx, Wx) -> predictions or features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        return _outputs(self.model, self.model(template, search))


class ImageGraph(nn.Module):
    """Image (B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.model(image),)


def split_graphs(model: nn.Module) -> dict[str, Graph]:
    """Splits a model into graphs.

    A classifier has one graph, `image`. All other models have `template`, to be run once per target, and
    `search`, to be run once per frame; `pair` is both in one. The outputs of a tracker are `scores`
    (B, H, W) and `boxes` (B, 4, H, W), cxcywh in 0..1 of the search image. Those of a feature network are
    `features` (B, C, H, W), or `features_0`, `features_1`, ... per level with `features_only`.

    Args:
        model: Model of `create_model`, or a `TwoInputModel`, `FeatureNet` or `TrackModel` made by hand.

    Returns:
        The graphs by name.

    Raises:
        ValueError: Another module, or a wrapper around a model.
    """
    refuse_wrapper(model)
    if isinstance(model, TrackModel):
        outputs: tuple[str, ...] = ("scores", "boxes")
    elif isinstance(model, FeatureNet):
        outputs = tuple(f"features_{i}" for i in model.out_indices)
    elif isinstance(model, TwoInputModel):
        outputs = ("features",)
    elif hasattr(model, "pretrained_cfg") and hasattr(model, "get_classifier"):
        return {"image": Graph("image", ImageGraph(model), ("image",), ("logits",))}
    else:
        raise ValueError(
            f"{type(model).__name__} is not a model of create_model, nor a TwoInputModel, FeatureNet or "
            "TrackModel."
        )
    graphs = (
        Graph("template", TemplateGraph(model), ("template",)),
        Graph("search", SearchGraph(model), ("state", "search"), outputs),
        Graph("pair", PairGraph(model), ("template", "search"), outputs),
    )
    return {graph.name: graph for graph in graphs}


def _outputs(model: nn.Module, output: object) -> tuple[Tensor, ...]:
    if isinstance(model, TrackModel):
        return output.scores, output.boxes  # type: ignore[attr-defined]
    return tuple(output) if isinstance(output, list) else (output,)  # type: ignore[return-value]
