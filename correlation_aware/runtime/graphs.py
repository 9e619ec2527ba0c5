"""A model cut into graphs of plain tensors: what is exported, and what sessions run."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.models.sbt import SBT, SBTClassifier, SBTFeatures, TemplateState
from correlation_aware.models.tracker import TrackModel

__all__ = ["Graph", "TwoInput", "cut"]

TwoInput = TrackModel | SBT | SBTFeatures


@dataclass(frozen=True)
class Graph:
    """A part of a model.

    Attributes:
        name: `template`, `search`, `pair` or `image`.
        module: Takes tensors by position, gives a tuple of tensors; the first dimension of all is the batch.
        inputs: Names of what it takes: `template`, `state`, `search` or `image`.
        outputs: Names of what it gives.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def example(self, seed: int, batch: int) -> tuple[Tensor, ...]:
        """Inputs as real as can be had without a photograph: soft blobs and noise, states made from them."""
        model = self.module.model
        assert isinstance(model, nn.Module)
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)

        def picture(side: int) -> Tensor:
            channels = _config(model).get("in_chans", 3)
            coarse = torch.randn(batch, channels, 6, 6, generator=generator)
            smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
            return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(device)

        inputs = []
        for name in self.inputs:
            small = name in ("template", "state")
            made = picture(_config(model)["template_size" if small else "input_size"])
            inputs.append(TemplateGraph(model)(made)[0] if name == "state" else made)
        return tuple(inputs)


class TemplateGraph(nn.Module):
    """(B, 3, Hz, Wz) -> the template's state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor) -> tuple[Tensor]:
        return (self.model.encode_template(template).features,)  # type: ignore[operator]


class SearchGraph(nn.Module):
    """The template's state, (B, 3, Hx, Wx) -> predictions or features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model, TemplateState(state), search)


class PairGraph(nn.Module):
    """(B, 3, Hz, Wz), (B, 3, Hx, Wx) -> predictions or features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model, template, search)


class ImageGraph(nn.Module):
    """(B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.model(image),)


def cut(model: nn.Module) -> dict[str, Graph]:
    """The graphs of a model of the zoo, by name.

    A classifier is one graph, `image`. Any other is `template` (to be run once per target) with `search`
    (once per frame), and both together as `pair`. A tracker gives `scores` (B, H, W) and `boxes`
    (B, 4, H, W), cxcywh in 0..1 of the search picture; a feature network `features` (B, C, H, W), one per
    stage with `features_only`.

    Raises:
        ValueError: Not a model of the zoo.
    """
    if isinstance(model, SBTClassifier):
        return {"image": Graph("image", ImageGraph(model), ("image",), ("logits",))}
    if isinstance(model, TrackModel):
        outputs: tuple[str, ...] = ("scores", "boxes")
    elif isinstance(model, SBTFeatures):
        outputs = tuple(f"features_{i}" for i in model.out_indices)
    elif isinstance(model, SBT):
        outputs = ("features",)
    else:
        raise ValueError(f"{type(model).__name__} is not a model of create_model.")
    graphs = (
        Graph("template", TemplateGraph(model), ("template",), ("state",)),
        Graph("search", SearchGraph(model), ("state", "search"), outputs),
        Graph("pair", PairGraph(model), ("template", "search"), outputs),
    )
    return {graph.name: graph for graph in graphs}


def _tensors(model: nn.Module, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, ...]:
    found = model(template, search)
    if isinstance(model, TrackModel):
        return found.scores, found.boxes
    return tuple(found) if isinstance(found, list) else (found,)


def _config(model: nn.Module) -> dict[str, int]:
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    sides = {key: config[key][-1] for key in ("template_size", "input_size")}
    return {**sides, "in_chans": config["input_size"][0]}
