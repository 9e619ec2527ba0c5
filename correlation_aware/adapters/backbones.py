"""What the adapters share: networks of the zoo with the strides that a tracker needs, and former names."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.models.contract import FeatureNet, TwoInputModel
from correlation_aware.zoo import create_model, list_models

# names of the zoo that have these strides, for errors; tests/test_adapter_backbones.py tries some of each
FITTING = {
    (8,): ("sbt_*", "siam_*"),
    (16,): ("sbt_*", "siam_sbt_*", "supersbt_*", "onestream_vit_*"),
    (8, 16): ("sbt_*", "supersbt_*"),
    (4, 8, 16): ("sbt_*", "supersbt_*"),
}

__all__ = ["create_backbone", "create_features", "current_name", "cut_templates", "in_zoo", "renamed"]


def create_backbone(
    tracker: str,
    name: str,
    stride: int,
    pretrained: bool | str | Path = False,
    options: Mapping[str, Any] | None = None,
) -> TwoInputModel:
    """A feature network of the zoo whose features have one stride.

    A network of another stride is created with `output_stride`.

    Args:
        tracker: Name of the tracker, for errors.
        name: As of `create_model`.
        stride: Stride in pixels that the tracker needs.
        pretrained: As of `create_model`.
        options: Further arguments of `create_model`.

    Raises:
        ValueError: An unknown name, not a feature network, or a stride that the network does not have.
        TypeError: An option that the network does not have.
    """
    _, arguments = _fit(tracker, name, [stride], options or {}, lambda strides: strides[-1] == stride)
    net: Any = create_model(name, pretrained, **arguments)
    assert isinstance(net, TwoInputModel)
    return net


def create_features(
    tracker: str,
    name: str,
    strides: Sequence[int],
    pretrained: bool | str | Path = False,
    options: Mapping[str, Any] | None = None,
) -> FeatureNet:
    """A network of the zoo that returns a list of features, one for each of `strides`.

    Args:
        tracker: Name of the tracker, for errors.
        name: As of `create_model`.
        strides: Strides in pixels that the tracker needs, from fine to coarse.
        pretrained: As of `create_model`.
        options: Further arguments of `create_model`.

    Raises:
        ValueError, TypeError: As of `create_backbone`.
    """
    actual, arguments = _fit(tracker, name, strides, options or {}, lambda given: set(strides) <= set(given))
    last = {stride: level for level, stride in enumerate(actual)}  # the last level of each stride
    levels = [last[stride] for stride in strides]
    net: Any = create_model(name, pretrained, features_only=True, out_indices=levels, **arguments)
    assert isinstance(net, FeatureNet)
    return net


def cut_templates(images: Tensor, boxes: Tensor, factor: float, size: int, padding: str = "border") -> Tensor:
    """Crops a square around every box and resizes it, bilinearly.

    Args:
        images: (N, C, H, W).
        boxes: (N, 4) x, y, w, h in pixels of `images`.
        factor: Side of the square over sqrt(w * h).
        size: Side of the crops in pixels.
        padding: What is outside the image: its repeated `border`, or `zeros`.

    Returns:
        (N, C, size, size).

    Raises:
        ValueError: Other shapes.
    """
    if images.ndim != 4 or boxes.shape != (images.shape[0], 4):
        raise ValueError(
            f"images {tuple(images.shape)} and boxes {tuple(boxes.shape)} must have the shapes "
            "(N, channels, height, width) and (N, 4): one box (x, y, w, h) for each image."
        )
    boxes = boxes.to(images)
    sides = factor * boxes[:, 2:].clamp(min=1).prod(dim=1).sqrt()
    image_size = boxes.new_tensor([images.shape[3], images.shape[2]])
    centers = (2 * boxes[:, :2] + boxes[:, 2:]) / image_size - 1  # -1..1 over the image
    scales = torch.diag_embed(sides[:, None] / image_size)
    grid = F.affine_grid(
        torch.cat([scales, centers[..., None]], dim=2), [len(boxes), 1, size, size], align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def in_zoo(name: str) -> bool:
    """Whether a name, with or without a tag, is a model of the zoo."""
    return name.partition(".")[0] in list_models()


def renamed(module: dict[str, Any], names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for former names of its classes and constants.

    Args:
        module: Globals of the module.
        names: Present names by former names.
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        return module[current_name(name, names)]

    return lookup


def current_name(name: str, names: Mapping[str, str]) -> str:
    """The present name of `name`; a `DeprecationWarning` if it is a former one."""
    if name not in names:
        return name
    warnings.warn(
        f"{name!r} is called {names[name]!r} now; the old name will be removed after the next release.",
        DeprecationWarning,
        stacklevel=3,
    )
    return names[name]


def _fit(
    tracker: str,
    name: str,
    strides: Sequence[int],
    options: Mapping[str, Any],
    fits: Callable[[list[int]], bool],
) -> tuple[list[int], Mapping[str, Any]]:
    """The strides of the network's levels, and the arguments that it needs to have them."""
    actual = _strides(tracker, name, options)
    if fits(actual):
        return actual, options
    needed = ", ".join(map(str, strides))
    problem = f"{tracker} needs features of stride {needed}; those of {name!r} have {actual}"
    advice = f"Networks that fit: {', '.join(FITTING[tuple(strides)])}; see docs/adapters.md."
    if "output_stride" in options:
        raise ValueError(f"{problem} with output_stride={options['output_stride']}: leave that out.")
    arguments = {**options, "output_stride": strides[-1]}
    try:
        changed = _strides(tracker, name, arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{problem}, and output_stride={strides[-1]} is refused: {error} {advice}"
        ) from error
    if not fits(changed):
        raise ValueError(f"{problem}, and with output_stride={strides[-1]} {changed}. {advice}")
    return changed, arguments


def _strides(tracker: str, name: str, options: Mapping[str, Any]) -> list[int]:
    net: Any = create_model(name, **{**options, "device": "meta"})
    if not isinstance(net, TwoInputModel):
        raise ValueError(
            f"{tracker} needs a feature network, and {name!r} is a {type(net).__name__}: take a name without "
            "_track or _cls."
        )
    strides: list[int] = net.feature_info.reduction()
    return strides
